"""The training loop: any method, any network, one recipe, resumable to the byte.

The loop knows no method by name. It adds up the terms of each batch, steps, and logs every term;
nothing in a step waits for the device, so losses are read and checked once in a while only.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from tqdm import tqdm

from kdsteps.artifacts import load_state, save_state
from kdsteps.data._images import Drawn, ImagePart, Views
from kdsteps.errors import KdstepsError
from kdsteps.methods._method import Batch, Method

log = logging.getLogger("kdsteps")

CHECK_EVERY = 200  # steps between two looks at whether the losses are finite


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the fields are those of the section `distil` of params.yaml."""

    epochs: int
    batch_size: int
    optimizer: Literal["sgd", "adamw"]
    learning_rate: float
    momentum: float
    nesterov: bool
    weight_decay: float
    schedule: Literal["constant", "cosine", "onecycle", "steps"]
    warmup: float
    milestones: tuple[int, ...]
    decay: float
    crop_padding: int
    flip: bool
    randaugment: int
    mixup: float
    cutmix: float
    precision: Literal["float32", "bfloat16"]
    compile: bool

    @property
    def views(self) -> Views:
        return Views(self.crop_padding, self.flip)


class TeacherLogits(Protocol):
    """Logits by image and view, as the teacher cache gives them."""

    def __call__(self, index: Tensor, view: Tensor) -> Tensor: ...


@dataclass
class History:
    """Named numbers, one each epoch: rows of `artifacts.HISTORY`."""

    epoch: list[int] = field(default_factory=list)
    name: list[str] = field(default_factory=list)
    value: list[float] = field(default_factory=list)

    def add(self, epoch: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.epoch.append(epoch)
            self.name.append(name)
            self.value.append(value)

    def rows(self) -> dict[str, list[Any]]:
        return {"epoch": self.epoch, "name": self.name, "value": self.value}

    def of(self, name: str) -> list[float]:
        """The values of one name, by epoch."""
        return [value for there, value in zip(self.name, self.value, strict=True) if there == name]


@dataclass(frozen=True)
class Resume:
    """Where a run keeps what it needs to go on after a kill, and how often it saves it.

    Attributes:
        path: Of the file; it is gone once the run is complete.
        minutes: Between two saves.
    """

    path: Path
    minutes: float


class Fit:
    """One training run: what it needs in every step, and what it must remember to be resumed."""

    def __init__(
        self,
        method: Method,
        part: ImagePart,
        recipe: Recipe,
        *,
        seed: int,
        validate: Callable[[], dict[str, float]],
        teacher_logits: TeacherLogits | None = None,
        resume: Resume | None = None,
    ) -> None:
        """Args:
        method: With the student inside; it is trained in place.
        part: The training images.
        seed: Of the order and the views of the images.
        validate: Gives measures of the student, asked after every epoch.
        teacher_logits: Cached logits, if there are any.
        """
        self.method, self.part, self.recipe = method, part, recipe
        self.validate, self.teacher_logits, self.resume = validate, teacher_logits, resume
        self.generator = torch.Generator().manual_seed(seed)
        self.steps_per_epoch = max(1, len(part) // recipe.batch_size)
        self.optimizer = make_optimizer(method, recipe)
        self.schedule = make_schedule(self.optimizer, recipe, self.steps_per_epoch)
        self.history = History()
        self.epoch, self.step = 0, 0
        self.losses: list[Tensor] = []  # (terms,) of each step of this epoch
        self.names: list[str] = []
        self.seconds = 0.0
        self._saved_at = time.monotonic()

    def run(self) -> History:
        """Train to the end of the recipe, from where an earlier run was cut off if there was one.

        Raises:
            KdstepsError: A loss is not finite.
        """
        self._load()
        started, before = time.monotonic(), self.seconds
        terminal = sys.stderr.isatty()
        epochs = range(self.epoch, self.recipe.epochs)
        for _ in tqdm(epochs, "epochs", initial=self.epoch, total=self.recipe.epochs, disable=not terminal):
            self._epoch()
            self.seconds = before + time.monotonic() - started
            if not terminal and self.epoch in _milestones(self.recipe.epochs):
                log.info("epoch %d of %d: %s", self.epoch, self.recipe.epochs, self._summary())
        if self.resume is not None:
            self.resume.path.unlink(missing_ok=True)
        return self.history

    def _epoch(self) -> None:
        self.method.train()
        self._epoch_rng = self.generator.get_state()
        batches = self.part.shuffled(self.recipe.batch_size, self.recipe.views, self.generator)
        done = self.step
        for number, drawn in enumerate(batches):
            if number < done:
                continue
            self._step(drawn)
            if self.step % CHECK_EVERY == 0:
                self._check()
            self._save_if_due()
        self._check()
        self._close_epoch()

    def _step(self, drawn: Drawn) -> None:
        cached = self.teacher_logits(drawn.index, drawn.view) if self.teacher_logits else None
        batch = Batch(drawn.images, drawn.labels, drawn.index, drawn.view, self.epoch, cached)
        device = drawn.images.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            terms = self.method.terms(batch)
        total = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        self.schedule.step()
        self.names = list(terms)
        self.losses.append(torch.stack([term.detach().float() for term in terms.values()]))
        self.step += 1

    def _check(self) -> None:
        """Refuse to go on with a loss that is not finite."""
        if not self.losses:
            return
        losses = torch.stack(self.losses).cpu()  # (steps, terms)
        wrong = (~losses.isfinite()).nonzero()
        if len(wrong):
            step, term = wrong[0].tolist()
            raise KdstepsError(
                f"the loss {self.names[term]!r} became {losses[step, term].item()} in epoch "
                f"{self.epoch + 1}, step {step + 1}; a lower learning_rate or weight may help"
            )

    def _close_epoch(self) -> None:
        rate = self.optimizer.param_groups[0]["lr"]
        means = torch.stack(self.losses).double().mean(dim=0).tolist()
        self.epoch, self.step, self.losses = self.epoch + 1, 0, []
        losses = dict(zip(self.names, means, strict=True))
        values = losses | {"total": sum(means), "learning_rate": rate}
        self.history.add(self.epoch, values | self.validate())

    def _summary(self) -> str:
        last = [row for row in zip(*self.history.rows().values(), strict=True) if row[0] == self.epoch]
        return ", ".join(f"{name} {value:.4g}" for _, name, value in last)

    def _save_if_due(self) -> None:
        if self.resume is None or time.monotonic() - self._saved_at < 60 * self.resume.minutes:
            return
        self._saved_at = time.monotonic()
        save_state(self.resume.path, self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "rng": torch.get_rng_state(),
            "epoch_rng": self._epoch_rng,
            "history": self.history.rows(),
            "losses": self.losses,
            "names": self.names,
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
        }

    def _load(self) -> None:
        state = load_state(self.resume.path) if self.resume is not None else None
        if state is None:
            return
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])
        self.generator.set_state(state["epoch_rng"])
        self.history = History(**state["history"])
        self.losses, self.names = state["losses"], state["names"]
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        log.info("goes on in epoch %d, after step %d", self.epoch + 1, self.step)


def make_optimizer(method: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Over everything the method trains: the student and the method's own parts."""
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        trained,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )


def make_schedule(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int
) -> lr_scheduler.LRScheduler:
    """The learning rate over all steps: a linear warm-up, then the recipe's schedule."""
    steps = recipe.epochs * steps_per_epoch
    warm = round(recipe.warmup * steps)
    if recipe.schedule == "onecycle":
        return lr_scheduler.OneCycleLR(
            optimizer, recipe.learning_rate, total_steps=steps + 1, pct_start=recipe.warmup or 0.3
        )
    after: lr_scheduler.LRScheduler
    if recipe.schedule == "cosine":
        after = lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, steps - warm))
    elif recipe.schedule == "steps":
        milestones = [epoch * steps_per_epoch - warm for epoch in recipe.milestones]
        after = lr_scheduler.MultiStepLR(optimizer, milestones, gamma=recipe.decay)
    else:
        after = lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    if not warm:
        return after
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / (warm + 1), total_iters=warm)
    return lr_scheduler.SequentialLR(optimizer, [rise, after], milestones=[warm])


def _milestones(epochs: int) -> set[int]:
    """About ten epochs, evenly spaced, that are worth a line in a log."""
    return {round(epochs * tenth / 10) for tenth in range(1, 11)} | {1}
