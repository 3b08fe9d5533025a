"""The normal form of a definition: what decides its effect, but not how it is written.

Left out are docstrings, comments, layout, annotations, log calls, messages of exceptions and
assertions, and the names of local variables and of the definition itself. A reference to another
followed definition becomes a link to it; what only left-out expressions mention is not followed.

Annotations do not count: those of options and fields only reject values, and the values that they
accept are in a job's settings. Whether a field of a class is a `ClassVar` or `InitVar` counts.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Sequence
from typing import Any

from kdsteps.jobs.identity.references import References, is_logger
from kdsteps.jobs.identity.scopes import (
    class_scope,
    comprehension_scope,
    function_scope,
    is_words,
    parameters,
)
from kdsteps.jobs.identity.sources import (
    COMPREHENSIONS,
    Definition,
    External,
    Imported,
    Neutral,
)

_LOG = frozenset({"debug", "info", "warning", "error", "exception", "critical", "log"})
_SKIPPED = frozenset({"ctx", "type_comment", "type_params", "kind"})
_IMPORTING = (External("importlib.import_module"), " b:__import__")
_FIELD_KINDS = frozenset({"ClassVar", "InitVar", "KW_ONLY"})


class Writer(References):
    """Writes statements of one module in their normal form."""

    def write(self, node: Any) -> None:
        kind = type(node)
        handler = _HANDLERS.get(kind)
        if handler is not None:
            handler(self, node)
        elif isinstance(node, ast.AST):
            self._plain(node)
        else:
            self.pieces.append(ascii(node))

    def statements(self, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            if not self._silent(statement):
                self.write(statement)
                self.pieces.append(";")

    def _plain(self, node: ast.AST) -> None:
        """A node by its fields, without the empty ones that newer Pythons add."""
        kind = type(node)
        self.text(f"({kind.__name__}")
        for name in _fields(kind):
            value = getattr(node, name, None)
            if value is None or value == []:
                continue
            self.text(f" {name}=")
            if not isinstance(value, list):
                self.write(value)
            elif isinstance(value[0], ast.stmt):
                self.statements(value)
            else:
                for item in value:
                    self.write(item)
                    self.text(",")
        self.text(")")

    # Names, functions and classes

    def _name(self, node: ast.Name) -> None:
        if not self._scopes and not isinstance(node.ctx, ast.Load):
            self._bound(node.id)
        else:
            self._target(self.resolve(node.id))

    def _attribute(self, node: ast.Attribute) -> None:
        target, attributes = self.chain(node)
        if target is None:
            self.write(node.value)
            attributes = [node.attr]
        else:
            self._target(target)
        for name in attributes:
            if name == "__subclasses__":
                self._everything()
            if name in self.members:
                self.pieces += self.members[name]
            else:
                self.text(f".{name}")

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.text("(async" if isinstance(node, ast.AsyncFunctionDef) else "(def")
        self._definition_name(node.name)
        self._decorators(node.decorator_list)
        self._parameters(node.args)
        self._open_function(node)
        self.statements(node.body)
        self._scopes.pop()
        self.text(")")

    def _lambda(self, node: ast.Lambda) -> None:
        self.text("(lambda")
        self._parameters(node.args)
        self._open_function(node)
        self.write(node.body)
        self._scopes.pop()
        self.text(")")

    def _open_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        self._scopes.append(function_scope(node, self._depth(), self.source, self._imported))

    def _definition_name(self, name: str) -> None:
        """Members keep their names; a name at the top of the module does not count."""
        if self._scopes:
            self._bound(name)
        elif name != self.own:
            self.text(" other")

    def _decorators(self, decorators: Sequence[ast.expr]) -> None:
        for decorator in decorators:
            self.text("@")
            self.write(decorator)

    def _parameters(self, arguments: ast.arguments) -> None:
        counts = (len(arguments.posonlyargs), len(arguments.args), len(arguments.kwonlyargs))
        names = ",".join(argument.arg for argument in parameters(arguments))
        self.text(f" {counts}{bool(arguments.vararg):d}{bool(arguments.kwarg):d}[{names}]")
        for default in [*arguments.defaults, *arguments.kw_defaults]:
            self.text("=")
            if default is not None:
                self.write(default)

    def _class(self, node: ast.ClassDef) -> None:
        self.text("(class")
        self._definition_name(node.name)
        self._decorators(node.decorator_list)
        for base in [*node.bases, *node.keywords]:
            self.text("<")
            self.write(base)
        self._scopes.append(class_scope(node, self._depth(), self.source))
        self.statements(node.body)
        self._scopes.pop()
        self.text(")")

    def _comprehension(self, node: Any) -> None:
        first, *others = node.generators
        self.text(f"({type(node).__name__} ")
        self.write(first.iter)
        self._scopes.append(comprehension_scope(node.generators, self._depth()))
        for generator in [first, *others]:
            self.text(f" for{generator.is_async}")
            self.write(generator.target)
            if generator is not first:
                self.write(generator.iter)
            for condition in generator.ifs:
                self.text(" if")
                self.write(condition)
        for part in [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]:
            self.text(":")
            self.write(part)
        self._scopes.pop()
        self.text(")")

    # Statements and expressions that count only in part

    def _silent(self, node: ast.stmt) -> bool:
        """Whether a statement does nothing that counts."""
        if isinstance(node, ast.Expr):
            if isinstance(node.value, ast.Constant):
                return True
            call = node.value
            return isinstance(call, ast.Call) and self._logs(call) and not _assigns(call)
        if isinstance(node, ast.Import | ast.ImportFrom):
            return self._is_plain_import(node)
        if isinstance(node, ast.AnnAssign):
            return node.value is None and not self._in_class()
        if isinstance(node, ast.Assign):
            target = node.targets[0]
            words = self._scopes[-1].words if self._scopes else ()
            return isinstance(target, ast.Name) and target.id in words and is_words(node.value)
        if isinstance(node, ast.If):
            return self._for_types(node) and not node.orelse
        return isinstance(node, ast.Pass | ast.Global | ast.Nonlocal)

    def _for_types(self, node: ast.If) -> bool:
        name = self.chain(node.test)[0]
        return isinstance(name, External) and name.name == "typing.TYPE_CHECKING"

    def _if(self, node: ast.If) -> None:
        if self._for_types(node):
            self.statements(node.orelse)
        else:
            self._plain(node)

    def _logs(self, node: ast.Call) -> bool:
        """Whether a call writes a log line, a warning, or to stderr."""
        target, attributes = self.chain(node.func)
        if isinstance(target, External):
            return target.name.startswith("logging.") or target.name == "warnings.warn"
        if isinstance(target, Definition):
            return len(attributes) == 1 and attributes[0] in _LOG and is_logger(target)
        if target == " b:print":
            streams = [word.value for word in node.keywords if word.arg == "file"]
            return any(self.chain(stream)[0] == External("sys.stderr") for stream in streams)
        return False

    def _is_plain_import(self, node: ast.Import | ast.ImportFrom) -> bool:
        """Whether what is imported is resolved where it is used, so that this line may go."""
        if not self._scopes or self._in_class():
            return False
        names = [name for name, _ in self.source.imported(node)]
        return all(isinstance(self.resolve(name), tuple) for name in names)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        for name, imported in self.source.imported(node):
            self.text("(import")
            self._bound(name)
            self._target(self._imported(imported))
            self.text(")")

    def _annotated(self, node: ast.AnnAssign) -> None:
        if self._in_class():
            self.text("(field")
            self.write(node.target)
            names = (getattr(inner, "id", getattr(inner, "attr", "")) for inner in _heads(node))
            self.text("".join(f" {name}" for name in names if name in _FIELD_KINDS))
            if node.value is not None:
                self.text("=")
                self.write(node.value)
            self.text(")")
        elif node.value is not None:
            self.write(ast.Assign([node.target], node.value))

    def _raise(self, node: ast.Raise) -> None:
        self.text("(raise ")
        if isinstance(node.exc, ast.Call):
            target = self.chain(node.exc.func)[0]
            only_words = isinstance(target, Neutral) or _is_builtin_error(target)
            self.write(node.exc.func)
            values = [*node.exc.args, *(word.value for word in node.exc.keywords)]
            for value in values:
                if not only_words and not is_words(value):
                    self.text("(")
                    self.write(value)
        elif node.exc is not None:
            self.write(node.exc)
        self.text(")")

    def _assert(self, node: ast.Assert) -> None:
        self.text("(assert ")
        self.write(node.test)
        self.text(")")

    def _handler(self, node: ast.ExceptHandler) -> None:
        self.text("(except")
        if node.type is not None:
            self.write(node.type)
        if node.name:
            self._bound(node.name)
        self.text(":")
        self.statements(node.body)
        self.text(")")

    def _call(self, node: ast.Call) -> None:
        target = self.chain(node.func)[0]
        if target == External("typing.cast") and len(node.args) == 2:
            self.write(node.args[1])
            return
        given = [*node.args[:1], *(word.value for word in node.keywords if word.arg == "name")]
        if target in _IMPORTING and given and isinstance(given[0], ast.Constant):
            self._target(self._imported(Imported(str(given[0].value), None)))
        self._plain(node)

    def _constant(self, node: ast.Constant) -> None:
        self.text(f" {type(node.value).__name__}:{node.value!a}")

    def _joined(self, node: ast.JoinedStr) -> None:
        """An f-string; Pythons differ in the empty texts that they put between its values."""
        self.text("(f")
        for value in node.values:
            if not (isinstance(value, ast.Constant) and value.value == ""):
                self.write(value)
        self.text(")")

    def _formatted(self, node: ast.FormattedValue) -> None:
        self.text(f"({{{node.conversion}")
        self.write(node.value)
        if isinstance(node.format_spec, ast.JoinedStr) and node.format_spec.values:
            self.write(node.format_spec)
        self.text("})")

    def _match_name(self, node: Any) -> None:
        """A pattern that binds a name, which is a plain string in the tree."""
        self.text(f"({type(node).__name__}")
        for name in _fields(type(node)):
            value = getattr(node, name)
            if name in ("name", "rest") and value is not None:
                self._bound(value)
            elif isinstance(value, list):
                for item in value:
                    self.write(item)
            elif value is not None:
                self.write(value)
        self.text(")")


_HANDLERS: dict[type, Callable[[Writer, Any], None]] = {
    ast.Name: Writer._name,
    ast.Attribute: Writer._attribute,
    ast.Constant: Writer._constant,
    ast.FunctionDef: Writer._function,
    ast.AsyncFunctionDef: Writer._function,
    ast.Lambda: Writer._lambda,
    ast.ClassDef: Writer._class,
    ast.Import: Writer._import,
    ast.ImportFrom: Writer._import,
    ast.AnnAssign: Writer._annotated,
    ast.If: Writer._if,
    ast.Raise: Writer._raise,
    ast.Assert: Writer._assert,
    ast.ExceptHandler: Writer._handler,
    ast.Call: Writer._call,
    ast.JoinedStr: Writer._joined,
    ast.FormattedValue: Writer._formatted,
    ast.MatchAs: Writer._match_name,
    ast.MatchStar: Writer._match_name,
    ast.MatchMapping: Writer._match_name,
    **dict.fromkeys(COMPREHENSIONS.__args__, Writer._comprehension),
}


def _fields(kind: type[ast.AST], known: dict[type, tuple[str, ...]] = {}) -> tuple[str, ...]:  # noqa: B006
    if kind not in known:
        known[kind] = tuple(name for name in kind._fields if name not in _SKIPPED)
    return known[kind]


def _heads(node: ast.AnnAssign) -> list[ast.expr]:
    """The outer name of an annotation, and the name inside its brackets."""
    outer = node.annotation
    return [outer.value, outer] if isinstance(outer, ast.Subscript) else [outer]


def _assigns(node: ast.AST) -> bool:
    """Whether an expression does more than compute: binds a name, yields or awaits."""
    kinds = ast.NamedExpr | ast.Yield | ast.YieldFrom | ast.Await
    return any(isinstance(inner, kinds) for inner in ast.walk(node))


def _is_builtin_error(target: object) -> bool:
    """Whether a name is an exception of Python's own that carries a message and no value."""
    if not isinstance(target, str) or not target.startswith(" b:"):
        return False
    return target.endswith(("Error", "Warning", "Exception")) and hasattr(builtins, target[3:])
