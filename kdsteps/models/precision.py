"""The number format in which networks compute."""

from __future__ import annotations

import torch

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(precision: str, device_type: str) -> torch.autocast:
    """A context in which networks compute in bfloat16 or float16; for other names without effect.

    Args:
        precision: "float32", "tf32", "bfloat16" or "float16".
        device_type: "cpu" or "cuda".
    """
    half = HALF.get(precision)
    return torch.autocast(device_type, half, enabled=half is not None)
