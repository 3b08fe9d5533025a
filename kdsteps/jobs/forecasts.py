"""Memory and time that a job may need, for clusters where both are requested before it runs.

A forecast is meant to be too large rather than too small: a job that requests too much waits a
little longer, one that requests too little is killed. It counts what a job computes (multiply-adds,
steps, images) and holds in memory (images, weights, activations), from params.yaml, the sizes of
the networks and the prepared images. What is not known yet is assumed to be large. The constants
here, in `needs` and in `job_needs` are for a GPU of 2017 or a slow core.
"""

from __future__ import annotations

import os
from functools import lru_cache
from math import ceil
from typing import NamedTuple

from kdsteps.jobs.job_needs import NEEDS, KnownJob, dataset_of
from kdsteps.jobs.needs import Need, summary_path
from kdsteps.jobs.outputs import Names
from kdsteps.study.study import Study

START_SECONDS = 600.0  # libraries from a slow shared disk, checks, compilation, writing results
GPU_RATE, CORE_RATE = 1e12, 8e9  # multiply-adds per second
STEP_SECONDS = 0.02  # of a training step of the smallest network
SAFETY = 2.0  # of all times but that of the start
PROCESS_MB = 2500  # Snakemake, Python, torch
CUDA_MB = 2500  # more of them in a process that uses a GPU
WITHOUT_GPU = frozenset({"prepare", "score", "build", "tune_choose", "export", "report"})
_EQUAL = ("seed", "trial")  # jobs that differ only in these need the same


class Forecast(NamedTuple):
    """What a job may need."""

    memory: int  # MiB
    time: int  # minutes


def forecast(study: Study, rule: str, names: Names, cores: int, gpu: bool) -> Forecast:
    """What one job may need.

    Args:
        cores: That it computes on.
        gpu: Whether it computes on a GPU. Its activations count all the same, although they are in
            the memory of the GPU then, which is not requested.
    """
    alike = tuple((key, value) for key, value in sorted(names.items()) if key not in _EQUAL)
    need = _need(study, rule, alike, _prepared_at(study, names))
    gpu = gpu and rule not in WITHOUT_GPU
    rate = GPU_RATE if gpu else CORE_RATE * cores
    seconds = need.multiply_adds / rate + need.steps * STEP_SECONDS + need.core_seconds / cores
    megabytes = PROCESS_MB + CUDA_MB * gpu + need.megabytes
    minutes = (START_SECONDS + SAFETY * seconds) / 60
    return Forecast(_up(megabytes, 500), _up(minutes, 10))


def _up(value: float, step: int) -> int:
    return step * ceil(value / step)


@lru_cache(maxsize=4096)
def _need(study: Study, rule: str, names: tuple[tuple[str, str], ...], _when: int) -> Need:
    return NEEDS[rule](KnownJob(study, dict(names)))


def _prepared_at(study: Study, names: Names) -> int:
    """When the images of a job were prepared; 0 before that, and for the report."""
    try:
        return os.stat(summary_path(dataset_of(study, names))).st_mtime_ns
    except (OSError, KeyError):
        return 0
