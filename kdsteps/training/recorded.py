"""A training step as one CUDA graph: recorded once, then repeated without the work of the CPU.

A step of a small student is hundreds of short kernels, which a GPU finishes faster than Python
launches them. The graph has all of them: the batch, the teacher, the losses, the gradients and the
update of the weights. It runs the same kernels as a step without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Protocol

import torch
from torch import Tensor

from kdsteps.data.images import ImageSplit
from kdsteps.methods.base import Batch, Method
from kdsteps.study.training_settings import Training

log = logging.getLogger("kdsteps")

FEWEST = 20  # steps of an epoch; with fewer, recording costs more than it saves

Step = Callable[[Mapping[str, Tensor]], tuple[Tensor, bool]]


class WatchedBatch(Batch):
    """A batch that notes whether a method reads its epoch."""

    epoch_read = False

    @classmethod
    def of(cls, batch: Batch) -> WatchedBatch:
        return cls(**{field.name: getattr(batch, field.name) for field in fields(batch)})

    def __getattribute__(self, name: str) -> Any:
        if name == "epoch":
            object.__setattr__(self, "epoch_read", True)
        return super().__getattribute__(name)


class Graph(Protocol):
    """A recorded step."""

    def replay(self) -> None: ...


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Run in a stream of its own, as recording requires; on a CPU, nothing changes."""
    if device.type != "cuda":
        yield
        return
    stream, outside = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(outside)
    with torch.cuda.stream(stream):
        yield
    outside.wait_stream(stream)


def can_record(method: Method, split: ImageSplit, recipe: Training, num_steps: int) -> bool:
    """Whether the steps of an epoch run the same operations, all of them on a GPU.

    Args:
        num_steps: Of the epoch.
    """
    if split.device.type != "cuda" or not split.on_device or num_steps < FEWEST:
        return False
    if recipe.accumulate > 1 or recipe.gpus > 1:
        return False
    moments_change = recipe.schedule == "onecycle" and recipe.optimizer == "adamw"
    fixed = recipe.views is not None and recipe.precision != "float16" and not moments_change
    return method.capturable and fixed


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether one kernel updates all weights, which takes learning rates from the GPU."""
    return all(group["fused"] for group in optimizer.param_groups)


def captured(step: Step, inputs: Mapping[str, Tensor]) -> tuple[Graph, Tensor, bool]:
    """A graph of `step`, which is not taken, and where it will write what `step` returns.

    Args:
        inputs: What it will read, each time it is replayed.

    Raises:
        RuntimeError: It does something that cannot be repeated, such as waiting for the GPU.
    """
    graph, generator = torch.cuda.CUDAGraph(), torch.cuda.default_generators[0]
    before = generator.clone_state()
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            losses, by_epoch = step(inputs)
    except RuntimeError:
        generator.graphsafe_set_state(before)  # otherwise it stays that of a recording
        raise
    return graph, losses, by_epoch


class RecordedStep:
    """A recorded step. What differs from step to step: its inputs, and the learning rates."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._graph: Graph | None = None
        self._epoch: int | None = None
        self._failed = False

    def covers(self, epoch: int) -> bool:
        """Whether there is a recording that holds for the steps of an epoch."""
        return self._graph is not None and self._epoch in (None, epoch)

    def record(self, step: Step, inputs: Mapping[str, Tensor], epoch: int) -> None:
        """Record `step`, without taking it, in place of an earlier recording.

        Runs in the current stream, in which all steps of the run must be taken, after the first of
        them. A step that cannot be repeated is not recorded, and not tried again; the log says why.

        Args:
            step: Returns its losses (terms,) from inputs, and whether they depend on the epoch.
            inputs: Those of any step, each of the shape that it has in every step.
            epoch: In which it is recorded.
        """
        groups = self.optimizer.param_groups
        if self._failed or not is_fused(self.optimizer):
            return
        self._graph = None  # its memory is used again
        self._inputs = {name: given.clone() for name, given in inputs.items()}
        self._rates = [torch.zeros((), device=group["params"][0].device) for group in groups]
        self.optimizer.zero_grad(set_to_none=True)  # gradients are in the memory of the graph
        before = [group["lr"] for group in groups]
        try:
            for group, rate in zip(groups, self._rates, strict=True):
                group["lr"] = rate
                if "capturable" in group:  # of adamw
                    group["capturable"] = True
            graph, self._losses, by_epoch = captured(step, self._inputs)
        except RuntimeError as error:
            self._failed = True
            reason = str(error).strip().partition("\n")[0]
            log.warning("steps are not recorded as a CUDA graph and take longer: %s", reason)
            return
        finally:
            for group, value in zip(groups, before, strict=True):
                group["lr"] = value
        self._graph, self._epoch = graph, epoch if by_epoch else None

    def take(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Take the recorded step with other inputs: its losses (terms,)."""
        assert self._graph is not None, "nothing is recorded"
        for name, given in inputs.items():
            self._inputs[name].copy_(given)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            rate.fill_(group["lr"])
        self._graph.replay()
        return self._losses.clone()
