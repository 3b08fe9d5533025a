"""A job takes a GPU, or a slot on one that several jobs share, and sees no other.

A slot is a name in Linux's abstract socket namespace. Only one process of the machine can hold it,
whatever its folder and user; the kernel frees it however the process ends, and no file is left.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from kdsteps.errors import KdstepsError
from kdsteps.jobs.gpu_diagnosis import ON_CPU, why_hidden
from kdsteps.jobs.gpus import Card, in_slurm, usable_cards, visible_list, visible_variable

_log = logging.getLogger("kdsteps")

MAX_JOBS_PER_GPU = 32
LOOK_EVERY = 0.5  # seconds
_PREFIX = "kdsteps-gpu"


@contextmanager
def given_gpus(count: int, jobs_per_gpu: int = 1) -> Iterator[None]:
    """Let a block use as many GPUs as it was given and hide all others from it.

    Waits until enough of them are free. CUDA reads what is hidden once, when it starts, so torch
    should not be imported before.

    Args:
        count: Number of GPUs; 0: hide all, unless a later job of this process might want one.
        jobs_per_gpu: Jobs that may share each GPU with this one; 1: it has the GPU alone.

    Raises:
        KdstepsError: There are fewer GPUs, or all are hidden from this process.
    """
    if not count and "torch" in sys.modules:
        yield
        return
    cards = usable_cards() if count else []
    if count and not cards:
        if reason := why_hidden():
            raise KdstepsError(f"--gpus: {reason}; {ON_CPU}")
        yield  # torch may find a GPU where we do not
        return
    if count > len(cards):
        raise KdstepsError(f"--gpus: is {count}; at most {len(cards)} can be used here")
    with ExitStack() as held:
        taken = _wait(cards, count, jobs_per_gpu, held) if count else []
        values = {visible_variable(): ",".join(card.entry for card in taken)}
        if visible_list() is None:  # the entries are then indices in this order
            values["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        held.enter_context(_environment(values))
        yield


def _wait(cards: Sequence[Card], count: int, jobs_per_gpu: int, held: ExitStack) -> list[Card]:
    """Take GPUs as soon as enough are free; `held` releases them."""
    said = False
    while not (taken := _take(cards, count, jobs_per_gpu)):
        if not said:
            names = ", ".join(card.entry for card in cards)
            _log.info("waiting for a free GPU: other jobs of kdsteps use %s", names)
            said = True
        time.sleep(LOOK_EVERY * random.uniform(0.5, 1.5))
    for slots in taken.values():
        for slot in slots:
            held.callback(slot.close)
    return list(taken)


def _take(
    cards: Sequence[Card], count: int, jobs_per_gpu: int
) -> dict[Card, list[socket.socket]] | None:
    """The slots of as many GPUs as wanted, by GPU; None if too few are free.

    A job that has a GPU alone holds all of its slots. Jobs that share fill one GPU before the next.
    """
    alone = jobs_per_gpu == 1
    choices = [range(MAX_JOBS_PER_GPU)] if alone else [(slot,) for slot in range(jobs_per_gpu)]
    taken: dict[Card, list[socket.socket]] = {}
    for card in cards:
        slots = next(filter(None, (_hold(card, numbers) for numbers in choices)), None)
        if slots:
            taken[card] = slots
        if len(taken) == count:
            return taken
    for slots in taken.values():
        _release(slots)
    return None


def _hold(card: Card, numbers: Sequence[int]) -> list[socket.socket]:
    """Hold some slots of a GPU, or none of them if another process holds one."""
    held: list[socket.socket] = []
    scope = f"slurm-{os.environ['SLURM_JOB_ID']}" if in_slurm() else "machine"
    for number in numbers:
        slot = socket.socket(socket.AF_UNIX)
        held.append(slot)
        try:
            slot.bind(f"\0{_PREFIX}/{scope}/{card.key[:64]}/{number}")
        except OSError as error:
            _release(held)
            if error.errno != errno.EADDRINUSE:
                raise
            return []
    return held


def _release(slots: Sequence[socket.socket]) -> None:
    for slot in slots:
        slot.close()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
