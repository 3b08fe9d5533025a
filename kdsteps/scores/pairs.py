"""Statistics of pairs of images for the scores: cosines within and between classes, distances.

All of them follow from the inner products in one pass, which visits each pair of classes once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdsteps.errors import KdstepsError
from kdsteps.scores.gram import LayerGram

_ROWS_AT_ONCE = 128  # so that the numbers of a step stay in the processor's cache


@dataclass(frozen=True)
class PairStatistics:
    """Statistics of the pairs of images in one layer; all tensors are float64 on the CPU.

    Attributes:
        counts: (K,), images of each class.
        cosine_sums: (K, K), sums of absolute cosines over all pairs of an image of one class and
            one of another; on the diagonal over ordered pairs of two different images.
        min_cosines: (K,), the smallest absolute cosine of two images of the class.
        nearest: (K,), the smallest Euclidean distance from an image of the class to another class.
        mean_norms: (K,), mean Euclidean norm of the class's images.
    """

    counts: Tensor
    cosine_sums: Tensor
    min_cosines: Tensor
    nearest: Tensor
    mean_norms: Tensor


@torch.no_grad()
def pair_statistics(gram: LayerGram) -> PairStatistics:
    """Sum up all pairs of images of a layer.

    Raises:
        KdstepsError: An image has only zeros in this layer, so that its cosines are not defined.
    """
    products, classes = gram.products, gram.classes
    _refuse_zeros(gram)
    device, dtype, num_classes = products.device, products.dtype, len(classes)
    norms = gram.squares.sqrt()
    per_class = [rows.stop - rows.start for rows in classes]
    of_image = torch.arange(num_classes).repeat_interleave(torch.tensor(per_class)).to(device)

    inverse = norms.reciprocal().to(dtype)
    ones = torch.ones_like(inverse)
    # raw inner product = centered product + (pull_i + mean_square) * 1 + 1 * pull_j
    left = torch.stack([(gram.pull + gram.mean_square).to(dtype), ones], dim=1)  # (N, 2)
    right = torch.stack([ones, gram.pull.to(dtype)])  # (2, N)
    spread = products.diagonal()  # squared distance of each image to the mean of all

    sums = torch.zeros(num_classes, num_classes, dtype=torch.float64, device=device)
    min_cosines = torch.full((num_classes,), torch.inf, dtype=dtype, device=device)
    nearest = torch.full((num_classes,), torch.inf, dtype=dtype, device=device)
    for index, rows in enumerate(classes):
        size = rows.stop - rows.start
        for start in range(rows.start, rows.stop, _ROWS_AT_ONCE):
            part = slice(start, min(start + _ROWS_AT_ONCE, rows.stop))
            pairs = products[part, rows.start :]  # classes before this one have met it already
            cosines = torch.addmm(pairs, left[part], right[:, rows.start :]).abs_()
            cosines *= inverse[rows.start :]
            cosines *= inverse[part, None]
            own = cosines[:, :size]
            own.diagonal(offset=start - rows.start).fill_(1.0)  # for min: no image with itself
            min_cosines[index] = torch.minimum(min_cosines[index], own.min())
            own.diagonal(offset=start - rows.start).fill_(0.0)
            sums[index].index_add_(0, of_image[rows.start :], cosines.sum(dim=0).double())
            if rows.stop < gram.num_images:
                squared = spread[rows.stop :] - 2 * pairs[:, size:]
                squared += spread[part, None]
                columns = squared.amin(dim=0)
                nearest.scatter_reduce_(0, of_image[rows.stop :], columns, "amin")
                nearest[index] = torch.minimum(nearest[index], columns.min())
    above = sums.triu(diagonal=1)
    return PairStatistics(
        counts=torch.tensor(per_class, dtype=torch.float64),
        cosine_sums=(above + above.T + sums.diagonal().diag()).cpu(),
        min_cosines=min_cosines.double().clamp(max=1.0).cpu(),
        nearest=nearest.double().clamp(min=0.0).sqrt().cpu(),
        mean_norms=torch.stack([norms[rows].mean() for rows in classes]).cpu(),
    )


def _refuse_zeros(gram: LayerGram) -> None:
    silent = int((gram.squares == 0).sum())
    if silent:
        raise KdstepsError(
            f"{gram.where}: all features of {silent} of {gram.num_images} images are zero, so they "
            "have no cosine; leave this layer out, or train the teacher longer"
        )
