"""What each job claims of a run's cores and GPUs, which jobs start first, and how long all take."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from kdsteps.jobs import graph
from kdsteps.jobs.busy_cores import busy_cores
from kdsteps.jobs.resources import Sharing
from kdsteps.study.study import Study

_ALL_CORES = frozenset({"prepare", "score", "evaluate_latency", "export"})
_GPU_ALONE = frozenset({"train", "cache", "cache_outputs", "evaluate_latency"})
_GPU_SHARED = frozenset(
    {"train_check", "train_audit", "tune", "distil", "evaluate", "evaluate_teacher"}
    | {"evaluate_probe", "evaluate_probe_teacher", "evaluate_probe_untrained"}
)
_FIRST = frozenset(
    {"train", "train_check", "train_audit", "cache", "cache_outputs", "score", "build"}
)
_NEXT = frozenset({"evaluate_teacher", "tune", "distil"})


def priority(rule: str) -> int:
    """How early a job starts among those that can: 2 if others wait for it."""
    return 2 if rule in _FIRST else 1 if rule in _NEXT else 0


@dataclass(frozen=True)
class Claim:
    """What a job takes of the resources of a run.

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


def claim(study: Study, node: graph.JobNode, sharing: Sharing) -> Claim:
    """What a job of a study takes in a run: in the rules, in trials and in forecasts."""
    rule, wanted = node.rule, node.settings.gpus
    on_gpu = bool(sharing.gpus) and rule in _GPU_ALONE | _GPU_SHARED
    alone = rule in _GPU_ALONE or wanted > 1
    if rule in _ALL_CORES:
        threads = sharing.most_cores
    elif rule in ("train", "cache", "cache_outputs"):
        threads = sharing.cores_per_gpu
    elif rule in _GPU_SHARED:
        threads = sharing.cores_of_one_of_many
    else:
        threads = 1
    if wanted > 1:
        threads = wanted * max(threads, sharing.cores_per_gpu if sharing.gpus else 1)
    else:
        threads = sharing.kept_busy(threads, busy_cores(study, node))
    threads = min(threads, sharing.most_cores)
    slots = (wanted * sharing.jobs_per_gpu if alone else 1) if on_gpu else 0
    return Claim(
        threads=threads,
        slots=min(slots, sharing.slots),
        gpus=min(wanted, sharing.gpus) if on_gpu else 0,
        cores=sharing.real_cores(threads),
    )


def wall_seconds(
    study: Study,
    left: Sequence[graph.JobNode],
    seconds: Sequence[float],
    sharing: Sharing,
    running: Sequence[bool] = (),
) -> float:
    """How long a run of some jobs takes.

    Args:
        seconds: That each job still takes.
        running: Whether each job has its resources already; nothing: none has.
    """
    queue = Queue(study, left, sharing, running)
    computing: list[tuple[float, int]] = []
    now = 0.0
    while not queue.over:
        for number in queue.start():
            heapq.heappush(computing, (now + seconds[number], number))
        now, ended = heapq.heappop(computing)
        queue.end(ended)
    return now


class Queue:
    """The jobs of a run, by number: which of them start at a moment.

    Jobs start as soon as the jobs whose files they read have ended and their resources are free,
    those of a higher priority first, which is how Snakemake proceeds.
    """

    def __init__(
        self,
        study: Study,
        left: Sequence[graph.JobNode],
        sharing: Sharing,
        running: Sequence[bool] = (),
    ) -> None:
        """Args:
        left: Jobs, all those that they wait for among them.
        running: Whether each job has its resources already; nothing: none has.
        """
        makers = {
            path: number
            for number, node in enumerate(left)
            for path in graph.outputs(node.rule, node.names).values()
        }
        begun = running or [False] * len(left)
        self._after = [{makers[path] for path in node.read if path in makers} for node in left]
        self._claims = [claim(study, node, sharing) for node in left]
        self._waiting = sorted(
            range(len(left)), key=lambda number: (not begun[number], -priority(left[number].rule))
        )
        self._done: set[int] = set()
        self._cores, self._slots = sharing.cores, sharing.slots
        self._jobs = sharing.jobs or len(left)  # that may still start

    @property
    def over(self) -> bool:
        """Whether all jobs have ended."""
        return len(self._done) == len(self._claims)

    def start(self) -> list[int]:
        """The jobs that start now."""
        started = []
        for number in list(self._waiting):
            own = self._claims[number]
            free = own.threads <= self._cores and own.slots <= self._slots and self._jobs > 0
            if free and self._after[number] <= self._done:
                self._waiting.remove(number)
                self._cores, self._slots = self._cores - own.threads, self._slots - own.slots
                self._jobs -= 1
                started.append(number)
        return started

    def end(self, number: int) -> None:
        """A job has ended, and others can have its resources."""
        own = self._claims[number]
        self._done.add(number)
        self._cores, self._slots = self._cores + own.threads, self._slots + own.slots
        self._jobs += 1
