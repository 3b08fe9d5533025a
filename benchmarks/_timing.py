"""How the benchmarks measure: ratios of pairs run in turn, peak memory, and the machine.

The ratio of two things timed in turn in one process is valid on a busy machine; seconds are not.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pyarrow", "snakemake", "dvc")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: What was measured.
        against: What it is compared with.
        ratio: Of the two, as the target reads it; None where there is nothing to divide by.
        detail: The numbers behind the ratio with their units, and the floor.
        target: In words, such as ">= 50 times faster".
        met: Whether the target was met; None where it could not be measured here.
    """

    what: str
    against: str
    ratio: float | None
    detail: str
    target: str
    met: bool | None


@dataclass(frozen=True)
class Pair:
    """Two things timed in turn: medians in seconds, and the median of the ratios of each turn."""

    first: float
    second: float
    ratio: float


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def paired(first: Callable[[], object], second: Callable[[], object], *, repeats: int = 5) -> Pair:
    """Time two things in turn, `repeats` times after one call each to warm up.

    Work on a GPU must wait for the device itself before it returns.

    Returns:
        The pair; its ratio is first by second.
    """
    first(), second()
    turns = [(seconds(first), seconds(second)) for _ in range(repeats)]
    return Pair(
        first=statistics.median(a for a, _ in turns),
        second=statistics.median(b for _, b in turns),
        ratio=statistics.median(a / b for a, b in turns),
    )


def peak_memory_gib(code: str) -> float:
    """Peak resident memory of a Python process that runs `code`, in GiB, imports included."""
    report = """
import resource, sys
try:
    lines = open("/proc/self/status").read().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
except OSError:  # no /proc; getrusage counts what the parent held before exec as well
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kib //= 1024 if sys.platform == "darwin" else 1
print("peak_kib", kib)
"""
    command = [sys.executable, "-c", code + report]
    result = subprocess.run(
        command, cwd=ROOT, env=_with_package(), capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise RuntimeError(f"the measured process failed:\n{result.stderr}")
    return int(result.stdout.split("peak_kib")[1]) / 2**20


def machine() -> dict[str, str | int | float | None]:
    """What the numbers were measured on; names the hardware, not the host."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": _cores(),
        "memory_gib": round(memory, 1),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def machine_name() -> str:
    """A short name of the hardware for file names, such as amd-epyc-2-cores."""
    parts = [_processor(), f"{_cores()} cores", _gpu() or ""]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def versions() -> dict[str, str]:
    """Versions of Python and of what the benchmarks run on, as installed here."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def table(rows: Iterable[Row]) -> str:
    """The rows as aligned text."""
    head = ("what", "against", "ratio", "target", "met", "detail")
    verdicts = {True: "yes", False: "NO", None: "-"}
    lines = [head] + [
        (
            row.what,
            row.against,
            "-" if row.ratio is None else f"{row.ratio:.2f}",
            row.target,
            verdicts[row.met],
            row.detail,
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines
    ]
    return "\n".join(line.rstrip() for line in text)


def _with_package() -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu() -> str | None:
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        result = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.splitlines()[0].strip() if result.stdout.strip() else None
