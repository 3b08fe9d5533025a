"""The device a job computes on and the cores it uses: chosen once, handed down from there."""

from __future__ import annotations

import logging

import torch

from kdsteps.jobs.resources import cores_there

log = logging.getLogger("kdsteps")

WORK_OF_A_CORE = 500_000_000  # multiply-adds of one batch that keep one more core busy


def choose_device(gpus: int, threads: int) -> torch.device:
    """A GPU if one was asked for and is there, else the CPU with at most the cores there are.

    Args:
        gpus: How many the job was given; 0: stay on the CPU.
        threads: How many cores the job was given.
    """
    there = torch.cuda.device_count() if gpus else 0
    if there:
        device = torch.device("cuda")
        torch.backends.cudnn.benchmark = True
        fewer = f"; {gpus} GPUs asked for, {there} there" if there < gpus else ""
        log.info("on %s%s", torch.cuda.get_device_name(device), fewer)
        return device
    cores = max(1, min(threads, cores_there()))
    torch.set_num_threads(cores)
    wanted = f"; {gpus} GPU{'' if gpus == 1 else 's'} asked for, none there" if gpus else ""
    log.info("on the CPU, %d core%s%s", cores, "" if cores == 1 else "s", wanted)
    return torch.device("cpu")


def keep_busy(work: int) -> None:
    """Compute on no more cores than there is work for, on the CPU.

    Threads that share steps too small for them wait for each other longer than they compute, and
    beside any other load they crawl: a ResNet-20 on 8 x 8 images took five times as long on two.

    Args:
        work: Multiply-adds of one batch, forward.
    """
    given = torch.get_num_threads()
    worth = max(1, min(given, work // WORK_OF_A_CORE))
    if worth < given:
        torch.set_num_threads(worth)
        log.info(
            "computes on %d of %d cores: steps this small gain nothing from more", worth, given
        )
