"""Random draws of the augmentation of an image, fixed once and numbered like views.

Crop, flip and all other augmentation have more results than can be cached; a few draws an image are
few. Everything random in a draw follows from a seed, the number of the image and the number of the
draw by a hash, which is a counter-based generator. So nothing about draws has to be stored, any
batch of them can be made again in any order, and a teacher's outputs can be cached for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdsteps.data.augmentation import NO_AUGMENTATION, Augmentation
from kdsteps.data.images import ImageBatch, ImageSplit, Order
from kdsteps.data.views import Views

_AT_ONCE = 256  # images whose targets are made without reading them
_LEVELS = 1 << 16  # values that the fraction of a mixed image can have, all equally likely
_VIEW, _PIXELS, _PARTNER, _FRACTION, _CUT, _ROW, _COLUMN = range(7)  # what is drawn
_STEP = 0x9E3779B97F4A7C15 - 2**64  # the golden ratio of 2^64, as int64
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


@dataclass(frozen=True)
class Draws(Views):
    """Fixed draws of each training image: cropped, flipped, augmented and mixed.

    An image is mixed with the same draw of its partner, which can be any other training image, and
    the fraction is drawn for each image. (Without fixed draws, the partner is in the same batch and
    one fraction is drawn for each batch.) The images of a `DrawnSplit` are shown in draws.

    Attributes:
        augmentation: Beyond crop and flip.
        number: k, draws of each image.
        seed: Of everything random.
    """

    augmentation: Augmentation = NO_AUGMENTATION
    number: int = 1
    seed: int = 0

    @property
    def count(self) -> int:
        return self.number

    def show(self, *_: object, **__: object) -> NoReturn:
        """Raise TypeError: a draw needs the partner of an image, which only `DrawnSplit` knows."""
        raise TypeError("draws are shown by a DrawnSplit")

    def views_of(self, index: Tensor, draw: Tensor) -> Tensor:
        """(n,) the numbered view of crop and flip in draws (n,) of images (n,)."""
        return self._random(_VIEW, index, draw) % super().count

    def pixel_seed(self, draw: int) -> int:
        """The seed with which the images of a draw are augmented one by one."""
        return int(self._random(_PIXELS, torch.tensor([0]), torch.tensor([draw]))) >> 1

    def partners(self, index: Tensor, draw: Tensor, num_images: int) -> Tensor:
        """(n,) the images with which draws of images are mixed, each any other of `num_images`."""
        steps = self._random(_PARTNER, index, draw) % max(1, num_images - 1)
        return (index + 1 + steps) % num_images

    def mixed(
        self, images: Tensor, labels: Tensor, index: Tensor, draw: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Images mixed with their partners, and the targets that follow.

        The image itself always makes up at least half, so that its label remains the main one.

        Args:
            images: (2n, C, H, W), normalized: those of `index`, then their partners.
            labels: (2n,) of both.
            index, draw: (n,) numbers of the images and of their draws.

        Returns:
            The images (n, C, H, W), and the targets: fractions of the classes (n, K), or the labels
            of the images (n,) if there are no classes.
        """
        weight, fraction = self._weights(index, draw, (images.shape[2], images.shape[3]))
        (images, partners), (own, others) = images.chunk(2), labels.chunk(2)
        weight = weight[:, None].to(images.dtype)  # (n, 1, H, W)
        # each product is rounded separately, so that an image does not depend on its batch
        images = (images * weight).add_(partners * (1 - weight))
        if not (num_classes := self.augmentation.num_classes):
            return images, own
        fraction = fraction[:, None].to(images.dtype)
        ours, theirs = (F.one_hot(of, num_classes).to(images.dtype) for of in (own, others))
        return images, ours * fraction + theirs * (1 - fraction)

    def _weights(self, index: Tensor, draw: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """How much an image has of its own, from 0 to 1: at each pixel (n, H, W), and in all (n,).

        With CutMix, the weight is 0 inside a box, which shows the partner, and 1 outside.
        """
        mixup, cutmix = self.augmentation.mixup, self.augmentation.cutmix
        level = self._random(_FRACTION, index, draw) % _LEVELS
        if not cutmix:
            fraction = _fractions(mixup, index.device)[level]
            return fraction[:, None, None].expand(-1, *size), fraction
        inside = self._boxes(_fractions(cutmix, index.device)[level], index, draw, size)
        weight, fraction = (~inside).double(), 1 - inside.double().mean(dim=(1, 2))
        if not mixup:
            return weight, fraction
        cut, blend = self._random(_CUT, index, draw) % 2 == 0, _fractions(mixup, index.device)
        weight = weight.where(cut[:, None, None], blend[level][:, None, None])
        return weight, fraction.where(cut, blend[level])

    def _boxes(
        self, fraction: Tensor, index: Tensor, draw: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """(n, H, W) which pixels are in a box of the area 1 - `fraction`, cut off at the edges."""
        side, inside = (1 - fraction).sqrt(), []
        for length, what in zip(size, (_ROW, _COLUMN), strict=True):
            middle = (self._random(what, index, draw) % length)[:, None]
            half = (side * length / 2)[:, None]
            places = torch.arange(length, device=index.device)
            inside.append((places >= (middle - half).round()) & (places < (middle + half).round()))
        return inside[0][:, :, None] & inside[1][:, None, :]

    def _random(self, what: int, index: Tensor, draw: Tensor) -> Tensor:
        """(n,) whole numbers from 0 to 2^63 - 1 for one thing that is drawn."""
        numbers = _scrambled((index + 1) * _STEP + _key(self.seed, what))
        return _scrambled(numbers + (draw + 1) * _STEP) & (2**63 - 1)


class DrawnSplit(ImageSplit):
    """A split of a data set whose images are shown in fixed draws; `view` is the number of one.

    Each batch is made from numbers of images and draws alone: the views and the augmentation that
    its methods take do not matter. All images are in draw e mod k in epoch e.

    Attributes:
        epoch: Of which `orders` makes the batches.
    """

    def __init__(self, part: ImageSplit, draws: Draws) -> None:
        """Args:
        part: The images.
        draws: Which draws of them there are.
        """
        self.part, self.draws, self.epoch = part, draws, 0
        self.labels, self.memory_format, self.size = part.labels, part.memory_format, part.size
        self.on_device = part.on_device
        augmentation = draws.augmentation
        self._views = Views(draws.crop_padding, draws.flip)
        self._augmentation = replace(augmentation, mixup=0.0, cutmix=0.0)  # of each image alone

    @property
    def stored_size(self) -> tuple[int, int]:
        return self.part.stored_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.part.image_shape

    def orders(self, batch_size: int, views: Views, generator: torch.Generator) -> list[Order]:
        orders = self.part.orders(batch_size, Views(), generator)
        draw = self.epoch % self.draws.number
        return [replace(order, view=torch.full_like(order.view, draw)) for order in orders]

    def batches(
        self, orders: list[Order], views: Views, augmentation: Augmentation = NO_AUGMENTATION
    ) -> Iterator[ImageBatch]:
        pieces = [self._pieces(order) for order in orders]
        flat = [piece for some in pieces for piece in some]
        found = self.part.batches(flat, self._views, self._augmentation)
        for order, some in zip(orders, pieces, strict=True):
            yield self._joined(order, [next(found) for _ in some])

    def made(
        self, order: Order, views: Views, augmentation: Augmentation = NO_AUGMENTATION
    ) -> ImageBatch:
        pieces = self._pieces(order)
        found = [self.part.made(piece, self._views, self._augmentation) for piece in pieces]
        return self._joined(order, found)

    def _pieces(self, order: Order) -> list[Order]:
        """What is read for a batch, each piece with one seed for its pixels.

        Images that are mixed are followed by their partners.
        """
        index, draw = order.index, order.view
        if self.draws.augmentation.mixes:
            index = torch.cat([index, self.draws.partners(index, draw, len(self))])
            draw = draw.repeat(2)
        view = self.draws.views_of(index, draw)
        if not self._augmentation.changes_pixels:
            return [Order(index, view, 0)]
        return [
            Order(index[rows], view[rows], self.draws.pixel_seed(one))
            for one, rows in self._by_draw(draw)
        ]

    def _by_draw(self, draw: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Each draw of a batch, and which rows have it."""
        for one in draw.unique().tolist():
            yield one, (draw == one).nonzero()[:, 0]

    def _joined(self, order: Order, found: list[ImageBatch]) -> ImageBatch:
        """The batch from what was read for it."""
        index, draw = order.index.to(self.device), order.view.to(self.device)
        images, labels = found[0].images, found[0].labels
        if len(found) > 1:
            draws = order.view.repeat(2) if self.draws.augmentation.mixes else order.view
            rows = torch.cat([rows for _, rows in self._by_draw(draws)]).argsort().to(self.device)
            images = torch.cat([piece.images for piece in found])[rows]
            labels = torch.cat([piece.labels for piece in found])[rows]
        if not self.draws.augmentation.mixes:
            return ImageBatch(images, labels, index, draw, labels)
        images, targets = self.draws.mixed(images, labels, index, draw)
        return ImageBatch(images, labels[: len(index)], index, draw, targets)


def targets_of(split: ImageSplit, index: Tensor, view: Tensor) -> Tensor:
    """The targets of images in views or draws, as their batches have them, without the images.

    Args:
        index, view: (n,) numbers of the images, and of their views or draws.

    Returns:
        Labels (n,), or fractions of the classes (n, K) if the draws are mixed.
    """
    if not isinstance(split, DrawnSplit) or not split.draws.augmentation.mixes:
        return split.labels[index.to(split.labels.device)]
    found = []
    for own, draw in zip(index.split(_AT_ONCE), view.split(_AT_ONCE), strict=True):
        both = torch.cat([own, split.draws.partners(own, draw, len(split))])
        labels = split.labels[both.to(split.labels.device)].to(own.device)
        blank = torch.zeros(len(both), 1, *split.image_shape[1:])
        found.append(split.draws.mixed(blank, labels, own, draw)[1])
    return torch.cat(found)


@lru_cache(maxsize=64)
def _key(seed: int, what: int) -> int:
    return int(_scrambled(torch.tensor(8 * seed + what)))


def _scrambled(numbers: Tensor) -> Tensor:
    """Each of some int64, hashed; products are modulo 2^64.

    Source: the output function of SplitMix64, Steele, Lea and Flood 2014,
    doi:10.1145/2660193.2660195.
    """
    numbers = (numbers ^ _shifted(numbers, 30)) * _FIRST
    numbers = (numbers ^ _shifted(numbers, 27)) * _SECOND
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, places: int) -> Tensor:
    """Shifted to the right, with zeros from the left."""
    kept: Tensor = (numbers >> places) & ((1 << (64 - places)) - 1)
    return kept


@lru_cache(maxsize=8)
def _fractions(alpha: float, device: torch.device) -> Tensor:
    """(levels,) float64: the larger of a fraction and its rest, which follows Beta(alpha, alpha).

    A table, so that an entry is the same on every device.
    """
    from scipy import special  # a quarter of a second, which only mixed images need

    chances = (np.arange(_LEVELS) + 0.5) / _LEVELS
    found: Tensor = torch.from_numpy(special.betaincinv(alpha, alpha, chances))
    return found.maximum(1 - found).to(device)
