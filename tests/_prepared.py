"""Prepared images, changed as a test needs them, and what planning finds out about them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdsteps.files.text import read_json
from kdsteps.rehearsal.costs import Costs
from kdsteps.study.study import Study


def with_noise_for_testing(prepared: Path, folder: Path) -> dict[str, Path]:
    """The files `images` and `index` of a data set, written with other test images and labels."""
    table = pq.read_table(prepared / "index.parquet")
    test = np.array(table["split"].to_pylist()) == "test"
    images = np.load(prepared / "images.npy")
    images[test] = np.random.default_rng(0).integers(0, 256, images[test].shape)
    labels = np.where(test, 9 - table["label"].to_numpy(), table["label"].to_numpy())
    place = table.schema.get_field_index("label")
    table = table.set_column(place, "label", pa.array(labels, table.schema.field(place).type))
    found = {"images": folder / "images.npy", "index": folder / "index.parquet"}
    np.save(found["images"], images)
    pq.write_table(table, found["index"])
    return found


def costs_of(study: Study, summary: Path) -> Costs:
    """The costs of a study of digits without trials: a teacher computes one image per second."""
    about = read_json(summary)
    images = SimpleNamespace(counts=about["images"], class_names=about["class_names"])
    found: Any = SimpleNamespace(
        study=study,
        images={"digits": images},
        model=lambda *_: Path("no file"),
        seconds_per_image=lambda *_, **__: 1.0,
    )
    return Costs(found, 0.0, {})
