"""How long a run takes: its jobs start as soon as what they read and the resources are there."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kdsteps.jobs import graph
from kdsteps.jobs.busy_cores import busy_cores
from kdsteps.jobs.resources import Sharing, real_cores
from kdsteps.study.study import Study

_ALL_CORES = frozenset({"prepare", "score", "evaluate_latency", "export"})
_GPU_ALONE = frozenset({"train", "cache", "cache_outputs", "evaluate_latency"})
_GPU_SHARED = frozenset(
    {"train_check", "train_audit", "tune", "distil", "evaluate", "evaluate_teacher"}
    | {"evaluate_probe", "evaluate_probe_teacher", "evaluate_probe_untrained"}
)
_FIRST = frozenset({"train", "train_check", "cache", "cache_outputs", "score", "build"})
_NEXT = frozenset({"evaluate_teacher", "tune", "distil"})


def priority(rule: str) -> int:
    """How early a job starts among those that can: others wait for it, or it is short."""
    return 2 if rule in _FIRST else 1 if rule in _NEXT else 0


@dataclass(frozen=True)
class Claim:
    """What a job takes of the resources of a run, as the rules of the workflow say.

    Attributes:
        threads: Of the cores that the run was given.
        slots: On the GPUs of the run.
        gpus: That the job computes on; 0: the CPU.
        cores: That it computes on.
    """

    threads: int
    slots: int
    gpus: int
    cores: int


def claim(node: graph.JobNode, sharing: Sharing, busy: int | None = None) -> Claim:
    """What a job takes in a run on this machine.

    Args:
        busy: Cores that it keeps busy on the CPU; None: not known.
    """
    rule, wanted = node.rule, node.settings.gpus
    on_gpu = bool(sharing.gpus) and rule in _GPU_ALONE | _GPU_SHARED
    alone = rule in _GPU_ALONE or wanted > 1
    if rule in _ALL_CORES:
        threads = sharing.cores
    elif rule in ("train", "cache", "cache_outputs"):
        threads = sharing.cores_per_gpu
    elif rule in _GPU_SHARED:
        threads = sharing.cores_of_one_of_many
    else:
        threads = 1
    if wanted > 1:
        threads = wanted * max(threads, sharing.cores_per_gpu if sharing.gpus else 1)
    else:
        threads = sharing.kept_busy(threads, busy)
    threads = min(threads, sharing.cores)
    slots = (wanted * sharing.jobs_per_gpu if alone else 1) if on_gpu else 0
    return Claim(
        threads=threads,
        slots=min(slots, sharing.slots),
        gpus=min(wanted, sharing.gpus) if on_gpu else 0,
        cores=real_cores(threads, sharing.cores),
    )


@dataclass(frozen=True)
class Work:
    """A job that is left.

    Attributes:
        seconds: That it takes.
        after: Numbers of the jobs that have to end before it.
        busy: Cores that it keeps busy; None: not known.
    """

    node: graph.JobNode
    seconds: float
    after: frozenset[int]
    busy: int | None = None


def works(
    nodes: Iterable[graph.JobNode], seconds: Sequence[float], study: Study | None = None
) -> list[Work]:
    """The jobs that are left, each after those whose files it reads.

    Args:
        seconds: Of each of them.
        study: That they belong to; None: how many cores they keep busy is not known.
    """
    listed = list(nodes)
    makers = {
        path: number
        for number, node in enumerate(listed)
        for path in graph.outputs(node.rule, node.names).values()
    }
    return [
        Work(
            node,
            seconds[number],
            frozenset(makers[p] for p in node.read if p in makers),
            None if study is None else busy_cores(study, node),
        )
        for number, node in enumerate(listed)
    ]


def wall_seconds(left: list[Work], sharing: Sharing) -> float:
    """How long a run of some jobs takes.

    Jobs are started as soon as what they read is there and their resources are free, those of a
    higher priority first, which is how Snakemake proceeds.
    """
    waiting = sorted(range(len(left)), key=lambda number: -priority(left[number].node.rule))
    running: list[tuple[float, int]] = []
    done: set[int] = set()
    cores, slots, now = sharing.cores, sharing.slots, 0.0
    claims = [claim(work.node, sharing, work.busy) for work in left]
    while waiting or running:
        for number in list(waiting):
            own = claims[number]
            if left[number].after <= done and own.threads <= cores and own.slots <= slots:
                waiting.remove(number)
                cores, slots = cores - own.threads, slots - own.slots
                heapq.heappush(running, (now + left[number].seconds, number))
        if not running:
            raise ValueError("jobs wait for each other")
        now, ended = heapq.heappop(running)
        done.add(ended)
        cores, slots = cores + claims[ended].threads, slots + claims[ended].slots
    return now
