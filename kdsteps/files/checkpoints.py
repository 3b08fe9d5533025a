"""Weights of networks, and the state of a training run to resume from."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.files.atomic import damage
from kdsteps.files.text import write_bytes

log = logging.getLogger("kdsteps")

_DIGEST_BYTES = 20  # before the state of a training run


def write_checkpoint(
    path: str | Path, weights: Mapping[str, Any], header: Mapping[str, Any]
) -> None:
    """Weights as safetensors with `header` as JSON; the same content results in the same bytes.

    A digest of the weights is stored with them, so that damaged files are detected.
    """
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    said = json.dumps({"header": header, "digest": _digest(tensors)}, sort_keys=True)
    # one key: safetensors writes several in an order that changes from run to run
    write_bytes(path, save(tensors, metadata={"kdsteps": said}))


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights and header of a checkpoint that `write_checkpoint` wrote.

    Raises:
        KdstepsError: It is missing, cut off, damaged, or was not written by kdsteps.
    """
    said = _said(path)
    with _checkpoint(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if said["digest"] != _digest(weights):
        raise KdstepsError(
            f"{path}: is damaged: its weights do not match their digest; delete it and run again"
        )
    return weights, said["header"]


def read_checkpoint_header(path: str | Path) -> dict[str, Any]:
    """The header alone, without torch.

    Raises:
        KdstepsError: As `read_checkpoint`.
    """
    header: dict[str, Any] = _said(path)["header"]
    return header


def has_header(path: str | Path) -> bool:
    """Whether a file is a checkpoint of kdsteps, and not one from elsewhere or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return "kdsteps" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _said(path: str | Path) -> dict[str, Any]:
    """What a checkpoint stores besides its weights: `header` and `digest`."""
    with _checkpoint(path, framework="numpy") as file:
        text = (file.metadata() or {}).get("kdsteps")
    if text is None:
        raise KdstepsError(
            f"{path}: has no kdsteps header; a checkpoint from elsewhere goes under a model's "
            "key `checkpoint` in params.yaml"
        )
    try:
        said = json.loads(text)
        return {key: said[key] for key in ("header", "digest")}
    except (ValueError, TypeError, KeyError) as error:
        raise KdstepsError(f"{path}: {damage(error, 'checkpoint')}") from error


@contextmanager
def _checkpoint(path: str | Path, framework: str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise KdstepsError(f"{path}: {damage(error, 'safetensors file')}") from error


def _digest(tensors: Mapping[str, Any]) -> str:
    """A digest of names, shapes, types and values, independent of their order."""
    import torch

    digest = blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Save the state of a training run after its digest, to resume from on this machine."""
    import torch

    file = BytesIO()
    torch.save(dict(state), file)
    content = file.getvalue()
    write_bytes(path, blake2b(content, digest_size=_DIGEST_BYTES).digest() + content)


def load_state(path: str | Path) -> dict[str, Any] | None:
    """The state that `save_state` wrote; None if there is none or it is damaged."""
    import torch

    try:
        content = Path(path).read_bytes()
        digest, saved = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if blake2b(saved, digest_size=_DIGEST_BYTES).digest() != digest:
            raise ValueError("it does not match its digest")
        state: dict[str, Any] = torch.load(BytesIO(saved), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever is wrong with it, the run can start over
        log.warning("%s cannot be read (%s): the run starts from its beginning", path, error)
        return None
    return state
