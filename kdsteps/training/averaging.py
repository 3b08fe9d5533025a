"""An exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of a network's weights and floating-point buffers over the steps of a run.

    After step t it becomes d average + (1 - d) network with d = min(decay, (1 + t) / (10 + t)), so
    that it soon forgets the initial weights. Running statistics of batch normalization are averaged
    like weights; integers, such as the number of batches, and masks with infinity are not. All of
    it stays on the device.

    Source: Polyak and Juditsky 1992; buffers as in timm's `ModelEmaV3`, the rising decay as in
    TensorFlow's `ExponentialMovingAverage`.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Args:
        network: As it is now, the first average; its tensors must stay the same objects.
        decay: 0 to 1, the limit of d.
        """
        values = network.state_dict().values()
        real = [torch.view_as_real(value) if value.is_complex() else value for value in values]
        floats = [value for value in real if value.is_floating_point()]
        self._live = [value for value in floats if bool(value.isfinite().all())]
        self._average = [value.clone() for value in self._live]
        self._decay, self._steps = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        """Include the weights after one more step."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        torch._foreach_lerp_(self._average, self._live, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the network's weights and the average."""
        before = [value.clone() for value in self._live]
        torch._foreach_copy_(self._live, self._average)
        torch._foreach_copy_(self._average, before)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it, the network has the average as its weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def state_dict(self) -> dict[str, int | list[Tensor]]:
        return {"steps": self._steps, "average": self._average}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, int | list[Tensor]]) -> None:
        steps, average = state["steps"], state["average"]
        assert isinstance(steps, int) and isinstance(average, list)
        self._steps = steps
        torch._foreach_copy_(self._average, average)
