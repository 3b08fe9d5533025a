"""Which values are tried for a method: all combinations of lists, or random ones."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, product
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.study.entries import Range
from kdsteps.study.messages import shown
from kdsteps.study.settings import Tune, Values

_SAME_FOR_ALL = {
    "epochs": "every trial has the same budget",
    "gpus": "Snakemake reserves them before the values are known",
    "checkpoint_minutes": "it does not change a result",
}
"""Keys of `distil` that a trial cannot change."""
_DRAWS = 100  # for each trial, until enough are different

Search = Mapping[str, Sequence[Any] | Range]


def candidates(search: Search, tune: Tune, method: str, where: str) -> list[Values]:
    """The values of every trial of a method, whatever the order of the keys.

    Args:
        search: Lists of values, or ranges, by key.
        method: The name of the entry, on which random values depend.
        where: What the sentence of an error begins with.

    Raises:
        KdstepsError: A key cannot be tuned, or there are more combinations than trials.
    """
    for key, tried in search.items():
        _check_key(key, where)
        if isinstance(tried, Range):
            _check_range(tried, tune, f"{where}.{key}")
    if not search:
        raise KdstepsError(f"{where} is empty; list values for an option, or leave it out")
    if tune.search == "random":
        return list(islice(unique(_drawn(search, tune, method)), tune.trials))
    lists = {key: tried for key, tried in sorted(search.items()) if not isinstance(tried, Range)}
    count = math.prod(len(tried) for tried in lists.values())
    if count > tune.trials:
        raise KdstepsError(
            f"{where}: has {count} combinations, and tune.trials is {tune.trials}; leave some out, "
            f"set tune.trials to {count}, or set tune.search to random"
        )
    return [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]


def check_seeds(tune: Tune, seeds: Sequence[int], where: str) -> None:
    """Raise KdstepsError if trials have a seed of the study, or too few to halve."""
    for seed in tune.seeds:
        if seed in seeds:
            raise KdstepsError(
                f"{where}: tune.seeds has {seed}, which is also under seeds; a method would be "
                "judged by runs that its values were chosen for, so use others, such as 100"
            )
    if tune.halving is not None and len(tune.seeds) == 1:
        raise KdstepsError(
            f"{where}: tune.halving is {tune.halving} and tune.seeds has one seed, after which no "
            "trial goes on; list two seeds or more, or leave out halving"
        )


def num_tried(trials: int, place: int, halving: int | None) -> int:
    """How many of the trials are trained with a seed, by its place in the list of seeds."""
    return trials if halving is None else max(1, trials // halving**place)


def as_text(values: Values) -> str:
    """Values such as `temperature: 2.0, distil.learning_rate: 0.1`."""
    return ", ".join(f"{key}: {shown(value)}" for key, value in values.items())


def unique(trials: Iterable[Values]) -> Iterator[Values]:
    """Trials without those whose values appeared before."""
    seen: set[str] = set()
    for values in trials:
        text = json.dumps(values, sort_keys=True)
        if text not in seen:
            seen.add(text)
            yield values


def _check_key(key: str, where: str) -> None:
    section, dot, name = key.rpartition(".")
    if (dot and section != "distil") or key in ("distil", "build", "method", "tune"):
        raise KdstepsError(
            f"{where}.{key}: only options of the method and keys of distil can be tuned, such as "
            "distil.learning_rate; for other values, write several entries under methods"
        )
    if dot and (reason := _SAME_FOR_ALL.get(name)):
        raise KdstepsError(f"{where}.{key}: {reason}; leave it out")


def _check_range(tried: Range, tune: Tune, where: str) -> None:
    if tune.search == "grid":
        raise KdstepsError(
            f"{where} is a range, and tune.search is 'grid'; list the values, or set tune.search "
            "to random"
        )
    if tried.low >= tried.high:
        raise KdstepsError(
            f"{where}: low is {tried.low} and high is {tried.high}; high should be above low"
        )
    if tried.log and tried.low <= 0:
        raise KdstepsError(f"{where}: log is true and low is {tried.low}; low should be above 0")


def _drawn(search: Search, tune: Tune, method: str) -> Iterator[Values]:
    """Random values. Those of one key do not depend on the other keys, nor on how many follow."""
    draws = {key: random.Random(f"{tune.seed} {method} {key}") for key in search}
    for _ in range(_DRAWS * tune.trials):
        yield {key: _draw(tried, draws[key].random()) for key, tried in sorted(search.items())}


def _draw(tried: Sequence[Any] | Range, at: float) -> Any:
    """The value at a place from 0 to 1; numbers from ranges have four digits."""
    if not isinstance(tried, Range):
        return tried[int(at * len(tried))]
    low, high = tried.low, tried.high
    whole = isinstance(low, int) and isinstance(high, int)
    if whole:
        high += 1  # so that the highest is as likely as the one below it
    if tried.log:
        value = math.exp(math.log(low) + at * (math.log(high) - math.log(low)))
    else:
        value = low + at * (high - low)
    value = math.floor(value) if whole else float(f"{value:.4g}")
    return min(max(value, low), tried.high)
