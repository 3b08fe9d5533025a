"""Attention transfer: where in the image the teacher's maps are strong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from kdsteps.methods._features import LayerPairs, Outputs
from kdsteps.methods._tensors import full_precision, same_images, to_smaller, unit
from kdsteps.methods.base import Batch


@full_precision
def at_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """How differently two maps spread their energy over the image.

    Args:
        student_map: (N, C, H, W).
        teacher_map: (N, any channels and size), of the same images; the larger of the two is
            averaged down to the smaller.

    Returns:
        Scalar, averaged over images and positions. The paper has an unsquared distance; this is the
        mean square of the authors' code, for which the usual weight is 1000.

    Raises:
        ValueError: The numbers of images differ.

    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928.
    """
    same_images(student_map, teacher_map, "maps")
    student_map, teacher_map = to_smaller(student_map, teacher_map)
    return (attention(student_map) - attention(teacher_map)).square().mean()


def attention(maps: Tensor) -> Tensor:
    """The mean square over channels at each position, (N, H W), at unit length."""
    return unit(maps.square().mean(dim=1).flatten(1), dim=1)


class AT(LayerPairs):
    """Labels and the attention maps of all stages.

    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928; weight of the CIFAR-100 benchmark.
    """

    capturable = True
    needs_labels: ClassVar[Mapping[str, int]] = {"labels_weight": 0}
    compares_images = False
    term = "attention"

    def __init__(self, *given: Any, weight: NonNegativeFloat = 1000.0, **options: Any) -> None:
        super().__init__(*given, weight=weight, **options)

    def loss(self, ours: Outputs, theirs: Outputs, batch: Batch) -> Tensor:
        return torch.stack([at_loss(*pair) for pair in self.maps(ours, theirs)]).sum()
