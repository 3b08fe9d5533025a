"""Information I: how far images of one class differ, and in how many directions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kdsteps.scores.gram import LayerGram
from kdsteps.scores.pairs import PairStatistics

EXPLAINED = 0.95  # fraction of a class's variance that its dimension must explain
ENTROPY_SCALE = math.log(5.0)  # the authors' constant; ln 500 would be the maximum of 500 images


@dataclass(frozen=True)
class Information:
    """The components of a layer's information.

    Attributes:
        min_cosine: Smallest absolute cosine of two images of a class, mean over classes.
        dimensions: For each class, the smallest number of directions with 95% of its variance.
        entropies: For each class the entropy of its spectrum in nats.
    """

    min_cosine: float
    dimensions: tuple[int, ...]
    entropies: tuple[float, ...]

    @property
    def dimension(self) -> float:
        """Mean of the classes' dimensions."""
        return math.fsum(self.dimensions) / len(self.dimensions)

    @property
    def entropy(self) -> float:
        """Mean of the classes' entropies, in nats."""
        return math.fsum(self.entropies) / len(self.entropies)

    @property
    def value(self) -> float:
        """I, at least 0, greater is better; the variant that the authors plot and select by."""
        return (1.0 - self.min_cosine) * self.entropy / ENTROPY_SCALE


def information(gram: LayerGram, pairs: PairStatistics, *, wiped_by_zero: bool) -> Information:
    """How far images of one class differ, and in how many directions.

    The entropy is cut after as many components as the dimensions of all classes have together,
    as in the authors' code, and renormalized.

    Args:
        gram: Of one layer.
        pairs: Of the same layer.
        wiped_by_zero: Whether an exactly zero eigenvalue among the components makes the entropy
            of its class 0, as in the authors' code, where 0 * log 0 is not a number in float32
            and is replaced by 0 for the whole class. If False, it adds nothing. Products of
            inexact numbers cannot distinguish zero from rounding, so zeros are counted: of
            the n eigenvalues of a class of n images, those beyond the number of features that
            differ within the class (differ: by more than float32 rounding). This is zero padding
            where there are fewer than n features, and dead features in a narrow layer. The one
            eigenvalue that centering makes zero is not exactly zero in the authors' code, due to
            rounding, and so has no effect there.

    Source: arXiv:2511.14981 and its code (Scripts/TrainerUtils.py, Arch/Analysis/Analysis.py).
    """
    varying = gram.varying.tolist()
    spectra = [
        class_spectrum(gram.products[rows[:, None], rows], varying=count)
        for rows, count in zip(gram.spectra_rows, varying, strict=True)
    ]
    dimensions = tuple(class_dimension(spectrum) for spectrum in spectra)
    num_components = sum(dimensions)
    entropies = []
    for spectrum, count in zip(spectra, varying, strict=True):
        components = spectrum[:num_components]
        wiped = wiped_by_zero and count < len(components)
        entropies.append(0.0 if wiped else spectral_entropy(components))
    return Information(
        min_cosine=pairs.min_cosines.mean().item(),
        dimensions=dimensions,
        entropies=tuple(entropies),
    )


@torch.no_grad()
def class_spectrum(products: Tensor, *, varying: int) -> Tensor:
    """Fractions of a class's variance along its principal directions.

    Args:
        products: (n, n), inner products of the class's images.
        varying: How many features differ among them; the rank is at most that, and at most n - 1.

    Returns:
        (n,) float64, descending, with sum 1; zeros if all images are the same.
    """
    inner = products.double().cpu()
    inner = inner - inner.mean(dim=0) - inner.mean(dim=1, keepdim=True) + inner.mean()
    values: Tensor = torch.linalg.eigvalsh(inner).flip(0)  # squared singular values, falling
    values = values.clamp(min=0.0)
    values[min(len(values) - 1, varying) :] = 0.0  # known to be zero, computed as rounding
    total = values.sum()
    return values.div(total) if total > 0 else values


def class_dimension(spectrum: Tensor) -> int:
    """The smallest number of leading fractions that sum to 95%; 0 without variance."""
    if spectrum[0] == 0:
        return 0
    reached = spectrum.cumsum(0) >= EXPLAINED
    return int(reached.int().argmax()) + 1


def spectral_entropy(components: Tensor) -> float:
    """Entropy in nats of fractions that need not sum to 1; 0 if there are none."""
    total = components.sum()
    if total == 0:
        return 0.0
    shares = components / total
    return -torch.xlogy(shares, shares).sum().item() + 0.0
