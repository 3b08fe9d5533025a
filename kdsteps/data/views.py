"""The views that random crop and flip give of an image, numbered so that each can be looked up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Views:
    """The views that random crop and flip give: which there are, and how one is drawn.

    Attributes:
        crop_padding: p, pixels of zeros at each side before the crop; 0: no crop.
        flip: Whether the mirrored image is a view as well.
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

    def show(self, images: Tensor, view: Tensor, index: Tensor | None = None) -> Tensor:
        """Images as `view` has them: padded, cropped at (dy, dx), then mirrored or not.

        Args:
            images: (N, C, H, W).
            view: (n,) of number (flip (2p+1) + dy) (2p+1) + dx, each below `count`.
            index: (n,) which of the images are shown; None: all, n = N.

        Returns:
            (n, C, H, W), on the device and in the memory format of `images`.

        Raises:
            ValueError: There is not one view for each image.
        """
        shown = len(images) if index is None else len(index)
        if len(view) != shown:
            raise ValueError(f"{len(view)} views for {shown} images")
        if self.count == 1:
            return images if index is None else images[index]
        if images.device.type == "cpu":
            return self._copied(images, view, index)
        return self._gathered(images if index is None else images[index], view)

    def _copied(self, images: Tensor, view: Tensor, index: Tensor | None) -> Tensor:
        """One copy an image, without padding anything: ten times faster than a gather on a CPU."""
        source, steps = images.numpy(), 2 * self.crop_padding + 1
        height, width = source.shape[2:]
        target = np.zeros_like(source, shape=(len(view), *source.shape[1:]))  # same memory format
        numbers = range(len(view)) if index is None else index.tolist()
        for place, (number, one_view) in enumerate(zip(numbers, view.tolist(), strict=True)):
            rest, dx = divmod(one_view, steps)
            mirrored, dy = divmod(rest, steps)
            top, left = dy - self.crop_padding, dx - self.crop_padding  # of the crop in the image
            y0, x0 = max(0, top), max(0, left)
            y1 = max(y0, min(height, height + top))  # nothing is left where the padding is wider
            x1 = max(x0, min(width, width + left))
            piece = source[number, :, y0:y1, x0:x1]
            if mirrored:
                target[place, :, y0 - top : y1 - top, width + left - x1 : width + left - x0] = (
                    piece[:, :, ::-1]
                )
            else:
                target[place, :, y0 - top : y1 - top, x0 - left : x1 - left] = piece
        return torch.from_numpy(target)

    def _gathered(self, images: Tensor, view: Tensor) -> Tensor:
        """All images at once, a few operations on the device."""
        padding, (height, width) = self.crop_padding, images.shape[2:]
        steps = 2 * padding + 1
        dx, dy, mirrored = view % steps, view // steps % steps, view >= steps**2
        padded = F.pad(images, (padding,) * 4)
        columns = torch.arange(width, device=images.device)
        columns = torch.where(mirrored[:, None], columns.flip(0), columns) + dx[:, None]  # (n, W)
        rows = torch.arange(height, device=images.device) + dy[:, None]  # (n, H)
        flat = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (n, H, W)
        flat = flat.flatten(1)[:, None].expand(-1, images.shape[1], -1)  # (n, C, H W)
        return padded.flatten(2).gather(2, flat).view_as(images)
