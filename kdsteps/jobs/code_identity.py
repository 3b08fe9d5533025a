"""The code that a job's results depend on, as one digest: changes elsewhere do not rerun the job.

The digest covers the definitions that a job uses, starting from its roots: the stage's `run`, the
method, the model families, the kind of data. From there every function, class and constant that a
definition mentions is followed, through the package and through the user's own files. How it is
written does not count: see `kdsteps.jobs.identity.normal_form`. Nor do the subpackages `errors`,
`files`, `study`, `jobs` and `cli`: they read, check and write, and what they pass on is in a job's
settings or in its files. Methods and properties of settings classes do count where they are used.

Attributes of objects whose class cannot be seen are not followed, so a class counts as a whole.
Files without code next to a module of the package, such as templates, count with that module.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from kdsteps.jobs import graph
from kdsteps.jobs.identity.digests import Code
from kdsteps.jobs.identity.kept import KeptDigests
from kdsteps.jobs.outputs import flat
from kdsteps.jobs.provenance import identity
from kdsteps.study import registry
from kdsteps.study.exports import BEST
from kdsteps.study.study import Study

_PACKAGE = Path(__file__).parent.parent
_ENTRIES = {
    "train": "train:_train",
    "train_check": "train:_check",
    "train_audit": "_audit:audit",
    "cache": "cache:_cache_features",
    "cache_outputs": "cache:_cache_logits",
    "tune": "tune:_try",
    "tune_choose": "tune:_choose",
    "evaluate": "evaluate:_evaluate",
    "evaluate_teacher": "evaluate:_evaluate",
    "evaluate_latency": "_latency:time_networks",
    "evaluate_probe": "_probe:measure",
    "evaluate_probe_teacher": "_probe:measure",
    "evaluate_probe_untrained": "_probe:measure",
}
"""The function that a rule runs, where its stage has several rules."""


def code(study: Study, rule: str, names: graph.Names) -> str:
    """The digest of all code that one job depends on."""
    known, job = _known(study).codes, (rule, *names.items())
    if job not in known:
        known[job] = digest(roots(study, rule, names))
    return known[job]


def read_code(study: Study) -> None:
    """Find the digests of all jobs as the code is now, and free the memory of the parsed code.

    What was found is kept for the jobs, and for later runs (see `kdsteps.jobs.identity.kept`).
    """
    for rule in graph.OUTPUTS:
        for names in graph.jobs(study, rule):
            code(study, rule, names)
            _own_code(study, rule, names)
    _kept().save(_code())
    _code.cache_clear()


def identities(study: Study, node: graph.JobNode) -> dict[str, list[str]]:
    """What a job has to find: who wrote its inputs, and the user's code that it runs.

    Returns:
        By name of an input, digests of the settings and the code of the jobs that write its files,
        in their order; "" for a file that no job of the study writes. By root of the user's code,
        such as `./mine.py:Mine`, its digest. By all roots together, as a JSON list, the job's.
    """
    inputs = {
        name: [_identity(study, graph.maker(study, path)) for path in flat(given)]
        for name, given in node.inputs.items()
    }
    everything = json.dumps(roots(study, node.rule, node.names))
    known = {everything: [code(study, node.rule, node.names)]}
    return inputs | _own_code(study, node.rule, node.names) | known


def _own_code(study: Study, rule: str, names: graph.Names) -> dict[str, list[str]]:
    used = dict.fromkeys(roots(study, rule, names))
    return {root: [digest((root,))] for root in used if not root.startswith("kdsteps.")}


def _identity(study: Study, node: graph.JobNode | None) -> str:
    if node is None:
        return ""
    known, job = _known(study).identities, (node.rule, *node.names.items())
    if job not in known:
        known[job] = identity(node.text, code(study, node.rule, node.names))
    return known[job]


@dataclass(frozen=True)
class _Known:
    """What was found about the jobs of a study, by rule and names."""

    codes: dict[tuple[Any, ...], str] = field(default_factory=dict)
    identities: dict[tuple[Any, ...], str] = field(default_factory=dict)
    roots: dict[tuple[Any, ...], tuple[str, ...]] = field(default_factory=dict)


@lru_cache(maxsize=8)
def _known(study: Study) -> _Known:
    return _Known()


@cache
def digest(roots: tuple[str, ...]) -> str:
    """The digest of some roots, `module:Name` or `./file.py:Name`, and of all that they use."""
    if not all(root.startswith("kdsteps.") for root in roots):
        return _code().digest(roots)
    found = _kept().find(roots)
    if found is None:
        found = _code().digest(roots)
        _kept().add(roots, found)
    return found


def reread() -> None:
    """Forget all digests if the contents of a file that they depend on changed since."""
    if _kept().is_outdated() or _code().is_outdated():
        for found in (digest, _code, _kept):
            found.cache_clear()


def followed(files: Set[str]) -> Set[str]:
    """Those of some files, without links in their paths, that digests so far depend on."""
    return files & {os.path.realpath(file) for file in _code().files | _kept().files}


@cache
def _code() -> Code:
    return Code(_PACKAGE)


@cache
def _kept() -> KeptDigests:
    return KeptDigests(_PACKAGE)


def roots(study: Study, rule: str, names: graph.Names) -> tuple[str, ...]:
    """The definitions at which the code of a job begins."""
    known, job = _known(study).roots, (rule, *names.items())
    if job not in known:
        known[job] = tuple(_roots(study, rule, names))
    return known[job]


def _roots(study: Study, rule: str, names: graph.Names) -> Iterator[str]:
    for function in _functions(study, rule, names):
        yield f"kdsteps.stages.{function}"
    if rule == "prepare":
        yield registry.target("data", study.datasets[names["dataset"]].kind)
    probes = rule.startswith("evaluate_probe")
    models = [names["teacher"]] if "teacher" in names and rule != "score" else []
    if rule == "evaluate_latency":
        pair = study.pairs[names["pair"]]
        models = [pair.student, *pair.teacher_names]
        for method in sorted({entry.method for entry in study.methods.values()}):
            yield from _deploying(method)
    elif rule == "export":
        yield from _exported(study, names)
    elif rule == "train_audit":
        models = list(study.pairs[names["pair"]].teacher_names)
    elif "pair" in names and "method" not in names:
        models = [study.pairs[names["pair"]].student]
    elif "pair" in names and rule != "tune_choose":
        pair, entry = study.pairs[names["pair"]], study.methods[names["method"]]
        models = [pair.student]
        adds = entry.method in registry.names("models")
        if adds:
            yield registry.target("models", entry.method)
        after_training = rule == "evaluate" or probes
        if adds or (not after_training and entry.wants != "nothing"):
            models += pair.teacher_names
        method = registry.target("methods", entry.method)
        if rule in ("distil", "tune") or (after_training and not method.startswith("kdsteps.")):
            yield method  # a user's method may deploy its own network
    if graph.stage_of(rule) in ("evaluate", "report") and not probes:
        timing = rule == "evaluate_latency"
        for reference in study.speed_metrics if timing else study.params.evaluate.metrics:
            yield registry.target("metrics", reference)
    for model in models:
        yield registry.target("models", study.models[model].family)


def _functions(study: Study, rule: str, names: graph.Names) -> Iterator[str]:
    """The functions that run a job."""
    if rule in ("distil", "tune"):
        several = "teachers" in graph.inputs(study, rule, names)
        yield "_several:run" if several else "_student:run"
    if rule != "distil":
        yield _ENTRIES.get(rule, f"{rule}:run")


def _exported(study: Study, names: graph.Names) -> Iterator[str]:
    """The networks of the students that may be exported, and methods that deploy their own."""
    pair, run = study.pairs[names["pair"]], names["student"]
    models = [pair.student]
    for method in study.methods if run == BEST else [run.rpartition("/")[0]]:
        name = study.methods[method].method
        yield from _deploying(name)
        if name in registry.names("models"):
            models += pair.teacher_names
    for model in dict.fromkeys(models):
        yield registry.target("models", study.models[model].family)


def _deploying(method: str) -> Iterator[str]:
    """What builds the networks of a method's students, where these are not students alone."""
    if method in registry.names("models"):
        yield registry.target("models", method)
    if not (target := registry.target("methods", method)).startswith("kdsteps."):
        yield target  # a user's method may deploy its own network
