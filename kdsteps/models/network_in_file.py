"""Which network the weights in a file are of, and how many outputs it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.files.checkpoints import has_header, read_checkpoint
from kdsteps.models import Chain, architecture, build_model
from kdsteps.models.image_size import height_width
from kdsteps.models.num_outputs import num_outputs
from kdsteps.models.weight_files import read_file
from kdsteps.study.resolving import parse
from kdsteps.study.settings import Model, Normalization

_ANY = 13  # outputs of a network whose weights are tried; its classifier may differ
_USUAL = 224, 224  # pixels that networks which fit one size are mostly trained for


@dataclass(frozen=True)
class NetworkInFile:
    """A network whose weights are in a file.

    Attributes:
        entry: Of `models` in params.yaml, without the file.
        num_outputs: Of its trained classifier; 0: it has none.
        outputs: Their names in order; empty where the file does not name them.
        channels: Of its images.
        size: (height, width) of the images it was trained on; None where the file does not say it.
    """

    entry: Mapping[str, Any]
    num_outputs: int
    outputs: tuple[str, ...]
    channels: int
    size: tuple[int, int] | None


def network_in_file(
    path: Path, named: Mapping[str, Any] | None, *, channels: Sequence[int], size: Sequence[int]
) -> NetworkInFile:
    """The network in a checkpoint of kdsteps or in a file from elsewhere, after a try to load it.

    Args:
        named: {family, **options} of the network, and its `image_size` if that is known; None: the
            file says which network it is.
        channels: Of images, in the order in which they are tried.
        size: (height, width) of images, where neither the file nor `named` says it.

    Raises:
        KdstepsError: The file cannot be read without running code in it, does not say which network
            it is of, or its weights are not of that network.
    """
    if has_header(path):
        if named is not None:
            raise KdstepsError(f"{path}: says itself which network it is; leave the name out")
        return _from_kdsteps(path)
    entry = dict(named or _stated(path))
    family, own_size = entry.pop("family"), entry.pop("image_size", None)
    sizes = [(size[0], size[1]), _USUAL] if own_size is None else [height_width(own_size)]
    problems = []
    for tried in dict.fromkeys(sizes):
        for count in channels:
            try:
                chain = _built(family, entry, path, count, tried)
            except KdstepsError as error:
                problems.append(error)
                continue
            known: dict[str, Any] = {"family": family, **entry}
            known |= {} if chain.published is None else {"normalize": "pretrained"}
            known |= {} if tried == tuple(size) else {"image_size": own_size or list(tried)}
            outputs = _num_outputs(family, entry, path, count, tried)
            return NetworkInFile(known, outputs, (), count, None)
    of_the_file = (each for each in problems if str(each).startswith(f"checkpoint {path}"))
    raise next(of_the_file, problems[0])


def _from_kdsteps(path: Path) -> NetworkInFile:
    weights, header = read_checkpoint(path)
    try:
        model = parse(Model, header["model"], "model")
        names, (channels, *size) = header["class_names"], header["image_shape"]
        mean, std = header["mean"], header["std"]
    except (KdstepsError, KeyError, TypeError, ValueError) as error:
        raise KdstepsError(
            f"{path}: its header is not that of a network ({error}); take the file that kdsteps "
            "wrote"
        ) from error
    if header.get("diverged") or not all(tensor.isfinite().all() for tensor in weights.values()):
        raise KdstepsError(f"{path}: the training of this network diverged; take another one")
    if model.family.startswith("."):
        raise KdstepsError(
            f"{path}: its network is {model.family}, code of the study that trained it; write "
            "params.yaml by hand next to a copy of that file (docs/own-networks.md)"
        )
    options = architecture(model.options)
    outputs = tuple(map(str, model.classes or names))
    _built(model.family, options, path, channels, model.image_size or size, len(outputs))
    own = model.normalize or Normalization(mean=mean, std=std)
    entry: dict[str, Any] = {"family": model.family, **options}
    entry["normalize"] = own.rounded() if isinstance(own, Normalization) else own
    if model.image_size is not None:
        entry |= {"image_size": list(model.image_size)}
        entry |= {"interpolation": model.interpolation} if model.interpolation else {}
    known = () if header.get("untrained") else outputs
    return NetworkInFile(entry, len(known), known, channels, (size[0], size[1]))


def _stated(path: Path) -> Mapping[str, Any]:
    """The network that a file names, as the training script of timm does."""
    import timm

    content = read_file(path)
    name = content.get("arch") if isinstance(content, Mapping) else None
    if isinstance(name, str) and timm.is_model(name):
        return {"family": "timm", "name": name}
    raise KdstepsError(f"{path}: does not say which network its weights are of")


def _built(
    family: str,
    options: Mapping[str, Any],
    path: Path,
    channels: int,
    size: Sequence[int],
    num_classes: int = _ANY,
) -> Chain:
    return build_model(
        family,
        num_classes=num_classes,
        in_channels=channels,
        image_size=(size[0], size[1]),
        checkpoint=str(path),
        will_train=True,
        **options,
    )


def _num_outputs(
    family: str, options: Mapping[str, Any], path: Path, channels: int, size: Sequence[int]
) -> int:
    """The number of outputs of weights that fit; 0 where the file has no classifier."""
    try:
        given = {**options, "checkpoint": str(path)}
        return num_outputs(family, given, (channels, *size))
    except KdstepsError:
        return 0
