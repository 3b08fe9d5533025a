"""Weights from files, also from those that other projects wrote: no code in them is ever run."""

from __future__ import annotations

import argparse
import codecs
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kdsteps.errors import KdstepsError

NESTS = ("model", "state_dict")
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
NUM_SHOWN = 3


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU, its keys without the names of wrappers.

    Args:
        path: `.safetensors`, or what `torch.save` wrote: the state dict bare, or under `model` or
            `state_dict` among other entries.

    Raises:
        KdstepsError: The file is missing, damaged, holds code or no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise KdstepsError(f"checkpoint {path}: there is no such file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    weights = _state_dict_in(content)
    if weights is None:
        raise KdstepsError(
            f"checkpoint {path}: holds {_outline(content)}; a state dict, bare or under model or "
            "state_dict, would be right"
        )
    return _unwrapped(weights)


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Put the weights into the module, all of them or none.

    Counters of batches, which old checkpoints lack, may be missing.

    Args:
        where: What the sentence of an error begins with.

    Raises:
        KdstepsError: Keys are missing or unexpected, or shapes differ.
    """
    own = module.state_dict()
    missing = [k for k in own if k not in weights and not k.endswith("num_batches_tracked")]
    unexpected = [key for key in weights if key not in own]
    misshapen = [
        f"{key} {tuple(weights[key].shape)}, the network's {tuple(tensor.shape)}"
        for key, tensor in own.items()
        if key in weights and weights[key].shape != tensor.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    wrong = [f"{len(keys)} {kind} ({_first(keys)})" for kind, keys in kinds.items() if keys]
    if wrong:
        raise KdstepsError(f"{where}: does not fit the network; of its keys {', '.join(wrong)}")
    module.load_state_dict({**own, **weights})


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise KdstepsError(
            f"checkpoint {path}: is damaged or no safetensors file ({error}); fetch it again"
        ) from error


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_plain_values()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes of any kind make the unpickler fail in any way
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code:
            raise KdstepsError(
                f"checkpoint {path}: holds Python code ({code[1]}), which is never run; a file "
                "with the state dict alone would be right"
            ) from error
        raise KdstepsError(
            f"checkpoint {path}: is damaged or was not written by torch.save; fetch it again, or "
            "save the state dict by torch.save or safetensors"
        ) from error


def _plain_values() -> list[Any]:
    """What published checkpoints hold beside weights and what only holds values itself.

    Training options as a namespace, and accuracies as NumPy scalars under their old and new names.
    """
    scalar: Any = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    scalars = [(scalar, f"{module}.scalar") for module in modules]
    return [argparse.Namespace, np.dtype, *dtypes, *scalars, codecs.encode]


def _state_dict_in(content: Any) -> dict[str, Tensor] | None:
    """The state dict that `content` is or has under a usual name."""
    if not isinstance(content, Mapping):
        return None
    for candidate in (content, *(content[nest] for nest in NESTS if nest in content)):
        if isinstance(candidate, Mapping) and _only_tensors(candidate):
            return {str(key): value for key, value in candidate.items()}
    return None


def _only_tensors(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(value, Tensor) for value in content.values())


def _unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if all(key.startswith(wrapper) for key in weights):
            return _unwrapped({key.removeprefix(wrapper): weights[key] for key in weights})
    return weights


def _outline(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"entries {_first(list(map(str, content)))}" if content else "nothing"
    return f"a {type(content).__name__}"


def _first(names: list[str]) -> str:
    more = ["…"] if len(names) > NUM_SHOWN else []
    return ", ".join([*names[:NUM_SHOWN], *more])
