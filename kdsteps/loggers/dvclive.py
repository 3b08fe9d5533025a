"""DVCLive: one folder of tables per job, for `dvc plots` and the DVC extension of VS Code."""

from __future__ import annotations

import os
from contextlib import chdir
from pathlib import Path

from kdsteps.loggers.base import Epoch, Logger, Training

_OF_A_PIPELINE = ("DVC_ROOT", "DVC_EXP_BASELINE_REV", "DVC_EXP_NAME", "DVCLIVE_RESUME")


class Writer(Logger):
    """One table per metric, written from the first epoch on whenever a job starts or continues.

    DVCLive can also write dvc.yaml, add files to git, save experiments and report to DVC Studio.
    All of that is off: the pipeline of a study is that of its dvc.yaml.

    Args:
        folder: Folder with one folder per job.
    """

    def __init__(self, training: Training, *, folder: str = "logs/live/dvclive") -> None:
        super().__init__(training)
        from dvclive import Live

        for name in _OF_A_PIPELINE:  # inside `dvc repro` or `dvc exp run`, it would use git
            os.environ.pop(name, None)
        os.environ["DVC_STUDIO_OFFLINE"] = "true"
        place = str(Path(folder, training.job).absolute())
        with chdir(os.sep):  # where it finds no repository: it fails in one without a commit
            self._live = Live(place, save_dvc_exp=False, dvcyaml=None, report=None)

    def log(self, epoch: Epoch) -> None:
        self._live.step = epoch.number
        for name, value in epoch.values.items():
            self._live.log_metric(name, value)
        self._live.make_summary()
