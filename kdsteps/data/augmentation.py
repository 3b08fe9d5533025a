"""Augmentation beyond crop and flip: RandAugment, crops of random size, mixup and CutMix.

They are drawn from a continuum, so their results cannot be numbered and teacher logits cannot be
cached: with any of them on, teacher logits are computed on the fly. All randomness depends on
the seed of the batch and the number of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of a batch of training images after crop and flip; all of it off by default.

    Attributes:
        num_classes: K, for the targets of mixed images; 0: they have no labels.
        randaugment: Magnitude of two random operations per image, from 0 (off) to 30.
        resized_crop: Smallest fraction of the stored image's area in a crop of random size and
            shape, which is then resized to the size networks see; 0: off.
        mixup: Alpha of the Beta distribution from which the fraction is drawn; 0: off.
        cutmix: The same for the fraction of the area; with both on, each batch gets one of them.
    """

    num_classes: int = 0
    randaugment: int = 0
    resized_crop: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def changes_pixels(self) -> bool:
        """Whether images are changed one by one, which needs workers to be fast."""
        return bool(self.randaugment or self.resized_crop)

    @property
    def mixes(self) -> bool:
        return bool(self.mixup or self.cutmix)

    def window(self, stored: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the views that `pixels` starts from.

        Args:
            stored: Of the stored images.
            size: That networks see.
        """
        return stored if self.resized_crop else size

    def pixels(
        self, images: Tensor, index: Tensor, seed: int, size: tuple[int, int] | None = None
    ) -> Tensor:
        """Images (N, C, H, W), uint8, each augmented separately.

        Args:
            index: (N,) numbers of the images; with `seed`, they decide what is drawn.
            size: Height and width of the result of `resized_crop`; None: those of the images.

        Source: RandAugment: Cubuk et al. 2020, arXiv:1909.13719; crops of random size: Szegedy et
        al. 2015, arXiv:1409.4842, section 6; both as implemented in torchvision.
        """
        if not self.changes_pixels:
            return images
        from torchvision.transforms import v2

        steps: list[torch.nn.Module] = []
        if self.resized_crop:
            size = size or (images.shape[2], images.shape[3])
            steps.append(v2.RandomResizedCrop(size, scale=(self.resized_crop, 1.0), antialias=True))
        if self.randaugment:
            steps.append(v2.RandAugment(num_ops=2, magnitude=self.randaugment))
        augment = v2.Compose(steps)
        random = torch.default_generator  # torchvision draws from it
        before = random.get_state()
        changed = []
        try:
            for image, number in zip(images, index.tolist(), strict=True):
                random.manual_seed(_image_seed(seed, number))
                changed.append(augment(image))
        finally:
            random.set_state(before)
        return torch.stack(changed)

    def mixed(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Each image mixed with the one before it in the batch, and the targets that follow.

        The image itself always makes up at least half, so that its label remains the main one.

        Args:
            images: (N, C, H, W), normalized.
            labels: (N,).

        Returns:
            The images, and the targets: fractions of the classes (N, K), or `labels` where nothing
            is mixed or there are no classes.

        Source: mixup: Zhang et al. 2018, arXiv:1710.09412; CutMix: Yun et al. 2019,
        arXiv:1905.04899. One fraction for the whole batch, as in both.
        """
        if not self.mixes:
            return images, labels
        random = np.random.default_rng(seed)
        cut = random.random() < 0.5 if self.mixup and self.cutmix else bool(self.cutmix)
        alpha = self.cutmix if cut else self.mixup
        fraction = random.beta(alpha, alpha)
        fraction = max(fraction, 1 - fraction)
        others = images.roll(1, dims=0)
        if cut:
            images, fraction = _patched(images, others, fraction, random)
        else:
            images = others.lerp(images, fraction)
        if not self.num_classes:
            return images, labels
        own = F.one_hot(labels, self.num_classes).to(images.dtype)  # (N, K)
        return images, own.roll(1, dims=0).lerp(own, fraction)


NO_AUGMENTATION = Augmentation()


def _image_seed(seed: int, number: int) -> int:
    """Far apart for neighboring numbers (a step of the golden ratio), within 63 bits."""
    return (seed + 0x9E3779B97F4A7C15 * (number + 1)) % 2**63


def _patched(
    images: Tensor, others: Tensor, fraction: float, random: np.random.Generator
) -> tuple[Tensor, float]:
    """The images with a box of the others in each, and the fraction of the area outside of it."""
    height, width = images.shape[2:]
    side = (1 - fraction) ** 0.5
    y, x = random.integers(height), random.integers(width)
    half_height, half_width = side * height / 2, side * width / 2
    top, bottom = max(0, round(y - half_height)), min(height, round(y + half_height))
    left, right = max(0, round(x - half_width)), min(width, round(x + half_width))
    images = images.clone()
    images[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    return images, 1 - (bottom - top) * (right - left) / (height * width)
