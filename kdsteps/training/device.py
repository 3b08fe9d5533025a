"""The device and the cores of a job, chosen once by the stage."""

from __future__ import annotations

import logging

import torch

from kdsteps.errors import KdstepsError
from kdsteps.jobs.gpu_diagnosis import ON_CPU, why_unusable
from kdsteps.jobs.gpus import visible_entry
from kdsteps.jobs.resources import WORK_OF_A_CORE, cores_there
from kdsteps.training.precision import set_precision

log = logging.getLogger("kdsteps")


def choose_device(
    gpus: int, threads: int, jobs_per_gpu: int = 1, precision: str = "float32"
) -> torch.device:
    """The GPU that the job was given, or the CPU if it was given none.

    A job that shares its GPU may use an equal fraction of the memory, so that a job that needs more
    fails and the others do not.

    Args:
        gpus: Number of GPUs the job was given; 0: use the CPU.
        threads: Number of cores the job was given.
        jobs_per_gpu: Number of jobs that may share the GPU, this one included.
        precision: The recipe's, set for the whole process.

    Raises:
        KdstepsError: The job was given a GPU and cannot use it, or not with this precision.
    """
    cores = max(1, min(threads, cores_there()))
    torch.set_num_threads(cores)
    on_cores = f"{cores} core{'' if cores == 1 else 's'}"
    if not gpus:
        log.info("on the CPU, %s", on_cores)
        return torch.device("cpu")
    device = torch.device("cuda")
    try:
        torch.ones(1, device=device).sum().item()
    except (AssertionError, RuntimeError) as error:  # torch has no CUDA, or CUDA does not start
        raise KdstepsError(f"--gpus: {why_unusable(str(error), _described())}; {ON_CPU}") from error
    torch.cuda.set_per_process_memory_fraction(1 / jobs_per_gpu)
    torch.backends.cudnn.benchmark = True
    set_precision(precision, device)
    shared = f", shared by up to {jobs_per_gpu} jobs" if jobs_per_gpu > 1 else ""
    log.info("on %s (%s)%s, %s", torch.cuda.get_device_name(device), _which(), shared, on_cores)
    return device


def _which() -> str:
    """Which GPU the job sees: its index and UUID, or the name that selected it."""
    number = torch.cuda.current_device()
    entry = visible_entry(number)
    if not entry.isdecimal():
        return entry
    return f"GPU {entry}, UUID {torch.cuda.get_device_properties(number).uuid}"


def _described() -> str:
    """The name of the first GPU and what code it can run; "" if torch does not know it."""
    try:
        major, minor = torch.cuda.get_device_capability()
        return f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"
    except (AssertionError, RuntimeError):
        return ""


def keep_busy(work: int) -> None:
    """Use no more CPU cores than there is work for.

    Threads that share very small steps wait for each other longer than they compute, and become
    very slow when other processes compete for the cores: a ResNet-20 on 8 x 8 images took five
    times as long with two threads.

    Args:
        work: MACs of one forward pass over a batch.
    """
    given = torch.get_num_threads()
    worth = max(1, min(given, work // WORK_OF_A_CORE))
    if worth < given:
        torch.set_num_threads(worth)
        log.info("using %d of %d cores: more would not speed up steps this small", worth, given)
