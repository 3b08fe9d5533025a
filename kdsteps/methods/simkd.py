"""SimKD: match the teacher's last map and reuse the teacher's classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from kdsteps.methods._checks import same_classes
from kdsteps.methods._features import OneLayer, Outputs, as_map
from kdsteps.methods._tensors import to_size
from kdsteps.methods.base import Batch
from kdsteps.methods.fitnet import fitnet_loss
from kdsteps.models.chain import HEAD, Chain
from kdsteps.models.families.simkd import Projector, Reused
from kdsteps.models.feature_shapes import feature_shapes
from kdsteps.models.input_type import input_type


class SimKD(OneLayer):
    """The teacher's last map, matched through a projector that is deployed with the teacher's tail.

    The deployed network is the student up to its last map, the projector, and the frozen blocks of
    the teacher after its last map; the student's classifier is never trained. The last map is the
    last layer that is not pooled yet, unless layers are named. The projector ends in a ReLU if the
    teacher's map has no negative value.

    Source: Chen et al. 2022, arXiv:2203.14001; defaults of its official code, which uses
    neither labels nor logits.
    """

    capturable = True
    compares_images = False
    term = "map"
    tail: nn.Module

    def __init__(
        self,
        *given: Any,
        factor: PositiveInt = 2,
        labels_weight: NonNegativeFloat = 0.0,
        **options: Any,
    ) -> None:
        """Args:
        factor: How many times narrower than the teacher the projector is inside.
        """
        super().__init__(*given, labels_weight=labels_weight, **options)
        same_classes(self.teacher, self.task, self.name)
        shape = self.task.image_shape
        self.factor = factor
        self.source = feature_shapes(self.student, shape)[self.student_layer]
        self.target = feature_shapes(self.teacher, shape)[self.teacher_layer]
        self.rectified = _never_negative(self.teacher, self.teacher_layer, shape)
        self.projector = Projector(self.source, self.target, factor, rectified=self.rectified)
        # not registered, like the teacher it belongs to
        self.__dict__["tail"] = self.teacher.tail(self.teacher_layer)

    def default_layer(self, chain: Chain) -> str:
        """The last layer that is not pooled yet; pooled maps may be maps of one position."""
        shapes = feature_shapes(chain, self.task.image_shape)
        maps = [layer for layer in chain.layers if shapes[layer].layout != "vector"]
        wide = [layer for layer in maps if shapes[layer].size != (1, 1)]
        # of small images, the last stage may have one position before it is pooled
        is_pooled = wide and chain.position(wide[-1]) >= chain.position(chain.stages[-1])
        return wide[-1] if is_pooled else maps[-1]

    @classmethod
    def keeps_teacher(cls, options: Mapping[str, Any]) -> bool:
        return True  # the deployed tail has the names of its weights

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        ours = self.student.trace(batch.images, self.student_layers)
        theirs = self.teacher_trace(batch, self.teacher_layers)
        projected = self.projector.project(ours[self.student_layer])
        terms = {self.term: self.weight * self._map_loss(projected, theirs)}
        if self.labels_weight > 0 or self.kd_weight > 0:
            logits = self.tail(self.projector.lift(projected))
            terms |= self.logit_terms(batch, logits, theirs[HEAD])
        return terms

    def loss(self, ours: Outputs, theirs: Outputs, batch: Batch) -> Tensor:
        return self._map_loss(self.projector.project(ours[self.student_layer]), theirs)

    def _map_loss(self, projected: Tensor, theirs: Outputs) -> Tensor:
        target = as_map(self.teacher, self.teacher_layer, theirs[self.teacher_layer])
        return fitnet_loss(projected, to_size(target, *self.projector.size))

    def deployed(self) -> Chain:
        """Front and projector of the student in training, and the teacher's tail."""
        return Reused(
            self.student, self.student_layer, self.projector, self.teacher, self.teacher_layer
        )

    def deployed_entry(
        self, student: Mapping[str, Any], teacher: Mapping[str, Any] | None
    ) -> Mapping[str, Any]:
        if teacher is None:
            raise ValueError("simkd deploys blocks of the teacher and got no entry for it")
        return {
            "family": "simkd",
            "options": {
                "student": dict(student),
                "teacher": dict(teacher),
                "student_layer": self.student_layer,
                "teacher_layer": self.teacher_layer,
                "source": self.source.as_dict(),
                "target": self.target.as_dict(),
                "factor": self.factor,
                "rectified": self.rectified,
            },
        }


@torch.no_grad()
def _never_negative(chain: Chain, layer: str, image_shape: tuple[int, int, int]) -> bool:
    """Whether the output of `layer` has no negative value, tested on noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, *image_shape, generator=generator).to(*input_type(chain))
    return bool((chain.trace(images, (layer,))[layer] >= 0).all())
