"""The networks of a new study: from names, and from files of weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsteps.errors import KdstepsError, nearest
from kdsteps.files.home import expanded
from kdsteps.study import registry
from kdsteps.study.entries import ModelEntry
from kdsteps.study.resolving import parse, part_of
from kdsteps.study.yaml_text import NotYaml, read_yaml

if TYPE_CHECKING:
    from kdsteps.data.overview import Overview
    from kdsteps.models.network_in_file import NetworkInFile

_WEIGHTS = (".bin", ".ckpt", ".pt", ".pth", ".safetensors", ".tar")  # endings of files
_SHOWN = 5  # names of classes in a sentence
OPTIONS = "'{family: torchvision, name: mobilenet_v2, width_mult: 0.5}'"  # as a user types them
_NEEDED = {"family", "image_size", "checkpoint_key", "checkpoint_prefix"}  # to load weights


@dataclass(frozen=True)
class Network:
    """An entry of `models` for a new study.

    Attributes:
        entry: Its keys and values.
        notes: What to know about it, each one sentence.
        channels, size: Of the images that it has to have, (height, width); None: any.
        file: With its weights, if they are from one.
    """

    entry: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    channels: int | None = None
    size: tuple[int, int] | None = None
    file: Path | None = None

    @property
    def trained(self) -> bool:
        """Whether it is trained in the study."""
        return bool(self.entry.get("train", {}).get("epochs", True))

    @property
    def has_weights(self) -> bool:
        """Whether it starts from weights that exist."""
        return bool(self.entry.get("pretrained")) or self.file is not None


def is_file(name: str | None, option: str) -> bool:
    """Whether what is given for a network is a file of weights.

    Raises:
        KdstepsError: It is a folder, or a file that is not there.
    """
    if name is None:
        return False
    path = expanded(name)
    if path.is_dir():
        raise KdstepsError(f"{option}: {name} is a folder; name the file with the weights in it")
    if path.exists() and not path.is_file():
        raise KdstepsError(f"{option}: {name} is not a regular file; name a file of weights")
    if path.suffix.lower() in _WEIGHTS and not path.exists() and ":" not in name:
        raise KdstepsError(f"{option}: there is no file {name}; correct the path")
    return path.is_file()


def named_network(name: str, option: str) -> dict[str, Any]:
    """The entry of `models` for `FAMILY:NAME`, a family, or a name that timm knows.

    Raises:
        KdstepsError: There is no such network.
    """
    family, colon, rest = name.partition(":")
    if not colon and name in registry.names("models"):
        return {"family": name}
    if colon and {".", "/"} & {*family}:
        raise KdstepsError(_own_code(name, option))
    if colon and family not in registry.names("models"):
        hint = nearest(family, registry.names("models"))
        raise KdstepsError(f"{option}: there is no model family {family!r}{hint}")
    if not colon:
        family, rest = "timm", name
    if family == "timm" and not re.match("hf[-_]hub:|local[-_]dir:", rest):
        import timm

        if not timm.is_model(rest):
            raise KdstepsError(f"{option}: timm has no {rest!r}{nearest(rest, timm.list_models())}")
    return {"family": family} | ({"name": rest} if rest else {})


def network_with_options(text: str, option: str) -> dict[str, Any]:
    """The entry of `models` for a network with options, `{family: ..., ...}` as in params.yaml.

    Raises:
        KdstepsError: It is no such entry, or has keys that are not needed to load weights.
    """
    try:
        content = read_yaml(text)
    except NotYaml as error:
        raise KdstepsError(f"{option}: {error.problem}; an example is {OPTIONS}") from error
    entry = parse(ModelEntry, content, option)
    if ":" in entry.family:
        raise KdstepsError(_own_code(entry.family, option))
    part_of("models", entry.family, entry, option, "family")
    if later := [key for key in content if key in {*ModelEntry.model_fields} - _NEEDED]:
        raise KdstepsError(
            f"{option}: {later[0]} is not an option of the network; write it into params.yaml "
            "afterwards"
        )
    return dict(content)


def _own_code(name: str, option: str) -> str:
    """Why a network in the user's code cannot be given, and what to do."""
    role = option.removeprefix("--").removesuffix("-network")
    keys = f"`family: {name}`" + (" and `checkpoint`" if option.endswith("-network") else "")
    return (
        f"{option}: {name} is your own code, which `kdsteps init` does not run; leave out "
        f"--{role}, and write {keys} into params.yaml afterwards (docs/own-networks.md)"
    )


def pretrained_network(name: str, option: str) -> Network:
    """A network by its name, with published weights where its family has some.

    Raises:
        KdstepsError: There is no such network.
    """
    entry = named_network(name, option)
    return Network(entry | ({"pretrained": True} if "name" in entry else {}))


def network_of_file(
    file: Path,
    kind: str | None,
    found: Overview,
    *,
    role: str,
    size: tuple[int, int],
    checkpoint: str,
) -> Network:
    """The network whose weights are in a file, which has to load.

    A teacher that has an output for every class is used as it is; any other network starts from
    these weights and is trained.

    Args:
        kind: Which network it is, as on the command line; None: the file says it.
        found: The images.
        role: "teacher" or "student".
        size: (height, width) of the images, where the file does not say it.
        checkpoint: The file as params.yaml names it.

    Raises:
        KdstepsError: The file cannot be read, its network is not known, or it does not fit.
    """
    from kdsteps.models.network_in_file import network_in_file

    option = f"--{role}"
    named = None
    if kind is not None:
        reads = network_with_options if kind.lstrip().startswith("{") else named_network
        named = reads(kind, f"{option}-network")
    channels = (1, 3) if found.gray else (3, 1)
    try:
        network = network_in_file(file, named, channels=channels, size=size)
    except KdstepsError as error:
        hint = f"; name it with {option}-network, such as {option}-network timm:resnet18"
        if "does not fit the network" in str(error):
            hint = f"; options that it was built with go into {option}-network, as in {OPTIONS}"
        elif "does not say which network" not in str(error):
            hint = ""
        raise KdstepsError(f"{option}: {error}{hint}") from error
    classes = tuple(found.class_counts)
    entry = {**network.entry, "checkpoint": checkpoint}
    as_it_is = role == "teacher" and (not classes or _covers(network, classes))
    notes = [_outputs_note(file.name, network, classes)] if classes else []
    if network.entry.get("normalize") == "pretrained":
        notes.append(
            f"{file.name}: images are assumed to be normalized as for the weights of this network "
            f"that {network.entry['family']} publishes; change `normalize` if they are not."
        )
    if network.size is None and "image_size" not in entry:
        notes.append(
            f"{file.name}: its training images are assumed to have had the size in params.yaml; "
            "set `image_size` if they had another size."
        )
    if as_it_is:
        if set(classes) <= set(network.outputs) and classes != network.outputs and classes:
            entry["classes"] = list(network.outputs)
        entry["train"] = {"epochs": 0}
    elif role == "teacher" or (classes and network.num_outputs != len(classes)):
        new = " with a new classifier" if network.num_outputs != len(classes) else ""
        notes.append(f"It starts from these weights{new}, and is trained.")
    return Network(entry, tuple(filter(None, notes)), network.channels, network.size, file)


def _covers(network: NetworkInFile, classes: tuple[str, ...]) -> bool:
    """Whether every class has an output, as far as that is known."""
    if network.outputs and set(classes) & set(network.outputs):
        return set(classes) <= set(network.outputs)
    return network.num_outputs == len(classes)


def _outputs_note(name: str, network: NetworkInFile, classes: tuple[str, ...]) -> str:
    """What the outputs of a network are, compared with the classes of the images."""
    outputs = set(network.outputs)
    if not network.num_outputs:
        return f"{name} has no trained classifier."
    if outputs and set(classes) <= outputs:
        return "" if len(outputs) == len(classes) else f"{name} has outputs for more classes."
    count = f"{name} has {network.num_outputs:,} outputs"
    if outputs:
        some = ", ".join(network.outputs[:_SHOWN]) + (" ..." if len(outputs) > _SHOWN else "")
        if missing := [name for name in classes if name not in outputs and outputs & set(classes)]:
            return f"{count} ({some}), and none for the class {missing[0]}."
        what = f"{count} ({some}), and the images have {len(classes):,} classes of other names"
        same = network.num_outputs == len(classes)
        return f"{what}; they are assumed to be in the same order." if same else f"{what}."
    if network.num_outputs != len(classes):
        return f"{count}, and the images have {len(classes):,} classes."
    return (
        f"{name} does not name its {network.num_outputs:,} outputs: they are assumed to be in the "
        "data set's order of classes."
    )
