"""Break a small study in every way that a user's machine may, and check that nothing is lost.

    python tools/torture                          every kind, in full; `make torture`
    python tools/torture --only damage --count 3  one kind, with fewer trials
    python tools/torture --seed 7 --json FILE     other moments, bits and values

A study of digits is finished once as the reference. Each trial breaks something in a copy, and
survives if one sentence says so and running again leads to the results of the reference. The exit
status is 1 if a trial failed or went wrong silently.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import bad_params
import damage
import full_disk
import kills
import pairs
from outcomes import Outcomes
from studies import REPOSITORY, Folder, heal, last_line, new_study

COUNTS = {"damage": 150, "params": 200, "pairs": 36, "disk": 5, "kills": 60}
RUN = {
    "damage": damage.damage,
    "params": bad_params.bad_params,
    "pairs": pairs.pairs,
    "disk": full_disk.full_disk,
    "kills": kills.kills,
}


def main() -> int:
    given = _arguments()
    # A shell's background ignores it, and so would every program that is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    outcomes, started, commit = Outcomes(), time.monotonic(), _commit()
    with tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as place:
        reference, interrupted = _reference(given.reference, Path(place)), False
        try:
            for kind in given.only or COUNTS:
                count = COUNTS[kind] if given.count is None else given.count
                print(f"{kind}: {count} trials", file=sys.stderr, flush=True)
                rng = random.Random(f"{given.seed} {kind}")
                RUN[kind](reference, Path(place), outcomes, rng, count)
        except KeyboardInterrupt:
            outcomes.skip("all others", "interrupted")
            interrupted = True
    print(outcomes.table())
    print(outcomes.details())
    known = {"seed": given.seed, "commit": commit, "seconds": round(time.monotonic() - started)}
    print(", ".join(f"{key} {value}" for key, value in known.items()))
    if given.json:
        Path(given.json).write_text(json.dumps(outcomes.content(**known), indent=1) + "\n")
    return 0 if outcomes.clean and not interrupted else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python tools/torture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="of every random choice (0)")
    parser.add_argument("--only", action="append", choices=COUNTS, help="may be repeated")
    parser.add_argument("--count", type=int, help="trials, of damage for each kind of file")
    parser.add_argument("--json", metavar="FILE", help="write the table and all failures as JSON")
    parser.add_argument(
        "--reference",
        metavar="FOLDER",
        help="use or make the finished study here, for the next time",
    )
    return parser.parse_args()


def _reference(given: str | None, place: Path) -> Folder:
    """The finished study."""
    path = Path(given or place / "reference").absolute()
    if path.exists() and not _same_code(path):
        raise SystemExit(f"{path}: was made with other code; delete it, and it is made again")
    print("making the reference", file=sys.stderr, flush=True)
    study = Folder(path) if path.exists() else new_study(path)
    if wrong := heal(study, runs=1)[0]:
        raise SystemExit(f"the study cannot be finished: {last_line(wrong[0])}")
    return study


def _same_code(path: Path) -> bool:
    """Whether a reference was made with the package and the workflow of this repository."""
    places = ("kdsteps/**/*.py", "workflow/**/*.smk", "profiles/**/*.yaml")
    ours = [file.relative_to(REPOSITORY) for name in places for file in REPOSITORY.glob(name)]
    return all(
        (path / file).exists() and (path / file).read_bytes() == (REPOSITORY / file).read_bytes()
        for file in ours
    )


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
