"""The frozen teacher as it runs in training: the same logits with less computation.

A copy of the network whose batch normalizations, and the normalization of its input, are folded
into adjacent convolutions. It computes the same as the original up to rounding, layer by layer;
the original and its checkpoint are not changed.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from kdsteps.models.chain import HEAD, BlockChain, Chain
from kdsteps.models.input import Center, InputChain, Normalize, ToFloat
from kdsteps.models.input_type import input_type
from kdsteps.models.memory_format import batch_format, set_format
from kdsteps.models.wrapped import Wrapped

log = logging.getLogger("kdsteps")

_METADATA_READS = (
    "__get__",
    "__len__",
    "dim",
    "size",
)  # of shape and device: the numbers are not used
TOLERANCE = 1e-5  # of the largest output of a layer, between a teacher and its folded copy


def frozen(teacher: Chain, image_shape: tuple[int, int, int], *, fold: bool = True) -> Chain:
    """A copy of `teacher` in eval mode, without gradients and optimized for speed.

    Folding is checked in float64 on the CPU, since the reduced float32 precision of a GPU (TF32)
    changes more than folding does. If a layer changed by more than rounding, nothing is folded.

    Args:
        image_shape: (C, H, W) of the images it will see.
        fold: Whether normalizations may be folded into adjacent convolutions.
    """
    plain = copy.deepcopy(teacher).requires_grad_(False).eval()
    chosen = _folded(plain, image_shape) if fold else plain
    set_format(chosen, batch_format(chosen))
    return chosen


def _folded(plain: Chain, image_shape: tuple[int, int, int]) -> Chain:
    """A folded copy, or `plain` itself where folding is not possible."""
    if not isinstance(plain, InputChain) and not any(map(_foldable, _modules(plain))):
        return plain
    device, dtype = input_type(plain)
    if any(value.is_floating_point() and value.dtype != dtype for value in plain.parameters()):
        return plain  # weights of several types would become of one
    exact = copy.deepcopy(plain).cpu().double()
    images = _probe(exact, image_shape)
    try:
        pairs, before = _pairs(exact, images)
        for pair in pairs:
            _absorb(*pair)
            _replace(exact, pair.norm, _what_follows(pair.norm))
        input_folded = isinstance(exact, InputChain) and _fold_input(exact, images)
        after = _traced(exact, images)
    except RuntimeError as error:  # a network that cannot run in float64, say
        log.info("the teacher's normalizations are not folded: %s", str(error).partition("\n")[0])
        return plain
    if not pairs and not input_folded:
        return plain
    if not _same(before, after):
        log.info("the teacher's normalizations are not folded: its logits would change")
        return plain
    folded: Chain = exact.to(device=device, dtype=dtype)
    return folded.requires_grad_(False).eval()


class Pair(NamedTuple):
    """A convolution and the batch normalization that alone reads its output."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d


def _pairs(chain: Chain, images: Tensor) -> tuple[list[Pair], dict[str, Tensor]]:
    """What can be folded, found by watching one forward pass, and the outputs of that pass.

    A pair is folded if each of the two runs once, and nothing but the norm reads the convolution's
    output: no other operation, no layer of the chain.
    """
    watch = _Watch(chain)
    with watch.hooked(), watch:
        read = _traced(chain, images)
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
    return pairs, read


class _Watch(TorchFunctionMode):
    """Records which convolutions write, and which operations read, the tensors of a network."""

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.modules = list(dict.fromkeys(_modules(chain)))
        self.made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # holds the tensor: ids stay unique
        self.uses: dict[int, int] = {}  # outside of norms
        self.inside_norm = False
        self.runs: dict[nn.Module, int] = {}
        self.entered: dict[nn.BatchNorm2d, list[Tensor]] = {}

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not self.inside_norm and getattr(function, "__name__", "") not in _METADATA_READS:
            for leaf in tree_leaves((args, kwargs)):
                if id(leaf) in self.uses:
                    self.uses[id(leaf)] += 1
        return function(*args, **(kwargs or {}))

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hooks on the modules, removed at the end of the block."""
        handles = []
        for module in self.modules:
            if type(module) is nn.Conv2d:
                hook = module.register_forward_hook(lambda m, _, output: self.note_made(m, output))
                handles.append(hook)
            elif _foldable(module):
                before = module.register_forward_pre_hook(lambda m, x: self.note_entered(m, x[0]))
                after = module.register_forward_hook(lambda *_: self.note_left())
                handles += [before, after]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def note_made(self, module: nn.Conv2d, output: Tensor) -> None:
        self.made[id(output)] = (module, output)
        self.uses[id(output)] = 0
        self.runs[module] = self.runs.get(module, 0) + 1

    def note_entered(self, module: nn.BatchNorm2d, value: Tensor) -> None:
        self.entered.setdefault(module, []).append(value)
        self.inside_norm = True

    def note_left(self) -> None:
        self.inside_norm = False


def _foldable(module: nn.Module) -> bool:
    """A batch normalization of torch, or timm's with an activation after it."""
    known = type(module) is nn.BatchNorm2d or type(module).__name__ == "BatchNormAct2d"
    return known and getattr(module, "running_mean", None) is not None


@torch.no_grad()
def _absorb(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Fold the norm into the convolution before it, in double precision."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None  # _foldable
    scale = (variance + norm.eps).rsqrt()  # (C,)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -mean * scale
    shift = shift if norm.bias is None else shift + norm.bias
    if convolution.bias is not None:
        shift = shift + convolution.bias * scale
    convolution.weight.mul_(scale[:, None, None, None])
    convolution.bias = nn.Parameter(shift, requires_grad=False)


@torch.no_grad()
def _fold_input(chain: InputChain, images: Tensor) -> bool:
    """Fold the normalization of images into the first convolution; return whether it is possible.

    Zero padding after normalization is padding with the mean color, so for a convolution with
    padding only the scale is folded and subtracting the mean remains: one pass over the images,
    which also converts them to floating point. A convolution without padding absorbs both.
    """
    normalize, convolution = chain.normalize, _first_reader(chain, images)
    if not isinstance(normalize, Normalize) or convolution is None:
        return False
    scale, shift = normalize.scale, normalize.shift  # (C,)
    weight = convolution.weight  # (O, C, k, k)
    if not any(convolution.padding) or convolution.padding == "valid":
        moved = -(weight * shift[:, None, None]).sum(dim=(1, 2, 3))
        bias = moved if convolution.bias is None else moved + convolution.bias
        convolution.bias = nn.Parameter(bias, requires_grad=False)
        chain.normalize = ToFloat(scale[:0])
    else:
        chain.normalize = Center(shift / scale)
    weight.mul_(scale[:, None, None])
    return True


def _first_reader(chain: InputChain, images: Tensor) -> nn.Conv2d | None:
    """The convolution that alone reads the normalized images, once, if there is one."""
    readers: list[nn.Conv2d] = []
    normalized = chain.input(images)

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0] is normalized and type(module) is nn.Conv2d:
            readers.append(module)

    inner = dict.fromkeys(_modules(chain.chain))
    handles = [module.register_forward_pre_hook(note) for module in inner]
    uses = _Uses(normalized)
    try:
        with uses:
            chain.chain.trace(normalized, ())
    finally:
        for handle in handles:
            handle.remove()
    alone = len(readers) == 1 and uses.count == 1
    plain = alone and readers[0].groups == 1 and readers[0].padding_mode == "zeros"
    return readers[0] if plain else None


class _Uses(TorchFunctionMode):
    """Number of operations that read a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor, self.count = tensor, 0

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "__name__", "") not in _METADATA_READS:
            self.count += sum(leaf is self.tensor for leaf in tree_leaves((args, kwargs)))
        return function(*args, **(kwargs or {}))


def _what_follows(norm: nn.Module) -> nn.Module:
    """What remains of a norm that was folded into a convolution."""
    inner = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    return nn.Sequential(*inner) if inner else nn.Identity()


def _replace(chain: Chain, old: nn.Module, new: nn.Module) -> None:
    for holder in list(_modules(chain)):
        for name, child in holder.named_children():
            if child is old:
                setattr(holder, name, new)


def _modules(chain: Chain) -> Iterator[nn.Module]:
    """All modules, including containers that are not registered anywhere."""
    yield from chain.modules()
    inner = chain
    while isinstance(inner, Wrapped):
        inner = inner.chain
    if isinstance(inner, BlockChain):
        yield from inner.span(None, HEAD).modules()


def _probe(chain: Chain, image_shape: tuple[int, int, int]) -> Tensor:
    """Two fixed images of noise; pixel values if the chain takes pixels."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, *image_shape, generator=generator).double()
    takes_pixels = isinstance(chain, InputChain) and chain.contract.limits is None
    return noise * 64 + 128 if takes_pixels else noise


@torch.no_grad()
def _traced(chain: Chain, images: Tensor) -> dict[str, Tensor]:
    return chain.trace(images)


def _same(outputs: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return all(
        (outputs[name] - others[name]).abs().max() <= TOLERANCE * outputs[name].abs().max()
        for name in outputs
    )
