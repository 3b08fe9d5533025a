"""The base class of methods that compare logits."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from pydantic import PositiveFloat
from torch import Tensor

from kdsteps.methods._checks import same_classes
from kdsteps.methods._weights import Weighted
from kdsteps.methods.base import Batch


class LogitMethod(Weighted):
    """Cross-entropy with the labels, and a loss between student and teacher logits.

    Attributes:
        any_classes: Whether the teacher may have other classes than the student.
    """

    wants = "logits"
    any_classes: ClassVar[bool] = False

    def __init__(self, *given: Any, temperature: PositiveFloat = 4.0, **options: Any) -> None:
        """Args:
        temperature: Divides the logits of both sides before the softmax.
        """
        super().__init__(*given, **options)
        if not self.any_classes:
            same_classes(self.teacher, self.task, self.name)
        self.temperature = temperature

    @abstractmethod
    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The loss without its weight, from logits (N, K) of either side: a scalar."""

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        student, teacher = self.student_logits(batch), self.teacher_logits(batch)
        labels = {"labels": self.labels_term(batch, student)} if self.task.labeled else {}
        return labels | {self.name: self.weight_at(batch) * self.loss(student, teacher, batch)}
