"""The options of a part: its parameters by ordinary Python semantics, described as plain JSON.

A parameter that the pipeline does not fill in itself is an option. Its annotation is the type, its
default the default, and the section `Args` of the docstring describes it; `**options` of a
constructor means the options of the next class. `main` describes parts for a process that must not
import them (`part_cache`).
"""

from __future__ import annotations

import enum
import functools
import importlib
import inspect
import json
import os
import sys
import typing
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PydanticUserError,
    TypeAdapter,
    create_model,
)
from pydantic_core import PydanticSerializationError, to_jsonable_python

from kdsteps.errors import KdstepsError
from kdsteps.files.digests import digest_if_any
from kdsteps.study.docstrings import arguments, summary
from kdsteps.study.method_traits import method_traits
from kdsteps.study.part_checks import CUTTING, checker, options_problem
from kdsteps.study.part_imports import Kind, is_users, load, location, shipped, source_of

FILLED_IN: dict[Kind, tuple[str, ...]] = {
    "models": ("num_classes", "in_channels", "image_size"),
    "data": ("labeled",),
}
"""Parameters that the pipeline fills in by name."""
_POSITIONS: dict[Kind, int] = {"methods": 3, "metrics": 2, "loggers": 1}
"""How many it fills in by position: teacher, student, task; logits, labels; the training."""


@dataclass(frozen=True)
class Parameter:
    """One named parameter: its annotation as written, its default, and where names are found."""

    annotation: Any
    default: Any
    namespace: dict[str, Any]

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True)
class Signature:
    """The parameters of a part that can be passed by name, and whether it accepts others too."""

    parameters: dict[str, Parameter]
    is_open: bool


def signature_of(kind: Kind, part: Callable[..., Any]) -> Signature:
    """The parameters of a function or class, including those that `**options` passes on."""
    parameters: dict[str, Parameter] = {}
    is_open = True
    for function, skipped in _constructors(part):
        found = list(inspect.signature(function).parameters.values())[skipped:]
        positional = [p for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        left_out = {p.name for p in positional[: _POSITIONS.get(kind, 0)]}
        namespace = getattr(inspect.unwrap(_bare(function)), "__globals__", {})
        for p in found:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in left_out:
                parameters.setdefault(p.name, Parameter(p.annotation, p.default, namespace))
        is_open = any(p.kind is p.VAR_KEYWORD for p in found)
        if not is_open:
            break
    return Signature(parameters, is_open)


class Description(BaseModel):
    """Everything that planning has to know about a part, as plain JSON.

    Attributes:
        target: Where the part is defined, `module:Name` or `./file.py:Name`.
        wants, plan: Of a method: what it needs from the teacher, which plan `build` makes.
        one_class: Of a method: whether it is defined only for images of one class; {option: value}
            if that is so for one value of an option, or for lists that contain the value.
        compares_images: Of a method, likewise: whether a batch cannot be computed in parts.
        needs_labels: Of a method: whether it needs labels; {option: value} if it does unless each
            of these options has its value.
        lengths: Of a method: its options that are lengths of the run, and how many epochs have to
            follow.
        core_schema: The options as pydantic's validator takes them.
        wanted: The description of each option, where it has one.
        refused: Options that params.yaml cannot express, and what to write instead.
        json_schema: The options as a JSON schema.
        is_checked: Whether the part has a function for what types of options cannot express.
        column, source: Of a metric: its name in tables, and what it is computed from.
        files: Digests of the files that all this was read from, by path; those of the user also by
            the path from the folder of the study. None for a shipped part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    wants: str | None = None
    plan: str | None = None
    one_class: bool | dict[str, JsonValue] = False
    compares_images: bool | dict[str, JsonValue] = True
    needs_labels: bool | dict[str, JsonValue] = True
    lengths: dict[str, int] = {}
    core_schema: dict[str, Any]
    wanted: dict[str, str | None]
    refused: dict[str, str]
    json_schema: dict[str, Any]
    is_checked: bool = False
    column: str | None = None
    source: str | None = None
    files: dict[str, str] = {}


def describe(kind: Kind, reference: str) -> Description:
    """Import a part and describe it.

    Raises:
        KdstepsError: It cannot be imported, or needs an option that params.yaml cannot express.
    """
    part = load(kind, reference)
    signature, told = signature_of(kind, part), _described_arguments(part)
    fields: dict[str, Any] = {}  # of a model that writes the JSON schema
    schemas: dict[str, Any] = {}
    refused: dict[str, str] = {}
    if kind == "models" and reference not in shipped(kind):
        for name in [name for name in CUTTING if name not in signature.parameters]:
            schema = _core_schema(CUTTING[name])
            schemas[name] = {"type": "typed-dict-field", "schema": schema, "required": False}
            fields[name] = (CUTTING[name], None)
    for name, parameter in signature.parameters.items():
        if name in FILLED_IN.get(kind, ()) or name.startswith("_"):
            continue
        try:
            hint = _hint(name, parameter)
            schemas[name] = _field_schema(_core_schema(hint), parameter)
        except _Inexpressible as error:
            refused[name] = str(error)
            if parameter.required:
                raise KdstepsError(f"the option {name!r} of {reference!r} {error}") from error
            continue
        default = ... if parameter.required else parameter.default
        fields[name] = (hint, Field(default, description=told.get(name)))
    model = _model(fields, summary(_documented(part)), is_open=signature.is_open)
    traits: dict[str, Any] = {}
    if kind == "methods":
        traits = method_traits(reference, part, fields)
    elif kind == "metrics":
        metric = importlib.import_module("kdsteps.evaluation.metrics").as_metric(part, reference)
        traits = {"column": metric.name, "source": metric.source}
    place = location(kind, reference)
    return Description(
        **traits,
        target=place if ":" in place else f"{place}:{part.__name__}",
        core_schema={
            "type": "typed-dict",
            "fields": schemas,
            "extra_behavior": "allow" if signature.is_open else "forbid",
            "config": {"allow_inf_nan": False},
        },
        wanted={name: field.description for name, field in model.model_fields.items()},
        refused=refused,
        json_schema={k: v for k, v in model.model_json_schema().items() if k != "title"},
        is_checked=checker(part) is not None,
        files={} if reference in shipped(kind) else _files(part),
    )


def main() -> None:
    """Describe the parts named on standard input, or answer questions about them.

    Each line has a kind, a reference and maybe a question: `options`, whose problem is wanted; with
    an `image_shape` as well, the layers of a network; with `weights` as well, whether they are for
    its size. Each line of output has an answer.
    """
    output, sys.stdout = sys.stdout, sys.stderr  # imported code may print
    for line in sys.stdin:
        kind, reference, *question = json.loads(line)
        apart = not question and reference not in shipped(kind)
        if apart and not _in_a_copy():
            continue
        answer: dict[str, Any]
        try:
            if question and "image_shape" in question[0]:
                networks = importlib.import_module("kdsteps.models.outline")
                find = networks.weights_problem if "weights" in question[0] else networks.outline
                answer = {"found": find(reference, **question[0])}
            elif question:
                answer = {"found": options_problem(kind, reference, **question[0])}
            else:
                answer = {"found": describe(kind, reference).model_dump(mode="json")}
        except KdstepsError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=output, flush=True)
        if apart:
            os._exit(0)


def _in_a_copy() -> bool:
    """Copy this process; whether it is the copy. Otherwise the copy has ended.

    What one part of the user imports is then not taken for files of the next one.
    """
    importlib.import_module("torch")  # once, and not in each copy
    if not (copy := os.fork()):
        return True
    status = os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
    if status < 0:
        os.kill(os.getpid(), -status)  # the signal that ended the copy
    elif status:
        os._exit(status)
    return False


def _files(part: Any) -> dict[str, str]:
    """Digests of the files that define a part and its bases, and of all other files of the user."""
    classes = part.__mro__ if inspect.isclass(part) else (inspect.unwrap(_bare(part)),)
    names = {getattr(item, "__module__", None) for item in classes}
    own = {source_of(sys.modules[name]) for name in names if name in sys.modules}
    every = filter(None, map(source_of, list(sys.modules.values())))
    files = {file for file in own if file} | {file for file in every if is_users(file)}
    found: dict[str, str] = {}
    for file in sorted(files):
        # a temporary experiment may read its own copy of `../mine.py`, or that of its study
        paths = (str(file), os.path.relpath(file)) if is_users(file) else (str(file),)
        found |= dict.fromkeys(paths, digest_if_any(file))
    return found


def _constructors(part: Any) -> Iterator[tuple[Any, int]]:
    """The functions that named arguments pass through, each with its number of bound arguments."""
    if not inspect.isclass(part):
        yield part, 0
        return
    for cls in part.__mro__:
        if "__init__" in vars(cls):
            yield vars(cls)["__init__"], 1


def _described_arguments(part: Any) -> dict[str, str]:
    """The arguments that docstrings describe: of a function, or of a class and its bases."""
    if not inspect.isclass(part):
        return arguments(_documented(part))
    found: dict[str, str] = {}
    for cls in reversed(part.__mro__[:-1]):
        found |= arguments(vars(cls).get("__init__")) | arguments(cls)
    return found


def _documented(part: Any) -> Any:
    """The object with the docstring of a part."""
    return part if inspect.isclass(part) else inspect.unwrap(_bare(part))


def _bare(function: Any) -> Any:
    """The function inside `functools.partial`."""
    while isinstance(function, functools.partial):
        function = function.func
    return function.__init__ if inspect.isclass(function) else function


class _Inexpressible(Exception):
    """An option's type cannot be written in params.yaml; the message follows the option's name."""


_PLAIN_TYPES = (
    *("any", "none", "bool", "int", "float", "str", "literal"),
    *("nullable", "union", "list", "tuple", "dict", "default"),
)


def _hint(name: str, parameter: Parameter) -> Any:
    """The annotation with its names resolved where the function was defined."""
    if parameter.annotation is inspect.Parameter.empty:
        return Any

    def bearer() -> None: ...

    bearer.__annotations__ = {name: parameter.annotation}
    try:
        return typing.get_type_hints(bearer, parameter.namespace, include_extras=True)[name]
    except Exception as error:  # an annotation is an expression, which can fail in any way
        raise _Inexpressible(
            f"has the type {parameter.annotation}, which cannot be evaluated ({error}); import "
            "its names at the top of the file, outside TYPE_CHECKING"
        ) from error


def _core_schema(hint: Any) -> dict[str, Any]:
    """pydantic's description of a type, if it is one of plain values."""
    try:
        schema: dict[str, Any] = _without_metadata(TypeAdapter(hint).core_schema)
        json.dumps(schema)
    except (PydanticUserError, TypeError):
        schema = {"type": "unknown"}
    if not _is_plain(schema):
        shown = hint.__name__ if inspect.isclass(hint) else str(hint).replace("typing.", "")
        raise _Inexpressible(
            f"has the type {shown}, which params.yaml cannot express; use {_instead(hint)}"
        )
    return schema


def _is_plain(schema: Any) -> bool:
    """Whether a core schema is one of numbers, strings, and lists and mappings of them."""
    if isinstance(schema, list):
        return all(map(_is_plain, schema))
    if not isinstance(schema, dict) or "type" not in schema:
        return True
    inner = ("schema", "items_schema", "choices", "keys_schema", "values_schema")
    return schema["type"] in _PLAIN_TYPES and all(_is_plain(schema.get(key)) for key in inner)


def _instead(hint: Any) -> str:
    """What to use instead of a type that is not plain."""
    if inspect.isclass(hint) and issubclass(hint, enum.Enum):
        return f"Literal[{', '.join(repr(member.value) for member in hint)}]"
    if inspect.isclass(hint) and issubclass(hint, PurePath):
        return "str"
    if inspect.isclass(hint) and issubclass(hint, set | frozenset):
        return "list"
    if inspect.isclass(hint) and issubclass(hint, BaseModel):
        return "one option for each of its fields"
    return "a number, str, bool, Literal, or a list, tuple or dict of these"


def _without_metadata(schema: Any) -> Any:
    """A core schema without metadata for generating other schemas, which may hold functions."""
    if isinstance(schema, dict):
        left_out = {"metadata", "serialization"} if isinstance(schema.get("type"), str) else set()
        return {k: _without_metadata(v) for k, v in schema.items() if k not in left_out}
    if isinstance(schema, list | tuple):
        return [_without_metadata(item) for item in schema]
    return schema


def _field_schema(schema: dict[str, Any], parameter: Parameter) -> dict[str, Any]:
    """The entry of an option; a default that JSON cannot express is left to the code."""
    required = parameter.default is inspect.Parameter.empty
    if not required:
        try:
            default = to_jsonable_python(parameter.default, inf_nan_mode="constants")
            json.dumps(default, allow_nan=False)
            schema = {"type": "default", "schema": schema, "default": default}
        except (PydanticSerializationError, ValueError):
            pass
    return {"type": "typed-dict-field", "schema": schema, "required": required}


def _model(fields: dict[str, Any], text: str, *, is_open: bool) -> type[BaseModel]:
    extra: typing.Literal["allow", "forbid"] = "allow" if is_open else "forbid"
    config = ConfigDict(extra=extra, allow_inf_nan=False, protected_namespaces=())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an option may have the name of a method of BaseModel
        return create_model("Options", __config__=config, __doc__=text or None, **fields)
