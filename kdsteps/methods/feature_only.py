"""Feature distillation without logit losses: the backbone never sees a label or a logit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from kdsteps.errors import KdstepsError
from kdsteps.methods._feature_distances import BY_IMAGE, feature_distance
from kdsteps.methods._tensors import cross_entropy
from kdsteps.methods.base import Batch, Method, Task
from kdsteps.methods.semckd import Attention, semckd_loss
from kdsteps.models.adapters import adapter
from kdsteps.models.chain import HEAD, Chain
from kdsteps.models.feature_shapes import FeatureShape
from kdsteps.plans.layer_pairs import matched


class FeatureOnly(Method):
    """Selected student layers mimic layers of the teacher; labels stop at the detach point.

    L_feat = mean over pairs of d(P(s), t) reaches the backbone. The output of the last distilled
    student layer is detached, and the layers behind it are trained with cross-entropy at the
    same time. The teacher's layers are those that the stage `score` selected by knowledge
    quality, unless params.yaml names others (section `build`).

    Larger maps are pooled to the size of the smaller. Tokens are transposed, never viewed, into
    (channel, token): the authors' code for stored features views them, which scrambles a ViT's.

    `distance`, `detach` and `classifier_after` go beyond the paper; their defaults are the paper's.
    Keys of `build` decide most (docs/findings.md). On a fifth of CIFAR-100, the pooled features
    alone were 2 points better than the layers of highest quality, and the paper's 1x1 convolution 5
    points better than a projector of three layers, which was 19 points better on digits.

    The paper trains with AdamW. Under SGD, weight decay can outweigh this loss, whose gradients are
    small where the teacher's features are small, until the student's weights have faded away.

    Source: Cooper et al. 2025, arXiv:2511.14981, and its official code.
    """

    wants = "layers"
    plan = "pairs"
    capturable = True
    compares_images: ClassVar[Mapping[str, str]] = {
        "distance": "distribution",
        "mapping": "attention",
    }
    needs_labels: ClassVar[Mapping[str, int]] = {"classifier_after": 0}
    small_gradients = True
    lengths: ClassVar[Mapping[str, int]] = {"classifier_after": 1}

    def __init__(
        self,
        teacher: Chain | None,
        student: Chain,
        task: Task,
        *,
        weight: NonNegativeFloat = 1.0,
        mapping: Literal["one_to_one", "all_to_all", "attention"] = "one_to_one",
        distance: Literal["mse", "cosine", "huber", "distribution"] = "mse",
        detach: Literal["last", "head"] = "last",
        classifier_after: NonNegativeFloat = 0.0,
    ) -> None:
        """Args:
        weight: Weight of the loss between features.
        mapping: Pairs as planned; every student layer with every teacher layer, each pair with its
            own projector, averaged over all pairs (the authors' sum is J times as large); or the
            same, weighted image by image by SemCKD's attention.
        distance: The loss between projected and target features.
        detach: Which layers see labels: those after the last distilled layer (`last`), or only the
            classifier (`head`).
        classifier_after: When feature learning ends and the layers after the detach point are
            trained alone: a fraction of the run, or from 1 on a number of epochs; 0: both at once.
        """
        super().__init__(teacher, student, task)
        assert teacher is not None and task.plan is not None, (
            "feature_only needs a teacher and a plan"
        )
        pairs = task.plan["pairs"]
        if mapping == "attention" and distance == "distribution":
            raise KdstepsError(
                "methods.feature_only: mapping attention weights images one by one, and distance "
                "distribution has one value per batch; use mse, cosine or huber"
            )
        self.weight, self.distance = weight, distance
        self.classifier_after = self.epochs_of("classifier_after", classifier_after)
        self.student_layers = [pair["student_layer"] for pair in pairs]
        self.teacher_layers = [pair["teacher_layer"] for pair in pairs]
        self.feature_layers = tuple(dict.fromkeys(self.teacher_layers))
        self.student_shapes = [FeatureShape(**pair["student_features"]) for pair in pairs]
        self.teacher_shapes = [FeatureShape(**pair["teacher_features"]) for pair in pairs]
        every = range(len(pairs))
        crossed = mapping != "one_to_one"
        self.links = [
            (ours, theirs) for ours in every for theirs in every if crossed or ours == theirs
        ]
        self.projectors = nn.ModuleList(
            adapter(*self._compared(ours, theirs), pairs[ours]["projector"])[0]
            for ours, theirs in self.links
        )
        self.attention = (
            Attention(len(pairs), len(pairs), task.batch_size) if mapping == "attention" else None
        )
        self.detach = self.student_layers[-1] if detach == "last" else student.layers[-1]

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        traced = self.student.trace(batch.images, self.student_layers, detach_after=self.detach)
        if not self.task.labeled:
            return {
                "features": self.weight * self._feature_loss(traced, self.teacher_features(batch))
            }
        features = labels = batch.images.new_zeros(())
        if not self.classifier_after or batch.epoch < self.classifier_after:
            features = self.weight * self._feature_loss(traced, self.teacher_features(batch))
        if not self.classifier_after or batch.epoch >= self.classifier_after:
            labels = cross_entropy(traced[HEAD], batch.targets)
        return {"features": features, "labels": labels}

    def _feature_loss(self, traced: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        met = [
            self._met(traced, targets, ours, theirs, projector)
            for (ours, theirs), projector in zip(self.links, self.projectors, strict=True)
        ]
        if self.attention is None:
            return torch.stack([feature_distance(self.distance, *pair) for pair in met]).mean()
        count = len(self.student_layers)
        distances = torch.stack([BY_IMAGE[self.distance](*pair) for pair in met], dim=1)
        attention = self.attention(
            [traced[layer] for layer in self.student_layers],
            [targets[layer] for layer in self.teacher_layers],
        )
        return semckd_loss(attention, distances.unflatten(1, (count, count)))

    def _met(
        self,
        traced: dict[str, Tensor],
        targets: dict[str, Tensor],
        ours: int,
        theirs: int,
        projector: nn.Module,
    ) -> tuple[Tensor, Tensor]:
        """Projected features and target of one link, in one shape."""
        source, target = self._compared(ours, theirs)
        features = self.student_shapes[ours].pool_to(traced[self.student_layers[ours]], source)
        goal = self.teacher_shapes[theirs].pool_to(targets[self.teacher_layers[theirs]], target)
        return projector(features), goal

    def _compared(self, ours: int, theirs: int) -> tuple[FeatureShape, FeatureShape]:
        return matched(self.student_shapes[ours], self.teacher_shapes[theirs])
