"""One training of a student by either side of the duel, as a program."""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _duel_images import MEAN, SIZE, STD, STUDENT, TEACHER
from _timing import ROOT

VARIANTS = {"kdsteps": ("embedding", "feature_only"), "lightly": ("same", "default")}
"""What each side can try besides learning rates: methods, or augmentation (the same as for kdsteps,
or what lightly-train does by default; it always adds mixup)."""
WEIGHT_DECAY, CLIP, WARMUP = 1e-6, 1.0, 0.1  # lightly-train's for such a student
REFERENCE_BATCH = 1536  # for which lightly-train's learning rate is meant; it scales by the root
TIMED = """
import sys, time
from kdsteps.cli.main import main
from kdsteps.teachers import logit_cache
write = logit_cache.write_outputs
def timed(*given):
    started = time.process_time()
    write(*given)
    print(f"cache_seconds {time.process_time() - started:.2f}", flush=True)
logit_cache.write_outputs = timed
sys.exit(main())
"""


@dataclass(frozen=True)
class Run:
    """One training of a student.

    Attributes:
        side: "kdsteps" or "lightly".
        variant: One of `VARIANTS`.
        rate: Peak learning rate.
    """

    side: str
    variant: str
    rate: float
    seed: int

    @property
    def method(self) -> str:
        """The name of its entry under `methods`."""
        return method_name(self.variant, self.rate)

    @property
    def name(self) -> str:
        return f"{self.side}-{self.method}-{self.seed}"


def method_name(variant: str, rate: float) -> str:
    return f"{variant}_{rate:g}".replace(".", "_").replace("-", "m")


def candidates(side: str, args: argparse.Namespace) -> list[Run]:
    """The runs that a side is tuned with: as many as those of the other side."""
    variants = [name for name in VARIANTS[side] if name in args.variants]
    return [
        Run(side, name, rate, seed)
        for name in variants
        for rate in args.rates
        for seed in args.tuning_seeds
    ]


def num_steps(images: int, batch: int, epochs: int) -> int:
    """Training steps on either side; both leave out the rest of an epoch, so there is none.

    Raises:
        ValueError: The batches do not use all images.
    """
    if images % batch:
        raise ValueError(f"{images} images are not a multiple of the batch size {batch}")
    return images // batch * epochs


def lightly_rate(rate: float, batch: int) -> float:
    """The `lr` with which lightly-train's peak learning rate is `rate`."""
    return rate / math.sqrt(batch / REFERENCE_BATCH)


def params(args: argparse.Namespace) -> dict[str, Any]:
    """The study of kdsteps: an entry of `methods` for each value that is tried."""
    contract = {"family": "timm", "normalize": {"mean": list(MEAN), "std": list(STD)}}
    teacher = {"checkpoint": "teacher.safetensors", "train": {"epochs": 0}}
    tried = candidates("kdsteps", args)
    return {
        "datasets": {"bare": {"kind": "folder", "path": "../images/bare", "labels": "none"}},
        "models": {
            "teacher": {**contract, **TEACHER, **teacher},
            "student": {**contract, **STUDENT},
        },
        "pairs": {"pair": {"dataset": "bare", "teacher": "teacher", "student": "student"}},
        "methods": {
            run.method: {"method": run.variant, "distil": {"learning_rate": run.rate}}
            for run in tried
        },
        "seeds": sorted({*args.seeds, *args.tuning_seeds}),
        "prepare": {"validation": 0.0, "test": 0.0},
        "distil": {
            "epochs": args.epochs,
            "batch_size": args.batch,
            "optimizer": "adamw",
            "weight_decay": WEIGHT_DECAY,
            "clip_grad_norm": CLIP,
            "flip": args.flip,
            "schedule": "cosine",
            "warmup": WARMUP,
        },
    }


def lightly_command(run: Run, args: argparse.Namespace) -> list[str]:
    """The command of one training by lightly-train."""
    options: dict[str, Any] = {
        "out": str(args.work / "lightly" / run.name),
        "data": str(args.work / "images" / "bare"),
        "model": f"timm/{STUDENT['name']}",
        "method": "distillation",
        "method_args.teacher": f"timm/{TEACHER['name']}",
        "method_args.teacher_weights": str(args.work / "teacher.pt"),
        "method_args.teacher_args.num_classes": 0,
        "model_args.num_classes": 0,
        "model_args.pretrained": "false",
        "epochs": args.epochs,
        "batch_size": args.batch,
        "seed": run.seed,
        "optim": "adamw",
        "optim_args.lr": lightly_rate(run.rate, args.batch),
        "optim_args.weight_decay": f"{WEIGHT_DECAY:.7f}",
        "transform_args.image_size": [SIZE, SIZE],
        "transform_args.normalize.mean": list(MEAN),
        "transform_args.normalize.std": list(STD),
        "accelerator": "cpu",
        "devices": 1,
        "num_workers": 0,
        "precision": "32-true",
        "loggers.tensorboard": "null",
        "overwrite": "true",
    }
    for prefix, network in (("method_args.teacher_args", TEACHER), ("model_args", STUDENT)):
        options |= {f"{prefix}.{key}": value for key, value in network.items() if key != "name"}
    if run.variant == "same":
        unwanted = ["random_resize", "color_jitter", "random_gray_scale", "gaussian_blur"]
        unwanted += [] if args.flip else ["random_flip"]
        options |= {f"transform_args.{name}": "null" for name in unwanted}
    return [
        *(str(args.lightly / "bin" / "lightly-train"), "pretrain"),
        *(f"{key}={value}" for key, value in options.items()),
    ]


def processor_seconds(command: Sequence[str], folder: Path, **more: str) -> tuple[float, str]:
    """Processor seconds of a command, user and system, on one thread; and what it printed.

    Raises:
        RuntimeError: It failed.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = os.environ | threads | {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1"} | more
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        printed = output.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{printed[-3000:]}")
    return usage.ru_utime + usage.ru_stime, printed


def kdsteps(folder: Path, *words: str) -> tuple[float, float]:
    """Processor seconds of a stage of kdsteps, and those in which it wrote a cache."""
    command = [sys.executable, "-c", TIMED, *words, "--threads", "1", "--gpus", "0"]
    seconds, printed = processor_seconds(command, folder, PYTHONPATH=str(ROOT))
    written = [line.split()[1] for line in printed.splitlines() if line.startswith("cache_seconds")]
    return seconds, sum(map(float, written))


def run_kdsteps(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """Train a student with kdsteps; first plan it if the method does."""
    folder = args.work / "kdsteps"
    before = 0.0
    if run.variant == "feature_only" and not (folder / f"results/build/pair/{run.method}").exists():
        before, _ = kdsteps(folder, "build", "--pair", "pair", "--method", run.method)
    found = distil(folder, run)
    return found | {"seconds": before + found["seconds"]}


def distil(folder: Path, run: Run, *options: str) -> dict[str, Any]:
    """Train a student in a study of kdsteps: processor seconds, and where the student is."""
    names = ("--pair", "pair", "--method", run.method, "--seed", str(run.seed))
    seconds, cache = kdsteps(folder, "distil", *names, *options)
    weights = folder / f"results/distil/pair/{run.method}/{run.seed}/student.safetensors"
    return {"seconds": seconds, "cache_seconds": cache, "weights": str(weights)}


def run_lightly(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """Train a student with lightly-train."""
    seconds, _ = processor_seconds(lightly_command(run, args), args.work / "lightly")
    weights = args.work / "lightly" / run.name / "exported_models" / "exported_last.pt"
    return {"seconds": seconds, "cache_seconds": 0.0, "weights": str(weights)}
