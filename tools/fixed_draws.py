"""Train the students of a recipe with several numbers of fixed draws, and without: the records.

    python tools/fixed_draws.py recipes/fixed-draws.yaml FOLDER --draws 1 2 4 8 16 --records FILE

Each seed of the recipe also decides its draws (`cache.seed`), so that differences between seeds
include those between draws. Jobs run one after another in this process, on one core; what exists in
FOLDER is not made again.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kdsteps.cli.calls import call_of  # noqa: E402
from kdsteps.cli.running import run_call  # noqa: E402
from kdsteps.jobs import graph  # noqa: E402
from kdsteps.study.loading import load_study  # noqa: E402

TEACHER = ("prepare", "train", "train_check", "evaluate_teacher")
STUDENT = ("cache_outputs", "distil", "evaluate")


def main() -> None:
    """Run what is missing, seed by seed, and write a row for each student."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--data", type=Path, help="folder of the data set, if it is there already")
    parser.add_argument("--records", type=Path, required=True)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    content = yaml.safe_load(given.recipe.read_text())
    if given.data is not None:
        for dataset in content["datasets"].values():
            dataset |= {"root": str(given.data.absolute()), "download": False}
    records = given.records.absolute()
    base = given.folder.absolute() / "teacher"
    run_jobs(base, content, TEACHER)
    rows: list[dict[str, Any]] = []
    for seed in content["seeds"]:
        for count in (None, *given.draws):
            section = content.get("cache", {}) | {"draws": count, "seed": seed}
            own = content | {"seeds": [seed], "cache": section}
            folder = base.with_name(f"{'live' if count is None else f'draws{count}'}-{seed}")
            if not folder.exists():
                shutil.copytree(base, folder)
            run_jobs(folder, own, STUDENT)
            rows += rows_of(count, seed)
            write(records, rows)


def run_jobs(folder: Path, content: dict[str, Any], rules: tuple[str, ...]) -> None:
    """Run the jobs of some rules that are missing; the working folder is then `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    Path("params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    study = load_study()
    for rule in rules:
        for names in graph.jobs(study, rule):
            if all(Path(path).exists() for path in graph.outputs(rule, names).values()):
                continue
            started = time.process_time()
            run_call(call_of(study, rule, names), threads=1)
            Path(graph.outputs(rule, names).popitem()[1]).parent.joinpath(
                f"{rule}.cpu_seconds"
            ).write_text(f"{time.process_time() - started:.1f}")


def rows_of(count: int | None, seed: int) -> list[dict[str, Any]]:
    """The results in the working folder."""
    study, rows = load_study(), []
    for names in graph.jobs(study, "evaluate"):
        files = graph.outputs("evaluate", names)
        measures = yaml.safe_load(Path(files["measures"]).read_text())
        folder = Path(graph.outputs("distil", names)["model"]).parent
        rows.append(
            {
                "method": names["method"],
                "draws": "live" if count is None else count,
                "seed": seed,
                "test_accuracy": measures["accuracy"],
                "test_nll": measures["nll"],
                "cpu_seconds": (folder / "distil.cpu_seconds").read_text(),
            }
        )
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
