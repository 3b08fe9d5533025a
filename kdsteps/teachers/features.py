"""A teacher's features on disk: float16, one row group a layer, one row an image.

Written layer by layer and read column by column, so that neither side holds more than one layer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from kdsteps.data.images import ImageSplit, Views
from kdsteps.errors import KdstepsError
from kdsteps.files.atomic import atomic
from kdsteps.files.columns import Columns
from kdsteps.files.tables import open_table, whole_parquet
from kdsteps.models.chain import Chain
from kdsteps.models.feature_shapes import FeatureShape, feature_shapes

FEATURES: Columns = {
    "layer": pa.dictionary(pa.int16(), pa.string()),
    "image": pa.int32(),  # number in the training split
    "label": pa.int32(),
    "features": pa.large_list(pa.float16()),  # the layer's output for this image, flattened
}

# numbers that hardly repeat: by bytes instead of by a dictionary of values
ENCODING = {
    "use_dictionary": ["layer"],
    "column_encoding": {"features.list.element": "BYTE_STREAM_SPLIT"},
}
HELD_BYTES = 2**30  # of features in memory at once while they are written
BATCH = 250


def balanced_sample(labels: Tensor, count: int, seed: int) -> Tensor:
    """Indices of about `count` images, equally many of each class, ascending.

    A class with fewer images contributes all of them.

    Args:
        labels: (N,).
    """
    generator = torch.Generator().manual_seed(seed)
    classes = labels.unique()
    per_class = max(1, count // len(classes))
    chosen = []
    for label in classes:
        members = (labels == label).nonzero()[:, 0]
        chosen.append(members[torch.randperm(len(members), generator=generator)[:per_class]])
    return torch.cat(chosen).sort().values


def forecast_bytes(shapes: Mapping[str, FeatureShape], num_images: int) -> int:
    """Size of the features of all layers before compression."""
    return 2 * num_images * sum(math.prod(shape.shape) for shape in shapes.values())


@torch.inference_mode()
def write_features(
    path: Path, teacher: Chain, part: ImageSplit, index: Tensor, settings: Mapping[str, Any]
) -> None:
    """Write the features of every layer for the images of `index` (N,), without augmentation.

    Raises:
        KdstepsError: A feature is not finite, or too large for float16.
    """
    teacher.eval()
    shapes = feature_shapes(teacher, part.image_shape)
    metadata = {
        "kdsteps.settings": json.dumps(settings, sort_keys=True),
        "kdsteps.feature_shapes": json.dumps(
            {layer: shape.as_dict() for layer, shape in shapes.items()}
        ),
    }
    schema = pa.schema(list(FEATURES.items()), metadata=metadata)
    labels = part.labels.cpu()[index].numpy()
    with (
        atomic(path) as temporary,
        pq.ParquetWriter(
            temporary, schema, compression="zstd", write_page_checksum=True, **ENCODING
        ) as file,
    ):
        for layers in _groups(shapes, len(index)):
            features = _collect(teacher, part, index, layers)
            for layer in layers:
                file.write_table(
                    row_group(layer, index.numpy(), labels, features.pop(layer), schema)
                )


class FeatureFile:
    """The features that `write_features` wrote, one layer at a time."""

    def __init__(self, path: Path) -> None:
        """Raises: KdstepsError: It is missing, damaged, or lacks a column."""
        self.path = path
        self._file = open_table(path, FEATURES)
        metadata = self._file.schema_arrow.metadata or {}
        if b"kdsteps.feature_shapes" not in metadata:
            raise KdstepsError(
                f"{path}: was written by an earlier version; delete it and run again"
            )
        described = json.loads(metadata[b"kdsteps.feature_shapes"])
        self.shapes = {layer: FeatureShape(**shape) for layer, shape in described.items()}

    def labels(self) -> Tensor:
        """(N,) of the sampled images."""
        return torch.from_numpy(self._column(0, "label").to_numpy().astype(np.int64))

    def chunks(self, layer: str, width: int = 2048) -> Iterator[Tensor]:
        """The features (N, D) of a layer as float32 pieces (N, at most `width`), left to right."""
        number = list(self.shapes).index(layer)
        column = self._column(number, "features").combine_chunks()
        flat = column.flatten().to_numpy(zero_copy_only=True)  # (N * D,), float16
        features = flat.reshape(len(column), -1)
        for start in range(0, features.shape[1], width):
            yield torch.from_numpy(features[:, start : start + width].astype(np.float32))

    def _column(self, group: int, name: str) -> pa.ChunkedArray:
        with whole_parquet(self.path):
            return self._file.read_row_group(group, columns=[name])[name]


def _groups(shapes: Mapping[str, FeatureShape], num_images: int) -> Iterator[list[str]]:
    """Layers in order, as many at a time as `HELD_BYTES` allows, at least one."""
    group: list[str] = []
    held = 0
    for layer, shape in shapes.items():
        size = 2 * num_images * math.prod(shape.shape)
        if group and held + size > HELD_BYTES:
            yield group
            group, held = [], 0
        group.append(layer)
        held += size
    yield group


def _collect(
    teacher: Chain, part: ImageSplit, index: Tensor, layers: Sequence[str]
) -> dict[str, np.ndarray]:
    """(N, D) float16 of each layer."""
    found: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    for piece in index.split(BATCH):
        drawn = part.take(piece, Views(), torch.zeros_like(piece))
        traced = teacher.trace(drawn.images, layers)
        for layer in layers:
            found[layer].append(_as_half(layer, traced[layer]))
    return {layer: np.concatenate(pieces) for layer, pieces in found.items()}


def _as_half(layer: str, features: Tensor) -> np.ndarray:
    half = features.flatten(1).to(torch.float16)
    if not half.isfinite().all():
        largest = features.abs().max().item()
        raise KdstepsError(
            f"the teacher's layer {layer!r} has features up to {largest:.3g}, more than float16 "
            "holds (65504) or not a number; train the teacher with a lower learning_rate"
        )
    return half.cpu().numpy()


def row_group(
    layer: str, index: np.ndarray, labels: np.ndarray, features: np.ndarray, schema: pa.Schema
) -> pa.Table:
    """A layer as the rows of `FEATURES`.

    Args:
        index, labels: (N,), of the images.
        features: (N, D), float16.
    """
    count, width = features.shape
    offsets = pa.array(np.arange(count + 1, dtype=np.int64) * width)
    columns = [
        pa.array([layer] * count).dictionary_encode().cast(FEATURES["layer"]),
        pa.array(index.astype(np.int32)),
        pa.array(labels.astype(np.int32)),
        pa.LargeListArray.from_arrays(offsets, pa.array(features.reshape(-1))),
    ]
    return pa.Table.from_arrays(columns, schema=schema)
