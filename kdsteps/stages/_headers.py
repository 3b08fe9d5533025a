"""What a checkpoint of kdsteps says about its network, checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from kdsteps.errors import KdstepsError
from kdsteps.files.checkpoints import read_checkpoint, read_checkpoint_header
from kdsteps.study.resolving import parse
from kdsteps.study.settings import Model


class _Header(BaseModel):
    """What every stage needs to build a network again; checkpoints store more."""

    model_config = ConfigDict(extra="allow")
    model: Model
    num_classes: NonNegativeInt
    class_names: tuple[str, ...]
    image_shape: tuple[PositiveInt, PositiveInt, PositiveInt]


def read_network(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights and header of a checkpoint of kdsteps.

    Raises:
        KdstepsError: It is damaged, is not from kdsteps, or its header lacks a field.
    """
    weights, header = read_checkpoint(path)
    _check(path, header)
    return weights, header


def entry_of(path: Path) -> Mapping[str, Any]:
    """The entry {family, options} of the network in a checkpoint of kdsteps.

    Raises:
        KdstepsError: As `read_network`.
    """
    header = read_checkpoint_header(path)
    _check(path, header)
    entry: Mapping[str, Any] = header["model"]
    return entry


def model_in(header: Mapping[str, Any]) -> Model:
    """The settings of the network in a checkpoint whose header was checked."""
    return parse(Model, header["model"], "header: model")


def _check(path: Path, header: Any) -> None:
    try:
        parse(_Header, header, "header")
    except KdstepsError as error:
        raise KdstepsError(f"{path}: {error}; delete the file and run again") from error
