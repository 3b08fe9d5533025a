"""How much memory of a GPU this process may use."""

from __future__ import annotations

import torch


def allowed_bytes(device: torch.device) -> int:
    """All memory of a GPU, or the fraction of it for a job that shares it."""
    total = torch.cuda.get_device_properties(device).total_memory
    return int(total * torch.cuda.get_per_process_memory_fraction(device.index))


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that neither this process nor, beyond its fraction, another one uses."""
    unused = allowed_bytes(device) - torch.cuda.memory_allocated(device)
    return min(torch.cuda.mem_get_info(device)[0], unused)
