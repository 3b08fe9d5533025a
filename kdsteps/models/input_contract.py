"""How a network takes pixels: their size and normalization, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from kdsteps.errors import KdstepsError

Interpolation = Literal["nearest", "bilinear", "bicubic"]

PIXEL_MAX = 255


@dataclass(frozen=True)
class InputContract:
    """How pixels become the input of a network.

    Attributes:
        mean, std: Of each channel, on the scale 0 to 1.
        size: (height, width) that the network is built for; None: that of the images.
        interpolation: How images of another size are resized.
        limits: The values of pixels 0 and 255, for each channel, in images that are normalized
            already (`after`); None: 0 and 255. Resized images stay between them.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    limits: tuple[tuple[float, float], ...] | None = None

    @classmethod
    def of_size(
        cls, size: tuple[int, int], interpolation: Interpolation, channels: int
    ) -> InputContract:
        """The contract that resizes images and leaves their values unchanged."""
        return cls((0.0,) * channels, (1 / PIXEL_MAX,) * channels, size, interpolation)

    @property
    def keeps_values(self) -> bool:
        """Whether normalization leaves the values of images unchanged."""
        return not any(self.mean) and all(abs(PIXEL_MAX * std - 1) < 1e-12 for std in self.std)

    def after(self, mean: Sequence[float], std: Sequence[float]) -> InputContract:
        """The contract for images that are normalized already, by another mean and std.

        Both steps are affine, and so is the one that leads from one to the other. Resizing takes
        averages with weights that sum to 1, so it may come before or after an affine step.

        Args:
            mean, std: Of each channel, on the scale 0 to 1: how the images are normalized.
        """
        ratios = [own / (PIXEL_MAX * given) for own, given in zip(self.std, std, strict=True)]
        shifts = [
            (own - given) / spread * ratio
            for own, given, spread, ratio in zip(self.mean, mean, self.std, ratios, strict=True)
        ]
        limits = tuple(
            (-center / spread, (1 - center) / spread)
            for center, spread in zip(mean, std, strict=True)
        )
        return replace(self, mean=tuple(shifts), std=tuple(ratios), limits=limits)

    def for_channels(self, channels: int, where: str) -> InputContract:
        """The contract for images with another number of channels than three.

        The first convolution is adapted in the same way (`fit_channels`): one channel has the mean
        over the three, further channels repeat them.

        Raises:
            KdstepsError: Neither the contract nor the network is for colors.
        """
        known = len(self.mean)
        if channels == known:
            return self
        if known != 3:
            raise KdstepsError(
                f"{where}: normalize has {known} channels, the images have {channels}; set a mean "
                "and a std for each"
            )
        if channels == 1:
            mean, std = (sum(values) / known for values in (self.mean, self.std))
            return replace(self, mean=(mean,), std=(std,))
        turns = [number % known for number in range(channels)]
        mean_of, std_of = ([values[turn] for turn in turns] for values in (self.mean, self.std))
        return replace(self, mean=tuple(mean_of), std=tuple(std_of))


class Published(NamedTuple):
    """What a library states about the weights that it publishes for a network.

    Attributes:
        input: How they take pixels, for three channels. A crop of the center is not part of it:
            images are resized whole.
        num_classes: That they were trained for.
    """

    input: InputContract
    num_classes: int


def known_interpolation(name: str) -> Interpolation:
    """An interpolation by its name in other libraries; bicubic where it has no equal here."""
    known: dict[str, Interpolation] = {"nearest": "nearest", "bilinear": "bilinear"}
    return known.get(name, "bicubic")
