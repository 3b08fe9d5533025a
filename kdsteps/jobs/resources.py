"""The cores that this process may use, and how jobs share them and the GPUs of this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass

from kdsteps.errors import KdstepsError
from kdsteps.jobs.gpu_slots import MAX_JOBS_PER_GPU

WORK_OF_A_CORE = 500_000_000  # MACs per batch that keep one more core busy


def cores_there() -> int:
    """Cores that this process may use, which in a container may be fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Sharing:
    """How the jobs of a run share the cores and GPUs of this machine, or those of a cluster.

    Attributes:
        cores: Cores of all jobs together.
        gpus: GPUs of all jobs together; 0: they run on the CPU.
        jobs_per_gpu: Jobs on students, and other small ones, that share a GPU.
        max_threads: Cores of one job at most; None: all of them.
        jobs: Jobs that are submitted to a cluster at the same time at most; None: they run on this
            machine.
    """

    cores: int
    gpus: int
    jobs_per_gpu: int
    max_threads: int | None = None
    jobs: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.jobs_per_gpu <= MAX_JOBS_PER_GPU:
            raise KdstepsError(
                f"--resources: jobs_per_gpu is {self.jobs_per_gpu}; it should be from 1 to "
                f"{MAX_JOBS_PER_GPU}"
            )

    @property
    def slots(self) -> int:
        """Jobs that can use a GPU at the same time if all of them share."""
        return self.gpus * self.jobs_per_gpu

    @property
    def most_cores(self) -> int:
        """Cores of one job at most."""
        return min(self.cores, self.max_threads or self.cores)

    @property
    def cores_per_gpu(self) -> int:
        """Cores of a job that has a GPU for itself; without GPUs, or on a cluster, all of a job."""
        return self.most_cores if self.jobs else max(1, self.cores // max(1, self.gpus))

    @property
    def cores_of_one_of_many(self) -> int:
        """Cores of a job that is one of many: of its fraction of a GPU, or worth one real core.

        On a machine without a GPU, students are trained in parallel, one per core, so that no
        threads wait for each other. On a cluster, each job has as many cores as the others.
        """
        return self.most_cores if self.jobs else max(1, self.cores // (self.slots or cores_there()))

    def kept_busy(self, threads: int, cores: int | None) -> int:
        """Cores for a job that claims `threads`, and keeps only some cores of a machine busy.

        One that is submitted to a cluster requests cores whether it keeps all of them busy or not.

        Args:
            cores: That it keeps busy on the CPU; None: not known.
        """
        if self.jobs or self.gpus or cores is None:
            return threads
        return min(threads, cores * self.cores_of_one_of_many)

    def real_cores(self, claimed: int) -> int:
        """Cores that a job computes on: its fraction of the cores of this machine.

        If the run may use more cores than there are, two jobs that each claim half of them must not
        both use all: tiny steps become very slow on too many threads. On a cluster they are those
        that it claims, since the submitting machine is not where it runs.
        """
        if self.jobs:
            return claimed
        return max(1, claimed * min(self.cores, cores_there()) // self.cores)
