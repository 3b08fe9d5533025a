"""The combined logits of several teachers: combined for each batch, or once in a file.

The file is made of the cached logits of each teacher and has the form of these, so a training step
reads as much for many teachers as for one. As for one teacher, it does not change any result: what
is combined on the fly was rounded to float16 like cached logits, and so is the combination.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdsteps.data.draws import targets_of
from kdsteps.data.images import ImageBatch, ImageSplit, Views
from kdsteps.errors import KdstepsError
from kdsteps.models.chain import HEAD
from kdsteps.teachers.combining import Combining, combined_logits
from kdsteps.teachers.logit_cache import SHARD, alone, cannot_be_written, publish, reserved
from kdsteps.teachers.logits import (
    TOLERANCE,
    CachedOutputs,
    LiveTeacher,
    TeacherOutputs,
    checksum,
    sample_of,
    shards,
)

log = logging.getLogger("kdsteps")

_AMPLIFIED = 4  # a difference of logits that the weights of `confidence` make larger, at most


class CombinedTeachers:
    """Several teachers that run on every batch, as one."""

    def __init__(self, teachers: Sequence[TeacherOutputs], how: Combining) -> None:
        """Args:
        teachers: Each one's logits, computed or cached.
        """
        self.teachers, self.how = teachers, how

    @property
    def waits(self) -> bool:
        return any(teacher.waits for teacher in self.teachers)

    def __call__(self, drawn: ImageBatch) -> dict[str, Tensor]:
        logits = torch.stack([teacher(drawn)[HEAD] for teacher in self.teachers])
        return {HEAD: self.combined(logits, drawn.targets).float()}

    def combined(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits (M, N, K) as those of one teacher, (N, K) float16."""
        return combined_logits(logits, self.how, targets).to(torch.float16)


class CachedCombination(CachedOutputs):
    """Combined logits in a file (N images, V views or draws, K), compared with all teachers."""

    def __init__(
        self,
        path: Path,
        lives: Sequence[LiveTeacher],
        how: Combining,
        part: ImageSplit,
        views: Views,
    ) -> None:
        """Args:
        path: A file that `write_combined` wrote.
        lives: The teachers whose logits it combines.

        Raises:
            KdstepsError: The file is damaged, or the teachers' logits differ from it.
        """
        self.lives, self.how = lives, how
        super().__init__(path, lives[0], part, views)

    def _audit(self) -> None:
        index, view = sample_of(len(self.part), self.views.count)
        drawn = self.part.take(index, self.views, view)
        logits = torch.stack([live.compute(drawn.images) for live in self.lives]).float()
        computed = combined_logits(logits, self.how, drawn.targets).half().float().cpu()
        cached = torch.from_numpy(self.rows[index.numpy(), view.numpy()]).float()
        gaps = (computed - cached).abs().amax(dim=1)
        largest = logits.abs().amax(dim=2)  # (M, N)
        if self.how.space == "standardized":
            largest = largest / logits.std(dim=2).clamp(min=1e-3)
        allowed = _AMPLIFIED * TOLERANCE[self.live.precision] * largest.amax(dim=0).cpu()
        if count := int((~(gaps <= allowed.clamp(min=1e-3))).sum()):
            raise KdstepsError(
                f"{self.path}: differs from the teachers by up to {gaps.max():.3g} in {count} of "
                f"{len(index)} combined logits; it is written again"
            )
        how = "byte by byte" if torch.equal(computed, cached) else "up to rounding"
        log.info("%d combined logits compared with the teachers: equal %s", len(index), how)


def combined_outputs(
    path: Path,
    lives: Sequence[LiveTeacher],
    how: Combining,
    part: ImageSplit,
    views: Views,
    *,
    members: Callable[[], Sequence[CachedOutputs | LiveTeacher]],
    keep: str,
) -> TeacherOutputs:
    """The combined logits of several teachers: from the file, or combined for each batch.

    The file is written if all teachers' logits are cached.

    Args:
        path: Named after everything that the combined logits depend on.
        lives: The frozen teachers.
        part: The training images.
        members: Returns each teacher's logits, cached or computed; called if there is no file.
        keep: "never": the file is not used.

    Raises:
        KdstepsError: The disk is full, or the logits of a teacher cannot be cached and have to be.
    """
    if keep != "never":
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone(path):
            if (found := _opened(path, lives, how, part, views)) is not None:
                return found
            cached = members()
            files = [each for each in cached if isinstance(each, CachedOutputs)]
            if len(files) == len(cached):
                write_combined(path, [each.rows for each in files], how, part)
                return CachedCombination(path, lives, how, part, views)
        return CombinedTeachers(cached, how)
    log.info("computing teacher logits on the fly: cache.outputs is never")
    return CombinedTeachers(lives, how)


def write_combined(
    path: Path, members: Sequence[np.ndarray], how: Combining, part: ImageSplit
) -> None:
    """Combine cached logits, shard by shard; a file with its final name is complete.

    Args:
        members: (N images, V views, K) float16 of each teacher.
        part: The training images; `confidence` needs their targets.

    Raises:
        KdstepsError: The disk is full.
    """
    count, num_views, width = members[0].shape
    images_each = max(1, SHARD // num_views)
    draft, sums = path.with_suffix(".npy.part"), []
    with cannot_be_written(path):
        rows = reserved(draft, members[0].shape)
        for _, images in shards(count, images_each):
            logits = torch.stack([_rows(each[images]) for each in members])  # (M, n V, K)
            targets = None
            if how.combine == "confidence":
                index = torch.arange(images.start, images.stop).repeat_interleave(num_views)
                view = torch.arange(num_views).repeat(images.stop - images.start)
                targets = targets_of(part, index, view).cpu()
            found = combined_logits(logits, how, targets).half()
            rows[images] = found.view(-1, num_views, width).numpy()
            sums.append(checksum(rows[images]))
        publish(draft, path, rows, images_each, sums)
    log.info("combined the cached logits of %d teachers in %s", len(members), path)


def _rows(cached: np.ndarray) -> Tensor:
    """(n, V, K) float16 as (n V, K) float32."""
    return torch.from_numpy(np.array(cached)).flatten(0, 1).float()


def _opened(
    path: Path, lives: Sequence[LiveTeacher], how: Combining, part: ImageSplit, views: Views
) -> CachedCombination | None:
    """The file if it is there and holds what the teachers compute."""
    if not path.exists():
        return None
    try:
        found = CachedCombination(path, lives, how, part, views)
    except KdstepsError as error:
        log.warning("%s", error)
        path.unlink(missing_ok=True)
        return None
    log.info("reading combined logits from %s", path)
    return found
