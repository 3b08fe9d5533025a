"""A duel without labels: kdsteps and lightly-train distil the same teacher into the same student.

    python benchmarks/duel_lightly.py --install    lightly-train into an environment of its own
    python benchmarks/duel_lightly.py              the duel; a second call continues the first

Both train on the same images for the same number of steps, on one core. Each tries the same number
of values, compared on labeled images that are not among the queries. What counts is how much of the
gap between an untrained student and the teacher is closed, and the seconds of processor time.
lightly-train is only run as a program; neither kdsteps nor this file imports it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from _timing import ROOT

sys.path.insert(0, str(ROOT))  # this copy of the package, installed or not

from _duel_images import STUDENT, TEACHER, piece, probed, write, write_images
from _duel_sides import (
    VARIANTS,
    Run,
    candidates,
    distil,
    kdsteps,
    num_steps,
    params,
    processor_seconds,
    run_kdsteps,
    run_lightly,
)

LIGHTLY = "lightly-train==0.18.0"


def train_teacher(args: argparse.Namespace) -> None:
    """Train the teacher with kdsteps on labeled images, and write it for both sides."""
    import torch
    from safetensors.torch import load_file
    from yaml import safe_dump

    folder = args.work / "teacher-study"
    folder.mkdir(exist_ok=True)
    study = params(args)
    study["datasets"] = {"labeled": {"kind": "folder", "path": "../images/teacher"}}
    study["models"]["teacher"] = {
        key: value for key, value in study["models"]["teacher"].items() if key != "checkpoint"
    }
    study["models"]["teacher"]["train"] = {
        "epochs": args.teacher_epochs,
        "optimizer": "adamw",
        "learning_rate": 0.003,
        "weight_decay": 0.05,
        "schedule": "cosine",
        "warmup": 0.1,
        "batch_size": 64,
        "flip": True,
        "crop_padding": 2,
    }
    study["pairs"]["pair"]["dataset"] = "labeled"
    study["methods"], study["prepare"] = {"kd": {}}, {"validation": 0.05, "test": 0.05}
    (folder / "params.yaml").write_text(safe_dump(study))
    model = folder / "results/train/labeled/teacher/teacher.safetensors"
    if not model.exists():
        kdsteps(folder, "prepare", "--dataset", "labeled")
        kdsteps(folder, "train", "--dataset", "labeled", "--teacher", "teacher")
    shutil.copy(model, args.work / "kdsteps" / "teacher.safetensors")
    weights = {k: v for k, v in load_file(model).items() if not k.startswith("fc.")}
    torch.save(weights, args.work / "teacher.pt")


def trained(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """What a run cost and where its student is; the run itself, unless it is done."""
    path = args.work / "runs" / f"{run.name}.json"
    if found := piece(path):
        return found
    print(f"{run.name} ...", file=sys.stderr, flush=True)
    return write(path, (run_kdsteps if run.side == "kdsteps" else run_lightly)(run, args))


def prepared(args: argparse.Namespace) -> dict[str, Any]:
    """What kdsteps does once for all runs: reading the images, and checking in the teacher."""
    from yaml import safe_dump

    folder = args.work / "kdsteps"
    (folder / "params.yaml").write_text(safe_dump(params(args)))
    path = args.work / "runs" / "prepare.json"
    if found := piece(path):
        return found
    first, _ = kdsteps(folder, "prepare", "--dataset", "bare")
    second, _ = kdsteps(folder, "train", "--dataset", "bare", "--teacher", "teacher")
    return write(path, {"seconds": first + second})


def imported(side: str, args: argparse.Namespace) -> float:
    """Processor seconds in which a program of a side starts, its modules being compiled already."""
    path = args.work / "runs" / f"{side}-import.json"
    if found := piece(path):
        return float(found["seconds"])
    python, module = {
        "kdsteps": (sys.executable, "kdsteps.stages.distil"),
        "lightly": (str(args.lightly / "bin" / "python"), "lightly_train"),
    }[side]
    command = [python, "-c", f"import {module}"]
    seconds, _ = processor_seconds(command, args.work, PYTHONPATH=str(ROOT))
    return float(write(path, {"seconds": seconds})["seconds"])


def live(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """The same run of kdsteps in a copy of its study, without a cache."""
    path = args.work / "runs" / f"{run.name}-live.json"
    if found := piece(path):
        return found
    folder = args.work / "kdsteps-live"
    shutil.rmtree(folder, ignore_errors=True)
    unwanted = shutil.ignore_patterns(".kdsteps", ".jobcache", "distil")
    shutil.copytree(args.work / "kdsteps", folder, ignore=unwanted)
    return write(path, distil(folder, run, "--keep", "never"))


def duel(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what is not done yet; the rows of the record."""
    for folder in ("kdsteps", "lightly"):
        (args.work / folder).mkdir(parents=True, exist_ok=True)
    write_images(args)
    train_teacher(args)
    once = prepared(args)
    teacher = str(args.work / "teacher.pt")
    rows = [{"what": "prepare", "side": "kdsteps", "seconds": once["seconds"]}]

    def measured(run: Run, queries: str) -> dict[str, Any]:
        cost = trained(run, args)
        values = probed(run.name, STUDENT, cost["weights"], queries, args)
        return {**_described(run), **_cost(cost), **values}

    chosen = {}
    for side in VARIANTS:
        tried = [measured(run, "tuning") for run in candidates(side, args)]
        rows += [{"what": "tuning", **row} for row in tried]
        chosen[side] = best(tried)
    for seed in args.seeds:
        values = probed(f"untrained-{seed}", STUDENT, seed, "queries", args)
        rows.append({"what": "untrained", "seed": seed, **values})
        for side, (variant, rate) in chosen.items():
            run = Run(side, variant, rate, seed)
            rows.append({"what": "student", **measured(run, "queries")})
    first = Run("kdsteps", *chosen["kdsteps"], args.seeds[0])
    cost = live(first, args)
    values = probed(f"{first.name}-live", STUDENT, cost["weights"], "queries", args)
    rows.append({"what": "live", **_described(first), **_cost(cost), **values})
    rows += [{"what": "start", "side": side, "seconds": imported(side, args)} for side in VARIANTS]
    rows.append({"what": "teacher", **probed("teacher", TEACHER, teacher, "queries", args)})
    return rows


def gap_closed(value: float, untrained: float, teacher: float) -> float:
    """The fraction of the gap between an untrained student and the teacher that is closed."""
    return (value - untrained) / (teacher - untrained)


def best(tried: Sequence[Mapping[str, Any]]) -> tuple[str, float]:
    """The variant and the learning rate with the highest mean accuracy of the neighbors."""
    found: dict[tuple[str, float], list[float]] = {}
    for row in tried:
        values = found.setdefault((row["variant"], row["learning_rate"]), [])
        values.append(row["neighbor_accuracy"])
    return max(found, key=lambda key: sum(found[key]) / len(found[key]))


def _described(run: Run) -> dict[str, Any]:
    named = {"side": run.side, "variant": run.variant}
    return named | {"learning_rate": run.rate, "seed": run.seed}


def _cost(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("seconds", "cache_seconds")}


def summary(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The lines to print: fractions of the gap closed, and processor seconds."""
    from scipy import stats

    from kdsteps.evaluation.probes import probe_names
    from kdsteps.evaluation.statistics import sample

    of = {what: [row for row in rows if row["what"] == what] for what in {r["what"] for r in rows}}
    (teacher,) = of["teacher"]
    sides = {s: [row for row in of["student"] if row["side"] == s] for s in VARIANTS}
    for name in probe_names((0.01, 0.1, 1.0)):
        start = sum(row[name] for row in of["untrained"]) / len(of["untrained"])
        line = f"{name}: untrained {start:.3f}, teacher {teacher[name]:.3f}"
        closed = {
            side: [gap_closed(row[name], start, teacher[name]) for row in found]
            for side, found in sides.items()
        }
        for side, values in closed.items():
            found = sample(values)
            line += f", {side} {100 * found.mean:.1f} ± {100 * (found.spread or 0):.1f} % closed"
        if all(len(values) > 1 for values in closed.values()):
            welch = stats.ttest_ind(*closed.values(), equal_var=False)
            low, high = welch.confidence_interval()
            line += f", difference {100 * low:+.1f} to {100 * high:+.1f} (p {welch.pvalue:.3f})"
        yield line
    yield from costs(rows)


def costs(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Processor seconds of each side for all seeds together, and of one run alone."""
    (once,) = (row["seconds"] for row in rows if row["what"] == "prepare")
    start = {row["side"]: row["seconds"] for row in rows if row["what"] == "start"}
    runs = {
        side: [r for r in rows if r["what"] == "student" and r["side"] == side] for side in VARIANTS
    }
    # the first run of a variant writes the cache, which may be one of the tuning
    same = {row["variant"] for row in runs["kdsteps"]}
    cache = max(row["cache_seconds"] for row in rows if row.get("variant") in same)
    spent = {
        side: sum(row["seconds"] - row["cache_seconds"] for row in found)
        for side, found in runs.items()
    }
    count = len(runs["kdsteps"])
    ours, theirs = once + cache + spent["kdsteps"], spent["lightly"]
    yield (
        f"{count} seeds: kdsteps {ours:.0f} s ({once:.0f} to prepare, {cache:.0f} for the cache), "
        f"lightly {theirs:.0f} s, ratio {ours / theirs:.2f}"
    )
    alone = once + cache + spent["kdsteps"] / count
    yield (
        f"one run alone: kdsteps {alone:.0f} s, lightly {theirs / count:.0f} s, "
        f"ratio {alone * count / theirs:.2f}"
    )
    # two stages prepare, and each run is a program of its own
    bare = {"kdsteps": ours - (count + 2) * start["kdsteps"]}
    bare["lightly"] = theirs - count * start["lightly"]
    yield (
        f"without starting programs ({start['kdsteps']:.1f} and {start['lightly']:.1f} s each): "
        f"kdsteps {bare['kdsteps']:.0f} s, lightly {bare['lightly']:.0f} s, "
        f"ratio {bare['kdsteps'] / bare['lightly']:.2f}"
    )


def install(folder: Path) -> None:
    """Make the environment of lightly-train, with the torch and the timm that run here."""
    same = [
        f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "torchvision", "timm")
    ]
    subprocess.run(["uv", "venv", "--python", sys.executable, str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run(["uv", "pip", "install", "--python", python, LIGHTLY, *same], check=True)


def parsed(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    data = ROOT.parent / "shared" / "data" / "cifar100"
    parser.add_argument("--install", action="store_true", help="only make the environment")
    parser.add_argument("--work", type=Path, default=Path("duel"), help="folder of all files")
    parser.add_argument("--lightly", type=Path, help="its environment (WORK/lightly-env)")
    parser.add_argument("--cifar100", type=Path, default=data, help="folder of its parquet files")
    parser.add_argument("--record", type=Path, help="CSV file to write")
    parser.add_argument("--classes", type=int, default=10, help="superclasses (%(default)s)")
    parser.add_argument("--images", type=int, default=4096, help="without labels (%(default)s)")
    parser.add_argument("--teacher-images", type=int, default=12000, help="labeled (%(default)s)")
    parser.add_argument("--teacher-epochs", type=int, default=6, help="(%(default)s)")
    parser.add_argument(
        "--probe-images", type=int, default=4000, help="references, and queries (%(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=8, help="of students (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.003, 0.01])
    every = [name for names in VARIANTS.values() for name in names]
    parser.add_argument("--variants", nargs="+", choices=every, default=every)
    parser.add_argument(
        "--flip", action="store_true", help="mirror images at random, on both sides"
    )
    parser.add_argument("--tuning-seeds", type=int, nargs="+", default=[100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args(given)
    args.work = args.work.resolve()
    args.lightly = (args.lightly or args.work / "lightly-env").resolve()
    try:
        num_steps(args.images, args.batch, args.epochs)
    except ValueError as error:
        parser.error(f"--images: {error}")
    for side, names in VARIANTS.items():
        if len(set(args.variants) & set(names)) * len(VARIANTS) != len(set(args.variants)):
            parser.error(f"--variants: name as many of {side} as of the other side")
    return args


def main() -> int:
    args = parsed()
    if args.install:
        install(args.lightly)
        return 0
    if not (args.lightly / "bin" / "lightly-train").exists():
        print(f"skipped: lightly-train is not in {args.lightly}; --install puts it there")
        return 0
    if not any(args.cifar100.glob("train-*.parquet")):
        print(f"skipped: {args.cifar100} has no train-*.parquet of CIFAR-100")
        return 0
    import pandas as pd

    rows = duel(args)
    print("\n".join(summary(rows)))
    if args.record:
        pd.DataFrame(rows).round(4).to_csv(args.record, index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
