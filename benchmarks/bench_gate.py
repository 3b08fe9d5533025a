"""The check of a teacher against one pass over the validation images."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _timing import Row, paired, table
from PIL import Image
from safetensors.torch import load_file, save_file

from kdsteps.evaluation.predictions import predict
from kdsteps.files.text import read_json
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import CheckSettings, PrepareSettings, TrainSettings
from kdsteps.stages import prepare, train
from kdsteps.stages._shared import prepared, trained_model
from kdsteps.study.entries import ModelEntry
from kdsteps.study.resolving import resolve_model
from kdsteps.study.settings import Prepare
from kdsteps.study.training_settings import Train

_IMAGES = {"train": 2000, "validation": 5000, "test": 100}
_CLASSES, _SIZE, _BATCH = 10, 32, 250
_NETWORK = {"family": "cifar_resnet", "depth": 8}
_RECIPE = {"epochs": 3, "batch_size": 50, "schedule": "onecycle"}
_TARGET = 1.25


def rows() -> Iterator[Row]:
    """Yield the rows of this benchmark."""
    logging.getLogger("kdsteps").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = _prepare(folder)
        own = _train(folder / "own", data, _NETWORK, _RECIPE)
        save_file(load_file(own), folder / "weights.safetensors")
        entry = _NETWORK | {"checkpoint": str(folder / "weights.safetensors")}
        yield _row("a teacher trained here", data, own)
        yield _row(
            "a teacher from elsewhere", data, _train(folder / "other", data, entry, {"epochs": 0})
        )


def _row(what: str, data: dict[str, Path], model: Path) -> Row:
    settings = CheckSettings(on_failure="warn", expected_accuracy=None, batch_size=_BATCH)
    outputs = {"check": model.with_name("check.json")}
    job = Job(settings, {**data, "model": model}, outputs, threads=torch.get_num_threads())

    def one_pass() -> None:
        images = prepared(job, torch.device("cpu"))
        predict(trained_model(model, images), images.part("validation").in_order(_BATCH))

    pair = paired(lambda: train.run(job), one_pass, repeats=3)
    accuracy = read_json(outputs["check"])["accuracy"]["value"]
    return Row(
        what=f"check of {what}, {_IMAGES['validation']:,} images of 3 x {_SIZE} x {_SIZE}",
        against="one pass over the same images",
        ratio=pair.ratio,
        detail=f"{pair.first:.2f} s against {pair.second:.2f} s, accuracy {100 * accuracy:.0f}%",
        target=f"<= {_TARGET}",
        met=pair.ratio <= _TARGET,
    )


def _prepare(folder: Path) -> dict[str, Path]:
    """Patterns in noise, one in ten with another label, so that a good teacher makes errors."""
    rng = np.random.default_rng(0)
    patterns = rng.uniform(60, 200, (_CLASSES, _SIZE, _SIZE, 3))
    options: dict[str, Any] = {}
    for split, count in _IMAGES.items():
        shown = np.arange(count) % _CLASSES
        labels = np.where(rng.random(count) < 0.1, rng.integers(0, _CLASSES, count), shown)
        noise = rng.normal(0, 40, (count, _SIZE, _SIZE, 3))
        pixels = (patterns[shown] + noise).clip(0, 255).astype(np.uint8)
        path = folder / f"{split}.parquet"
        pq.write_table(
            pa.table({"image": [_png(image) for image in pixels], "label": labels}), path
        )
        options[split] = str(path)
    names = {"images": "images.npy", "index": "index.parquet", "summary": "summary.json"}
    outputs = {name: folder / file for name, file in names.items()}
    settings = PrepareSettings(kind="parquet", options=options, prepare=Prepare())
    prepare.run(Job(settings, {}, outputs, threads=torch.get_num_threads()))
    return outputs


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _train(
    folder: Path, data: dict[str, Path], model: dict[str, Any], recipe: dict[str, Any]
) -> Path:
    folder.mkdir()
    entry = resolve_model(ModelEntry.model_validate(model), "models")
    settings = TrainSettings(model=entry, train=Train(**recipe))
    outputs = {"model": folder / "teacher.safetensors", "history": folder / "history.parquet"}
    train.run(Job(settings, data, outputs, threads=torch.get_num_threads()))
    return outputs["model"]


if __name__ == "__main__":
    print(table(rows()))
