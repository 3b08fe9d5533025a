"""Weights from files into networks: the state dict is found by the names and shapes it must have.

Projects save weights bare, under a key such as `state_dict` or `model_ema`, and with prefixes such
as `module.` or `backbone.`. If several sets of weights in a file match the network equally well,
the user has to choose.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdsteps.errors import KdstepsError, nearest
from kdsteps.models.chain import HEAD, Chain
from kdsteps.models.evaluating import evaluating
from kdsteps.models.position_sizes import other_size
from kdsteps.models.state_dicts import Found, find, match
from kdsteps.models.weight_files import read_file

_NUM_SHOWN = 3


def load_checkpoint(
    chain: Chain,
    path: str,
    *,
    num_classes: int,
    key: str | None = None,
    prefix: str | None = None,
) -> None:
    """Put the weights in a file into a network, all of them or none.

    Where the classifier alone differs, as between numbers of classes, it stays as initialized and
    is named in `chain.new_weights`. What was chosen, left out or is new is added to `chain.notes`.

    Args:
        chain: Changed in place.
        path: Of a file that `kdsteps.models.weight_files` reads.
        num_classes: Of the network.
        key: Dotted key of the dictionary in the file that holds the weights; None: whichever fits.
            Averaged weights (EMA) are taken only if they are named here or fit alone.
        prefix: Of the weights' names; None: whichever fits.

    Raises:
        KdstepsError: The file cannot be read, no weights in it fit, several do, or a weight is not
            finite.
    """
    where = f"checkpoint {path}"
    network = chain.plain()
    own = network.state_dict()
    content = read_file(path)
    candidates = _requested(find(content, own), content, key, prefix, where)
    classifier = _classifier(chain, num_classes)
    fitting = [found for found in candidates if not _wrong(found, own)] or [
        found for found in candidates if not _wrong(found, own, except_for=classifier)
    ]
    if not fitting:
        best = max(candidates, key=lambda found: len(found.weights) - len(_misshapen(found, own)))
        raise KdstepsError(f"{where}: {_why_not(chain, best, own, classifier)}")
    chosen, notes = _only(fitting, where)
    weights = {
        name: tensor for name, tensor in chosen.weights.items() if tensor.shape == own[name].shape
    }
    _check_finite(weights, own, where)
    put_weights(network, weights)
    chain.new_weights = tuple(
        name for name in own if name not in weights and own[name].is_floating_point()
    )
    chain.notes += [*notes, *_notes(chosen, chain.new_weights, where)]


def load_weights(
    module: nn.Module, weights: Mapping[str, Tensor], where: str, *, finite: bool = True
) -> None:
    """Put the weights into the module, all of them or none.

    Counters and indices, which old checkpoints lack, may be missing.

    Args:
        where: The beginning of an error's sentence.
        finite: Whether NaN and infinity are refused.

    Raises:
        KdstepsError: Keys are missing or unexpected, shapes differ, or a weight is not finite.
    """
    own = module.state_dict()
    found = match(weights, own)
    if _missing(found, own) or _misshapen(found, own) or found.others:
        raise KdstepsError(f"{where}: does not fit the network; {_misfit(found, own)}")
    if finite:
        _check_finite(weights, own, where)
    put_weights(module, weights)


def put_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put some of its weights, by their names today, into the module; the others stay.

    The versions of its modules, which decide how names are read, are those of the module itself:
    files of safetensors have none, and torchvision's MNASNet does not load without one.
    """
    state = module.state_dict()
    state.update(weights)
    module.load_state_dict(state)


def size_problem(
    chain: Chain, path: str, *, num_classes: int, key: str | None = None, prefix: str | None = None
) -> str | None:
    """The sentence with which `load_checkpoint` refuses weights for images of another size.

    Args:
        chain: May be on the device `meta`; its number of classes may differ from the study's.
        path, num_classes, key, prefix: As for `load_checkpoint`.

    Returns:
        None for other weights, also for those that do not fit for another reason.

    Raises:
        KdstepsError: The file cannot be read, or holds no weights of the network.
    """
    where, own = f"checkpoint {path}", chain.plain().state_dict()
    content = read_file(path)
    classifier = _classifier(chain, num_classes)
    problems = [
        other_size(chain, found.weights, own, _wrong(found, own, except_for=classifier))
        for found in _requested(find(content, own), content, key, prefix, where)
    ]
    return None if None in problems else f"{where}: {problems[0]}"


def classes_in_checkpoint(
    chain: Chain,
    path: str,
    *,
    num_classes: int,
    key: str | None = None,
    prefix: str | None = None,
) -> int:
    """The number of classes of the classifier in a file.

    Args:
        chain: The network, with a classifier of another width.
        path: Of a file that `kdsteps.models.weight_files` reads.
        num_classes: Of the chain.
        key, prefix: As for `load_checkpoint`.

    Raises:
        KdstepsError: The file cannot be read, or has no classifier of this network.
    """
    where = f"checkpoint {path}"
    content = read_file(path)
    candidates = _requested(find(content, chain.plain().state_dict()), content, key, prefix, where)
    best = max(candidates, key=lambda found: len(found.weights))
    rows = {len(best.weights[n]) for n in _classifier(chain, num_classes) if n in best.weights}
    if len(rows) != 1:
        raise KdstepsError(
            f"{where}: has no classifier of this network, so the number of its outputs is not "
            "known; list the names of its outputs in `classes`"
        )
    return rows.pop()


def _requested(
    candidates: Sequence[Found], content: Any, key: str | None, prefix: str | None, where: str
) -> list[Found]:
    """The candidates of the given key and prefix.

    Raises:
        KdstepsError: There is none.
    """
    if not candidates:
        raise KdstepsError(
            f"{where}: has {_outline(content)}, but no weight of the network by name; use a state "
            "dict of this network, bare or under a key"
        )
    dotted = None if prefix is None else f"{prefix.rstrip('.')}." if prefix else ""
    for option, value, attribute in (
        ("checkpoint_key", key, "key"),
        ("checkpoint_prefix", dotted, "prefix"),
    ):
        if value is None:
            continue
        there = sorted({getattr(found, attribute) for found in candidates})
        candidates = [found for found in candidates if getattr(found, attribute) == value]
        if not candidates:
            shown = ", ".join(map(repr, there[:10]))
            raise KdstepsError(
                f"{where}: {option} {value!r} leads to no weights of the network"
                f"{nearest(value, there)}; there are {shown}"
            )
    return list(candidates)


def _only(fitting: Sequence[Found], where: str) -> tuple[Found, list[str]]:
    """The candidate to take, and what to say about the others.

    Raises:
        KdstepsError: Several fit alike, and their weights differ.
    """
    plain = [found for found in fitting if not found.is_averaged]
    averaged = [found for found in fitting if found.is_averaged]
    notes = []
    if plain and averaged:
        names = " or ".join(found.name for found in averaged)
        notes.append(f"{where}: also holds averaged weights; {names} takes them")
    first, *more = plain or averaged
    if all(_same(first.weights, found.weights) for found in more):
        return first, notes
    names = "; ".join(found.name for found in (first, *more))
    raise KdstepsError(
        f"{where}: holds {1 + len(more)} different sets of weights that fit the network; choose by "
        f"{names}"
    )


def _notes(chosen: Found, new: Sequence[str], where: str) -> list[str]:
    notes = []
    if chosen.key or chosen.prefix:
        notes.append(f"{where}: took {chosen.name}")
    left_out = [*chosen.others, *chosen.outside]
    if left_out:
        notes.append(
            f"{where}: left out {len(left_out)} weights that the network does not have "
            f"({_first(left_out)})"
        )
    if new:
        notes.append(f"{where}: the classifier differs, so {_first(new)} start with new weights")
    return notes


def _wrong(found: Found, own: Mapping[str, Tensor], except_for: Collection[str] = ()) -> list[str]:
    """Names that do not fit, those of `except_for` apart.

    Further weights of the file count where they continue the network's own: blocks that it does not
    have, say. Other modules, such as a loss with weights, do not.
    """
    roots = {_root(name) for name in own if name not in except_for}
    kin = [
        name
        for name, tensor in found.others.items()
        if _root(name) in roots and tensor.is_floating_point()
    ]
    differing = [*_missing(found, own), *_misshapen(found, own)]
    return kin + [name for name in differing if name not in except_for]


def _missing(found: Found, own: Mapping[str, Tensor]) -> list[str]:
    return [n for n, t in own.items() if n not in found.weights and t.is_floating_point()]


def _misshapen(found: Found, own: Mapping[str, Tensor]) -> list[str]:
    return [name for name, tensor in found.weights.items() if tensor.shape != own[name].shape]


def _why_not(
    chain: Chain, found: Found, own: Mapping[str, Tensor], classifier: Collection[str]
) -> str:
    """Why the best set of weights of a file does not fit."""
    size = other_size(chain, found.weights, own, _wrong(found, own, except_for=classifier))
    return size or f"does not fit the network; {_misfit(found, own)}"


def _misfit(found: Found, own: Mapping[str, Tensor]) -> str:
    """A description of what does not match."""
    misshapen = [
        f"{name} {tuple(found.weights[name].shape)}, the network's {tuple(own[name].shape)}"
        for name in _misshapen(found, own)
    ]
    kinds = {
        "missing": _missing(found, own),
        "unexpected": list(found.others),
        "of another shape": misshapen,
    }
    wrong = [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names]
    taken = f" ({found.name})" if found.key or found.prefix else ""
    return f"of its keys{taken} {', '.join(wrong)}"


def _root(name: str) -> str:
    """The first part of a name without its number: `layer` of `layer3.0.conv1.weight`."""
    return name.partition(".")[0].rstrip("0123456789")


def _classifier(chain: Chain, num_classes: int) -> set[str]:
    """Names of the parameters after the last layer that have one row per class."""
    with evaluating(chain):
        last = chain.span(chain.layers[-1] if chain.layers else None, HEAD)
    rows = {id(p) for p in last.parameters() if p.ndim and len(p) == num_classes}
    return {name for name, p in chain.plain().named_parameters() if id(p) in rows}


def _check_finite(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str) -> None:
    """Raise KdstepsError for NaN and infinity, except where the network has them (in masks)."""
    for name, tensor in weights.items():
        wrong = ~tensor.isfinite() & own[name].isfinite().cpu()
        if wrong.any():
            raise KdstepsError(
                f"{where}: {name} holds NaN or infinity in {int(wrong.sum())} of {wrong.numel()} "
                "values, as after a training that diverged; take other weights"
            )


def _same(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return weights.keys() == others.keys() and all(
        torch.equal(tensor, others[name]) for name, tensor in weights.items()
    )


def _outline(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"entries {_first(list(map(str, content)))}" if content else "nothing"
    return f"a {type(content).__name__}"


def _first(names: Sequence[str]) -> str:
    more = ["…"] if len(names) > _NUM_SHOWN else []
    return ", ".join([*names[:_NUM_SHOWN], *more])
