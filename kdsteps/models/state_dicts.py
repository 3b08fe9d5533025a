"""Find sets of weights inside a file by the names of a network's weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_MAX_DEPTH = 4  # of dictionaries in dictionaries
# of torch.compile, FSDP and activation checkpointing: anywhere in a name
_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# of torchvision's DenseNet and ViT in the files that it publishes, and today
_RENAMED = (
    (re.compile(r"(\bdenselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"(\bencoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(\bencoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|averaged?|shadow)(?:$|[._])", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """A set of weights as a network would take it.

    Attributes:
        key: Of the dictionary that holds it, dotted; "" for the file's own.
        prefix: Of its names, including the final dot.
        weights: By the network's names, whatever their shapes.
        others: What has the prefix and is not the network's, by its name after the prefix.
        outside: Names without the prefix.
    """

    key: str
    prefix: str
    weights: Mapping[str, Tensor]
    others: Mapping[str, Tensor]
    outside: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The two options that choose it, for messages."""
        parts = [f"checkpoint_key: {self.key}"] if self.key else []
        parts += [f"checkpoint_prefix: {self.prefix}"] if self.prefix else []
        return " with ".join(parts) or 'checkpoint_prefix: ""'

    @property
    def is_averaged(self) -> bool:
        """Whether key or prefix name an average of weights over training steps."""
        return bool(_AVERAGED.search(f"{self.key}.{self.prefix}"))


def find(content: Any, own: Mapping[str, Tensor]) -> list[Found]:
    """Every dictionary and prefix in a file's content under which names of the network appear.

    Entries that are not tensors, such as step counts, and extra states of modules are skipped, and
    so are prefixes with fewer than half as many names as another.

    Args:
        content: Of a file.
        own: The network's state dict.
    """
    found = [
        match(tensors, own, key=key, prefix=prefix)
        for key, named in _dictionaries(content, "", _MAX_DEPTH)
        for tensors in [_by_names_today(named, own)]
        for prefix in _prefixes(tensors, own)
    ]
    most = max((len(candidate.weights) for candidate in found), default=0)
    return [candidate for candidate in found if 2 * len(candidate.weights) >= most]


def match(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], *, key: str = "", prefix: str = ""
) -> Found:
    """Tensors by the names of a network, those with a prefix alone.

    Args:
        tensors: Of the dictionary `key` of a file.
        own: The network's state dict.
    """
    inside = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
    return Found(
        key,
        prefix,
        {name: inside[name] for name in own if name in inside},
        {name: tensor for name, tensor in inside.items() if name not in own},
        tuple(name for name in tensors if not name.startswith(prefix)),
    )


def _dictionaries(content: Any, key: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Dictionaries with tensors in them, with their dotted keys."""
    if not isinstance(content, Mapping) or not depth:
        return
    tensors = {
        _WRAPPERS.sub("", str(name)): value
        for name, value in content.items()
        if isinstance(value, Tensor) and not str(name).endswith("_extra_state")
    }
    if tensors:
        yield key, tensors
    for name, value in content.items():
        yield from _dictionaries(value, f"{key}.{name}" if key else str(name), depth - 1)


def _by_names_today(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of today, where the network does not have the older ones."""
    renamed = [pair for pair in _RENAMED if not any(map(pair[0].search, own))]
    found = {}
    for name, tensor in tensors.items():
        for pattern, today in renamed:
            name = pattern.sub(today, name)
        found[name] = tensor
    return found


def _prefixes(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """What comes before names of the network, in order of first appearance."""
    prefixes: dict[str, None] = {}
    for name in tensors:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in own:
                prefixes["".join(f"{part}." for part in parts[:start])] = None
    return list(prefixes)
