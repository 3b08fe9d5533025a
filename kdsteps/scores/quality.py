"""Knowledge quality Q of a layer: what a student can learn from it, in one number.

Q = S + sqrt(I * E), from separation, information and efficiency. `score_layer` reads a layer in
chunks and also returns all intermediate numbers; `layer_quality` is a shortcut for one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from kdsteps.scores._threads import one_thread
from kdsteps.scores.efficiency import efficiency
from kdsteps.scores.gram import LayerGram
from kdsteps.scores.information import information
from kdsteps.scores.pairs import pair_statistics
from kdsteps.scores.separation import separation

if TYPE_CHECKING:
    import numpy as np

Variant = Literal["intended", "as_coded"]
SPECTRA_PER_CLASS = 500  # images of a class that the authors take spectra from, at most


def layer_quality(
    features: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    *,
    train_size: int,
    variant: Variant = "intended",
) -> dict[str, float]:
    """Knowledge quality of one layer, and its three component scores.

    Args:
        features: (N, D), one row per image of the sample; maps and tokens flattened.
        labels: (N,), whole numbers.
        train_size: Images that the teacher was trained on.
        variant: See `score_layer`.

    Returns:
        separation, information, efficiency and quality.

    Raises:
        KdstepsError: See `score_layer`.
        ValueError: See `score_layer`.
    """
    scores = score_layer(
        [torch.as_tensor(features)],
        torch.as_tensor(labels),
        train_size=train_size,
        variant=variant,
    )
    return {name: scores[name] for name in ("separation", "information", "efficiency", "quality")}


def score_layer(
    chunks: Iterable[Tensor],
    labels: Tensor,
    *,
    train_size: int,
    variant: Variant = "intended",
    spectra_per_class: int = SPECTRA_PER_CLASS,
    seed: int = 0,
    where: str = "features",
) -> dict[str, float]:
    """All scores of one layer, from one pass over its features.

    Needs the memory of one chunk and an (N, N) matrix, 100 MB at 5,000 images, however wide the
    layer is.

    Args:
        chunks: (N, some of the D features) each, together the whole layer; rows in the order of
            the labels.
        labels: (N,), whole numbers.
        train_size: Images that the teacher was trained on.
        variant: `as_coded` follows the authors' code; `intended` differs in two things: no image
            is a pair with itself, and a zero eigenvalue adds nothing to the entropy instead of
            wiping out its class. See `separation` and `information`.
        spectra_per_class: Images of a class that its spectrum is taken from, at most.
        seed: For drawing those images if a class has more.
        where: What error messages start with, such as the layer's name.

    Returns:
        The scores separation, information, efficiency, root_information_efficiency and quality,
        and their components: intra_cosine, inter_cosine, min_cosine, class_dimension,
        class_entropy (nats), class_gap, feature_norm, density.

    Raises:
        KdstepsError: There are fewer than two classes or fewer than two images of one; a feature
            is not finite; an image has only zeros.
        ValueError: Shapes do not fit, the variant is not known, or a number is out of range.

    Source: arXiv:2511.14981 and its code at commit 3abceed of Thegolfingocto/KD_wo_CE.
    """
    if variant not in get_args(Variant):
        raise ValueError(f"variant must be one of {get_args(Variant)}, not {variant!r}")
    as_coded = variant == "as_coded"
    gram = LayerGram(labels, spectra_per_class=spectra_per_class, seed=seed, where=where)
    for chunk in chunks:
        gram.add(chunk)
    with one_thread():
        pairs = pair_statistics(gram)
        informed = information(gram, pairs, wiped_by_zero=as_coded)
    separated = separation(pairs, with_diagonal=as_coded)
    efficient = efficiency(pairs, train_size=train_size, width=gram.width)
    root = root_information_efficiency(informed.value, efficient.value)
    return {
        "separation": separated.value,
        "information": informed.value,
        "efficiency": efficient.value,
        "root_information_efficiency": root,
        "quality": separated.value + root,
        "intra_cosine": separated.intra,
        "inter_cosine": separated.inter,
        "min_cosine": informed.min_cosine,
        "class_dimension": informed.dimension,
        "class_entropy": informed.entropy,
        "class_gap": efficient.gap,
        "feature_norm": efficient.norm,
        "density": efficient.density,
    }


def root_information_efficiency(information: float, efficiency: float) -> float:
    """sqrt(I * E): quality without separation, which the authors ablate as "No S"."""
    return math.sqrt(information * efficiency)
