"""MLflow: one run per job, on a tracking server or in files."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from kdsteps.loggers.base import Epoch, Logger, Training

_FILES = "logs/live/mlflow"
_LOCK = Path(".kdsteps/mlflow.lock")  # two jobs that start at once must not make two experiments
_JOB, _BEGAN = "kdsteps.job", "kdsteps.began"
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""By default, MLflow tries for minutes to reach a server that is gone."""


class Writer(Logger):
    """A run with the name of the job, in an experiment with the name of the study's folder.

    The run has tags with the job and the time at which its training began, by which it is found
    when the training continues; epochs that it has already are skipped.

    Args:
        uri: Tracking server; by default that of MLFLOW_TRACKING_URI, else files in
            logs/live/mlflow.
        experiment: Name of the experiment; by default that of the study's folder.
    """

    def __init__(
        self, training: Training, *, uri: str | None = None, experiment: str | None = None
    ) -> None:
        super().__init__(training)
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or Path(_FILES).absolute().as_uri()
        # files are all that mlflow-skinny can write by itself; newer versions want to be told
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        self._run, self._last = self._run_of(training, experiment or Path.cwd().name)

    def log(self, epoch: Epoch) -> None:
        from mlflow.entities import Metric

        if epoch.number <= self._last:
            return
        when = round(1000 * epoch.time)
        metrics = [Metric(name, v, when, epoch.number) for name, v in epoch.values.items()]
        metrics.append(Metric("epoch", epoch.number, when, epoch.number))
        self._client.log_batch(self._run, metrics=metrics)
        self._last = epoch.number

    def close(self) -> None:
        status = "FINISHED" if self._last >= self.training.epochs else "KILLED"
        self._client.set_terminated(self._run, status)

    def _run_of(self, training: Training, experiment: str) -> tuple[str, int]:
        """The run of a training, which is made if there is none, and the last epoch that it has."""
        client, tags = self._client, {_JOB: training.job, _BEGAN: repr(training.began)}
        with _LOCK.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = client.get_experiment_by_name(experiment)
            number = found.experiment_id if found else client.create_experiment(experiment)
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        runs = client.search_runs([number], wanted, max_results=1)
        if not runs:
            return client.create_run(number, None, tags, training.job).info.run_id, 0
        client.update_run(runs[0].info.run_id, status="RUNNING")
        return runs[0].info.run_id, int(runs[0].data.metrics.get("epoch", 0))
