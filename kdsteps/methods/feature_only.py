"""Feature distillation without logit losses: the backbone never sees a label or a logit."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from kdsteps.methods._feature_distances import FEATURE_DISTANCES
from kdsteps.methods._method import Batch, Method, Task
from kdsteps.models._adapters import Place, adapter
from kdsteps.models._chain import HEAD, Chain
from kdsteps.pairs import matched


class FeatureOnly(Method):
    """Each chosen layer of the student mimics one of the teacher's; labels stop at the detach point.

    L_feat = mean over pairs of d(P(s), t) reaches the backbone. The output of the last distilled
    student layer is detached, and what lies behind it is trained by cross-entropy at the same
    time. The teacher's layers are those that the stage `score` chose by the knowledge-quality
    metric, unless params.yaml names others (section `build`).

    Larger maps are pooled to the size of the smaller. Tokens are transposed, never viewed, into
    (channel, token): the authors' path for stored features views them, which scrambles a ViT's.

    Options beyond the paper: `distance` (the paper: mse); `detach="head"`: only the classifier
    behind the last layer sees labels.

    Source: Cooper et al. 2025, arXiv:2511.14981, and its official code.
    """

    wants = "layers"
    plan = "pairs"

    def __init__(
        self,
        teacher: Chain | None,
        student: Chain,
        task: Task,
        *,
        weight: NonNegativeFloat = 1.0,
        mapping: Literal["one_to_one", "all_to_all"] = "one_to_one",
        distance: Literal["mse", "cosine", "huber", "distribution"] = "mse",
        detach: Literal["last", "head"] = "last",
    ) -> None:
        super().__init__(teacher, student, task)
        assert teacher is not None and task.plan is not None, "feature_only wants a teacher and a plan"
        pairs = task.plan["pairs"]
        self.weight, self.distance = weight, FEATURE_DISTANCES[distance]
        self.student_layers = [pair["student_layer"] for pair in pairs]
        self.teacher_layers = [pair["teacher_layer"] for pair in pairs]
        self.student_places = [Place(**pair["student_place"]) for pair in pairs]
        self.teacher_places = [Place(**pair["teacher_place"]) for pair in pairs]
        every = range(len(pairs))
        crossed = mapping == "all_to_all"
        self.links = [(ours, theirs) for ours in every for theirs in every if crossed or ours == theirs]
        self.projectors = nn.ModuleList(
            adapter(*self._compared(ours, theirs), pairs[ours]["projector"])[0]
            for ours, theirs in self.links
        )
        self.detach = self.student_layers[-1] if detach == "last" else student.layers[-1]

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        traced = self.student.trace(batch.images, self.student_layers, detach_after=self.detach)
        targets = self.teacher_trace(batch, self.teacher_layers)
        losses = [
            self._loss(traced, targets, ours, theirs, projector)
            for (ours, theirs), projector in zip(self.links, self.projectors, strict=True)
        ]
        return {
            "features": self.weight * torch.stack(losses).mean(),
            "labels": F.cross_entropy(traced[HEAD], batch.labels),
        }

    def _loss(
        self,
        traced: dict[str, Tensor],
        targets: dict[str, Tensor],
        ours: int,
        theirs: int,
        projector: nn.Module,
    ) -> Tensor:
        source, target = self._compared(ours, theirs)
        features = self.student_places[ours].bring(traced[self.student_layers[ours]], source)
        goal = self.teacher_places[theirs].bring(targets[self.teacher_layers[theirs]], target)
        return self.distance(projector(features), goal)

    def _compared(self, ours: int, theirs: int) -> tuple[Place, Place]:
        return matched(self.student_places[ours], self.teacher_places[theirs])
