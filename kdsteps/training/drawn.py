"""Training on fixed draws of the augmentation, for which a teacher's outputs can be cached."""

from __future__ import annotations

from typing import Any

from kdsteps.data.augmentation import Augmentation
from kdsteps.data.draws import DrawnSplit, Draws
from kdsteps.methods.base import Method
from kdsteps.study.training_settings import DrawSettings, Training
from kdsteps.training.loop import Fit

_PLAIN = {
    "crop_padding": 0,
    "flip": False,
    "randaugment": 0,
    "resized_crop": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
}


def draws_of(settings: DrawSettings, num_classes: int = 0) -> Draws:
    """The draws that settings describe.

    Args:
        num_classes: K, for the targets of mixed images; 0: they have no labels.
    """
    augmentation = Augmentation(
        num_classes,
        *(settings.randaugment, settings.resized_crop, settings.mixup, settings.cutmix),
    )
    fixed = settings.fixed
    return Draws(settings.crop_padding, settings.flip, augmentation, fixed.draws, fixed.seed)


class DrawnFit(Fit):
    """A training run in which all images are in draw e mod k in epoch e."""

    split: DrawnSplit

    def __init__(self, method: Method, split: DrawnSplit, recipe: Training, **options: Any) -> None:
        """Args:
        split: The training images, already augmented.
        options: As for `Fit`.
        """
        super().__init__(method, split, recipe.model_copy(update=_PLAIN), **options)

    def _epoch(self, offset: float) -> None:
        self.split.epoch = self.epoch
        super()._epoch(offset)
