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

from kdsteps.errors import KdstepsError, nearest
from kdsteps.methods.base import Method
from kdsteps.study import registry

GIVEN = {"num_classes", "in_channels", "image_size"}
ALL = [(kind, name) for kind in ("methods", "models", "data") for name in registry.names(kind)]


def entry(kind: str, name: str) -> Any:
    """The constructor or function whose keyword-only arguments are the options."""
    module = import_module(registry.module(kind, name))
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
    fields = dict(registry.options(kind, name).model_fields)
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


@pytest.mark.parametrize("name", registry.names("methods"))
def test_what_a_method_wants_is_read_as_it_stands_in_the_class(name):
    for attribute in ("wants", "plan"):
        assert registry.trait("methods", name, attribute) == vars(method(name)).get(attribute)


def test_files_with_an_underscore_are_no_parts():
    assert not [name for _, name in ALL if name.startswith("_")]


def test_the_nearest_name_is_offered_and_else_all():
    assert nearest("distill", ("distil", "train")) == "; did you mean 'distil'?"
    assert nearest("x", ("distil", "train")) == "; there are distil, train"
    assert nearest("x", ("distil",)) == "; there is only distil"
    assert nearest("x", ()) == "; there are none"


def test_a_part_that_is_not_there_is_refused():
    registry.known("methods", "kd", "methods.kd")
    with pytest.raises(KdstepsError, match=r"^models.a: there is no model family 'vgh'; did you"):
        registry.known("models", "vgh", "models.a")


def test_options_take_no_unknown_key_unless_the_part_takes_any():
    with pytest.raises(ValidationError):
        registry.options("methods", "kd")(temp=3)
    network = registry.options("models", "timm")(name="resnet18", drop_path_rate=0.1)
    assert network.model_dump()["drop_path_rate"] == 0.1


def test_the_words_of_a_study_are_read_without_torch():
    code = (
        "import sys; from kdsteps.study.study import load_study; from kdsteps.jobs import graph;"
        "study = load_study('params.yaml');"
        "[graph.settings_text(study, rule, names) for rule in graph.OUTPUTS"
        " for names in graph.jobs(study, rule)];"
        "sys.exit(bool({'torch', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    root = registry._PACKAGE.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
