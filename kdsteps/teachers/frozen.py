"""The frozen teacher as it runs in training: the same answers, for less work.

A copy of the network whose batch normalisations are folded into the convolutions before them. It
answers as the original does up to rounding, layer by layer; the original and its checkpoint stay.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from kdsteps.models.chain import HEAD, BlockChain, Chain
from kdsteps.models.memory_format import batch_format

log = logging.getLogger("kdsteps")

_ASKS_ONLY = ("__get__", "dim", "size")  # for shape and device: no use of the numbers
TOLERANCE = 1e-5  # of the largest output of a layer, between a teacher and its folded copy


def frozen(teacher: Chain, image_shape: tuple[int, int, int], *, fold: bool = True) -> Chain:
    """A copy of `teacher` in eval mode that learns nothing, made to run fast.

    Args:
        image_shape: (C, H, W) of the images it will see.
        fold: Whether batch normalisations may go into the convolutions before them. Where a
            network's answers would change by more than rounding, they stay where they are.
    """
    device = next(teacher.parameters()).device
    plain = copy.deepcopy(teacher).requires_grad_(False).eval()
    plain.to(memory_format=batch_format(plain))  # type: ignore[call-overload]
    if not fold:
        return plain
    images = _probe(image_shape).to(device, memory_format=batch_format(plain))
    folded = copy.deepcopy(plain)
    pairs = _pairs(folded, images)
    for pair in pairs:
        _absorb(*pair)
        _replace(folded, pair.norm, _what_follows(pair.norm))
    if not _same(plain.trace(images), folded.trace(images)):
        log.info("the teacher's batch normalisations are not folded: its answers would change")
        return plain
    return folded.requires_grad_(False).eval()


class Pair(NamedTuple):
    """A convolution and the batch normalisation that alone takes its output."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d


def _pairs(chain: Chain, images: Tensor) -> list[Pair]:
    """What can be folded, found by watching one forward pass.

    A pair is folded if each of the two runs once, and nothing but the norm sees what the
    convolution gives: no other operation, no layer of the chain.
    """
    watch = _Watch(chain)
    with watch.hooked(), watch, torch.no_grad():
        read = chain.trace(images)
    seen = {id(output) for output in read.values()}
    pairs = []
    for norm, inputs in watch.entered.items():
        made = [watch.made[id(value)] for value in inputs if id(value) in watch.made]
        if len(inputs) != 1 or len(made) != 1:
            continue
        convolution, value = made[0]
        alone = not watch.uses[id(value)] and id(value) not in seen
        if alone and watch.runs[convolution] == 1:
            pairs.append(Pair(convolution, norm))
    return pairs


class _Watch(TorchFunctionMode):
    """Who makes and who takes the outputs of convolutions while a network runs."""

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.modules = list(dict.fromkeys(_modules(chain)))
        self.made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensor is held: ids stay unique
        self.uses: dict[int, int] = {}  # outside of norms
        self.inside_norm = False
        self.runs: dict[nn.Module, int] = {}
        self.entered: dict[nn.BatchNorm2d, list[Tensor]] = {}

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not self.inside_norm and getattr(function, "__name__", "") not in _ASKS_ONLY:
            for leaf in tree_leaves((args, kwargs)):
                if id(leaf) in self.uses:
                    self.uses[id(leaf)] += 1
        return function(*args, **(kwargs or {}))

    def hooked(self) -> _Hooks:
        return _Hooks(self)

    def note_made(self, module: nn.Conv2d, output: Tensor) -> None:
        self.made[id(output)] = (module, output)
        self.uses[id(output)] = 0
        self.runs[module] = self.runs.get(module, 0) + 1

    def note_entered(self, module: nn.BatchNorm2d, value: Tensor) -> None:
        self.entered.setdefault(module, []).append(value)
        self.inside_norm = True

    def note_left(self) -> None:
        self.inside_norm = False


class _Hooks:
    """The hooks of a watch, for as long as a `with` block lasts."""

    def __init__(self, watch: _Watch) -> None:
        self.watch = watch

    def __enter__(self) -> None:
        watch = self.watch
        self.handles = []
        for module in watch.modules:
            if type(module) is nn.Conv2d:
                hook = module.register_forward_hook(lambda m, _, output: watch.note_made(m, output))
                self.handles.append(hook)
            elif _foldable(module):
                before = module.register_forward_pre_hook(lambda m, x: watch.note_entered(m, x[0]))
                after = module.register_forward_hook(lambda *_: watch.note_left())
                self.handles += [before, after]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def _foldable(module: nn.Module) -> bool:
    """A batch normalisation of torch, or timm's with an activation behind it."""
    known = type(module) is nn.BatchNorm2d or type(module).__name__ == "BatchNormAct2d"
    return known and getattr(module, "running_mean", None) is not None


@torch.no_grad()
def _absorb(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Let the convolution give what the norm behind it would, computed in double precision."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None  # _foldable
    scale = (variance.double() + norm.eps).rsqrt()  # (C,)
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = -mean.double() * scale
    shift = shift if norm.bias is None else shift + norm.bias.double()
    if convolution.bias is not None:
        shift = shift + convolution.bias.double() * scale
    weight = convolution.weight
    weight.copy_(weight.double() * scale[:, None, None, None])
    convolution.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=False)


def _what_follows(norm: nn.Module) -> nn.Module:
    """What is left of a norm once a convolution has absorbed it."""
    inner = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    return nn.Sequential(*inner) if inner else nn.Identity()


def _replace(chain: Chain, old: nn.Module, new: nn.Module) -> None:
    for holder in list(_modules(chain)):
        for name, child in holder.named_children():
            if child is old:
                setattr(holder, name, new)


def _modules(chain: Chain) -> Iterator[nn.Module]:
    """All modules, those too that only line others up and are registered nowhere."""
    yield from chain.modules()
    if isinstance(chain, BlockChain):
        yield from chain.span(None, HEAD).modules()


def _probe(image_shape: tuple[int, int, int]) -> Tensor:
    """Two images of noise, always the same."""
    return torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0))


def _same(outputs: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return all(
        (outputs[name] - others[name]).abs().max() <= TOLERANCE * outputs[name].abs().max()
        for name in outputs
    )
