"""Losses compute in float32 or float64 although the networks compute in 16 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import pytest
import torch
from _fake_cuda import batch_on_cuda, fake_cuda, method_on_cuda
from _methods import CASES, PAIRS, batch_of, make
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdsteps.methods._feature_distances import FeatureDistance, feature_distance
from kdsteps.methods._tensors import cross_entropy
from kdsteps.models.chain import Chain
from kdsteps.models.families.simkd import Projector
from kdsteps.models.feature_shapes import FeatureShape
from kdsteps.models.precision import HALF, autocast

HOLD_LOSSES = ("Contrast", "Attention", "Match")  # modules that compute losses, not projectors
MOVES = (  # operations that compute nothing
    *("_to_copy", "_unsafe_view", "alias", "cat", "clone", "detach", "expand", "permute", "select"),
    *("slice", "split", "stack", "t", "transpose", "unsqueeze", "view"),
)


class Halves(TorchDispatchMode):
    """Notes what computes in 16 bits outside of networks and projectors.

    Attributes:
        found: Names of such operations.
        inside: How many calls of networks and projectors are under way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.inside = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        namespace, name, _ = str(func).split(".")
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        if (
            not self.inside
            and namespace == "aten"
            and name not in MOVES
            and {tensor.dtype for tensor in tensors} & set(HALF.values())
        ):
            self.found.add(name)
        return result


@contextmanager
def networks_known(monkeypatch: pytest.MonkeyPatch, halves: Halves) -> Iterator[None]:
    """Within it, `halves.inside` counts modules, and methods that run layers of networks."""

    def enter(module: nn.Module, *given: Any) -> None:
        halves.inside += type(module).__name__ not in HOLD_LOSSES

    def leave(module: nn.Module, *given: Any) -> None:
        halves.inside -= type(module).__name__ not in HOLD_LOSSES

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **options: Any) -> Any:
            halves.inside += 1
            try:
                return method(*given, **options)
            finally:
                halves.inside -= 1

        return run

    for kind in _subclasses(Chain):
        if "trace" in vars(kind):
            monkeypatch.setattr(kind, "trace", counted(kind.trace))
    for kind, name in ((Projector, "project"), (Projector, "lift"), (FeatureShape, "pool_to")):
        monkeypatch.setattr(kind, name, counted(getattr(kind, name)))  # a projector's input, or all
    hooks = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _subclasses(kind: type) -> list[type]:
    return [each for below in kind.__subclasses__() for each in (below, *_subclasses(below))]


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("pair", [PAIRS[0], PAIRS[2], PAIRS[4]], ids=" to ".join)
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_no_loss_computes_in_16_bits(name, options, pair, precision, monkeypatch):
    method, halves = make(name, pair, **options), Halves()
    with fake_cuda(monkeypatch), networks_known(monkeypatch, halves):
        method, batch = method_on_cuda(method), batch_on_cuda(batch_of())
        with autocast(precision, "cuda"):
            assert method.student_logits(batch).dtype == HALF[precision]
            with halves:
                terms = method.terms(batch)
    assert halves.found == set()
    assert {term.dtype for term in terms.values()} <= {torch.float32, torch.float64}


def test_a_loss_in_16_bits_is_noticed(monkeypatch):
    halves = Halves()
    with fake_cuda(monkeypatch), networks_known(monkeypatch, halves), autocast("float16", "cuda"):
        layer, x = nn.Linear(3, 3, device="cuda"), torch.zeros(2, 3, device="cuda")
        labels = torch.zeros(2, dtype=torch.long, device="cuda")
        with halves:
            logits = layer(x)
            cross_entropy(logits, labels)
            assert halves.found == set()
            nn.functional.cross_entropy(logits, labels)
    assert halves.found == {"_log_softmax"}


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("name", get_args(FeatureDistance))
@pytest.mark.parametrize("shape", [(4, 6, 5, 5), (4, 7, 6), (4, 6)], ids=len)
def test_a_feature_distance_under_autocast_is_that_of_the_same_features_in_float32(
    name, precision, shape
):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(shape, generator=generator).to(HALF[precision]) for _ in "ab")
    with torch.autocast("cpu", HALF[precision]):
        found = feature_distance(name, ours, theirs)
    assert torch.equal(found, feature_distance(name, ours.float(), theirs.float()))
