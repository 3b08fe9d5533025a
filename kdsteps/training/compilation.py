"""`torch.compile` as an option that says what it gains."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable

import torch

from kdsteps.methods.base import Method
from kdsteps.models.chain import BlockChain

log = logging.getLogger("kdsteps")

TIMED = 3  # steps, of which the fastest counts


def compile_student(method: Method, trial: Callable[[], None]) -> None:
    """Let the student run compiled, and log what that gains.

    Where there is no compiler, or it cannot do this network, a warning says so and all stays as it
    was. The teacher is left as it is, so that its answers stay those that are kept in files.

    Args:
        method: With the student inside, whose weights and batch statistics do not change.
        trial: Does a forward and a backward pass.
    """
    student = method.student
    if isinstance(student, BlockChain):
        entry = "trace"
    elif method.wants in ("nothing", "logits"):
        entry = "forward"
    else:  # read by hooks that come and go, at each of which it would be compiled again
        log.warning("compile: not for this network while its inner layers are read; it runs as is")
        return
    before = copy.deepcopy(method.state_dict())
    random = torch.get_rng_state()
    device_random = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
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
    except Exception as error:  # whatever a compiler stumbles over, the network itself still runs
        student.__dict__.pop(entry, None)
        reason = str(error).strip().partition("\n")[0]
        log.warning("compile: it cannot be done here (%s); the network runs as it is", reason)
    method.load_state_dict(before)
    method.zero_grad(set_to_none=True)
    torch.set_rng_state(random)
    if device_random:
        torch.cuda.set_rng_state_all(device_random)


def _fastest(trial: Callable[[], None], method: Method) -> float:
    """Seconds of the fastest of a few trials, the device waited for."""
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
