"""What a run reports about its jobs on Kubernetes: why one cannot start yet, or why it failed.

Version 0.5.1 of Snakemake's plugin ends the whole run when a job fails, since it asks for the log
of an earlier container, which the pod of a job never has, and when the pods cannot be listed once.
It waits forever for a job that was deleted, or whose status it could not read once. And it deletes
a failed pod without a word on what happened to it.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

from kdsteps.jobs.failed_jobs import name_of

_PLUGIN = "snakemake_executor_plugin_kubernetes"
_METHODS = ("__post_init__", "check_active_jobs", "report_job_error", "report_job_success")
_CONTAINER = "snakemake"  # the one of a pod in which its job runs
_STARTING = ("ContainerCreating", "PodInitializing")
_NOT_FOUND = 404


class KubernetesJobs:
    """The jobs that a run submitted, as far as there is something to say of them."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}  # by the name of the Kubernetes job
        self._failed: dict[str, str] = {}  # sentences, by the jobs whose last attempt failed
        self._ended: set[str] = set()  # names of Kubernetes jobs
        self._told: set[str] = set()  # reasons to wait

    def failures(self) -> list[str]:
        """What happened to each job that failed; nothing for a run without Kubernetes."""
        return list(self._failed.values())

    def watch(self) -> None:
        """Let the plugin go on after a failure, and take down what happens to pods."""
        executor: Any = getattr(sys.modules.get(_PLUGIN), "Executor", None)
        known: list[Any] = [getattr(executor, name, None) for name in _METHODS]
        if None in known or hasattr(executor, "kdsteps"):
            return  # no Kubernetes, another version of the plugin, or the workflow is read again
        from snakemake_interface_common.exceptions import WorkflowError

        begin, check, error, success = known
        executor.kdsteps = self

        def post_init(plugin: Any) -> None:
            self._watch_client()
            begin(plugin)

        async def check_active_jobs(plugin: Any, submitted: list[Any]) -> AsyncIterator[Any]:
            missing = {info.external_jobid: info for info in submitted}
            try:
                async for info in check(plugin, submitted):
                    missing.pop(info.external_jobid)
                    yield info
            except WorkflowError as problem:  # of one request
                print(f"Kubernetes: {problem}; asking again", file=sys.stderr)
            for name, info in missing.items():
                if name not in self._ended:
                    yield info

        def report_job_error(plugin: Any, info: Any, msg: Any = None, **options: Any) -> None:
            self._ended.add(info.external_jobid)
            names = _names(info.job)
            logs = options.get("aux_logs") or ["`kubectl describe job`"]
            unknown = f"failed; its log in the storage, and {logs[0]}, say why"
            reason = self._reasons.get(info.external_jobid, unknown)
            self._failed[names] = f"{names}: Kubernetes job {info.external_jobid} {reason}"
            error(plugin, info, msg=msg, **options)

        def report_job_success(plugin: Any, info: Any) -> None:
            self._ended.add(info.external_jobid)
            self._failed.pop(_names(info.job), None)  # where an earlier attempt failed
            success(plugin, info)

        ours = (post_init, check_active_jobs, report_job_error, report_job_success)
        for name, method in zip(_METHODS, ours, strict=True):
            setattr(executor, name, method)

    def _watch_client(self) -> None:
        """Read logs, pods and jobs as the plugin should."""
        from kubernetes import client
        from kubernetes.client.rest import ApiException

        pods, jobs = client.CoreV1Api, client.BatchV1Api
        read_log, list_pods = pods.read_namespaced_pod_log, pods.list_namespaced_pod
        read_job = jobs.read_namespaced_job_status

        def read_namespaced_pod_log(api: Any, previous: bool = False, **given: Any) -> str:
            try:
                return str(read_log(api, **given))
            except ApiException as problem:
                return f"The log of this pod cannot be read: {problem}"

        def list_namespaced_pod(api: Any, **given: Any) -> Any:
            found = list_pods(api, **given)
            for pod in found.items:
                self._look_at(pod)
            return found

        def read_namespaced_job_status(api: Any, name: str, namespace: str) -> Any:
            try:
                return read_job(api, name, namespace)
            except ApiException as problem:
                if problem.status != _NOT_FOUND:
                    raise
                self._reasons[name] = "was deleted; run again"
                return None  # which the plugin takes for a job that failed

        pods.read_namespaced_pod_log = read_namespaced_pod_log
        pods.list_namespaced_pod = list_namespaced_pod
        jobs.read_namespaced_job_status = read_namespaced_job_status

    def _look_at(self, pod: Any) -> None:
        name = pod.metadata.labels["job-name"]
        if reason := what_ended(pod):
            self._reasons[name] = reason
        if (waiting := why_it_waits(pod)) and waiting[0] not in self._told:
            self._told.add(waiting[0])
            said = ": ".join(filter(None, waiting))
            print(f"Kubernetes job {name} cannot start yet: {said}", file=sys.stderr)


def _names(job: Any) -> str:
    """The names of a job, or of the jobs of a group."""
    return " and ".join(name_of(str(log)) for log in job.log) or str(job.name)


def what_ended(pod: Any) -> str:
    """What Kubernetes did to a pod; empty if its job ended by itself, or has not ended."""
    status = pod.status
    states = [each.state for each in status.container_statuses or () if each.name == _CONTAINER]
    if any(state.terminated and state.terminated.reason == "OOMKilled" for state in states):
        return "ran out of memory; raise memory_percent in the profile"
    if status.phase == "Failed" and status.reason:
        return f"was ended by Kubernetes ({status.reason}: {status.message})"
    return ""


def why_it_waits(pod: Any) -> tuple[str, str | None] | None:
    """The reason for which a pod cannot start, and Kubernetes' message; None: it can, or did."""
    for condition in pod.status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            return condition.reason, condition.message
    for each in pod.status.container_statuses or ():
        waiting = each.state.waiting
        if waiting and waiting.reason not in _STARTING:
            return waiting.reason, waiting.message
    return None


KUBERNETES_JOBS = KubernetesJobs()
