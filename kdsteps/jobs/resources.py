"""The cores that this process may use, and the GPUs of this machine, found without torch."""

from __future__ import annotations

import os
from pathlib import Path


def cores_there() -> int:
    """Cores that this process may use, which in a container may be fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus_there() -> int:
    """GPUs that a job could see, by their device files; CUDA_VISIBLE_DEVICES may hide them."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return 0
    cards = list(Path("/dev").glob("nvidia[0-9]*")) + list(Path("/dev/dri").glob("renderD*"))
    nvidia = [card for card in cards if card.name.startswith("nvidia")]
    return len(nvidia) or (len(cards) if Path("/dev/kfd").exists() else 0)


def real_cores(claimed: int, given: int) -> int:
    """Cores that a job computes on: its fraction of the cores of this machine.

    If the run may use more cores than there are, two jobs that each claim half of them must not
    both use all: tiny steps become very slow on too many threads.

    Args:
        claimed: Cores that the job claims, out of those given.
        given: Cores that were given to the whole run.
    """
    return max(1, claimed * min(given, cores_there()) // max(1, given))
