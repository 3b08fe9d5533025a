"""Resolve the names in a module's code: to variables, other definitions, or those of a library."""

from __future__ import annotations

import ast

from kdsteps.jobs.identity.scopes import Scope
from kdsteps.jobs.identity.sources import (
    EVERYTHING,
    Definition,
    External,
    Imported,
    Module,
    Neutral,
    Source,
    Sources,
    Target,
)

Piece = str | Definition
Members = dict[str, list[Definition]]
_BY_NAME = frozenset({" b:globals", " b:vars", " b:eval", " b:exec"})  # find what no name shows


class References:
    """Writes what names refer to, inside the functions and classes that are open.

    Args:
        own: The name of the definition that is written; it does not count.
        members: Methods and properties of settings classes by name. An attribute of that name
            links to them, since stages call these on objects whose class cannot be seen.

    Attributes:
        pieces: What was written: text, and links to other definitions.
        modules: Followed modules that are imported without being linked to.
    """

    def __init__(self, sources: Sources, source: Source, own: str, members: Members) -> None:
        self.sources, self.source, self.own, self.members = sources, source, own, members
        self.pieces: list[Piece] = []
        self.modules: set[Source] = set()
        self._scopes: list[Scope] = []

    def text(self, text: str) -> None:
        self.pieces.append(text)

    def resolve(self, name: str) -> str | Target:
        """What a name refers to: the token of a variable, or something outside the function."""
        for scope in reversed(self._scopes):
            if scope.kind == "class" and scope is not self._scopes[-1]:
                continue
            if name in scope.globals:
                break
            if name in scope.names:
                return scope.token(name)
        return self.sources.lookup(self.source, name) or f" b:{name}"

    def _bound(self, name: str) -> None:
        """A name that a statement of the module, or of a function, binds."""
        if self._scopes:
            self._target(self.resolve(name))
        else:
            self.text(" self" if name == self.own else " other")

    def _target(self, target: str | Target) -> None:
        if isinstance(target, str):
            self.text(target)
            if target in _BY_NAME:
                self._everything()
        elif isinstance(target, Definition):
            self.pieces.append(target)
        elif isinstance(target, Module):
            self.pieces.append(Definition(target.source, EVERYTHING))
        elif isinstance(target, External):
            self.text(f" x:{target.name}")
            if target.name.startswith("sys.modules"):
                self._everything()
        else:
            self.text(" neutral")

    def _everything(self) -> None:
        """All of this file, where a user's code may find any of it by name."""
        if not self.source.own:
            self.pieces.append(Definition(self.source, EVERYTHING))

    def chain(self, node: ast.expr) -> tuple[str | Target | None, list[str]]:
        """`a.b.c` as what its head refers to, and the remaining attributes.

        The head is None where it is not a name but some other expression.
        """
        attributes: list[str] = []
        while isinstance(node, ast.Attribute):
            attributes.append(node.attr)
            node = node.value
        attributes.reverse()
        if not isinstance(node, ast.Name):
            return None, attributes
        target = self.resolve(node.id)
        while attributes:
            if isinstance(target, Module):
                target = self._inside(target.source, attributes.pop(0))
            elif isinstance(target, Neutral) and target.module:
                target = self.sources.member(target.module, attributes.pop(0), self.source)
            elif isinstance(target, External):
                target = External(".".join([target.name, *attributes]))
                attributes = []
            else:
                break
        return target, attributes

    def _inside(self, source: Source, name: str) -> Target:
        if source.name:
            return self.sources.member(source.name, name, self.source)
        return self.sources.lookup(source, name) or External(name)

    def _depth(self) -> int:
        return sum(scope.kind != "class" for scope in self._scopes)

    def _imported(self, imported: Imported) -> Target:
        target = self.sources.target(imported, self.source)
        if isinstance(target, Module | Definition):
            self.modules.add(target.source)
        return target

    def _in_class(self) -> bool:
        return bool(self._scopes) and self._scopes[-1].kind == "class"


def is_logger(definition: Definition) -> bool:
    """Whether a name is bound to `logging.getLogger(...)` and nothing else."""
    bindings = definition.source.names.get(definition.name, [])
    return len(bindings) == 1 and (
        isinstance(bindings[0], ast.Assign)
        and isinstance(bindings[0].value, ast.Call)
        and ast.unparse(bindings[0].value.func) in ("logging.getLogger", "getLogger")
    )
