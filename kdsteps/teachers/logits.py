"""What a teacher answers to training images: asked live, or looked up in a file.

Both ways give the same numbers: live answers are rounded to float16 as kept ones are. So a file
never changes a result, and may be deleted at any time. On a CPU this holds to the byte. What a
network answers to an image does not depend on the images beside it, but how it is rounded may
depend on how many they are, so all are asked in batches of one size. On a GPU it holds up to the
rounding of its kernels, which the audit allows for.
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

from kdsteps.data.images import Drawn, ImagePart, Views
from kdsteps.errors import KdstepsError
from kdsteps.models.chain import HEAD, Chain
from kdsteps.models.memory_format import batch_format

log = logging.getLogger("kdsteps")

AUDITED = 64  # pairs of image and view that are compared with the live teacher at each use
TOLERANCE = {"float32": 2.0**-9, "bfloat16": 2.0**-5}  # of the largest number of an answer


class Answers(Protocol):
    """Gives what the teacher says of the images of a batch, by the name of the layer."""

    def __call__(self, drawn: Drawn) -> dict[str, Tensor]: ...


class Live:
    """The teacher itself, asked about every batch."""

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
        batch_size: Images that it is asked about at a time on a CPU.
        layers: Whose outputs are asked for; none: the logits.
        precision: "float32", or "bfloat16" for autocast.
        """
        self.teacher, self.batch_size = teacher, batch_size
        self.layers, self.precision = tuple(layers), precision
        self.format = batch_format(teacher)  # whatever that of the student's batches is
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __call__(self, drawn: Drawn) -> dict[str, Tensor]:
        return self.apart(self.ask(drawn.images))

    @torch.inference_mode()
    def ask(self, images: Tensor) -> Tensor:
        """(N, R) float16: the outputs of all layers, flattened one behind the other."""
        count, size = len(images), self.batch_size
        if images.is_cuda or count == size:
            return self._rows(images)
        filled = images[torch.arange(-(-count // size) * size) % count]
        return torch.cat([self._rows(piece) for piece in filled.split(size)])[:count]

    def _rows(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=self.format)
        bfloat16 = self.precision == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
            if self.layers:
                outputs = self.teacher.trace(images, self.layers)
            else:
                outputs = {HEAD: self.teacher(images)}
        wanted = {name: outputs[name] for name in self.layers or (HEAD,)}
        self.shapes = {name: tuple(output.shape[1:]) for name, output in wanted.items()}
        return torch.cat([output.flatten(1).to(torch.float16) for output in wanted.values()], dim=1)

    def apart(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows (N, R) as float32 outputs by layer; tensors that autograd may keep."""
        pieces = rows.float().split([math.prod(shape) for shape in self.shapes.values()], dim=1)
        named = zip(self.shapes.items(), pieces, strict=True)
        return {name: piece.unflatten(1, shape) for (name, shape), piece in named}


class Kept:
    """Answers from a file (N images, V views, R numbers), float16, mapped from the disk."""

    def __init__(self, path: Path, live: Live, part: ImagePart, views: Views) -> None:
        """Open a file and compare some of it with the live teacher.

        Args:
            path: As `kdsteps.teachers.logit_cache` wrote it.
            live: Who answered.
            part: The training images.
            views: What crop and flip do.

        Raises:
            KdstepsError: The file is damaged, or the teacher answers otherwise.
        """
        self.path, self.live, self.part, self.views = path, live, part, views
        described = read_description(path)
        self.rows = _mapped(path)
        wanted = (len(part), views.count, described["row"])
        if self.rows.shape != wanted or self.rows.dtype != np.float16:
            raise _damaged(path, f"holds {self.rows.dtype} of {self.rows.shape}, not {wanted}")
        _check_sums(path, self.rows, described)
        self._audit()
        self._on_device = self._moved()

    def __call__(self, drawn: Drawn) -> dict[str, Tensor]:
        if self._on_device is not None:
            return self.live.apart(self._on_device[drawn.index, drawn.view])
        rows = self.rows[drawn.index.cpu().numpy(), drawn.view.cpu().numpy()]  # a copy
        return self.live.apart(torch.from_numpy(rows).to(drawn.images.device))

    def _audit(self) -> None:
        index, view = sample_of(len(self.part), self.views.count)
        asked = self.live.ask(self.part.take(index, self.views, view).images).float().cpu()
        kept = torch.from_numpy(self.rows[index.numpy(), view.numpy()]).float()
        gaps = (asked - kept).abs().amax(dim=1)
        allowed = TOLERANCE[self.live.precision] * asked.abs().amax(dim=1).clamp(min=1e-3)
        wrong = (~(gaps <= allowed)).nonzero()[:, 0]
        if len(wrong):
            first = int(wrong[0])
            raise _damaged(
                self.path,
                f"differs from the teacher by up to {gaps.max():.3g} in {len(wrong)} of "
                f"{len(index)} answers, first for image {int(index[first])} in view "
                f"{int(view[first])}",
            )
        how = "to the byte" if torch.equal(asked, kept) else "up to rounding"
        log.info("%d kept answers compared with the teacher: equal %s", len(index), how)

    def _moved(self) -> Tensor | None:
        """All rows on a GPU that has room for them, for a look-up that waits for nothing."""
        device = self.part.device
        if device.type != "cuda" or self.rows.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
            return None
        return torch.from_numpy(np.ascontiguousarray(self.rows)).to(device)


def sample_of(num_images: int, num_views: int, count: int = AUDITED) -> tuple[Tensor, Tensor]:
    """Images and views (n,) that stand for all, always the same ones; first and last included."""
    generator = torch.Generator().manual_seed(num_images * num_views)
    index = torch.randint(num_images, (count,), generator=generator)
    view = torch.randint(num_views, (count,), generator=generator)
    index[0], view[0], index[-1], view[-1] = 0, 0, num_images - 1, num_views - 1
    return index, view


def description_path(path: Path) -> Path:
    """Where it is said what a file of answers holds."""
    return path.with_suffix(".json")


def read_description(path: Path) -> dict[str, Any]:
    """Numbers of an answer (`row`), images of a shard, and the checksum of each shard.

    Raises:
        KdstepsError: It cannot be read.
    """
    try:
        found: dict[str, Any] = json.loads(description_path(path).read_text())
    except (OSError, ValueError) as error:
        raise _damaged(path, "is not described beside it") from error
    return found


def checksum(rows: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(rows).view(np.uint8).data)


def shards(num_images: int, images_each: int) -> Iterator[tuple[int, slice]]:
    """Number and images of each piece in which answers are written."""
    for number, start in enumerate(range(0, num_images, images_each)):
        yield number, slice(start, min(start + images_each, num_images))


def _check_sums(path: Path, rows: np.ndarray, described: Mapping[str, Any]) -> None:
    for number, images in shards(len(rows), described["images_each"]):
        if checksum(rows[images]) != described["checksums"][number]:
            raise _damaged(path, f"was changed since, at images {images.start} to {images.stop}")


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, "is no whole array file") from error


def _damaged(path: Path, what: str) -> KdstepsError:
    return KdstepsError(f"{path}: {what}; delete it, and it is made again where that pays")
