"""CKD: match the teacher's logits of each image with the student's, among those of the batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from kdsteps.methods._logits import LogitMethod
from kdsteps.methods._tensors import double_precision, same_shape, unit
from kdsteps.methods.base import Batch


@double_precision
def ckd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """InfoNCE from the teacher's logits of each image to the student's logits of the batch.

    Logits are compared by cosine similarity. The positive is the student's logits of the same
    image, the negatives are those of all others. The loss grows with the batch: it is ln N if the
    student's logits are the same for all images.

    Args:
        student_logits: (N, K); with N = 1 there is no negative and the loss is 0.
        teacher_logits: (N, K), of the same images and classes.
        temperature: Above 0; divides the similarities, which are between -1 and 1.

    Returns:
        Scalar in nats, averaged over the N images. Logits that are all 0 have no gradient.

    Raises:
        ValueError: The shapes differ.

    Source: Zhu et al. 2024, arXiv:2404.14109, as in the authors' code. Summaries of the paper name
    pairs of student logits as negatives; the code pairs the teacher's with the student's.
    """
    same_shape(student_logits, teacher_logits, "logits")
    return info_nce(similarities(student_logits, teacher_logits) / temperature)


def similarities(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cosine similarities (N, N) of the teacher's logits, in rows, with the student's."""
    return unit(teacher_logits, dim=1) @ unit(student_logits, dim=1).T


def info_nce(scores: Tensor) -> Tensor:
    """Cross-entropy of scores (N, N), in nats: the target of a row is its entry on the diagonal."""
    return -scores.log_softmax(dim=1).diagonal().mean()


class CKD(LogitMethod):
    """Labels, and a contrastive loss between the logits of student and teacher.

    The logits of an image are compared with those of the other images of the batch, so results
    depend on `batch_size`.

    Source: Zhu et al. 2024, arXiv:2404.14109, and its code, ZhouXinzzzzz/CKD at f16a145. Defaults
    are those of the code; its CIFAR-100 configurations have weights of 10, 50 or 100 depending on
    the pair, and temperature 2 with weight 50. The published accuracies are from 480 epochs with a
    cosine schedule, twice as many as in the CIFAR-100 benchmark.
    """

    capturable = True
    needs_labels: ClassVar[Mapping[str, int]] = {"labels_weight": 0}

    def __init__(
        self,
        *given: Any,
        temperature: PositiveFloat = 1.0,
        weight: NonNegativeFloat = 10.0,
        **options: Any,
    ) -> None:
        """Args:
        temperature: Divides the cosine similarities of the logits.
        """
        super().__init__(*given, temperature=temperature, weight=weight, **options)

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return ckd_loss(student, teacher, self.temperature)
