"""Which code a job's numbers rest on, as one short digest: a change elsewhere runs no job again.

Followed are the imports of the stage's module inside the package, and of the modules that
params.yaml names: the method, the model families, the kind of data. Comments, docstrings and layout
do not count, but templates and tables that lie beside a module of a subfolder do. The digest is the
same on every version of Python.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from hashlib import blake2b
from pathlib import Path

from kdsteps.jobs import graph
from kdsteps.study import registry
from kdsteps.study.study import Study

_PACKAGE = Path(__file__).parent.parent
# How files are written and settings are checked decides no number: the values themselves stand in
# the settings of a job.
_NEUTRAL = frozenset(
    f"kdsteps.{name}"
    for name in (
        *("errors", "study.registry", "study.settings", "jobs.graph", "jobs.code_identity"),
        *("files.text", "files.columns", "files.tables", "files.arrays", "files.checkpoints"),
        "jobs.job",
    )
)


def code(study: Study, rule: str, names: graph.Names) -> str:
    """The digest of all code behind one job."""
    return digest((f"kdsteps.stages.{graph.stage_of(rule)}", *_named_parts(study, rule, names)))


@cache
def digest(modules: tuple[str, ...]) -> str:
    """The digest of some modules of the package and of all they import from it."""
    found = sorted(_closure(modules))
    lines = [f"{name} {_shape_of_module(name)}" for name in found]
    lines += [f"{file.relative_to(_PACKAGE)} {_content(file)}" for file in _data_files(found)]
    return blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()


def _named_parts(study: Study, rule: str, names: graph.Names) -> Iterator[str]:
    """The modules behind the names that params.yaml gives for a job."""
    if rule == "prepare":
        yield registry.module("data", study.datasets[names["dataset"]].kind)
    models = [names["teacher"]] if "teacher" in names and rule != "score" else []
    if "pair" in names:
        pair = study.pairs[names["pair"]]
        method = study.methods[names["method"]].method
        models = [pair.student]
        adds = method in registry.names("models")
        if adds:
            yield f"kdsteps.models.families.{method}"
        if adds or (rule != "evaluate" and study.methods[names["method"]].wants != "nothing"):
            models.append(pair.teacher)
        if rule == "distil":
            yield f"kdsteps.methods.{method}"
    for model in models:
        yield registry.module("models", study.models[model].family)


def _closure(modules: Iterable[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found and module not in _NEUTRAL:
            found.add(module)
            waiting.extend(_imports(module))
    return found


@cache
def _imports(module: str) -> tuple[str, ...]:
    """The modules of the package that a module imports, anywhere in it."""
    asked: set[str] = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            asked.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(
                    f"{module}: imports are absolute in kdsteps, so that they can be followed"
                )
            if node.module:
                asked.add(node.module)
                asked.update(f"{node.module}.{alias.name}" for alias in node.names)
    inside = {name for name in asked if name.startswith("kdsteps.") and _file(name)}
    packages = {name.rpartition(".")[0] for name in inside if name.count(".") > 1}
    return tuple(sorted(inside | packages))


def _data_files(modules: Iterable[str]) -> list[Path]:
    """Files without code in the subfolders of the package that hold some of the modules."""
    files = (_file(module) for module in modules)
    folders = {file.parent for file in files if file is not None} - {_PACKAGE}
    found = {file for folder in folders for file in folder.rglob("*") if file.is_file()}
    return sorted(file for file in found if file.suffix not in (".py", ".pyc"))


@cache
def _content(file: Path) -> str:
    return blake2b(file.read_bytes(), digest_size=8).hexdigest()


@cache
def _shape_of_module(module: str) -> str:
    """A digest of a module's statements alone."""
    pieces: list[str] = []
    _write_shape(_tree(module), pieces)
    return blake2b("".join(pieces).encode(), digest_size=8).hexdigest()


@cache
def _tree(module: str) -> ast.Module:
    file = _file(module)
    if file is None:
        raise ValueError(f"there is no module {module}")
    return ast.parse(file.read_bytes())


def _file(module: str) -> Path | None:
    base = _PACKAGE.joinpath(*module.split(".")[1:])
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def _write_shape(node: object, pieces: list[str]) -> None:
    """Write a tree without positions, docstrings and the empty fields that newer Pythons add."""
    if isinstance(node, ast.AST):
        pieces.append(f"({type(node).__name__}")
        for name, value in ast.iter_fields(node):
            if isinstance(node, ast.Constant) or (value is not None and value != []):
                pieces.append(f" {name}=")
                _write_shape(value, pieces)
        pieces.append(")")
    elif isinstance(node, list):
        for item in node:
            if not _is_docstring(item):
                _write_shape(item, pieces)
                pieces.append(",")
    else:
        pieces.append(repr(node))


def _is_docstring(node: object) -> bool:
    """Whether a statement is a text alone, which does nothing."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
