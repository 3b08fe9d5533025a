"""What a run on Kubernetes reports about its pods; the plugin and the client are stand-ins."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from snakemake_interface_common.exceptions import WorkflowError

from kdsteps.jobs.kubernetes_status import KubernetesJobs, what_ended, why_it_waits

PLUGIN = "snakemake_executor_plugin_kubernetes"


def fields(**values: Any) -> SimpleNamespace:
    return SimpleNamespace(**values)


def pod(
    state: str = "", why: str | None = None, name: str = "snakemake", **status: Any
) -> SimpleNamespace:
    """A pod as the client gives it, whose container is `waiting`, `terminated` or runs."""
    states = fields(waiting=None, terminated=None)
    if state:
        setattr(states, state, fields(reason=why, message="as is said", exit_code=1))
    given = {"phase": "Failed" if state == "terminated" else "Pending", "reason": None}
    given |= {"message": None, "conditions": None}
    containers = [fields(name=name, state=states)] if state else None
    found = fields(**(given | {"container_statuses": containers} | status))
    return fields(metadata=fields(labels={"job-name": "snakejob-1"}), status=found)


UNSCHEDULABLE = fields(
    type="PodScheduled", status="False", reason="Unschedulable", message="1 Insufficient cpu."
)


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (pod("terminated", "OOMKilled"), "ran out of memory; raise memory_percent in the profile"),
        (pod("terminated", "Error"), ""),
        (pod("terminated", "OOMKilled", name="proxy"), ""),
        (
            pod("terminated", "Error", reason="Evicted", message="The node was low on memory."),
            "was ended by Kubernetes (Evicted: The node was low on memory.)",
        ),
        (pod("waiting", "ContainerCreating"), ""),
        (pod(), ""),
    ],
)
def test_what_kubernetes_did_to_a_pod(ended: SimpleNamespace, said: str):
    assert what_ended(ended) == said


@pytest.mark.parametrize(
    ("waits", "said"),
    [
        (pod(conditions=[UNSCHEDULABLE]), ("Unschedulable", "1 Insufficient cpu.")),
        (pod("waiting", "ErrImagePull"), ("ErrImagePull", "as is said")),
        (pod("waiting", "ContainerCreating"), None),
        (pod("waiting", "PodInitializing"), None),
        (pod("terminated", "Error"), None),
        (pod(), None),
    ],
)
def test_why_a_pod_cannot_start(waits: SimpleNamespace, said: object):
    assert why_it_waits(waits) == said


class ApiError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"({status})")
        self.status = status


class Pods:
    """The client for pods; the server has a log of the only container of each."""

    log: str | None = "the log"
    items = (pod("terminated", "OOMKilled"),)

    def read_namespaced_pod_log(self, *, name: str, previous: bool = False) -> str:
        if previous or self.log is None:
            raise ApiError(400)
        return self.log

    def list_namespaced_pod(self, **_: Any) -> SimpleNamespace:
        return fields(items=self.items)


class Jobs:
    """The client for jobs, by their names."""

    def read_namespaced_job_status(self, name: str, namespace: str) -> str:
        if name in ("404", "500"):
            raise ApiError(int(name))
        return "status"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The plugin, whose `Executor` looks at jobs as `looks` says."""
    monkeypatch.setitem(sys.modules, "kubernetes", ModuleType("kubernetes"))
    client: Any = ModuleType("kubernetes.client")
    rest: Any = ModuleType("kubernetes.client.rest")
    client.CoreV1Api, client.BatchV1Api = type("Pods", (Pods,), {}), type("Jobs", (Jobs,), {})
    rest.ApiException = ApiError
    sys.modules["kubernetes"].client = client  # type: ignore[attr-defined]
    for module in (client, rest):
        monkeypatch.setitem(sys.modules, module.__name__, module)

    class Executor:
        looks: Any = staticmethod(lambda executor, info: [info])

        def __post_init__(self) -> None:
            self.pods, self.jobs = client.CoreV1Api(), client.BatchV1Api()
            self.reported: list[tuple[str, str]] = []

        async def check_active_jobs(self, submitted: list[Any]) -> AsyncIterator[Any]:
            for info in submitted:
                for active in self.looks(self, info):
                    yield active

        def report_job_error(self, info: Any, msg: Any = None, aux_logs: Any = ()) -> None:
            self.reported.append((info.external_jobid, "error"))

        def report_job_success(self, info: Any) -> None:
            self.reported.append((info.external_jobid, "success"))

    found: Any = ModuleType(PLUGIN)
    found.Executor = Executor
    monkeypatch.setitem(sys.modules, PLUGIN, found)
    return found


def started(plugin: Any) -> tuple[KubernetesJobs, Any]:
    jobs = KubernetesJobs()
    jobs.watch()
    jobs.watch()  # Snakemake may read the workflow twice
    executor = plugin.Executor()
    executor.__post_init__()
    return jobs, executor


def submitted(name: str, log: str = "s3://bucket/logs/distil/pair/kd/0.txt") -> SimpleNamespace:
    return fields(external_jobid=name, job=fields(name="distil", log=[log]))


def active(executor: Any, *infos: SimpleNamespace) -> list[str]:
    """The names of the jobs that the executor goes on to look at."""

    async def look() -> list[str]:
        return [info.external_jobid async for info in executor.check_active_jobs(list(infos))]

    return asyncio.run(look())


def test_the_log_of_a_failed_pod_is_that_of_its_only_container(plugin: Any):
    _, executor = started(plugin)
    assert executor.pods.read_namespaced_pod_log(name="a", previous=True) == "the log"
    type(executor.pods).log = None
    assert "cannot be read" in executor.pods.read_namespaced_pod_log(name="a", previous=True)


def test_a_job_that_failed_is_named_with_what_happened_to_its_pod(plugin: Any):
    jobs, executor = started(plugin)
    executor.pods.list_namespaced_pod()
    executor.report_job_error(submitted("snakejob-1"))
    other = submitted("snakejob-2", "logs/train/digits/big.txt")
    executor.report_job_error(other, msg="", aux_logs=["kubernetes-logs/snakejob-2.log"])
    memory, unknown = jobs.failures()
    assert memory.startswith(
        "distil pair kd 0: Kubernetes job snakejob-1 ran out of memory; raise "
    )
    assert unknown == (
        "train digits big: Kubernetes job snakejob-2 failed; its log in the storage, and "
        "kubernetes-logs/snakejob-2.log, say why"
    )
    executor.report_job_success(submitted("snakejob-3"))  # another attempt of the first one
    assert [sentence.partition(":")[0] for sentence in jobs.failures()] == ["train digits big"]


def test_a_job_whose_status_cannot_be_read_is_looked_at_again(plugin: Any):
    _, executor = started(plugin)
    plugin.Executor.looks = staticmethod(lambda executor, info: [])
    first, second = submitted("snakejob-1"), submitted("snakejob-2")
    assert active(executor, first, second) == ["snakejob-1", "snakejob-2"]
    executor.report_job_success(first)
    executor.report_job_error(second)
    assert active(executor, first, second) == []
    assert executor.reported == [("snakejob-1", "success"), ("snakejob-2", "error")]


def test_a_request_that_fails_does_not_end_the_run(plugin: Any, capsys: Any):
    _, executor = started(plugin)

    def fail(executor: Any, info: Any) -> list[Any]:
        if info.external_jobid == "snakejob-2":
            raise WorkflowError("no answer")
        return [info]

    plugin.Executor.looks = staticmethod(fail)
    infos = [submitted(f"snakejob-{number}") for number in (1, 2, 3)]
    assert active(executor, *infos) == ["snakejob-1", "snakejob-2", "snakejob-3"]
    assert capsys.readouterr().err == "Kubernetes: no answer; asking again\n"


def test_a_job_that_runs_is_looked_at_once(plugin: Any):
    _, executor = started(plugin)
    assert active(executor, submitted("snakejob-1")) == ["snakejob-1"]


def test_a_job_that_was_deleted_is_one_that_failed(plugin: Any):
    jobs, executor = started(plugin)
    assert executor.jobs.read_namespaced_job_status("snakejob-1", "default") == "status"
    with pytest.raises(ApiError):
        executor.jobs.read_namespaced_job_status("500", "default")
    assert executor.jobs.read_namespaced_job_status("404", "default") is None
    executor.report_job_error(submitted("404"))
    assert jobs.failures() == ["distil pair kd 0: Kubernetes job 404 was deleted; run again"]


def test_each_reason_to_wait_is_said_once(plugin: Any, capsys: pytest.CaptureFixture[str]):
    _, executor = started(plugin)
    type(executor.pods).items = (pod(conditions=[UNSCHEDULABLE]), pod("waiting", "ErrImagePull"))
    for _ in range(2):
        executor.pods.list_namespaced_pod()
    assert capsys.readouterr().err.splitlines() == [
        "Kubernetes job snakejob-1 cannot start yet: Unschedulable: 1 Insufficient cpu.",
        "Kubernetes job snakejob-1 cannot start yet: ErrImagePull: as is said",
    ]


@pytest.mark.parametrize("found", [None, ModuleType(PLUGIN)])
def test_without_the_plugin_nothing_happens(monkeypatch: pytest.MonkeyPatch, found: object):
    monkeypatch.setitem(sys.modules, PLUGIN, found)
    jobs = KubernetesJobs()
    jobs.watch()
    assert jobs.failures() == []
