"""What this machine has: free memory, and how long a job takes to start."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

_IMPORTS = "import kdsteps.cli.main, kdsteps.stages.distil, kdsteps.stages.evaluate"


def start_seconds(at_once: int) -> float:
    """The time until a job has imported its libraries, if some of them start together."""
    command = [sys.executable, "-c", _IMPORTS]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    started = time.perf_counter()
    running = [subprocess.Popen(command, env=hidden) for _ in range(max(1, at_once))]
    for process in running:
        process.wait()
    return time.perf_counter() - started


def free_memory() -> int:
    """Bytes of memory that are free for this process; 0 if that is not known."""
    free = 0
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if "MemAvailable" in line).split()[1])
    with suppress(OSError, ValueError):  # a container's limit
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        free = min(free, limit - used) if free else limit - used
    return max(0, free)


def gpu_room() -> int:
    """Bytes of memory that are free on the GPU; 0 without one."""
    import torch

    if not torch.cuda.is_initialized():
        return 0
    free: int = torch.cuda.mem_get_info()[0]
    return free
