"""What this machine has: free memory, and how long a job takes to start."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_TRAINING = """
import os, sys, threading, torch
from torch import nn
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
torch.set_num_threads(1)
layers = [nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 3)]
network, images = nn.Sequential(*layers), torch.randn(32, 16, 32, 32)
print("begun", flush=True)
while True:
    network(images).sum().backward()
"""
IMPORTS = "import kdsteps.cli.main, kdsteps.stages.distil, kdsteps.stages.evaluate"


def start_seconds(commands: Sequence[Sequence[str]], folder: Path) -> float | None:
    """The time that jobs which do next to nothing take side by side; None if one of them fails.

    Args:
        folder: Where they run.
    """
    away = subprocess.DEVNULL
    started = time.perf_counter()
    running = [
        subprocess.Popen([sys.executable, *command], cwd=folder, stdout=away, stderr=away)
        for command in commands
    ]
    ended = [process.wait() for process in running]
    return None if any(ended) else time.perf_counter() - started


@contextmanager
def companions(count: int) -> Iterator[None]:
    """Let processes train next to the block, as other jobs of a run do: cores slow each other down.

    They end with this process, however it ends.
    """
    command = [sys.executable, "-c", _TRAINING]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(count)
    ]
    try:
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()  # it has begun
        yield
    finally:
        for process in running:
            process.kill()
            process.communicate()


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
