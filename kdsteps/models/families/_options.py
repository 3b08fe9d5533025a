"""Check the names and options of networks of other libraries, before any network is needed."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn

_UNKNOWN = re.compile(r"unexpected keyword argument(?:\(s\): \[)? ?'(\w+)'")


def unknown_name(name: str, library: str, names: Collection[str]) -> str:
    """What is wrong with the name of a network, with the names that are nearest to it."""
    near = difflib.get_close_matches(name, names, n=3)
    right = f"the nearest are {', '.join(near)}" if near else "see its list_models()"
    return f"name is {name!r}, which {library} does not have; {right}"


def unknown_option(create: Callable[..., nn.Module], options: Mapping[str, Any]) -> str | None:
    """What is wrong with the names of options, or None.

    The network is built on the device `meta`, which takes neither memory nor time. Everything else
    that may be wrong, such as an image size, is known only when the network is built.

    Args:
        create: Builds a network; takes its options by name.
        options: As in params.yaml.
    """
    try:
        with torch.device("meta"):
            create(**options)
    except TypeError as error:
        found = _UNKNOWN.search(str(error))
        if found and found[1] in options:
            near = difflib.get_close_matches(found[1], _parameters(create), n=1)
            right = f"did you mean {near[0]!r}?" if near else "the network has no such option"
            return f"{found[1]} is an unknown key; {right}"
    except Exception:  # a third-party constructor; see above
        return None
    return None


def _parameters(create: Callable[..., nn.Module]) -> Collection[str]:
    """Names of the arguments of the network's class."""
    try:
        with torch.device("meta"):
            network = create()
    except Exception:  # as above
        return ()
    return inspect.signature(type(network).__init__).parameters.keys()
