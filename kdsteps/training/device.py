"""The device and the cores of a job, chosen once by the stage."""

from __future__ import annotations

import logging

import torch

from kdsteps.jobs.resources import cores_there
from kdsteps.training.precision import set_precision

log = logging.getLogger("kdsteps")

WORK_OF_A_CORE = 500_000_000  # MACs per batch that keep one more core busy


def choose_device(gpus: int, threads: int, precision: str = "float32") -> torch.device:
    """A GPU if one was requested and is available, otherwise the CPU.

    Args:
        gpus: Number of GPUs the job was given; 0: use the CPU.
        threads: Number of cores the job was given.
        precision: The recipe's, set for the whole process.
    """
    there = torch.cuda.device_count() if gpus else 0
    if there:
        device = torch.device("cuda")
        torch.backends.cudnn.benchmark = True
        fewer = f"; {gpus} GPUs requested, {there} available" if there < gpus else ""
        log.info("on %s%s", torch.cuda.get_device_name(device), fewer)
        set_precision(precision, device)
        return device
    cores = max(1, min(threads, cores_there()))
    torch.set_num_threads(cores)
    wanted = f"; {gpus} GPU{'' if gpus == 1 else 's'} requested, none available" if gpus else ""
    log.info("on the CPU, %d core%s%s", cores, "" if cores == 1 else "s", wanted)
    return torch.device("cpu")


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
