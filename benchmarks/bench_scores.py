"""Scoring a layer: seconds against plain loops and against its one product, peak memory, files."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from _timing import Row, paired, peak_memory_gib, seconds, table
from torch import Tensor

from kdsteps.scores.quality import layer_quality
from kdsteps.teachers.features import ENCODING, FEATURES, row_group

_IMAGES, _WIDTH, _CLASSES = 5000, 2048, 10
_WIDE = 65_536
_TIMED_ROWS = 20  # of the plain loops, whose time grows with their number; all would take minutes


def rows() -> Iterator[Row]:
    """Yield the rows of this benchmark."""
    _check_plain_loops()
    features, labels = _sample(_IMAGES, _WIDTH)
    yield _against_plain_loops(features, labels)
    yield _against_one_product(features, labels)
    yield from _memory()
    yield from _files(features, labels)


def _against_plain_loops(features: Tensor, labels: Tensor) -> Row:
    some = range(_TIMED_ROWS)
    pair = paired(lambda: plain_pairs(features, labels, some), lambda: _score(features, labels))
    spectra = seconds(lambda: plain_entropy(features, labels))
    turns = _IMAGES / _TIMED_ROWS
    plain = pair.first * turns + spectra
    ratio = pair.ratio * turns + spectra / pair.second
    timed = f"{_TIMED_ROWS} of {_IMAGES:,} loops timed"
    return Row(
        what=f"Q of a layer, {_IMAGES:,} x {_WIDTH:,}",
        against="plain loops over images",
        ratio=ratio,
        detail=f"{pair.second:.2f} s against {plain:.0f} s ({timed})",
        target=">= 50 times faster",
        met=ratio >= 50,
    )


def _against_one_product(features: Tensor, labels: Tensor) -> Row:
    pair = paired(lambda: _score(features, labels), lambda: features @ features.T)
    return Row(
        what=f"Q of a layer, {_IMAGES:,} x {_WIDTH:,}",
        against="one product of features and their transpose, float32",
        ratio=pair.ratio,
        detail=f"{pair.first:.2f} s against {pair.second:.2f} s; lower bound 0.5, half a product",
        target="<= 3",
        met=pair.ratio <= 3,
    )


def _memory() -> Iterator[Row]:
    matrix = _IMAGES * _WIDE * 4 / 2**30
    start = peak_memory_gib("import kdsteps.scores.quality")
    setup = f"""
import torch
from kdsteps.scores.quality import layer_quality, score_layer
labels = torch.arange({_IMAGES}) % {_CLASSES}
"""
    ways = {
        "whole in float16": f"""
features = torch.empty({_IMAGES}, {_WIDE}, dtype=torch.float16)
for start in range(0, {_WIDE}, 1024):
    features[:, start : start + 1024] = torch.rand({_IMAGES}, 1024)
layer_quality(features, labels, train_size=50_000)
""",
        "in chunks of 4,096": f"""
chunks = (torch.rand({_IMAGES}, 4096).half() for _ in range({_WIDE} // 4096))
score_layer(chunks, labels, train_size=50_000)
""",
    }
    for way, code in ways.items():
        peak = peak_memory_gib(setup + code)
        yield Row(
            what=f"peak memory of scoring, {_IMAGES:,} x {_WIDE:,}, {way}",
            against="the matrix in float32",
            ratio=peak / matrix,
            detail=f"{peak:.2f} GiB against {matrix:.2f} GiB; floor {start:.2f} GiB, the imports",
            target="<= 1.5 GiB",
            met=peak <= 1.5,
        )


def _files(features: Tensor, labels: Tensor) -> Iterator[Row]:
    """Writing and reading a layer, half of whose features are zero, as after a ReLU."""
    half = features.to(torch.float16).numpy()
    count, width = half.shape
    schema = pa.schema(list(FEATURES.items()))
    rows = row_group("layer", np.arange(count), labels.numpy(), half, schema)
    with tempfile.TemporaryDirectory() as folder:
        plain, ours = Path(folder, "plain"), Path(folder, "ours")

        def write(path: Path, options: Mapping[str, Any]) -> None:
            pq.write_table(rows, path, compression="zstd", write_page_checksum=True, **options)

        def read(path: Path) -> None:
            pq.read_table(path, columns=["features"])

        written = paired(lambda: write(plain, {}), lambda: write(ours, ENCODING))
        taken = paired(lambda: read(plain), lambda: read(ours))
        size = ours.stat().st_size / plain.stat().st_size
    for what, pair in (("writing", written), ("reading", taken)):
        yield Row(
            what=f"{what} features, {count:,} x {width:,}",
            against="Parquet's default encoding, a dictionary of values",
            ratio=pair.ratio,
            detail=f"{pair.second:.2f} s against {pair.first:.2f} s; {size:.2f} of the size",
            target="no target",
            met=None,
        )


def plain_pairs(features: Tensor, labels: Tensor, images: range) -> tuple[float, float, float]:
    """Statistics of pairs for S, I and E, in loops over `images`: S, least cosine, gap by norm."""
    num_classes = int(labels.max()) + 1
    counts = labels.bincount(minlength=num_classes)
    cosines = torch.zeros(num_classes, num_classes)
    least = torch.full((num_classes,), math.inf)
    gaps = torch.full((num_classes,), math.inf)
    norms = torch.zeros(num_classes)
    for image in images:
        own = int(labels[image])
        similar = F.cosine_similarity(features[image][None], features).abs()  # (N,)
        for other in range(num_classes):
            cosines[own, other] += similar[labels == other].mean() / counts[own]
        least[own] = torch.minimum(least[own], similar[labels == own].min())
        distances = (features[labels != own] - features[image]).norm(dim=1)
        gaps[own] = torch.minimum(gaps[own], distances.min())
        norms[own] += features[image].norm() / counts[own]
    between = (cosines.sum() - cosines.trace()) / (num_classes * (num_classes - 1))
    separation = cosines.trace() / num_classes - between
    return separation.item(), least.mean().item(), (2 * gaps.mean() / norms.mean()).item()


def plain_entropy(features: Tensor, labels: Tensor) -> float:
    """Mean entropy of the class spectra, in nats, from singular values of the features."""
    entropies = []
    for name in range(int(labels.max()) + 1):
        own = features[labels == name]
        values = torch.linalg.svdvals(own - own.mean(dim=0)).square()
        entropies.append(torch.special.entr(values / values.sum()).sum())
    return torch.stack(entropies).mean().item()


def _check_plain_loops() -> None:
    """Compare only what gives the same answer: Q of a small layer, as coded."""
    features, labels = _sample(200, 64)
    separation, least, gap = plain_pairs(features, labels, range(200))
    information = (1 - least) * plain_entropy(features, labels) / math.log(5)
    efficiency = gap * (50_000 / math.pi) ** (1 / 64)
    plain = separation + math.sqrt(information * efficiency)
    ours = layer_quality(features, labels, train_size=50_000, variant="as_coded")["quality"]
    if not math.isclose(plain, ours, rel_tol=1e-4):
        raise RuntimeError(f"Q is {plain} by plain loops and {ours} by the package")


def _score(features: Tensor, labels: Tensor) -> dict[str, float]:
    return layer_quality(features, labels, train_size=50_000)


def _sample(num_images: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randperm(num_images, generator=generator) % _CLASSES
    centres = torch.randn(_CLASSES, width, generator=generator)
    noise = torch.randn(num_images, width, generator=generator)
    return (centres[labels] + noise).relu(), labels


if __name__ == "__main__":
    print(table(rows()))
