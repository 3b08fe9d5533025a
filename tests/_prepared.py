"""Prepared images, changed as a test needs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


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
