"""Images that do not fit on the device: workers read them from the stored array, batch by batch.

The store is the array that `prepare` wrote, mapped from the disk: images are decoded and resized
once, not once an epoch, which is what makes epochs of large images slow. It costs disk space, one
byte a pixel and channel. What is random (crop, flip, `Distortion`) is made of it on the fly; the
size stored is the size the network sees.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdsteps.data.augmentation import Distortion
from kdsteps.data.images import Drawn, ImagePart, Order
from kdsteps.data.views import Views


class StreamedPart(ImagePart):
    """One part of a dataset, on the disk; batches appear on the device as those of `ImagePart`."""

    def __init__(
        self,
        store: np.ndarray,
        rows: np.ndarray,
        labels: Tensor,
        mean: Tensor,
        std: Tensor,
        *,
        workers: int = 0,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        """Args:
        store: (M, C, H, W) uint8, of all parts, mapped from the disk.
        rows: (N,) which rows of it are of this part.
        labels: (N,), on the device where batches shall appear.
        mean, std: (C,) of the training part, on the scale 0 to 1.
        workers: Processes that read ahead; 0: none, each batch is read when it is asked for.
        memory_format: Of the batches.
        """
        self.store, self.rows, self.labels = store, rows, labels
        self.workers, self.memory_format = workers, memory_format
        self._prepare_scaling(mean, std)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.store.shape[1:]
        return channels, height, width

    def _batches(
        self, orders: list[Order], views: Views, distortion: Distortion
    ) -> Iterator[Drawn]:
        loader = DataLoader(
            _Batches(self.store, self.rows, orders, views, distortion),
            batch_size=None,  # an item is a batch already
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # its own, so that the global one is left alone
        )
        for order, shown in zip(orders, loader, strict=True):
            yield self._placed(order, shown, distortion)

    def _made(self, order: Order, views: Views, distortion: Distortion) -> Drawn:
        shown = _Batches(self.store, self.rows, [order], views, distortion)[0]
        return self._placed(order, shown, distortion)

    def _placed(self, order: Order, shown: Tensor, distortion: Distortion) -> Drawn:
        index, view = order.index.to(self.device), order.view.to(self.device)
        shown = shown.to(self.device, non_blocking=True)
        return self._finished(shown, index, view, order.seed, distortion)


class _Batches(Dataset[Tensor]):
    """The pixels of whole batches, (N, C, H, W) uint8, cropped, mirrored and distorted."""

    def __init__(
        self,
        store: np.ndarray,
        rows: np.ndarray,
        orders: list[Order],
        views: Views,
        distortion: Distortion,
    ) -> None:
        self.store, self.rows, self.orders = store, rows, orders
        self.views, self.distortion = views, distortion

    def __len__(self) -> int:
        return len(self.orders)

    def __getitem__(self, number: int) -> Tensor:
        order = self.orders[number]
        images = torch.from_numpy(self.store[self.rows[order.index.cpu().numpy()]])
        shown = self.views.show(images, order.view.cpu())
        return self.distortion.pixels(shown, order.index, order.seed)
