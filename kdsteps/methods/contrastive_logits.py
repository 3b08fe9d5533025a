"""Contrastive losses between logits in three views: images, images of other classes, classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from kdsteps.errors import KdstepsError
from kdsteps.methods._checks import single_labels
from kdsteps.methods._tensors import double_precision, one_label_each, same_shape
from kdsteps.methods.base import Batch
from kdsteps.methods.ckd import CKD, ckd_loss, info_nce, similarities

View = Literal["instance", "class", "category"]


@double_precision
def class_contrast(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """The loss of `ckd` without images of the same class among the negatives.

    Args:
        student_logits: (N, K).
        teacher_logits: (N, K), of the same images and classes.
        labels: (N,) class numbers. An image whose class is that of the whole batch has no negative
            and adds 0.
        temperature: Above 0; divides the cosine similarities.

    Returns:
        Scalar in nats, averaged over the N images.

    Raises:
        ValueError: The shapes differ.

    Source: ours.
    """
    same_shape(student_logits, teacher_logits, "logits")
    one_label_each(student_logits, labels)
    scores = similarities(student_logits, teacher_logits) / temperature
    left_out = (labels[:, None] == labels).fill_diagonal_(False)  # (N, N)
    return info_nce(scores.masked_fill(left_out, -math.inf))


@double_precision
def category_contrast(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The loss of `ckd` between classes, each described by its logits over the batch.

    The logits of a class are normalized over the batch. Batch normalization and the cosine
    similarity together are Pearson's correlation, so neither the scale nor the mean of the logits
    of a class matters on either side.

    Args:
        student_logits: (N, K). N of the order of K or above is advisable, and N = 2 has no
            gradient.
        teacher_logits: (N, K), of the same images and classes.
        temperature: Above 0; divides the correlations.

    Returns:
        Scalar in nats, averaged over the K classes; ln K if the student's logits are the same for
        all images.

    Raises:
        ValueError: The shapes differ.

    Source: ours.
    """
    same_shape(student_logits, teacher_logits, "logits")
    student = student_logits - student_logits.mean(dim=0)
    teacher = teacher_logits - teacher_logits.mean(dim=0)
    return ckd_loss(student.T, teacher.T, temperature)


class ContrastiveLogits(CKD):
    """Labels, and contrastive losses between the logits of student and teacher in three views.

    - `instance`: an image among the images of the batch, which is the loss of `ckd`.
    - `class`: the same with negatives of other classes only.
    - `category`: a class among all classes, by its normalized logits over the batch.

    Each view is a loss term with the same weight; by default all three are used. `instance` alone
    is `ckd`.

    Source: ours, after the abstract of Wang and Zhou 2024, arXiv:2411.10693, which names three
    contrastive terms on logits. Its equations are not public, so this is not its method (MCLD), and
    no published number applies. Temperature and weight are those of `ckd`.
    """

    capturable = True
    one_class: ClassVar[Mapping[str, str]] = {"views": "class"}

    def __init__(
        self,
        *given: Any,
        views: Annotated[tuple[View, ...], Field(min_length=1)] = ("instance", "class", "category"),
        **options: Any,
    ) -> None:
        """Args:
        views: What is compared: `instance`, `class`, `category`, or several of them.
        """
        super().__init__(*given, **options)
        if problem := options_problem(views=views):
            raise KdstepsError(f"methods.{self.name}.{problem}")
        self.views = views

    @property
    def name(self) -> str:
        return "contrastive_logits"

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        student, teacher = self.student_logits(batch), self.teacher_logits(batch)
        terms = {"labels": self.labels_term(batch, student)}
        for view in self.views:
            terms[view] = self.weight_at(batch) * self._view(view, student, teacher, batch)
        return terms

    def _view(self, view: View, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        if view == "class":
            labels = single_labels(batch, self.name)
            return class_contrast(student, teacher, labels, self.temperature)
        if view == "category":
            return category_contrast(student, teacher, self.temperature)
        return self.loss(student, teacher, batch)


def options_problem(*, views: Sequence[View]) -> str | None:
    """What is wrong with a list of views, or None."""
    for view in views:
        if views.count(view) > 1:
            return f"views lists {view!r} {views.count(view)} times; list each view once"
    return None
