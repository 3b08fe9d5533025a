"""The global random states: those of torch, of Python and of NumPy.

kdsteps draws from torch alone, but a network or a method of the user may draw from any of them.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from kdsteps.errors import KdstepsError


def seed_all(seed: int) -> None:
    """Start all of them from one seed."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def check_seed(seed: int, where: str) -> None:
    """Check that no code has set torch's seed again since `seed_all`.

    Args:
        where: What the sentence of the error begins with.

    Raises:
        KdstepsError: Some has, so that runs of all seeds would start from the same weights.
    """
    if torch.initial_seed() != seed:
        raise KdstepsError(
            f"{where}: its code sets torch's seed to {torch.initial_seed()}, so runs of all seeds "
            "would start from the same weights; remove torch.manual_seed, or draw from a "
            "torch.Generator"
        )


def random_states() -> dict[str, Any]:
    """All of them, as tensors and plain values that `torch.load` reads without running code."""
    kind, words, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(words).astype(np.int64)), *rest],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Set all of them to what `random_states` returned."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    random.setstate(states["python"])
    kind, words, *rest = states["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), *rest))
