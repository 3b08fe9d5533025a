"""A teacher's outputs for training images: computed on the fly, or read from a cache file.

The numbers are the same in both cases, because computed outputs are rounded to float16 like cached
ones. So a cache file never changes a result and may be deleted at any time. On a CPU they are
byte-identical: an output does not depend on the other images of a batch, but its rounding may
depend on their number, so the teacher always runs on batches of one size. On a GPU they are
equal up to the rounding of the kernels, which the audit allows for.
"""

from __future__ import annotations

import json
import logging
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kdsteps.data.device_memory import free_bytes
from kdsteps.data.images import ImageBatch, ImageSplit, Views
from kdsteps.errors import KdstepsError
from kdsteps.models.chain import HEAD, Chain
from kdsteps.models.memory_format import batch_format
from kdsteps.models.precision import autocast

log = logging.getLogger("kdsteps")

AUDITED = 64  # pairs of image and view that are compared with the teacher at each use
TOLERANCE = {"float32": 2.0**-9, "tf32": 2.0**-7, "float16": 2.0**-7, "bfloat16": 2.0**-5}
"""Allowed difference from a cached output, as a fraction of its largest number, by precision."""


class TeacherOutputs(Protocol):
    """Returns the teacher's outputs for the images of a batch, by layer.

    Attributes:
        waits: Whether that waits for the GPU.
    """

    @property
    def waits(self) -> bool: ...

    def __call__(self, drawn: ImageBatch) -> dict[str, Tensor]: ...


class LiveTeacher:
    """A teacher that runs on every batch."""

    waits = False

    def __init__(
        self,
        teacher: Chain,
        batch_size: int,
        *,
        layers: Sequence[str] = (),
        precision: str = "float32",
    ) -> None:
        """Args:
        teacher: Frozen, in eval mode.
        batch_size: Images per forward pass on a CPU.
        layers: The layers to read; none: the logits.
        precision: As in `models.precision.autocast`; TF32 is a matter of the process.
        """
        self.teacher, self.batch_size = teacher, batch_size
        self.layers, self.precision = tuple(layers), precision
        self.format = batch_format(teacher)  # independent of the student's
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __call__(self, drawn: ImageBatch) -> dict[str, Tensor]:
        return self.apart(self.compute(drawn.images))

    @torch.inference_mode()
    def compute(self, images: Tensor) -> Tensor:
        """(N, R) float16: the outputs of all layers, flattened and concatenated."""
        count, size = len(images), self.batch_size
        if images.is_cuda or count == size:
            return self._rows(images)
        filled = images[torch.arange(-(-count // size) * size) % count]
        return torch.cat([self._rows(piece) for piece in filled.split(size)])[:count]

    def _rows(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=self.format)
        with autocast(self.precision, images.device.type):
            if self.layers:
                outputs = self.teacher.trace(images, self.layers)
            else:
                outputs = {HEAD: self.teacher(images)}
        wanted = {name: outputs[name] for name in self.layers or (HEAD,)}
        self.shapes = {name: tuple(output.shape[1:]) for name, output in wanted.items()}
        return torch.cat([output.flatten(1).to(torch.float16) for output in wanted.values()], dim=1)

    def apart(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows (N, R) as float32 outputs by layer; tensors that autograd can save."""
        pieces = rows.float().split([math.prod(shape) for shape in self.shapes.values()], dim=1)
        named = zip(self.shapes.items(), pieces, strict=True)
        return {name: piece.unflatten(1, shape) for (name, shape), piece in named}


class CachedOutputs:
    """Outputs in a file (N images, V views, R numbers), float16, memory-mapped."""

    def __init__(self, path: Path, live: LiveTeacher, part: ImageSplit, views: Views) -> None:
        """Open a file and compare a sample of it with the teacher.

        Args:
            path: A file that `kdsteps.teachers.logit_cache` wrote.
            live: The teacher whose outputs it holds.
            part: The training images.
            views: What crop and flip do.

        Raises:
            KdstepsError: The file is damaged, or the teacher's outputs differ from it.
        """
        self.path, self.live, self.part, self.views = path, live, part, views
        described = read_description(path)
        self.rows = _mapped(path)
        wanted = (len(part), views.count, described["row"])
        if self.rows.shape != wanted or self.rows.dtype != np.float16:
            raise _damaged(path, f"holds {self.rows.dtype} of {self.rows.shape}, not {wanted}")
        _check_sums(path, self.rows, described)
        self._images_each = described["images_each"]
        self._audit()
        self._on_device = self._moved()

    @property
    def waits(self) -> bool:
        return self.part.device.type == "cuda" and self._on_device is None

    def __call__(self, drawn: ImageBatch) -> dict[str, Tensor]:
        if self._on_device is not None:
            return self.live.apart(self._on_device[drawn.index, drawn.view])
        rows = self.rows[drawn.index.cpu().numpy(), drawn.view.cpu().numpy()]  # a copy
        return self.live.apart(torch.from_numpy(rows).to(drawn.images.device))

    def _audit(self) -> None:
        index, view = sample_of(len(self.part), self.views.count)
        computed = self.live.compute(self.part.take(index, self.views, view).images).float().cpu()
        cached = torch.from_numpy(self.rows[index.numpy(), view.numpy()]).float()
        gaps = (computed - cached).abs().amax(dim=1)
        allowed = TOLERANCE[self.live.precision] * computed.abs().amax(dim=1).clamp(min=1e-3)
        wrong = (~(gaps <= allowed)).nonzero()[:, 0]
        if len(wrong):
            first = int(wrong[0])
            raise _damaged(
                self.path,
                f"differs from the teacher by up to {gaps.max():.3g} in {len(wrong)} of "
                f"{len(index)} outputs, first for image {int(index[first])} in view "
                f"{int(view[first])}",
            )
        how = "byte by byte" if torch.equal(computed, cached) else "up to rounding"
        log.info("%d cached outputs compared with the teacher: equal %s", len(index), how)

    def _moved(self) -> Tensor | None:
        """Move all rows to the GPU if they fit, so that lookups never wait for the CPU."""
        device = self.part.device
        if device.type != "cuda":
            return None
        if self.rows.nbytes > free_bytes(device) / 2:
            log.info("the GPU has no room for %s: every step waits for it", self.path)
            return None
        moved = torch.empty(self.rows.shape, dtype=torch.float16, device=device)
        for _, images in shards(len(self.rows), self._images_each):
            moved[images] = torch.from_numpy(np.array(self.rows[images]))
        return moved


def sample_of(num_images: int, num_views: int, count: int = AUDITED) -> tuple[Tensor, Tensor]:
    """A fixed sample of images and views, (n,) each, with the first and the last ones."""
    generator = torch.Generator().manual_seed(num_images * num_views)
    index = torch.randint(num_images, (count,), generator=generator)
    view = torch.randint(num_views, (count,), generator=generator)
    index[0], view[0], index[-1], view[-1] = 0, 0, num_images - 1, num_views - 1
    return index, view


def description_path(path: Path) -> Path:
    """The path of the file that describes a file of outputs."""
    return path.with_suffix(".json")


def read_description(path: Path) -> dict[str, Any]:
    """Numbers per output (`row`), images per shard, and the checksum of each shard.

    Raises:
        KdstepsError: It cannot be read.
    """
    try:
        found = json.loads(description_path(path).read_text())
        row, images_each = int(found["row"]), int(found["images_each"])
        sums = [int(each) for each in found["checksums"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, "has no complete description next to it") from error
    return {"row": row, "images_each": images_each, "checksums": sums}


def checksum(rows: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(rows).view(np.uint8).data)


def shards(num_images: int, images_each: int) -> Iterator[tuple[int, slice]]:
    """Number and images of each shard in which outputs are written."""
    for number, start in enumerate(range(0, num_images, images_each)):
        yield number, slice(start, min(start + images_each, num_images))


def _check_sums(path: Path, rows: np.ndarray, described: Mapping[str, Any]) -> None:
    images_each, count = described["images_each"], len(described["checksums"])
    if images_each < 1 or count != -(-len(rows) // images_each):
        raise _damaged(path, f"has {count} checksums in its description, which is not all")
    for number, images in shards(len(rows), images_each):
        if checksum(rows[images]) != described["checksums"][number]:
            raise _damaged(path, f"was changed since, at images {images.start} to {images.stop}")


def _mapped(path: Path) -> np.ndarray:
    try:
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, "is not a complete array file") from error
    return mapped


def _damaged(path: Path, what: str) -> KdstepsError:
    return KdstepsError(f"{path}: {what}; it is written again if that saves time")
