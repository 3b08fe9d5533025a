"""The values that the stage `tune` tries for the methods of a study."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.study.entries import MethodEntry
from kdsteps.study.resolving import parse, resolve_method
from kdsteps.study.settings import Values
from kdsteps.study.study import Method, Study
from kdsteps.study.study_checks import check_lengths, check_options, check_training
from kdsteps.study.training_settings import Distil
from kdsteps.study.tuning import as_text, candidates, check_seeds, unique


def with_trials(study: Study, where: str) -> Study:
    """The study with the values to try for each method, each checked like an entry of `methods`."""
    methods, tried = dict(study.methods), {}
    for name, entry in study.params.methods.items():
        if entry.tune is None:
            continue
        spot, found = f"{where}: methods.{name}.tune", []
        for values in candidates(entry.tune, study.params.tune, name, spot):
            trial = resolve_method(name, _with_values(entry, values, spot), spot)
            found.append({key: _value_of(trial, key) for key in values})
            tried[f"{name} ({as_text(values)})"] = trial
            _check_same_inputs(study, name, trial, f"{spot}: {as_text(values)}")
        methods[name] = replace(methods[name], trials=tuple(unique(found)))
    if not tried:
        return study
    check_seeds(study.params.tune, study.seeds, where)
    trials = replace(study, methods=tried, _distil={}, _build={})
    check_options(trials, where)
    check_training(trials, where)
    check_lengths(trials, where)
    return replace(study, methods=methods, _distil={}, _build={})


def _with_values(entry: MethodEntry, values: Values, where: str) -> MethodEntry:
    """An entry with the values of a trial instead of its own."""
    own = entry.distil.model_dump(exclude_unset=True) if entry.distil is not None else {}
    keys = {key.removeprefix("distil."): v for key, v in values.items() if "." in key}
    options = {key: value for key, value in values.items() if "." not in key}
    distil = parse(Distil, own | keys, f"{where}.distil") if own or keys else None
    return entry.model_copy(update={"distil": distil, **options})


def _value_of(method: Method, key: str) -> Any:
    """The value of an option, or of a key `distil.<key>`, as plain JSON."""
    if "." not in key:
        return method.options[key]
    assert method.distil is not None  # it has this value
    return method.distil.model_dump(mode="json")[key.removeprefix("distil.")]


def _check_same_inputs(study: Study, name: str, trial: Method, where: str) -> None:
    """Raise KdstepsError if a student with these values needs other files than without them."""
    entry = study.methods[name]
    if trial.needs_classifier != entry.needs_classifier:
        raise KdstepsError(
            f"{where} decides whether {entry.method} needs the teacher's classifier, which is "
            "checked before it is tuned; write two entries under methods instead"
        )
    for pair in study.pairs if entry.wants in ("logits", "blocks") else ():
        recipe = study.distil(pair, name).updated(trial.distil)
        if recipe.numbered_views(study.params.cache.fixed_draws) != study.views(pair, name):
            raise KdstepsError(
                f"{where} changes which logits of the teacher {entry.method} learns from, which "
                "are cached before it is tuned; write two entries under methods instead"
            )
