"""The training loop: any method, any network, one recipe; interrupted runs resume exactly.

The loop does not know methods by name. It adds up the loss terms of each batch, takes a step and
logs every term. Nothing in a step waits for the device: losses are checked every `CHECK_EVERY`
steps. A run whose losses are no longer finite ends there and says so.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from kdsteps.data.augmentation import Augmentation
from kdsteps.data.images import ImageBatch, ImageSplit, Order, Views
from kdsteps.files.checkpoints import load_state, save_state
from kdsteps.methods.base import Batch, Method
from kdsteps.models.chain import HEAD
from kdsteps.models.memory_format import set_format
from kdsteps.models.precision import autocast
from kdsteps.study.training_settings import Training
from kdsteps.teachers.logits import TeacherOutputs
from kdsteps.training.attributes import Attributes
from kdsteps.training.averaging import WeightAverage
from kdsteps.training.compilation import compile_student
from kdsteps.training.divergence import Divergence, first_divergence
from kdsteps.training.history import History, milestones
from kdsteps.training.optimizers import keep_to_layout, make_optimizer, make_schedule
from kdsteps.training.precision import gradient_scaler, warn_of_overflow
from kdsteps.training.processes import ALONE, Processes, Terms
from kdsteps.training.random_states import random_states, restore_random_states
from kdsteps.training.recorded import RecordedStep, WatchedBatch, can_record, own_stream
from kdsteps.training.shrinkage import Shrinkage
from kdsteps.training.stopping import STATUS, Stop, stop_on_sigterm
from kdsteps.training.terms import check_terms

log = logging.getLogger("kdsteps")
epochs = logging.getLogger("kdsteps.epochs")  # for what follows a run while it trains

CHECK_EVERY = 200  # steps between two checks that the losses are finite


def views_of(recipe: Training) -> Views:
    """The numbered views of an image that a recipe's crops and flips make."""
    return Views(recipe.crop_padding, recipe.flip)


@dataclass(frozen=True)
class Resume:
    """Where a run saves its state, and how often.

    Attributes:
        path: File of the state, the same for every run that writes the same results.
        key: Identifies everything the run depends on; a state with another key is ignored.
        seconds: Time between two saves.
    """

    path: Path
    key: str
    seconds: float


class Fit:
    """One training run: what every step needs, and the state to resume from.

    Attributes:
        history: Every loss term and validation metric of every epoch.
        diverged: Where the run ended because a loss or a weight became NaN or infinite, else None.
    """

    def __init__(
        self,
        method: Method,
        split: ImageSplit,
        recipe: Training,
        *,
        seed: int,
        validate: Callable[[], dict[str, float]],
        teacher: TeacherOutputs | None = None,
        resume: Resume | None = None,
        processes: Processes = ALONE,
    ) -> None:
        """Args:
        method: Holds the student; it is trained in place, on its device.
        split: The training images.
        seed: Seed of the order and the views of the images.
        validate: Returns metrics of the student; called after every epoch.
        teacher: Returns the teacher's outputs for a batch; None if the method runs the teacher.
        resume: Where the state is saved; None: nowhere.
        processes: Those that train together, each with its own method and the same arguments.
        """
        self.method, self.split, self.recipe = method, split, recipe
        self.validate, self.teacher, self.resume = validate, teacher, resume
        set_format(self.method, split.memory_format)
        self.processes, self.seed = processes, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.views = views_of(recipe)
        task = method.task
        self.augmentation = Augmentation(
            task.num_classes if task.labeled else 0,
            *(recipe.randaugment, recipe.resized_crop, recipe.mixup, recipe.cutmix),
        )
        self.connected = processes.connect(method, recipe, split.device)
        self.steps_per_epoch = max(1, len(split) // recipe.batch_size)
        self.optimizer = make_optimizer(method, recipe)
        self.schedule = make_schedule(self.optimizer, recipe, self.steps_per_epoch)
        self.scaler = gradient_scaler(recipe.precision, split.device)
        self.average = (
            None if recipe.ema is None else WeightAverage(self.method.deployed(), recipe.ema)
        )
        self.history = History()
        self.diverged: Divergence | None = None
        self.epoch, self.step = 0, 0
        self.losses: list[Tensor] = []  # (terms,) of each step of this epoch
        self.names: list[str] = []
        self.seconds = 0.0
        self._first_step = True
        self.recorded = RecordedStep(self.optimizer)
        self.attributes = Attributes(self.method)
        self.shrinkage = Shrinkage(self.method.student)
        self._stop = Stop()
        self._saved_at = time.monotonic()

    def run(self) -> History:
        """Train to the end of the recipe, from the saved state of an earlier run if there is one.

        A run that diverges ends at the next check of its losses. The epoch is the last one of its
        history, not validated, and the weights stay as they are. At the end, the deployed network
        has the average of its weights if the recipe has `ema`.

        Raises:
            SystemExit: SIGTERM came; the state was saved after the step that was running.
        """
        with own_stream(self.split.device), stop_on_sigterm() as self._stop:
            self._run()
            if self.average is not None:
                self.average.swap()
            return self.history

    def _run(self) -> None:
        if self.recipe.compile and self.recipe.epochs:
            compile_student(self.method, self._trial)
        self._load()
        started, before = time.monotonic(), self.seconds
        terminal = sys.stderr.isatty() and self.processes.first
        total = self.recipe.epochs
        for _ in tqdm(
            range(self.epoch, total),
            "epochs",
            initial=self.epoch,
            total=total,
            disable=not terminal,
        ):
            self._epoch(before - started)
            self.seconds = before + time.monotonic() - started
            epochs.debug("%d of %d", self.epoch, total, extra={"history": self.history})
            if self.diverged is not None:
                break
            if self.epoch in milestones(total):
                if not terminal:
                    summary = self.history.summary(self.epoch)
                    log.info("epoch %d of %d: %s", self.epoch, total, summary)
                if self.processes.first:
                    self.shrinkage.warn()

    def forget(self) -> None:
        """Remove the saved state; call it once the results are written."""
        if self.resume is not None and self.processes.first:
            self.resume.path.unlink(missing_ok=True)

    def _epoch(self, offset: float) -> None:
        self.method.train()
        self._epoch_rng = self.generator.get_state()
        for losses in self._steps():
            self.schedule.step()
            if self.average is not None:
                self.average.update()
            self.losses.append(losses)
            self.step += 1
            if self.step % CHECK_EVERY == 0 and self._not_finite() is not None:
                break
            self._save_if_due(offset)
        self.diverged = self._not_finite() or self._broken_weights()
        warn_of_overflow(self.scaler)
        self._close_epoch()

    def _steps(self) -> Iterator[Tensor]:
        """Take the other steps of this epoch, one by one: the losses (terms,) of each."""
        split, views = self.split, self.views
        orders = split.orders(self.recipe.batch_size, views, self.generator)[self.step :]
        waits = self.teacher is not None and self.teacher.waits
        if waits or not can_record(self.method, split, self.recipe, len(orders)):
            for drawn in self._parts(orders):
                self.processes.seed(self.seed, self.epoch * self.steps_per_epoch + self.step)
                yield self.take_step(drawn)
            return
        for order in orders:
            draws = self.method.draw(order.index)
            inputs = {"index": order.index, "view": order.view, **draws}
            if self.recorded.covers(self.epoch):
                yield self.recorded.take(inputs)
            else:
                yield self._taken([self._batch(split.made(order, views), draws)])
                self.recorded.record(self._watched_step, inputs, self.epoch)

    def _parts(self, orders: list[Order]) -> Iterator[ImageBatch]:
        """This process's part of each batch; mixed images need the whole batch."""
        count = self.recipe.accumulate
        if self.augmentation.mixes:
            wholes = self.split.batches(orders, self.views, self.augmentation)
            return (self.processes.images(whole, count) for whole in wholes)
        own = [self.processes.order(whole, count) for whole in orders]
        return self.split.batches(own, self.views, self.augmentation)

    def _watched_step(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, bool]:
        """Take a step from inputs on the device: its losses, and whether they read the epoch."""
        order = Order(inputs["index"], inputs["view"], seed=0)
        draws = {name: inputs[name] for name in inputs if name not in ("index", "view")}
        batch = WatchedBatch.of(self._batch(self.split.made(order, self.views), draws))
        return self._taken([batch]), batch.epoch_read

    def take_step(self, drawn: ImageBatch) -> Tensor:
        """Take one step on a batch of images: its losses (terms,)."""
        count = self.recipe.accumulate
        if count > 1:
            return self._taken(self._batch(drawn, None).split(count))
        return self._taken([self._batch(drawn, self.method.draw(drawn.index))])

    def _taken(self, parts: Sequence[Batch]) -> Tensor:
        """Take one step on a batch in equal parts: its losses (terms,), averaged over the parts."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for number, part in enumerate(parts, start=1):
            with self.connected.backward_alone(number < len(parts)):
                losses.append(self._backward(part, len(parts)))
        if self.recipe.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.method.parameters(), self.recipe.clip_grad_norm)
        if self._first_step:
            keep_to_layout(self.optimizer)
            self._first_step = False
        self.scaler.step(self.optimizer)
        self.scaler.update()
        mean = losses[0] if len(losses) == 1 else torch.stack(losses).mean(dim=0)
        return self.processes.mean(mean)

    def _backward(self, part: Batch, num_parts: int) -> Tensor:
        """Add the gradient of one of the parts of a batch; return its losses (terms,)."""
        terms = check_terms(self.method, self._terms(part, self.connected.terms), self.names)
        total = torch.stack(list(terms.values())).sum()
        self.scaler.scale(total if num_parts == 1 else total / num_parts).backward()
        self.names = list(terms)
        return torch.stack([term.detach().float() for term in terms.values()])

    def _batch(self, images: ImageBatch, draws: Mapping[str, Tensor] | None) -> Batch:
        """What a method sees of some images, and of what it drew for them."""
        outputs = self.teacher(images) if self.teacher is not None else {}
        return Batch(
            images=images.images,
            labels=images.labels,
            index=images.index,
            view=images.view,
            epoch=self.epoch,
            teacher_logits=outputs.pop(HEAD, None),
            teacher_features=outputs or None,
            fractions=images.targets if images.targets.ndim == 2 else None,
            drawn=draws,
        )

    def _terms(self, batch: Batch, terms: Terms) -> dict[str, Tensor]:
        with autocast(self.recipe.precision, batch.images.device.type):
            return terms(batch)

    def _trial(self) -> None:
        """One forward and backward pass over the first images, to time it."""
        size = self.recipe.batch_size // self.processes.count
        index = torch.arange(min(size, len(self.split)))
        images = self.split.take(index, self.views, torch.zeros_like(index))
        batch = self._batch(images, self.method.draw(images.index))
        torch.stack(list(self._terms(batch, self.method.terms).values())).sum().backward()

    def _not_finite(self) -> Divergence | None:
        """The first loss of this epoch that is not finite."""
        return first_divergence(self.losses, self.names, self.epoch + 1)

    def _broken_weights(self) -> Divergence | None:
        """Weights that the last step made NaN or infinite, which no loss of this epoch shows."""
        finite = torch.stack([weight.isfinite().all() for weight in self.method.parameters()])
        return None if finite.all() else Divergence(None, self.epoch + 1, self.step)

    def _close_epoch(self) -> None:
        rate = self.optimizer.param_groups[0]["lr"]
        mean = torch.stack(self.losses).double().mean(dim=0)
        means = mean.where(mean.isfinite(), torch.nan).tolist()
        self.epoch, self.step, self.losses = self.epoch + 1, 0, []
        losses = dict(zip(self.names, means, strict=True))
        values = losses | {"total": sum(means), "learning_rate": rate}
        with self.average.in_place() if self.average is not None else nullcontext():
            validated = self.diverged is None and self.processes.first
            metrics = self.validate() if validated else {}
        self.history.add(self.epoch, values | metrics)

    def _save_if_due(self, offset: float) -> None:
        """Save the state every `resume.seconds`, and before the run ends because of SIGTERM.

        Args:
            offset: Training seconds of earlier runs, minus the time at which this one began.
        """
        if not self.processes.first:
            return
        stop, resume = self._stop.wanted, self.resume
        due = resume is not None and time.monotonic() - self._saved_at >= resume.seconds
        if not due and not stop:
            return
        # if a loss is not finite, the next regular check ends the run, at a fixed step
        if resume is not None and self._not_finite() is None:
            save_state(resume.path, self._state(offset + time.monotonic()))
            self._saved_at = time.monotonic()
        if stop:
            log.error(
                "stopped by SIGTERM in epoch %d, after step %d; the next attempt continues there",
                *(self.epoch + 1, self.step),
            )
            raise SystemExit(STATUS)

    def _state(self, seconds: float) -> dict[str, Any]:
        assert self.resume is not None
        return {
            "key": self.resume.key,
            "method": self.method.state_dict(),
            "attributes": self.attributes.changed(),
            "norms": self.shrinkage.start,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "random": random_states(),
            "epoch_rng": self._epoch_rng,
            "history": self.history.rows(),
            "losses": torch.stack(self.losses),
            "names": self.names,
            "epoch": self.epoch,
            "step": self.step,
            "seconds": seconds,
        }

    def _load(self) -> None:
        """Restore the state that an earlier run saved, unless it has other settings or code."""
        state = load_state(self.resume.path) if self.resume is not None else None
        if self.resume is None or state is None:
            return
        if state["key"] != self.resume.key:
            log.info("ignoring the saved state: it belongs to different settings or code")
            return
        self.method.load_state_dict(state["method"])
        self.attributes.restore(state["attributes"], self.split.device)
        self.shrinkage.start = state["norms"].to(self.split.device)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        restore_random_states(state["random"])
        self.generator.set_state(state["epoch_rng"])
        self.history = History(**state["history"])
        self.losses = list(state["losses"].to(self.split.device).unbind())
        self.names = state["names"]
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        log.info("resuming in epoch %d, after step %d", self.epoch + 1, self.step)
