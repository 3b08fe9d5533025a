"""What may stand in params.yaml by name: every method, model family and kind of data is a module.

Options are read from the module's syntax tree, not by importing it: the Snakefile and the checks of
params.yaml start without torch. The keyword-only arguments of `build` (models), `load` (data) or of
the method's constructor are the options, their annotations the types, their defaults the defaults.
"""

from __future__ import annotations

import ast
import builtins
import csv
import typing
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeGuard

import pydantic
from pydantic import BaseModel, ConfigDict, create_model

from kdsteps.errors import KdstepsError, nearest

Kind = Literal["methods", "models", "data"]

_PACKAGE = Path(__file__).parent.parent
_FOLDERS = {"methods": "methods", "models": "models/families", "data": "data/kinds"}
_SHARED = {"base"}  # modules of these folders that are no parts
GIVEN = ("num_classes", "in_channels", "image_size")  # passed to `build` by the pipeline


def names(kind: Kind) -> tuple[str, ...]:
    """The parts of a kind, by the names of their modules."""
    files = (_PACKAGE / _FOLDERS[kind]).glob("[a-z]*.py")
    return tuple(sorted({file.stem for file in files} - _SHARED))


def module(kind: Kind, name: str) -> str:
    """The dotted name of the module behind a part."""
    return f"kdsteps.{_FOLDERS[kind].replace('/', '.')}.{name}"


def known(kind: Kind, name: str, where: str) -> None:
    """Raise a sentence that names the nearest part, if there is no part `name`."""
    if name not in names(kind):
        word = {"methods": "method", "models": "model family", "data": "kind of data"}[kind]
        raise KdstepsError(f"{where}: there is no {word} {name!r}{nearest(name, names(kind))}")


@cache
def published_pairs() -> tuple[str, ...]:
    """The pairs of which published accuracies come with kdsteps."""
    with (_PACKAGE / "report" / "published.csv").open(newline="") as file:
        return tuple(dict.fromkeys(row["pair"] for row in csv.DictReader(file)))


@cache
def options(kind: Kind, name: str) -> type[BaseModel]:
    """The options of a part as a settings model: types, defaults, and whether more are allowed."""
    function = _entry(kind, name)
    arguments = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    fields: dict[str, Any] = {
        argument.arg: (_value(argument.annotation), ... if default is None else _value(default))
        for argument, default in arguments
        if argument.arg not in GIVEN
    }
    extra: Literal["allow", "forbid"] = "allow" if function.args.kwarg else "forbid"
    config = ConfigDict(frozen=True, extra=extra, allow_inf_nan=False, protected_namespaces=())
    return create_model(name, __config__=config, **fields)


@cache
def trait(kind: Kind, name: str, attribute: str) -> Any:
    """A literal class attribute of a method, such as what it `wants`; None where it has none."""
    for statement in _class(_tree(kind, name)).body:
        if _assigns(statement, attribute):
            return ast.literal_eval(statement.value)
    return None


def _tree(kind: Kind, name: str) -> ast.Module:
    return ast.parse((_PACKAGE / _FOLDERS[kind] / f"{name}.py").read_text())


def _assigns(statement: ast.stmt, attribute: str) -> TypeGuard[ast.Assign]:
    return isinstance(statement, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id == attribute for target in statement.targets
    )


def _class(tree: ast.Module) -> ast.ClassDef:
    """The method of a module: its class that says what it wants of the teacher."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(_assigns(line, "wants") for line in node.body):
            return node
    raise ValueError("a method's module holds a class with the attribute `wants`")


def _entry(kind: Kind, name: str) -> ast.FunctionDef:
    tree = _tree(kind, name)
    body = _class(tree).body if kind == "methods" else tree.body
    wanted = {"methods": "__init__", "models": "build", "data": "load"}[kind]
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == wanted:
            return node
    raise ValueError(f"kdsteps/{_FOLDERS[kind]}/{name}.py has no function {wanted}")


def _value(expression: ast.expr | None) -> Any:
    """An annotation or default of our own code, with the names of typing and pydantic."""
    assert expression is not None, "options are annotated"
    return eval(ast.unparse(expression), {}, _Names())


class _Names(dict[str, Any]):
    """What an annotation may mention: pydantic gives its names only when asked one by one."""

    def __missing__(self, name: str) -> Any:
        for module in (typing, pydantic, builtins):
            if hasattr(module, name):
                return getattr(module, name)
        raise KeyError(name)
