"""The command `jobcache`: show the size of the job cache, and make it smaller."""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.jobs import cache
from kdsteps.jobs.words import in_bytes, plural

_UNITS = {"": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "B": 1}


def add_commands(commands: Any) -> None:
    """Add `jobcache` to the commands of `kdsteps`."""
    parser = commands.add_parser(
        "jobcache",
        help="show how large the job cache is, or make it smaller",
        description="Show the number and size of the results in the job cache. They are copies: "
        "if you delete them, nothing is lost but the time to compute them again. The folder is "
        ".jobcache, or $KDSTEPS_JOB_CACHE.",
    )
    parser.add_argument(
        "--limit",
        type=_size,
        metavar="SIZE",
        help="delete the least recently used results until the rest fits into SIZE, such as 5GiB",
    )
    parser.set_defaults(run=show_job_cache)


def show_job_cache(given: argparse.Namespace) -> None:
    """Print the number and size of cached results by stage, after shrinking to `--limit`."""
    if given.limit is not None:
        removed = cache.shrink(given.limit)
        freed = sum(result.size for result in removed)
        print(f"deleted {plural(len(removed), 'result')}, {in_bytes(freed)}")
    results = cache.cached_results()
    stages: dict[str, list[int]] = defaultdict(list)
    for result in results:
        stages[result.stage].append(result.size)
    for stage, sizes in sorted(stages.items()):
        print(f"{stage:10} {plural(len(sizes), 'result'):>14} {in_bytes(sum(sizes)):>10}")
    total = sum(result.size for result in results)
    print(f"{cache.job_cache()}: {plural(len(results), 'result')}, {in_bytes(total)}")
    if given.limit is not None and total > given.limit:
        raise KdstepsError(
            f"{cache.job_cache()}: has {in_bytes(total)}, more than --limit, since some results "
            "cannot be deleted; make their folders writable, or ask their owner"
        )


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([A-Za-z]*)", text.strip())
    if found is None or found[2].upper() not in _UNITS:
        raise argparse.ArgumentTypeError(f"is {text!r}; it should be a size such as 500MiB or 5GiB")
    return int(float(found[1]) * _UNITS[found[2].upper()])
