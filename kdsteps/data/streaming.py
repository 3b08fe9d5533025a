"""Images that do not fit on the device: workers read them from the stored array, batch by batch.

The store is the array that `prepare` wrote, mapped from the disk: images are decoded and resized
once instead of in every epoch, which would make epochs of large images slow. This needs disk space,
one byte per pixel and channel. Everything random (crop, flip, `Augmentation`) happens on the fly.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdsteps.data.augmentation import NO_AUGMENTATION, Augmentation
from kdsteps.data.hashes import Hashes
from kdsteps.data.images import ImageBatch, ImageSplit, Order
from kdsteps.data.views import Views


class StreamedSplit(ImageSplit):
    """One split of a data set on the disk; its batches are those of `ImageSplit`."""

    on_device = False

    def __init__(
        self,
        store: np.ndarray,
        rows: np.ndarray,
        labels: Tensor,
        mean: Tensor,
        std: Tensor,
        *,
        hashes: Hashes | None = None,
        size: tuple[int, int] | None = None,
        workers: int = 0,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        """Args:
        store: (M, C, H, W) uint8, of all splits, mapped from the disk.
        rows: (N,) which rows of it belong to this split.
        labels: (N,), on the device where batches are to be.
        mean, std: (C,) of the training images, on the scale 0 to 1.
        hashes: Of all M images; each image is checked when it is first read. None: no check.
        size: Height and width of the batches, at most those of the images; None: those.
        workers: Processes that read ahead; 0: each batch is read when it is needed.
        memory_format: Of the batches.
        """
        self.store, self.rows, self.labels, self.hashes = store, rows, labels, hashes
        self.workers, self.memory_format = workers, memory_format
        self.size = size or self.stored_size
        self._checked = torch.zeros(len(rows), dtype=torch.bool).share_memory_()  # by any worker
        self._prepare_scaling(mean, std)

    @property
    def stored_size(self) -> tuple[int, int]:
        return self.store.shape[2], self.store.shape[3]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.store.shape[1], *self.size

    def batches(
        self, orders: list[Order], views: Views, augmentation: Augmentation = NO_AUGMENTATION
    ) -> Iterator[ImageBatch]:
        loader = DataLoader(
            _Batches(self, orders, views, augmentation),
            batch_size=None,  # an item is already a batch
            num_workers=self.workers,
            # From Python 3.14 on, the default would send each worker a copy of the whole store.
            multiprocessing_context="fork" if self.workers else None,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # so that the global one is not used
        )
        for order, (shown, damaged) in zip(orders, loader, strict=True):
            yield self._placed(order, shown, damaged, augmentation)

    def made(
        self, order: Order, views: Views, augmentation: Augmentation = NO_AUGMENTATION
    ) -> ImageBatch:
        shown, damaged = _Batches(self, [order], views, augmentation)[0]
        return self._placed(order, shown, damaged, augmentation)

    def _moved(self, orders: list[Order]) -> list[Order]:
        return orders  # the workers read them

    def _placed(
        self, order: Order, shown: Tensor, damaged: int, augmentation: Augmentation
    ) -> ImageBatch:
        if self.hashes is not None and damaged >= 0:
            raise self.hashes.refuse(damaged)
        index, view = order.index.to(self.device), order.view.to(self.device)
        shown = shown.to(self.device, non_blocking=True)
        return self._finished(shown, index, view, order.seed, augmentation)

    def _first_damaged(self, images: np.ndarray, index: np.ndarray) -> int:
        """The row of the first damaged image among those not checked before; -1: there is none."""
        if self.hashes is None:
            return -1
        checked = self._checked.numpy()
        new = np.flatnonzero(~checked[index])
        damaged = self.hashes.damaged(images[new], self.rows[index[new]])
        if damaged is None:
            checked[index] = True
            return -1
        return damaged


class _Batches(Dataset[tuple[Tensor, int]]):
    """The pixels of whole batches, (N, C, h, w) uint8, and the row of a damaged image or -1.

    A number instead of an exception, because an exception in a worker arrives as a traceback.
    """

    def __init__(
        self, part: StreamedSplit, orders: list[Order], views: Views, augmentation: Augmentation
    ) -> None:
        self.part, self.orders = part, orders
        self.views, self.augmentation = views, augmentation

    def __len__(self) -> int:
        return len(self.orders)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        order, part = self.orders[number], self.part
        index = order.index.cpu().numpy()
        images = part.store[part.rows[index]]
        window = self.augmentation.window(part.stored_size, part.size)
        shown = self.views.show(torch.from_numpy(images), order.view.cpu(), size=window)
        shown = self.augmentation.pixels(shown, order.index, order.seed, part.size)
        return shown, part._first_damaged(images, index)
