"""The views of an image under random crop and flip, numbered so that each can be looked up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Views:
    """The views under random crop and flip: how many there are, and how one is drawn.

    Attributes:
        crop_padding: p, by how many pixels a crop may be moved from the center in each direction;
            beyond the edges of the image there are zeros. 0: no random crop.
        flip: Whether the mirrored image is also a view.
    """

    crop_padding: int = 0
    flip: bool = False

    @property
    def count(self) -> int:
        """V: 2(2p+1)^2 with flip, half of it without."""
        return (2 * self.crop_padding + 1) ** 2 * (2 if self.flip else 1)

    def draw(self, num_images: int, generator: torch.Generator) -> Tensor:
        """(N,) a view for each image, all equally likely."""
        return torch.randint(self.count, (num_images,), generator=generator)

    def show(
        self,
        images: Tensor,
        view: Tensor,
        index: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """The views of some images: cropped, moved by (dy - p, dx - p), then mirrored or not.

        Args:
            images: (N, C, H, W).
            view: (n,) numbers (flip (2p+1) + dy) (2p+1) + dx, each below `count`.
            index: (n,) which of the images are shown; None: all, n = N.
            size: Height h and width w of the crop, at most those of the images; None: those.

        Returns:
            (n, C, h, w), on the device of `images`.

        Raises:
            ValueError: There is not one view for each image.
        """
        shown = len(images) if index is None else len(index)
        if len(view) != shown:
            raise ValueError(f"{len(view)} views for {shown} images")
        stored = (images.shape[2], images.shape[3])
        size = stored if size is None else size
        if self.count == 1 and size == stored:
            return images if index is None else images[index]
        if images.device.type == "cpu":
            return self._copied(images, view, index, size)
        return self._gathered(images if index is None else images[index], view, size)

    def _copied(
        self, images: Tensor, view: Tensor, index: Tensor | None, size: tuple[int, int]
    ) -> Tensor:
        """One copy per image, without padding: ten times faster than a gather on a CPU."""
        source, steps = images.numpy(), 2 * self.crop_padding + 1
        height, width = source.shape[2:]
        shape = (len(view), source.shape[1], *size)
        target = np.zeros_like(source, shape=shape)  # in the same memory format
        middle = _middle((height, width), size)
        numbers = range(len(view)) if index is None else index.tolist()
        for place, (number, one_view) in enumerate(zip(numbers, view.tolist(), strict=True)):
            rest, dx = divmod(one_view, steps)
            mirrored, dy = divmod(rest, steps)
            top = middle[0] + dy - self.crop_padding  # of the crop in the image
            left = middle[1] + dx - self.crop_padding
            y0, x0 = max(0, top), max(0, left)
            y1 = max(y0, min(height, top + size[0]))  # empty where the padding is wider
            x1 = max(x0, min(width, left + size[1]))
            piece = source[number, :, y0:y1, x0:x1]
            if mirrored:
                right = left + size[1]
                target[place, :, y0 - top : y1 - top, right - x1 : right - x0] = piece[:, :, ::-1]
            else:
                target[place, :, y0 - top : y1 - top, x0 - left : x1 - left] = piece
        return torch.from_numpy(target)

    def _gathered(self, images: Tensor, view: Tensor, size: tuple[int, int]) -> Tensor:
        """All images at once, in a few operations on the device."""
        padding, (height, width) = self.crop_padding, size
        top, left = _middle((images.shape[2], images.shape[3]), size)
        steps = 2 * padding + 1
        dx, dy, mirrored = view % steps, view // steps % steps, view >= steps**2
        padded = F.pad(images, (padding,) * 4)
        columns = torch.arange(width, device=images.device)
        columns = torch.where(mirrored[:, None], columns.flip(0), columns)
        columns = columns + dx[:, None] + left  # (n, w)
        rows = torch.arange(height, device=images.device) + dy[:, None] + top  # (n, h)
        flat = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (n, h, w)
        flat = flat.flatten(1)[:, None].expand(-1, images.shape[1], -1)  # (n, C, h w)
        cut: Tensor = padded.flatten(2).gather(2, flat).unflatten(2, size)
        return cut


def _middle(stored: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Top and left of a center crop."""
    return (stored[0] - size[0]) // 2, (stored[1] - size[1]) // 2
