"""params.yaml read once, checked and resolved into a study."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdsteps.errors import KdstepsError, nearest
from kdsteps.study.effects import check_effects
from kdsteps.study.entries import Params
from kdsteps.study.label_checks import check_labels
from kdsteps.study.messages import shown
from kdsteps.study.resolving import (
    parse,
    part_of,
    resolve_logger,
    resolve_method,
    resolve_model,
)
from kdsteps.study.section import MAX_SEED
from kdsteps.study.settings import Dataset
from kdsteps.study.study import Study
from kdsteps.study.study_checks import (
    check_export,
    check_lengths,
    check_metrics,
    check_options,
    check_pair,
    check_references,
    check_training,
)
from kdsteps.study.trials import with_trials
from kdsteps.study.yaml_text import NotYaml, read_yaml

_REQUIRED = {
    "datasets": "at least one entry `name: {kind: ...}`",
    "models": "at least one entry `name: {family: ...}`",
    "pairs": "at least one entry `name: {dataset: ..., teacher: ..., student: ...}`",
    "methods": "at least one entry `name: {options}`, such as `kd: {}`",
    "seeds": f"a list of whole numbers from 0 to {MAX_SEED}, such as [0, 1, 2]",
}


def load_study(path: str | Path = "params.yaml") -> Study:
    """The study that `path` describes, checked as far as possible without data and networks.

    Raises:
        KdstepsError: The file is missing, is not YAML, or has a value that cannot be.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise KdstepsError(
            f"{path}: not found; run this in a study's folder, or begin a study with `kdsteps init`"
        ) from error
    except OSError as error:
        raise KdstepsError(
            f"{path}: cannot be read ({error.strerror}); make it readable"
        ) from error
    except UnicodeDecodeError as error:
        raise KdstepsError(f"{path}: is not valid UTF-8; save it as a UTF-8 text file") from error
    try:
        content = read_yaml(text)
    except NotYaml as error:
        line = f" line {error.line}" if error.line else ""
        raise KdstepsError(f"{path}:{line} is not valid YAML: {error.problem}") from error
    if not isinstance(content, dict):
        found = "empty" if content is None else shown(content)
        raise KdstepsError(
            f"{path}: is {found}; it should have the sections {', '.join(_REQUIRED)}"
        )
    return parse_study(content, str(path))


def parse_study(content: Mapping[str, Any], where: str = "params.yaml") -> Study:
    """The study that `content`, the parsed params.yaml, describes.

    Raises:
        KdstepsError: As `load_study`.
    """
    for name, example in _REQUIRED.items():
        if name not in content and (key := _misspelled(name, content)):
            raise KdstepsError(f"{where}: {key} is an unknown key{nearest(key, [name])}")
        if not content.get(name):
            found = "missing" if name not in content else shown(content[name])
            raise KdstepsError(f"{where}: {name} is {found}; it should be {example}")
    params = parse(Params, _filled(content), where)
    study = Study(
        params,
        datasets={
            name: Dataset.model_construct(
                kind=entry.kind,
                options=part_of("data", entry.kind, entry, f"{where}: datasets.{name}", "kind")[1],
                labels=entry.labels,
                classes=entry.classes,
            )
            for name, entry in params.datasets.items()
        },
        models={
            name: resolve_model(entry, f"{where}: models.{name}")
            for name, entry in params.models.items()
        },
        trainings={
            name: params.train.updated(entry.train) for name, entry in params.models.items()
        },
        methods={
            name: resolve_method(name, entry, f"{where}: methods.{name}")
            for name, entry in params.methods.items()
        },
        loggers=tuple(
            resolve_logger(name, entry, f"{where}: loggers.{name}")
            for name, entry in params.loggers.items()
        ),
    )
    check_metrics(params.evaluate.metrics, f"{where}: evaluate.metrics")
    check_options(study, where)
    check_training(study, where)
    for name, pair in study.pairs.items():
        check_pair(study, pair, f"{where}: pairs.{name}")
    check_labels(study, where)
    check_effects(study, where)
    check_lengths(study, where)
    check_export(study, f"{where}: export")
    check_references(study, f"{where}: report.references")
    return with_trials(study, where)


def _misspelled(section: str, content: Mapping[str, Any]) -> str | None:
    """A key of `content` that is no section, and is probably meant to be this one."""
    unknown = [str(key) for key in content if key not in Params.model_fields]
    return next(iter(difflib.get_close_matches(section, unknown, n=1)), None)


def _filled(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with `evaluate:` or `kd:` without a value replaced by all defaults."""
    optional = {name for name, info in Params.model_fields.items() if not info.is_required()}
    filled = {
        name: {} if value is None and name in optional else value for name, value in content.items()
    }
    for name in ("datasets", "models", "pairs", "methods", "loggers"):
        if isinstance(entries := filled.get(name), dict):
            filled[name] = {key: {} if entry is None else entry for key, entry in entries.items()}
    return filled
