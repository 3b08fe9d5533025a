"""Other forms of images, to find out why the predictions of a third-party teacher are wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from kdsteps.models.chain import Chain
from kdsteps.models.input import InputChain, InputContract
from kdsteps.teachers.diagnosis import class_order, more_often

IMAGENET = InputContract((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_COMPARED = 512  # images that are shown in every form where there is reason to doubt
_GLANCE = (32, 128)  # images that are shown in every form without doubt, at least and at most
_GLANCE_OF = 40  # of so many images, one is shown
_REVERSED = "channels in the order blue, green, red (flip the input channels of its first layer)"
_USUAL = (28, 32, 48, 64, 96, 112, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512)
"""Pixels of square images that networks are often trained on."""
_FACTORS = (1 / 2, 2 / 3, 3 / 2, 2)  # by which images are resized
_MIN_GAIN = 0.02  # of accuracy; less is not worth a word
_FEWER_ERRORS = 0.8  # of the errors as it is: with more, a form explains little

Predicted = Callable[[Tensor], Tensor]
"""From numbers of images (n,) to the class that the teacher predicts for each, (n,)."""


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


@dataclass(frozen=True)
class Reordered:
    """A form of the images in which another class order explains a teacher's predictions.

    Attributes:
        form: What to set, and what that means.
        order: K class numbers, by output.
        accuracy: In this form and order.
        count: Images that were looked at.
    """

    form: str
    order: tuple[int, ...]
    accuracy: float
    count: int


def better_forms(
    predicted: Tensor, labels: Tensor, forms: Mapping[str, Predicted], *, doubtful: bool
) -> list[Better]:
    """The forms of the images in which a teacher makes clearly fewer errors, the best first.

    All forms are compared on the same images. Without doubt, they are compared at a glance first,
    which costs a good teacher little.

    Args:
        predicted: (N,), for the images as they are.
        labels: (N,).
        forms: By description.
        doubtful: Whether all forms are worth the full number of images.
    """
    correct = predicted == labels
    if float((~correct).double().mean()) < _MIN_GAIN:
        return []
    found = []
    for form, predicted_in in forms.items():
        if not doubtful and not _promises(correct, labels, predicted_in):
            continue
        numbers = _some(torch.arange(len(correct)), _COMPARED)
        right, as_is = predicted_in(numbers) == labels[numbers], correct[numbers]
        accuracies = float(right.double().mean()), float(as_is.double().mean())
        better = Better(form, *accuracies, len(numbers))
        fewer = 1 - better.accuracy <= _FEWER_ERRORS * (1 - better.as_is)
        if fewer and better.gain >= _MIN_GAIN and more_often(right, as_is):
            found.append(better)
    return sorted(found, key=lambda better: -better.gain)


def reordered_form(
    labels: Tensor, forms: Mapping[str, Predicted], num_classes: int
) -> Reordered | None:
    """The form in which a teacher is right most often if its classes are in another order.

    Args:
        labels: (N,).
        forms: By description.
        num_classes: K.

    Returns:
        None if there is no form in which another order explains the predictions.
    """
    numbers = _some(torch.arange(len(labels)), _COMPARED)
    found = []
    for form, predicted_in in forms.items():
        predicted = predicted_in(numbers)
        order = class_order(predicted, labels[numbers], num_classes)
        if order is not None:
            right = torch.tensor(order)[predicted] == labels[numbers]
            found.append(Reordered(form, order, float(right.double().mean()), len(numbers)))
    return max(found, key=lambda each: each.accuracy, default=None)


def _promises(correct: Tensor, labels: Tensor, predicted_in: Predicted) -> bool:
    """Whether a form seems to leave clearly fewer errors, by few images that are right and wrong.

    Half of them are wrong as they are: where errors are rare, they tell the most.
    """
    few = min(_GLANCE[1], max(_GLANCE[0], len(correct) // _GLANCE_OF))
    wrong, right = (_some(kind.nonzero().flatten(), few // 2) for kind in (~correct, correct))
    numbers = torch.cat([wrong, right])
    seen = predicted_in(numbers) == labels[numbers]
    errors = float((~correct).double().mean())
    left = float((~seen[: len(wrong)]).double().mean())
    new = float((~seen[len(wrong) :]).double().mean())
    return errors * left + (1 - errors) * new <= _FEWER_ERRORS * errors


def _some(numbers: Tensor, wanted: int) -> Tensor:
    """`wanted` of the numbers, or all of them, drawn at random but always the same."""
    drawn = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(0))
    return numbers[drawn[:wanted].sort().values]


def input_forms(
    network: Chain, mean: Sequence[float], std: Sequence[float], size: tuple[int, int]
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions from images (N, C, H, W) to logits (N, K), by what to set for that form.

    Args:
        network: Frozen, in eval mode; takes images that are normalized with `mean` and `std`.
        mean, std: Of each channel, on the scale 0 to 1.
        size: Height and width of the images.
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
    as_it_is = resized or InputContract(tuple(mean), tuple(std)).after(mean, std)
    for other in _other_sizes(as_it_is.size or size):
        resized_to = InputChain(inner, replace(as_it_is, size=other)).to(device)
        with suppress(Exception):  # networks for one size refuse others, each in its own way
            resized_to(torch.zeros(1, channels, *size, device=device))
            value = other[0] if other[0] == other[1] else list(other)
            shown[f"`image_size: {value}` (resized images)"] = partial(
                _in_parts, resized_to, math.ceil(math.prod(other) / math.prod(size))
            )
    if channels == 3:
        center = torch.tensor(mean, device=device)[:, None, None]
        spread = torch.tensor(std, device=device)[:, None, None]

        def reversed_channels(images: Tensor) -> Tensor:
            pixels = (images * spread + center).flip(1)
            logits: Tensor = network((pixels - center) / spread)
            return logits

        shown[_REVERSED] = reversed_channels
    return shown


def _in_parts(network: Chain, parts: int, images: Tensor) -> Tensor:
    """Logits (N, K) of images (N, C, H, W), some at a time: large ones need more memory."""
    return torch.cat([network(some) for some in images.chunk(parts)])


def _other_sizes(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Smaller and larger sizes that a network may have been trained at, up to twice as large."""
    height, width = size
    scaled = [(round(factor * height), round(factor * width)) for factor in _FACTORS]
    if height == width:
        nearest = [min(_USUAL, key=lambda usual: abs(usual - side)) for side, _ in scaled]
        scaled = [(side, side) for side in nearest if height / 2.5 < side < 2.5 * height]
    yield from dict.fromkeys(each for each in scaled if each != size)


def _setting(mean: Sequence[float], std: Sequence[float]) -> str:
    values = (", ".join(f"{value:.3g}" for value in numbers) for numbers in (mean, std))
    return "{{mean: [{}], std: [{}]}}".format(*values)
