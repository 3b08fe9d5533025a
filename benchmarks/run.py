"""Run the benchmarks, print one table and save it as a record.

    python benchmarks/run.py            all of bench_*.py
    python benchmarks/run.py scores     bench_scores.py alone

A module bench_<name>.py has a function `rows()` that yields a `Row` for each thing it measures.
The record of a day and a machine has the last rows of each benchmark.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # this copy of the package, installed or not

from _timing import Row, machine, machine_name, table, versions  # noqa: E402


def main() -> int:
    known = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--no-record", action="store_true", help="only print")
    args = parser.parse_args()
    unknown = set(args.names) - set(known)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    here = machine()
    measured: dict[str, list[Row]] = {}
    for name in args.names or known:
        print(f"{name} ...", file=sys.stderr, flush=True)
        measured[name] = list(importlib.import_module(f"bench_{name}").rows())
    print(table(row for rows in measured.values() for row in rows))
    command = " ".join(["python benchmarks/run.py", *args.names])
    print(f"\n{command}: {', '.join(f'{key} {value}' for key, value in here.items())}")
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    if not args.no_record:
        print(f"record: {_record(measured, here, command).relative_to(HERE.parent)}")
    return 0


def _record(measured: dict[str, list[Row]], here: dict[str, Any], command: str) -> Path:
    now = datetime.datetime.now(datetime.UTC)
    path = HERE / "records" / f"{now:%Y-%m-%d}-{machine_name()}.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    for name, rows in measured.items():
        record[name] = {
            "measured_at": now.isoformat(timespec="seconds"),
            "command": command,
            "commit": _commit(),
            "machine": here,
            "versions": versions(),
            "rows": [dataclasses.asdict(row) for row in rows],
        }
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".json.part")
    part.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    os.replace(part, path)
    return path


def _commit() -> str | None:
    """The commit measured, marked where files differ from it; None outside of git."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        result = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
