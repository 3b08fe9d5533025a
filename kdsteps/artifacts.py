"""Files of results: their formats, their columns, and the promise that a file that exists is whole.

Every write goes to a temporary name beside its place, is flushed to the disk and then renamed.
Each artifact carries the settings it was made with, so that it can be asked later what it is.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdsteps.disk import atomic as atomic
from kdsteps.disk import damage
from kdsteps.errors import KdstepsError

log = logging.getLogger("kdsteps")

Columns = Mapping[str, pa.DataType]
Settings = Mapping[str, Any]

_HEADER = 128  # bytes before the numbers of an array file

# One row is one image of a prepared dataset, in the order of images.npy.
INDEX: Columns = {
    "image": pa.int32(),  # row in images.npy
    "label": pa.int32(),  # 0 to K - 1
    "split": pa.string(),  # train, validation or test
    "source": pa.string(),  # where it came from: a file name or a row
    "hash": pa.string(),  # of the pixels, so that duplicates can be told
}
# One row is one named loss or measure of one epoch.
HISTORY: Columns = {
    "epoch": pa.int32(),  # from 1
    "name": pa.string(),  # loss of a term, "total", "learning_rate", "validation_accuracy", ...
    "value": pa.float64(),
}
# One row is one layer of a teacher.
SCORES: Columns = {
    "layer": pa.string(),  # name of the block whose output was read
    "depth": pa.int32(),  # 0 is the first layer
    "shape": pa.list_(pa.int32()),  # of its output for one image
    "separation": pa.float64(),
    "information": pa.float64(),
    "efficiency": pa.float64(),
    "quality": pa.float64(),
    "root_information_efficiency": pa.float64(),
    "rank": pa.int32(),  # by the score that selects, 1 is best
    "chosen": pa.bool_(),
    "reason": pa.string(),  # why it was chosen or not
}
# One row is one test image as one network sees it.
PREDICTIONS: Columns = {
    "image": pa.int32(),  # row in images.npy
    "label": pa.int32(),
    "predicted": pa.int32(),
    "logits": pa.list_(pa.float32()),
}
# One row is one student: everything `evaluate` measured, and where it came from.
RUNS: Columns = {
    "pair": pa.string(),
    "dataset": pa.string(),
    "teacher": pa.string(),
    "student": pa.string(),
    "method": pa.string(),
    "seed": pa.int64(),
    "accuracy": pa.float64(),  # share, last epoch
    "best_validation_accuracy": pa.float64(),
    "top5": pa.float64(),
    "nll": pa.float64(),  # nats
    "calibration_error": pa.float64(),
    "agreement": pa.float64(),  # share of images on which it predicts as the teacher does
    "kl_to_teacher": pa.float64(),  # nats
    "parameters": pa.int64(),
    "multiply_adds": pa.int64(),
    "size_mib": pa.float64(),
    "latency_ms": pa.float64(),  # median
    "latency_p90_ms": pa.float64(),
    "seconds": pa.float64(),  # that the training took
}


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Numbers that a person reads; not-a-number is refused rather than written."""
    with atomic(path) as part:
        part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """UTF-8 text, with the line ends it has."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes) -> None:
    with atomic(path) as part:
        part.write_bytes(content)


def read_json(path: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise KdstepsError(f"{path}: {damage(error, 'JSON file')}") from error
    if not isinstance(content, dict):
        raise KdstepsError(f"{path}: holds no {{...}} with keys and values; make it again")
    return content


def write_table(
    path: str | Path,
    rows: Mapping[str, Any],
    columns: Columns,
    settings: Settings | None = None,
    provenance: Settings | None = None,
) -> None:
    """A table of `columns` from {column: values}, with settings and provenance in its schema."""
    schema = pa.schema(list(columns.items()), metadata=_metadata(settings, provenance))
    table = pa.table({name: rows[name] for name in columns}, schema=schema)
    with atomic(path) as part:
        pq.write_table(table, part, compression="zstd", write_page_checksum=True)


def read_table(path: str | Path, columns: Columns) -> pa.Table:
    """A table that `write_table` wrote.

    Raises:
        KdstepsError: It is missing, is no Parquet, is damaged, lacks a column, or one has another
            type.
    """
    file = open_table(path, columns)
    with whole_parquet(path):
        return file.read(columns=list(columns))


def open_table(path: str | Path, columns: Columns) -> pq.ParquetFile:
    """A Parquet file that has all of `columns`, not read yet; read it within `whole_parquet`.

    Raises:
        KdstepsError: As `read_table`.
    """
    file = _parquet(path)
    names = file.schema_arrow.names
    missing = [name for name in columns if name not in names]
    if missing:
        raise KdstepsError(
            f"{path}: has no column {missing[0]!r} (it has {', '.join(names)}); "
            "make it again or give one with all columns"
        )
    for name, kind in columns.items():
        found = file.schema_arrow.field(name).type
        if found != kind:
            raise KdstepsError(
                f"{path}: column {name!r} holds {found}, where {kind} would be right; make it again"
            )
    return file


@contextmanager
def whole_parquet(path: str | Path) -> Iterator[None]:
    """Say of a Parquet file that it is damaged where reading it in the block fails.

    Raises:
        KdstepsError: It is missing, cut off, damaged or of another format.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise KdstepsError(f"{path}: {damage(error, 'Parquet file')}") from error


def table_metadata(path: str | Path) -> dict[str, dict[str, Any]]:
    """The `settings` and `provenance` that a Parquet file carries."""
    found = _parquet(path).schema_arrow.metadata or {}
    return {
        key: json.loads(found.get(f"kdsteps.{key}".encode(), b"{}"))
        for key in ("settings", "provenance")
    }


def write_array(path: str | Path, array: np.ndarray) -> None:
    with atomic(path) as part, part.open("wb") as file:
        np.save(file, array)


@contextmanager
def array_rows(path: str | Path) -> Iterator[ArrayRows]:
    """Write one array row by row; it appears at `path` when the block ends well.

    The file has the bytes that `write_array` gives.
    """
    with atomic(path) as part, part.open("wb") as file:
        file.write(b" " * _HEADER)
        rows = ArrayRows(file)
        yield rows
        file.seek(0)
        described = {"descr": rows.dtype, "fortran_order": False, "shape": rows.shape}
        np.lib.format.write_array_header_1_0(file, described)
        assert file.tell() == _HEADER, "numpy pads the header of a small shape to this size"


class ArrayRows:
    """An array on its way to the disk; it never stands in memory whole."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._first: np.ndarray | None = None
        self._count = 0

    def add(self, piece: np.ndarray) -> None:
        """Append the rows of `piece`, (n, ...), of the same type and row shape as all others.

        Raises:
            ValueError: They are not.
        """
        first = self._first = piece[:1] if self._first is None else self._first
        if piece.shape[1:] != first.shape[1:] or piece.dtype != first.dtype:
            raise ValueError(
                f"rows of {piece.dtype} {piece.shape} follow {first.dtype} {first.shape}"
            )
        self._file.write(np.ascontiguousarray(piece).data)
        self._count += len(piece)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all rows so far."""
        if self._first is None:
            raise ValueError("no rows were added")
        return (self._count, *self._first.shape[1:])

    @property
    def dtype(self) -> str:
        if self._first is None:
            raise ValueError("no rows were added")
        return str(self._first.dtype.str)


def read_array(path: str | Path) -> np.ndarray:
    """The array in `path`, mapped rather than read; pickled objects are refused."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise KdstepsError(f"{path}: {damage(error, 'array file')}") from error


def write_checkpoint(path: str | Path, weights: Mapping[str, Any], header: Settings) -> None:
    """Weights as safetensors with `header` as JSON; the same content gives the same bytes.

    A digest of the weights goes with them, so that a damaged file does not pass for a network.
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
            f"{path}: is damaged, for its weights are not those that were written; delete it and "
            "run again"
        )
    return weights, said["header"]


def read_checkpoint_header(path: str | Path) -> dict[str, Any]:
    """The header alone, without torch.

    Raises:
        KdstepsError: As `read_checkpoint`.
    """
    header: dict[str, Any] = _said(path)["header"]
    return header


def _said(path: str | Path) -> dict[str, Any]:
    """What a checkpoint says beside its weights: `header` and `digest`."""
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
    """Of names, shapes, types and values, in any order."""
    import torch

    digest = blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """The state of a training run, for this machine to go on from."""
    import torch

    with atomic(path) as part, part.open("wb") as file:  # a full disk is an OSError this way alone
        torch.save(dict(state), file)


def load_state(path: str | Path) -> dict[str, Any] | None:
    """A state that `save_state` wrote; None where there is none, or none that can be read."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever is wrong with it, the run can start afresh
        log.warning("%s cannot be read (%s): the run starts from its beginning", path, error)
        return None


def _parquet(path: str | Path) -> pq.ParquetFile:
    with whole_parquet(path):
        return pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)


def _metadata(settings: Settings | None, provenance: Settings | None) -> dict[str, str]:
    given = {"settings": settings, "provenance": provenance}
    return {
        f"kdsteps.{key}": json.dumps(value, sort_keys=True)
        for key, value in given.items()
        if value is not None
    }
