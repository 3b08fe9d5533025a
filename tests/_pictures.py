"""Little image files and prepared data sets for the tests of data."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kdsteps.data.prepared import Prepared, load_prepared
from kdsteps.files.text import read_json
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import PrepareSettings
from kdsteps.stages.prepare import run
from kdsteps.study.settings import Prepare

REAL = Path(__file__).parents[2] / "shared" / "data"  # CIFAR-100 and Fashion-MNIST, where they are

FILES = {"images": "images.npy", "index": "index.parquet", "summary": "summary.json"}


def color(seed: int, height: int = 6, width: int = 6) -> Image.Image:
    """An RGB image of noise that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def as_bytes(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_folder(root: Path, counts: Mapping[str, int], start: int = 0) -> Path:
    """A folder with one folder a class: {class name: number of different images}."""
    seed = start
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            color(seed).save(root / name / f"{number}.png")
            seed += 1
    return root


def prepare(
    folder: Path, kind: str, options: Mapping[str, Any], threads: int = 2, **section: Any
) -> dict[str, Path]:
    """The three files that `kdsteps prepare` writes into `folder`."""
    outputs = {name: folder / file for name, file in FILES.items()}
    run(Job(settings_of(kind, options, **section), {}, outputs, threads=threads))
    return outputs


def settings_of(kind: str, options: Mapping[str, Any], **section: Any) -> PrepareSettings:
    """The settings of a job that prepares a data set."""
    values = {"validation": 0.2, "test": 0.2} | section
    return PrepareSettings(kind=kind, options=dict(options), prepare=Prepare(**values))


def prepared(*args: Any, **section: Any) -> tuple[Prepared, dict[str, Any]]:
    """A prepared data set on the CPU, and its summary; arguments as of `prepare`."""
    files = prepare(*args, **section)
    return load_prepared(**files, device=torch.device("cpu")), read_json(files["summary"])
