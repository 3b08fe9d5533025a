"""The local names of a function, and the numbers that replace them.

A local variable counts by the order in which the function first mentions it, so that renaming one
changes nothing. Parameters and members of classes keep their names: callers use these.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

from kdsteps.jobs.identity.sources import COMPREHENSIONS, Imported, Source, Target

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_NAMED = {"locals", "vars", "eval", "exec", "globals"}  # what reads variables by their names


@dataclass
class Scope:
    """The names that a function, a class or a comprehension binds.

    Attributes:
        names: What each refers to: a token, an imported object, or None until it is first used.
        depth: How many functions it is inside of.
        globals: Names declared `global`.
        words: String variables that are used in messages of exceptions only.
    """

    kind: Literal["function", "class", "comprehension"]
    depth: int
    names: dict[str, str | Target | None] = field(default_factory=dict)
    globals: set[str] = field(default_factory=set)
    words: set[str] = field(default_factory=set)
    count: int = 0

    def token(self, name: str) -> str | Target:
        """What a name that this scope binds refers to."""
        known = self.names[name]
        if known is None:
            known = self.names[name] = f" v{self.depth}.{self.count}"
            self.count += 1
        return known


def function_scope(
    node: Function, depth: int, source: Source, resolve: Callable[[Imported], Target]
) -> Scope:
    """The scope of a function: its parameters, its variables, and what it imports.

    Args:
        resolve: What an import statement of `source` binds.
    """
    found = _Bindings([node.body] if isinstance(node, ast.Lambda) else node.body, source)
    scope = Scope("function", depth, globals=found.globals)
    for name in found.variables:
        scope.names[name] = f" n:{name}" if found.read_by_name else None
    for name, imported in found.imports.items():
        if name not in found.variables and len(set(imported)) == 1:
            scope.names[name] = resolve(imported[0])
        else:
            scope.names[name] = None
    for argument in parameters(node.args):
        scope.names[argument.arg] = f" p:{argument.arg}"
    for name in found.globals | found.nonlocals:
        scope.names.pop(name, None)
    elsewhere = found.globals | found.nonlocals  # where other functions read them
    if found.texts and not found.read_by_name and not isinstance(node, ast.Lambda):
        scope.words = found.texts - elsewhere - _read_outside_messages(node.body)
    return scope


def class_scope(node: ast.ClassDef, depth: int, source: Source) -> Scope:
    """The scope of a class body: its members, by their names."""
    found = _Bindings(node.body, source)
    scope = Scope("class", depth, globals=found.globals)
    scope.names |= {name: f" m:{name}" for name in [*found.variables, *found.imports]}
    return scope


def comprehension_scope(generators: list[ast.comprehension], depth: int) -> Scope:
    scope = Scope("comprehension", depth)
    for generator in generators:
        for node in ast.walk(generator.target):
            if isinstance(node, ast.Name):
                scope.names[node.id] = None
    return scope


def parameters(arguments: ast.arguments) -> list[ast.arg]:
    found = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return found + [extra for extra in (arguments.vararg, arguments.kwarg) if extra]


class _Bindings:
    """What the statements of a function or class bind, without those of inner functions."""

    def __init__(self, body: Sequence[ast.AST], source: Source) -> None:
        self.variables: set[str] = set()
        self.imports: dict[str, list[Imported]] = {}
        self.globals: set[str] = set()
        self.nonlocals: set[str] = set()
        self.texts: set[str] = set()
        self.read_by_name = False
        waiting = list(body)
        while waiting:
            node = waiting.pop()
            kind = type(node)
            if kind is ast.Name:
                self._name(cast(ast.Name, node))
                continue
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                self.variables.add(node.name)
                continue
            if kind is ast.Constant or kind is ast.Lambda:
                continue
            if isinstance(node, COMPREHENSIONS):
                inner = (each for each in ast.walk(node) if isinstance(each, ast.NamedExpr))
                self.variables |= {each.target.id for each in inner}
                continue
            self._other(node, source)
            for value in vars(node).values():
                if type(value) is list:
                    waiting.extend(inner for inner in value if isinstance(inner, ast.AST))
                elif isinstance(value, ast.AST):
                    waiting.append(value)

    def _name(self, node: ast.Name) -> None:
        if not isinstance(node.ctx, ast.Load):
            self.variables.add(node.id)
        elif node.id in _NAMED:
            self.read_by_name = True

    def _other(self, node: ast.AST, source: Source) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name, imported in source.imported(node):
                self.imports.setdefault(name, []).append(imported)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
            self.variables |= {node.name} if node.name else set()
        elif isinstance(node, ast.MatchMapping):
            self.variables |= {node.rest} if node.rest else set()
        elif isinstance(node, ast.Assign):
            if is_words(node.value) and isinstance(node.targets[0], ast.Name):
                self.texts.add(node.targets[0].id)
        elif isinstance(node, ast.Global):
            self.globals.update(node.names)
        elif isinstance(node, ast.Nonlocal):
            self.nonlocals.update(node.names)


def is_words(node: ast.expr) -> bool:
    """Whether an expression is a string literal."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    if isinstance(node, ast.BinOp):
        return is_words(node.left)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return is_words(node.func.value)
    return isinstance(node, ast.JoinedStr)


def _read_outside_messages(body: Sequence[ast.AST]) -> set[str]:
    """The names that statements read, except in messages of exceptions."""
    found: set[str] = set()
    waiting = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            waiting.append(node.exc.func)
            continue
        if isinstance(node, ast.Assert):
            waiting.append(node.test)
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            found.add(node.id)
        waiting.extend(ast.iter_child_nodes(node))
    return found
