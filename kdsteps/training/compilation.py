"""`torch.compile` as an option, with its speed-up in the log."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable

import torch

from kdsteps.methods.base import Method
from kdsteps.models.chain import BlockChain
from kdsteps.models.wrapped import Wrapped
from kdsteps.training.attributes import unchanged
from kdsteps.training.random_states import random_states, restore_random_states

log = logging.getLogger("kdsteps")

TIMED = 3  # steps; the fastest one counts


def compile_student(method: Method, trial: Callable[[], None]) -> None:
    """Compile the student and log the speed-up.

    Without a compiler, or for a network that it cannot handle, a warning is logged and the network
    runs uncompiled. The teacher is never compiled, so that its logits stay equal to cached ones.

    Args:
        method: Holds the student; its weights, buffers and attributes do not change.
        trial: Runs a forward and a backward pass.
    """
    student = inner = method.student
    while isinstance(inner, Wrapped):
        inner = inner.chain
    if isinstance(inner, BlockChain):
        entry = "trace"
    elif method.wants in ("nothing", "logits"):
        entry = "forward"
    else:  # read by temporary hooks, each of which would compile it again
        log.warning("compile: skipped, because inner layers of this network are read by hooks")
        return
    with unchanged(method, next(student.parameters()).device):
        _compile(method, entry, trial)


def _compile(method: Method, entry: str, trial: Callable[[], None]) -> None:
    """Compile one function of the student, and time it before and after."""
    student = method.student
    before = copy.deepcopy(method.state_dict())
    random = random_states()
    try:
        plain = _fastest(trial, method)
        started = time.perf_counter()
        setattr(student, entry, torch.compile(getattr(student, entry)))
        trial()
        took = time.perf_counter() - started
        log.info(
            "compiled in %.0f s: a forward and backward pass is %.2f times as fast",
            *(took, plain / _fastest(trial, method)),
        )
    except Exception as error:  # whatever stops the compiler, the network itself still runs
        student.__dict__.pop(entry, None)
        reason = str(error).strip().partition("\n")[0]
        log.warning("compile: failed (%s); the network runs uncompiled", reason)
    finally:
        method.load_state_dict(before)
        method.zero_grad(set_to_none=True)
        restore_random_states(random)


def _fastest(trial: Callable[[], None], method: Method) -> float:
    """Seconds of the fastest of a few trials, including the work of the device."""
    method.train()
    trial()
    found = []
    for _ in range(TIMED):
        started = time.perf_counter()
        trial()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return min(found)
