"""The base class of every method: named losses of a batch, a student and a frozen teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdsteps.errors import KdstepsError
from kdsteps.models.chain import HEAD, Chain
from kdsteps.models.memory_format import batch_format
from kdsteps.study.run_length import in_epochs, length_problem

Wants = Literal["nothing", "logits", "blocks", "layers"]
"""What a method needs from the teacher: nothing; its logits (cached or not); logits, and its blocks
for the student's features; or the outputs of its inner layers."""


@dataclass(frozen=True)
class Batch:
    """The images of one training step.

    Attributes:
        images: (N, C, H, W), augmented and normalized.
        labels: (N,) class numbers.
        index: (N,) the number of each training image.
        view: (N,) the augmented view of each image, or its draw; zeros without augmentation.
        epoch: Of the training run, from 0.
        teacher_logits: (N, K) of these views if they were cached, else None.
        fractions: (N, K), the fraction of each class in each image if images were mixed, else None.
        teacher_features: The teacher's outputs for these views by layer, if they were cached.
        drawn: What `Method.draw` returned for the images; None: the method draws during the step.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    view: Tensor
    epoch: int = 0
    teacher_logits: Tensor | None = None
    fractions: Tensor | None = None
    teacher_features: Mapping[str, Tensor] | None = None
    drawn: Mapping[str, Tensor] | None = None

    @property
    def targets(self) -> Tensor:
        """The targets of cross-entropy: class numbers (N,), or fractions (N, K) of mixed images."""
        return self.labels if self.fractions is None else self.fractions

    def split(self, count: int) -> list[Batch]:
        """The batch in `count` equal parts, in order; the method draws anew for each of them."""
        size = len(self.index) // count
        return [self._rows(slice(start, start + size)) for start in range(0, size * count, size)]

    def _rows(self, rows: slice) -> Batch:
        cut: dict[str, Any] = {"drawn": None}
        for name in (field.name for field in fields(self) if field.name not in ("drawn", "epoch")):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                cut[name] = value[rows]
            elif value is not None:
                cut[name] = {layer: output[rows] for layer, output in value.items()}
        return replace(self, **cut)


@dataclass(frozen=True)
class Task:
    """What a method knows about the study besides teacher and student.

    Attributes:
        image_shape: (C, H, W) of the images that enter the networks.
        num_classes: K; 0 if the student has no classifier.
        labels: (N,) class numbers of all training images, by `Batch.index`; -1 without labels.
        plan: What the stage `build` decided for this pair and method, as in plan.json.
        batch_size: Of the training run; no batch is larger.
        epochs: Of the training run.
        labeled: Whether the images have labels.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    labels: Tensor
    plan: dict[str, Any] | None = None
    batch_size: int = 64
    epochs: int = 240
    labeled: bool = True


class Method(nn.Module, ABC):
    """A way to teach a student: trainable modules and, for each batch, named losses.

    The student is a submodule; the teacher is not, so that no optimizer and no state dict of the
    method ever holds a teacher's weight. Options are keyword-only arguments of the subclass: they
    are the keys under the method's name in params.yaml.

    Attributes:
        wants: What the method needs from the teacher.
        plan: The kind of plan that the stage `build` makes for it, if any.
        one_class: Whether its losses are defined only for images of one class, so that mixup and
            CutMix are refused; {option: value} if that is so for one value of an option, or for
            lists that contain the value.
        compares_images: Whether the losses of a batch are more than the mean of the losses of its
            images, apart from batch normalization, so that a batch cannot be computed in parts
            (`accumulate`, `gpus`); {option: value} as for `one_class`. Not inherited: a subclass
            that does not set it is taken to compare images.
        capturable: Whether a CUDA graph of one step can be replayed for the others of an epoch:
            `terms` runs the same operations on the device, waits for nothing, and draws nothing on
            the CPU except by `draw`. Where it does not read the batch's epoch, the graph is
            replayed in all epochs. Not inherited: a subclass sets it itself.
        needs_labels: Whether it needs labels; {option: value} if it does unless each of these
            options has its value. On images without labels (`Task.labeled`) its terms must not read
            them, nor a classifier, which networks may not have (`Task.num_classes`). Not inherited.
        small_gradients: Whether its gradients may be so small that, in a long training by sgd,
            weight decay outweighs them; `kdsteps check` says so then.
        lengths: Its options that are lengths of the run (`epochs_of`), and how many epochs have to
            follow, so that a length that is too long is refused before the first job.
        feature_layers: The teacher's layers that `teacher_features` reads, if the method uses
            nothing else of the teacher; their outputs can be cached.
    """

    wants: ClassVar[Wants] = "nothing"
    plan: ClassVar[Literal["stones", "pairs"] | None] = None
    one_class: ClassVar[bool | Mapping[str, Any]] = False
    compares_images: ClassVar[bool | Mapping[str, Any]] = True
    needs_labels: ClassVar[bool | Mapping[str, Any]] = True
    small_gradients: ClassVar[bool] = False
    lengths: ClassVar[Mapping[str, int]] = {}
    capturable: bool = False
    teacher: Chain | None
    feature_layers: tuple[str, ...] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.capturable = vars(cls).get("capturable", False)
        cls.compares_images = vars(cls).get("compares_images", True)
        cls.needs_labels = vars(cls).get("needs_labels", True)

    def __init__(self, teacher: Chain | None, student: Chain, task: Task) -> None:
        super().__init__()
        self.__dict__["teacher"] = teacher  # past nn.Module's registration: see above
        self.student = student
        self.task = task
        self._teacher_format: torch.memory_format | None = None

    @property
    def name(self) -> str:
        """Its name in messages: that of its class, in lower case."""
        return type(self).__name__.lower()

    def epochs_of(self, option: str, length: float) -> float:
        """The epochs that an option means: below 1 it is a fraction of the run.

        Args:
            option: One of `lengths`.

        Raises:
            KdstepsError: They are too many for the run.
        """
        if problem := length_problem(length, self.task.epochs, self.lengths[option]):
            raise KdstepsError(f"methods: {option} of {self.name} {problem}")
        return in_epochs(length, self.task.epochs)

    @classmethod
    def keeps_teacher(cls, options: Mapping[str, Any]) -> bool:
        """Whether the method needs the teacher's modules as trained, not folded for speed.

        Args:
            options: The method's.
        """
        return False

    @abstractmethod
    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Named losses of one batch, weighted, each a finite scalar; the loop adds them up.

        Every step has the same names, in the same order; a loss that does not apply yet, or no
        longer, is a 0 without gradient.
        """

    def draw(self, index: Tensor) -> dict[str, Tensor]:
        """What a step draws at random; each call continues the sequence of draws.

        The loop calls it before each step and passes the result as `Batch.drawn`. Dropout is part
        of the networks and not drawn here.

        Args:
            index: (N,) numbers of the images of the step.

        Returns:
            Tensors of fixed shapes by name, on the device of `index`.
        """
        return {}

    def deployed(self) -> Chain:
        """The network to evaluate, save and deploy: the student, unless a method adds to it.

        Its weights are those of the student in training.
        """
        return self.student

    def deployed_entry(
        self, student: Mapping[str, Any], teacher: Mapping[str, Any] | None
    ) -> Mapping[str, Any]:
        """The entry {family, options} from which the deployed network can be rebuilt.

        Args:
            student: The student's entry.
            teacher: The teacher's entry, if there is one.
        """
        return student

    def train(self, mode: bool = True) -> Method:
        """Set the mode of what is trained; the teacher is always in eval mode."""
        super().train(mode)
        return self

    def student_logits(self, batch: Batch) -> Tensor:
        """(N, K)."""
        logits: Tensor = self.student(batch.images)
        return logits

    @torch.no_grad()
    def teacher_logits(self, batch: Batch) -> Tensor:
        """(N, K), cached if possible, else computed by the teacher.

        Computed logits are rounded to float16 and back like cached ones, so that a run has the same
        result with and without a cache.
        """
        if batch.teacher_logits is not None:
            return batch.teacher_logits.to(batch.images.dtype)
        assert self.teacher is not None, f"{type(self).__name__} needs a teacher"
        return rounded(self.teacher(self._for_teacher(batch.images)))

    @torch.no_grad()
    def teacher_trace(
        self, batch: Batch, layers: Collection[str], *, before_activation: bool = False
    ) -> dict[str, Tensor]:
        """The teacher's outputs of `layers`, and its logits under `head`, rounded as above."""
        assert self.teacher is not None, f"{type(self).__name__} needs a teacher"
        images = self._for_teacher(batch.images)
        outputs = self.teacher.trace(images, layers, before_activation=before_activation)
        return outputs | {HEAD: rounded(outputs[HEAD])}

    @torch.no_grad()
    def teacher_features(self, batch: Batch) -> dict[str, Tensor]:
        """The teacher's outputs of `feature_layers`, cached or computed, rounded to float16."""
        dtype = batch.images.dtype
        if batch.teacher_features is not None:
            return {name: value.to(dtype) for name, value in batch.teacher_features.items()}
        assert self.teacher is not None, f"{type(self).__name__} needs a teacher"
        outputs = self.teacher.trace(self._for_teacher(batch.images), self.feature_layers)
        return {name: outputs[name].to(torch.float16).to(dtype) for name in self.feature_layers}

    def _for_teacher(self, images: Tensor) -> Tensor:
        """The images in the teacher's memory format, as for cached outputs; it changes rounding."""
        if self._teacher_format is None:
            assert self.teacher is not None
            self._teacher_format = batch_format(self.teacher)
        return images.contiguous(memory_format=self._teacher_format)


def rounded(logits: Tensor) -> Tensor:
    """`logits` as the logit cache stores them: rounded to float16, in their original type."""
    return logits.to(torch.float16).to(logits.dtype)
