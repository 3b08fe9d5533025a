"""Batches of small images: they live on the device, and each is drawn in one of its views.

Random crop with padding p and flip gives every image V = 2(2p+1)^2 views, numbered so that a view
can be looked up later: a batch says for each image which one it shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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

    def show(self, images: Tensor, view: Tensor) -> Tensor:
        """(N, C, H, W) images as `view` (N,) has them; view = (flip (2p+1) + dy) (2p+1) + dx."""
        if self.count == 1:
            return images
        padding, (height, width) = self.crop_padding, images.shape[2:]
        steps = 2 * padding + 1
        dx, dy, mirrored = view % steps, view // steps % steps, view // steps**2 > 0
        padded = F.pad(images, (padding,) * 4)
        columns = torch.arange(width, device=images.device).expand(len(view), width)
        columns = torch.where(mirrored[:, None], columns.flip(1), columns) + dx[:, None]  # (N, W)
        rows = torch.arange(height, device=images.device) + dy[:, None]  # (N, H)
        image = torch.arange(len(view), device=images.device)[:, None, None, None]
        channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
        return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


@dataclass(frozen=True)
class Drawn:
    """Images of one batch: normalised (N, C, H, W), with labels, index and view, each (N,)."""

    images: Tensor
    labels: Tensor
    index: Tensor
    view: Tensor


class ImagePart:
    """One part of a dataset, whole on the device as uint8."""

    def __init__(self, images: Tensor, labels: Tensor, mean: Tensor, std: Tensor) -> None:
        """Args:
        images: (N, C, H, W), uint8.
        labels: (N,).
        mean, std: (C,) of the training part, on the scale 0 to 1.
        """
        self.images, self.labels = images, labels
        self._scale = (1 / (255 * std))[:, None, None].to(images.device)
        self._shift = (mean / std)[:, None, None].to(images.device)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 as float32 with mean 0 and standard deviation 1 in each channel."""
        return images.float() * self._scale - self._shift

    def take(self, index: Tensor, views: Views, view: Tensor) -> Drawn:
        """The images of `index` (N,) as `view` (N,) has them."""
        index, view = index.to(self.images.device), view.to(self.images.device)
        images = self.normalised(views.show(self.images[index], view))
        return Drawn(images, self.labels[index], index, view)

    def in_order(self, batch_size: int) -> Iterator[Drawn]:
        """All images once, as they are."""
        for index in torch.arange(len(self)).split(batch_size):
            yield self.take(index, Views(), torch.zeros_like(index))

    def shuffled(
        self, batch_size: int, views: Views, generator: torch.Generator
    ) -> Iterator[Drawn]:
        """All images once, in random order, each in a random view.

        The last batch is left out when it is smaller, unless it is the only one: batch statistics
        of a handful of images would teach noise.
        """
        order = torch.randperm(len(self), generator=generator)
        drawn = views.draw(len(self), generator)
        if len(self) >= batch_size:
            order = order[: len(self) // batch_size * batch_size]
        for index, view in zip(order.split(batch_size), drawn.split(batch_size), strict=False):
            yield self.take(index, views, view)
