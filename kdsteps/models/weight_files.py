"""The content of files with weights, also of those that other projects wrote.

Code in a file is never run: pickled objects other than plain values are rejected by name.
"""

from __future__ import annotations

import argparse
import codecs
import pickle
import re
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from kdsteps.errors import KdstepsError

_RESAVE = "save its state dict alone: torch.save(network.state_dict(), PATH)"


def read_file(path: str | Path) -> Any:
    """The content of `.safetensors` or of what `torch.save` wrote, on the CPU.

    Raises:
        KdstepsError: The file is missing, damaged, a program, or holds code.
    """
    path = Path(path)
    if path.is_dir():
        raise KdstepsError(f"checkpoint {path}: is a folder; use the file with the weights in it")
    if not path.is_file():
        raise KdstepsError(f"checkpoint {path}: there is no such file")
    return _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path)


def _is_safetensors(path: Path) -> bool:
    """By its first bytes, or by its name if they say nothing.

    A safetensors file starts with the length of its header, whose bytes can be those that a zip
    file or a pickle starts with, and the header is JSON.
    """
    with path.open("rb") as file:
        start = file.read(9)
    length, header = int.from_bytes(start[:8], "little"), start[8:]
    if header == b"{" and length <= path.stat().st_size:
        return True
    if start.startswith((b"PK", b"\x80")):  # zip file, pickle
        return False
    return header == b"{" or path.suffix == ".safetensors"


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise KdstepsError(
            f"checkpoint {path}: is damaged or not a safetensors file ({error}); fetch it again"
        ) from error


def _read_pickle(path: Path) -> Any:
    _refuse_programs(path)
    try:
        with torch.serialization.safe_globals(_plain_values()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes of any kind make the unpickler fail in any way
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code:
            what = "a whole network as" if _is_network(path) else "Python"
            raise KdstepsError(
                f"checkpoint {path}: holds {what} code ({code[1]}), which is never run; {_RESAVE}"
            ) from error
        raise KdstepsError(
            f"checkpoint {path}: is damaged or was not written by torch.save; fetch it again, or "
            "save the state dict by torch.save or safetensors"
        ) from error


def _refuse_programs(path: Path) -> None:
    """Name files of torch.jit and torch.export, which are programs with weights."""
    names = _names_inside(path)
    if any("/code/" in f"/{name}" for name in names) and any(
        name.endswith("constants.pkl") for name in names
    ):
        raise KdstepsError(f"checkpoint {path}: is a TorchScript program; {_RESAVE}")
    exported = ("serialized_exported_program.json", "models/model.json")
    if any(name.endswith(exported) for name in names):
        raise KdstepsError(f"checkpoint {path}: is a program of torch.export; {_RESAVE}")


def _is_network(path: Path) -> bool:
    """Whether a pickle holds an `nn.Module`: it names the attributes that every module has."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    except (zipfile.BadZipFile, StopIteration, OSError):  # the format before zip files
        pickled = path.read_bytes()
    return b"_parameters" in pickled and b"_modules" in pickled


def _names_inside(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return []


def _plain_values() -> list[Any]:
    """Types of plain values that published checkpoints hold besides weights.

    Training options as a namespace, accuracies as NumPy scalars and arrays under their old and new
    names, and paths.
    """
    scalar: Any = np.float64(0).__reduce__()[0]
    array: Any = np.zeros(1).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, bool)]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    named = [
        (found, f"{module}.{name}")
        for module in modules
        for found, name in ((scalar, "scalar"), (array, "_reconstruct"))
    ]
    paths = [PosixPath, PurePosixPath, PureWindowsPath]
    kept = [argparse.Namespace, np.dtype, np.ndarray, OrderedDict, defaultdict, codecs.encode]
    return [*kept, *paths, *dtypes, *named]
