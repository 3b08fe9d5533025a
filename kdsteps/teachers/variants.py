"""Other forms of images, to find out why the predictions of a third-party teacher are wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdsteps.models.chain import Chain
from kdsteps.models.input import InputChain, InputContract
from kdsteps.teachers.diagnosis import more_often

IMAGENET = InputContract((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_COMPARED = 512  # images that are shown in every form where there is reason to doubt
_GLANCE = (32, 128)  # images that are shown in every form without doubt, at least and at most
_GLANCE_OF = 40  # of so many images, one is shown
_REVERSED = "channels in the order blue, green, red (flip the input channels of its first layer)"
_MIN_GAIN = 0.02  # of accuracy; less is not worth a word
_FEWER_ERRORS = 0.8  # of the errors as it is: with more, a form explains little

Correct = Callable[[Tensor], Tensor]
"""From numbers of images (n,) to whether the teacher is right on each, bool (n,)."""


@dataclass(frozen=True)
class Better:
    """A form of the images in which a teacher makes clearly fewer errors.

    Attributes:
        form: What to set, and what that means.
        accuracy, as_is: Of the same images in this form and as they are.
        count: Images that were compared.
    """

    form: str
    accuracy: float
    as_is: float
    count: int

    @property
    def gain(self) -> float:
        return self.accuracy - self.as_is


def better_forms(correct: Tensor, forms: Mapping[str, Correct], *, doubtful: bool) -> list[Better]:
    """The forms of the images in which a teacher makes clearly fewer errors, the best first.

    All forms are compared on the same images. Without doubt, they are compared at a glance first,
    which costs a good teacher little.

    Args:
        correct: (N,) bool, whether the teacher is right on each image as it is.
        forms: By description.
        doubtful: Whether all forms are worth the full number of images.
    """
    if float((~correct).double().mean()) < _MIN_GAIN:
        return []
    found = []
    for form, correct_in in forms.items():
        if not doubtful and not _promises(correct, correct_in):
            continue
        numbers = _some(torch.arange(len(correct)), _COMPARED)
        right, as_is = correct_in(numbers), correct[numbers]
        accuracies = float(right.double().mean()), float(as_is.double().mean())
        better = Better(form, *accuracies, len(numbers))
        fewer = 1 - better.accuracy <= _FEWER_ERRORS * (1 - better.as_is)
        if fewer and better.gain >= _MIN_GAIN and more_often(right, as_is):
            found.append(better)
    return sorted(found, key=lambda better: -better.gain)


def _promises(correct: Tensor, correct_in: Correct) -> bool:
    """Whether a form seems to leave clearly fewer errors, by few images that are right and wrong.

    Half of them are wrong as they are: where errors are rare, they tell the most.
    """
    few = min(_GLANCE[1], max(_GLANCE[0], len(correct) // _GLANCE_OF))
    wrong, right = (_some(kind.nonzero().flatten(), few // 2) for kind in (~correct, correct))
    seen = correct_in(torch.cat([wrong, right]))
    errors = float((~correct).double().mean())
    left = float((~seen[: len(wrong)]).double().mean())
    new = float((~seen[len(wrong) :]).double().mean())
    return errors * left + (1 - errors) * new <= _FEWER_ERRORS * errors


def _some(numbers: Tensor, wanted: int) -> Tensor:
    """`wanted` of the numbers, or all of them, drawn at random but always the same."""
    drawn = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(0))
    return numbers[drawn[:wanted].sort().values]


def input_forms(
    network: Chain, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions from images (N, C, H, W) to logits (N, K), by what to set for that form.

    Args:
        network: Frozen, in eval mode; takes images that are normalized with `mean` and `std`.
        mean, std: Of each channel, on the scale 0 to 1.
    """
    resized = network.contract if isinstance(network, InputChain) else None
    inner = network.chain if isinstance(network, InputChain) else network
    channels, device = len(mean), next(network.parameters()).device
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    contracts = {
        "`normalize: none` (pixels from 0 to 1)": InputContract(zeros, ones),
        f"`normalize: {_setting(zeros, (1 / 255,) * channels)}` (pixels from 0 to 255)": (
            InputContract(zeros, (1 / 255,) * channels)
        ),
    }
    imagenet = IMAGENET.for_channels(channels, "models")
    named = f"`normalize: {_setting(imagenet.mean, imagenet.std)}` (ImageNet's normalization)"
    contracts[named] = imagenet
    if network is not inner:
        contracts["`normalize: dataset`"] = InputContract(tuple(mean), tuple(std))
    shown: dict[str, Callable[[Tensor], Tensor]] = {}
    for form, contract in contracts.items():
        if resized is not None:
            contract = replace(contract, size=resized.size, interpolation=resized.interpolation)
        shown[form] = InputChain(inner, contract.after(mean, std)).to(device)
    if channels == 3:
        center = torch.tensor(mean, device=device)[:, None, None]
        spread = torch.tensor(std, device=device)[:, None, None]

        def reversed_channels(images: Tensor) -> Tensor:
            pixels = (images * spread + center).flip(1)
            logits: Tensor = network((pixels - center) / spread)
            return logits

        shown[
            "channels in the order blue, green, red (flip the input channels of its first layer)"
        ] = reversed_channels
    return shown


def _setting(mean: Sequence[float], std: Sequence[float]) -> str:
    values = (", ".join(f"{value:.3g}" for value in numbers) for numbers in (mean, std))
    return "{{mean: [{}], std: [{}]}}".format(*values)
