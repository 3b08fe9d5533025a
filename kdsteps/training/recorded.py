"""A training step as one CUDA graph: recorded once, then repeated without the work of the CPU.

A step of a small student is hundreds of short kernels, which a GPU finishes faster than Python
launches them. The graph has all of them: the batch, the teacher, the losses, the gradients and the
update of the weights. It runs the same kernels as a step without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from kdsteps.data.images import ImageSplit, Order
from kdsteps.methods.base import Batch, Method
from kdsteps.study.settings import Training

FEWEST = 20  # steps of an epoch; with fewer, recording costs more than it saves

Step = Callable[[Order], tuple[Tensor, bool]]


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
    moments_change = recipe.schedule == "onecycle" and recipe.optimizer == "adamw"
    return method.recordable and recipe.views is not None and not moments_change


class RecordedStep:
    """A recorded step. Its inputs are the images, by number and view, and the learning rates."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Args:
        optimizer: Has taken at least one step, so that its state exists.
        """
        self.optimizer = optimizer
        groups = optimizer.param_groups
        self._rates = [torch.zeros((), device=group["params"][0].device) for group in groups]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._epoch: int | None = None

    def covers(self, epoch: int) -> bool:
        """Whether there is a recording that also holds for the steps of an epoch."""
        return self._graph is not None and self._epoch in (None, epoch)

    def record(self, step: Step, order: Order, epoch: int) -> None:
        """Record `step`, without taking it, in place of an earlier recording.

        Runs in the current stream, in which all steps of the run must be taken.

        Args:
            step: Returns its losses (terms,), and whether they depend on the epoch.
            order: Of as many images as every batch.
            epoch: In which it is recorded.

        Raises:
            RuntimeError: It does something that cannot be repeated, such as waiting for the GPU.
        """
        self._graph = None
        self._index, self._view = order.index.clone(), order.view.clone()
        groups = self.optimizer.param_groups
        before = [group["lr"] for group in groups]
        self.optimizer.zero_grad(set_to_none=True)  # gradients are in the memory of the graph
        graph = torch.cuda.CUDAGraph()
        try:
            for group, rate in zip(groups, self._rates, strict=True):
                group["lr"] = rate
                if "capturable" in group:  # of adamw
                    group["capturable"] = True
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                self._losses, by_epoch = step(Order(self._index, self._view, order.seed))
        finally:
            for group, value in zip(groups, before, strict=True):
                group["lr"] = value
        self._graph, self._epoch = graph, epoch if by_epoch else None

    def take(self, order: Order) -> Tensor:
        """Take the recorded step with other images: its losses (terms,)."""
        assert self._graph is not None, "record() comes first"
        self._index.copy_(order.index)
        self._view.copy_(order.view)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            rate.fill_(group["lr"])
        self._graph.replay()
        return self._losses.clone()
