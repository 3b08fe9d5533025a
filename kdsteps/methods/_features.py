"""Base classes of methods that read inner layers, with optional losses on logits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from kdsteps.methods._checks import layer_of, layer_pairs, same_classes
from kdsteps.methods._tensors import full_precision
from kdsteps.methods._weights import Weighted
from kdsteps.methods.base import Batch
from kdsteps.methods.kd import kd_loss
from kdsteps.models.chain import HEAD, Chain
from kdsteps.models.feature_shapes import pooled, to_map

Outputs = Mapping[str, Tensor]
"""Outputs of a network by layer, its logits under `head`."""


class FeatureMethod(Weighted):
    """A loss between layers of student and teacher, added to labels and, with a weight, `kd`.

    Attributes:
        term: The name of the loss in the log.
        student_before_activation, teacher_before_activation: Whether outputs are read before the
            last ReLU of a layer.
        student_layers, teacher_layers: The layers that are read; set by the constructor.
    """

    wants = "layers"
    term: ClassVar[str]
    student_before_activation: ClassVar[bool] = False
    teacher_before_activation: ClassVar[bool] = False
    teacher: Chain
    student_layers: Collection[str]
    teacher_layers: Collection[str]

    def __init__(
        self,
        *given: Any,
        kd_weight: NonNegativeFloat = 0.0,
        kd_temperature: PositiveFloat = 4.0,
        **options: Any,
    ) -> None:
        """Args:
        kd_weight: Weight of an additional `kd` loss on the logits; 0: none.
        kd_temperature: Temperature of that loss.
        """
        super().__init__(*given, **options)
        if self.teacher is None:
            raise ValueError(f"{type(self).__name__} reads the teacher's layers and got no teacher")
        if kd_weight > 0:
            same_classes(self.teacher, self.task, f"{self.name}.kd_weight")
        self.kd_weight, self.kd_temperature = kd_weight, kd_temperature

    @abstractmethod
    def loss(self, ours: Outputs, theirs: Outputs, batch: Batch) -> Tensor:
        """The loss without its weight, from the outputs of student and teacher: a scalar."""

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        ours = self.student.trace(
            batch.images, self.student_layers, before_activation=self.student_before_activation
        )
        theirs = self.teacher_trace(
            batch, self.teacher_layers, before_activation=self.teacher_before_activation
        )
        loss = self.loss(ours, theirs, batch)
        return self.logit_terms(batch, ours[HEAD], theirs[HEAD]) | {
            self.term: self.weight_at(batch) * loss
        }

    def logit_terms(self, batch: Batch, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The weighted losses on logits (N, K): labels, and `kd` where it has a weight.

        Images without labels have no term for them.
        """
        terms = {"labels": self.labels_term(batch, student)} if self.task.labeled else {}
        if self.kd_weight > 0:
            terms["kd"] = self.kd_weight * kd_loss(student, teacher, self.kd_temperature)
        return terms


class OneLayer(FeatureMethod):
    """A method that reads one layer of either network, by default that of `default_layer`."""

    def __init__(
        self,
        *given: Any,
        student_layer: str | None = None,
        teacher_layer: str | None = None,
        **options: Any,
    ) -> None:
        """Args:
        student_layer: The student's layer; by default the method's own choice.
        teacher_layer: The teacher's layer; by default the method's own choice.
        """
        super().__init__(*given, **options)
        self.student_layer = layer_of(
            self.student, student_layer, self.default_layer(self.student), "student", self.name
        )
        self.teacher_layer = layer_of(
            self.teacher, teacher_layer, self.default_layer(self.teacher), "teacher", self.name
        )
        self.student_layers, self.teacher_layers = (self.student_layer,), (self.teacher_layer,)

    @abstractmethod
    def default_layer(self, chain: Chain) -> str:
        """The layer to read where none is named."""


class LayerPairs(FeatureMethod):
    """A method that reads pairs of layers, by default those at the ends of the stages.

    Attributes:
        pairs: (student layer, teacher layer), in forward order.
    """

    def __init__(
        self,
        *given: Any,
        student_layers: list[str] | None = None,
        teacher_layers: list[str] | None = None,
        **options: Any,
    ) -> None:
        """Args:
        student_layers: The student's layers, in forward order; by default the ends of its stages.
        teacher_layers: The teacher's layers, paired with them; by default the ends of its stages.
        """
        super().__init__(*given, **options)
        self.pairs = layer_pairs(
            self.student, self.teacher, student_layers, teacher_layers, self.name
        )
        self.student_layers = [student for student, _ in self.pairs]
        self.teacher_layers = [teacher for _, teacher in self.pairs]

    def maps(self, ours: Outputs, theirs: Outputs) -> list[tuple[Tensor, Tensor]]:
        """The outputs of each pair as maps (N, C, H, W), student first."""
        return [
            (
                as_map(self.student, student, ours[student]),
                as_map(self.teacher, teacher, theirs[teacher]),
            )
            for student, teacher in self.pairs
        ]


def as_map(chain: Chain, layer: str, output: Tensor) -> Tensor:
    """The output of a layer as (N, C, H, W)."""
    return to_map(output, chain.layout(layer), chain.token_grid(layer))


@full_precision
def features(chain: Chain, layer: str, output: Tensor) -> Tensor:
    """The output of a layer as (N, D), averaged over its positions."""
    return pooled(output, chain.layout(layer))


def pooled_layer(chain: Chain) -> str:
    """The layer in front of the classifier: `pool`, or else the last one."""
    return "pool" if "pool" in chain.layers else chain.layers[-1]
