"""What may stand in params.yaml by name: read from syntax trees, the same as the code says."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module
from typing import Any, get_type_hints

import pytest
from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from kdsteps import parts
from kdsteps.errors import KdstepsError
from kdsteps.methods._method import Method

GIVEN = {"num_classes", "in_channels", "image_size"}
ALL = [(kind, name) for kind in ("methods", "models", "data") for name in parts.names(kind)]


def entry(kind: str, name: str) -> Any:
    """The constructor or function whose keyword-only arguments are the options."""
    module = import_module(f"kdsteps.{kind}.{name}")
    if kind != "methods":
        return getattr(module, {"models": "build", "data": "load"}[kind])
    return method(name).__init__


def method(name: str) -> Any:
    module = import_module(f"kdsteps.methods.{name}")
    (found,) = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Method) and member.__module__ == module.__name__
    ]
    return found


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_options_read_from_the_tree_are_those_of_the_imported_code(kind, name):
    function = entry(kind, name)
    fields = dict(parts.options(kind, name).model_fields)
    hints = get_type_hints(function, include_extras=True)
    for argument in inspect.signature(function).parameters.values():
        if argument.kind is not argument.KEYWORD_ONLY or argument.name in GIVEN:
            continue
        field = fields.pop(argument.name)
        default = PydanticUndefined if argument.default is argument.empty else argument.default
        assert field.default == default
        bare = getattr(hints[argument.name], "__origin__", hints[argument.name])
        assert field.annotation in (hints[argument.name], bare)
    assert fields == {}


@pytest.mark.parametrize("name", parts.names("methods"))
def test_what_a_method_wants_is_read_as_it_stands_in_the_class(name):
    for attribute in ("wants", "plan"):
        assert parts.trait("methods", name, attribute) == vars(method(name)).get(attribute)


def test_files_with_an_underscore_are_no_parts():
    assert not [name for _, name in ALL if name.startswith("_")]


def test_the_nearest_name_is_offered_and_else_all():
    assert parts.nearest("distill", ("distil", "train")) == "; did you mean 'distil'?"
    assert parts.nearest("x", ("distil", "train")) == "; there are distil, train"
    assert parts.nearest("x", ("distil",)) == "; there is only distil"
    assert parts.nearest("x", ()) == "; there are none"


def test_a_part_that_is_not_there_is_refused():
    parts.known("methods", "kd", "methods.kd")
    with pytest.raises(KdstepsError, match=r"^models.a: there is no model family 'vgh'; did you"):
        parts.known("models", "vgh", "models.a")


def test_options_take_no_unknown_key_unless_the_part_takes_any():
    with pytest.raises(ValidationError):
        parts.options("methods", "kd")(temp=3)
    network = parts.options("models", "timm")(name="resnet18", drop_path_rate=0.1)
    assert network.model_dump()["drop_path_rate"] == 0.1


def test_the_words_of_a_study_are_read_without_torch():
    code = (
        "import sys; from kdsteps.settings import load_study; from kdsteps import grid;"
        "study = load_study('params.yaml');"
        "[grid.settings_text(study, rule, names) for rule in grid.OUTPUTS"
        " for names in grid.jobs(study, rule)];"
        "sys.exit(bool({'torch', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    root = parts._PACKAGE.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
