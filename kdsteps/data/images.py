"""Batches of images, made on the device, where small data sets are stored as uint8.

All randomness comes from one generator on the CPU, so that a batch is the same on every device and
can be reproduced, to resume a run or to look up its views.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kdsteps.data.augmentation import NO_AUGMENTATION, Augmentation
from kdsteps.data.views import Views

__all__ = ["ImageBatch", "ImageSplit", "Order", "Views"]


@dataclass(frozen=True)
class ImageBatch:
    """One batch of images.

    Attributes:
        images: (N, C, h, w), normalized.
        labels: (N,); of a mixed image, that of the larger fraction.
        index: (N,) number of each image in its split.
        view: (N,) number of its view.
        targets: What to learn: `labels` again or, for mixed images, the fraction of every class
            (N, K).
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    view: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Order:
    """One batch before its images are read: (N,) numbers and views, and a seed for the rest."""

    index: Tensor
    view: Tensor
    seed: int


class ImageSplit:
    """One split of a data set, all of it on the device as uint8.

    Attributes:
        on_device: Whether batches are made on the device, without work of the CPU.
    """

    on_device = True

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Tensor,
        std: Tensor,
        *,
        size: tuple[int, int] | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        """Args:
        images: (N, C, H, W), uint8.
        labels: (N,).
        mean, std: (C,) of the training images, on the scale 0 to 1.
        size: Height and width of the batches, at most those of the images; None: those.
        memory_format: Of the batches.
        """
        self.images, self.labels = images.contiguous(memory_format=memory_format), labels
        self.size, self.memory_format = size or self.stored_size, memory_format
        self._prepare_scaling(mean, std)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        return self.labels.device

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height and width of the stored images."""
        return self.images.shape[2], self.images.shape[3]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the images in batches."""
        return self.images.shape[1], *self.size

    def normalized(self, images: Tensor) -> Tensor:
        """uint8 as float32 with mean 0 and standard deviation 1 in each channel."""
        floats = images.to(torch.float32, memory_format=self.memory_format)
        if self.memory_format is torch.channels_last:  # long rows: channels alone are too short
            rows = floats.permute(0, 2, 3, 1).view(len(floats), floats.shape[2], -1)  # (N, H, W C)
            rows.mul_(self._row_scale).sub_(self._row_shift)
            return floats
        return floats.mul_(self._scale).sub_(self._shift)

    def take(self, index: Tensor, views: Views, view: Tensor) -> ImageBatch:
        """The images of `index` (N,) as `view` (N,) has them."""
        return self.made(Order(index, view, 0), views)

    def in_order(self, batch_size: int) -> Iterator[ImageBatch]:
        """All images once, without augmentation."""
        zeros = torch.zeros(len(self), dtype=torch.int64)
        orders = _orders(torch.arange(len(self)), zeros, batch_size, 0)
        return self.batches(self._moved(orders), Views())

    def shuffled(
        self,
        batch_size: int,
        views: Views,
        generator: torch.Generator,
        *,
        augmentation: Augmentation = NO_AUGMENTATION,
        skip: int = 0,
    ) -> Iterator[ImageBatch]:
        """The batches of `orders`, made one by one.

        Args:
            augmentation: Augmentation beyond crop and flip.
            skip: Batches to skip without making them, to resume a run.
        """
        return self.batches(self.orders(batch_size, views, generator)[skip:], views, augmentation)

    def orders(self, batch_size: int, views: Views, generator: torch.Generator) -> list[Order]:
        """All images once, in random order, each in a random view: the batches of an epoch.

        A smaller last batch is left out, unless it is the only one: batch statistics of a few
        images would be noise.

        Args:
            batch_size: Images per batch.
            views: Of crop and flip.
            generator: On the CPU.
        """
        order = torch.randperm(len(self), generator=generator)
        drawn = views.draw(len(self), generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        if len(self) >= batch_size:
            order = order[: len(self) // batch_size * batch_size]
        return self._moved(_orders(order, drawn[: len(order)], batch_size, seed))

    def batches(
        self, orders: list[Order], views: Views, augmentation: Augmentation = NO_AUGMENTATION
    ) -> Iterator[ImageBatch]:
        """The batches of `orders`, made one by one.

        Args:
            views: Of crop and flip.
            augmentation: Augmentation beyond crop and flip.
        """
        for order in orders:
            yield self.made(order, views, augmentation)

    def made(
        self, order: Order, views: Views, augmentation: Augmentation = NO_AUGMENTATION
    ) -> ImageBatch:
        """The batch of `order`."""
        index, view = order.index.to(self.device), order.view.to(self.device)
        window = augmentation.window(self.stored_size, self.size)
        shown = views.show(self.images, view, index, window)
        shown = augmentation.pixels(shown, order.index, order.seed, self.size)
        return self._finished(shown, index, view, order.seed, augmentation)

    def _moved(self, orders: list[Order]) -> list[Order]:
        """The orders with their tensors on the device, all in one transfer."""
        if self.device.type == "cpu" or not orders:
            return orders
        sizes = [len(order.index) for order in orders]
        index = torch.cat([order.index for order in orders]).to(self.device).split(sizes)
        view = torch.cat([order.view for order in orders]).to(self.device).split(sizes)
        return [Order(i, v, order.seed) for i, v, order in zip(index, view, orders, strict=True)]

    def _finished(
        self, shown: Tensor, index: Tensor, view: Tensor, seed: int, augmentation: Augmentation
    ) -> ImageBatch:
        """A batch from its pixels (N, C, h, w), uint8 on the device."""
        labels = self.labels[index]
        images, targets = augmentation.mixed(self.normalized(shown), labels, seed)
        return ImageBatch(images, labels, index, view, targets)

    def _prepare_scaling(self, mean: Tensor, std: Tensor) -> None:
        """Normalization is x scale - shift; for channels-last, the same repeated along a row."""
        scale, shift = (1 / (255 * std)).to(self.device), (mean / std).to(self.device)
        self._scale, self._shift = scale[:, None, None], shift[:, None, None]
        width = self.image_shape[2]
        self._row_scale, self._row_shift = scale.repeat(width), shift.repeat(width)  # (W C,)


def _orders(index: Tensor, view: Tensor, batch_size: int, seed: int) -> list[Order]:
    pieces = zip(index.split(batch_size), view.split(batch_size), strict=True)
    return [Order(i, v, seed + number) for number, (i, v) in enumerate(pieces) if len(i)]
