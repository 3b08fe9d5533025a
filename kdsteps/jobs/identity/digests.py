"""Digests of definitions by content: each one's normal form, with the digests of what it uses.

A definition is known by what it does and not by its name or module, so moving or renaming one
changes nothing. Where several of the user's have the same contents but are different objects, such
as two exceptions, a digest also depends on which of them is used where. Definitions that use each
other in a cycle are distinguished by their contents: each round replaces the links inside the cycle
by the digests of the round before.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import cast

from kdsteps.files.digests import digest_if_any
from kdsteps.jobs.identity.normal_form import Writer
from kdsteps.jobs.identity.references import Members, Piece
from kdsteps.jobs.identity.sources import (
    EFFECTS,
    EVERYTHING,
    Definition,
    External,
    Imported,
    Module,
    Source,
    Sources,
    for_types_or_scripts,
)

SETTINGS = (
    *("kdsteps.study.section", "kdsteps.study.training_settings", "kdsteps.study.settings"),
    "kdsteps.jobs.settings",
)
_VALUES = ("abc", "contextlib", "dataclasses", "enum", "functools", "logging", "pydantic", "typing")
_PURE = (*_VALUES, "torch")


@dataclass(eq=False)
class _Node:
    """A definition with its normal form and its digest.

    Attributes:
        pieces: Its normal form.
        modules: Followed modules that it uses.
        digest: Of everything it does; empty until that is known.
        reached: Followed modules that it and all that it uses are in.
    """

    pieces: list[Piece]
    modules: set[Source]
    digest: str = ""
    reached: frozenset[Source] = frozenset()
    order: int = -1
    lowest: int = -1
    links: Iterator[Definition] = field(default_factory=lambda: iter(()))


class Code:
    """The code of the package, and of the user, as digests.

    Args:
        package: The folder of the package.
    """

    def __init__(self, package: Path) -> None:
        self._sources = Sources(package)
        self._package = package
        self._nodes: dict[Definition, _Node] = {}
        self._folders: dict[Path, list[str]] = {}

    def digest(self, roots: Iterable[str]) -> str:
        """A digest of some roots and of all that they use.

        Args:
            roots: `package.module:Name`, `./file.py:Name`, or a module for all that it defines.

        Raises:
            ValueError: There is no such module or name.
        """
        digests: set[str] = set()
        reached: set[Source] = set()
        definitions: list[Definition] = []
        for root in roots:
            if (definition := self._root(root)) is None:
                digests.add(_installed(root))
                continue
            node = self._digested(definition)
            definitions.append(definition)
            digests.add(node.digest)
            reached |= node.reached
        lines = [*sorted(digests), *sorted(self._effects(reached)), *self._data_files(reached)]
        if not all(source.own for source in reached):
            lines += self._uses_of_twins(definitions)
        return _hash("\n".join(lines))

    def _uses_of_twins(self, roots: Sequence[Definition]) -> list[str]:
        """Which of several objects with the same digest is used, use by use.

        They are numbered in the order of their first use, so that names do not count.
        """
        twins: dict[str, list[Definition]] = {}
        uses: list[str] = []
        waiting, seen = [*reversed(roots)], set(roots)
        while waiting:
            links = list(_links(self._nodes[waiting.pop()].pieces))
            for link in filter(_has_identity, links):
                alike = twins.setdefault(self._nodes[link].digest, [])
                if link not in alike:
                    alike.append(link)
                uses.append(f"{self._nodes[link].digest} {alike.index(link)}")
            new = [link for link in dict.fromkeys(links) if link not in seen]
            waiting += reversed(new)
            seen.update(new)
        several = {digest for digest, alike in twins.items() if len(alike) > 1}
        return [use for use in uses if use.partition(" ")[0] in several]

    @property
    def files(self) -> Set[Path]:
        """The files that were read for all digests so far."""
        return self._sources.contents.keys()

    def is_outdated(self) -> bool:
        """Whether a file that was read has other contents now, or is gone."""
        contents = self._sources.contents
        return any(digest_if_any(file) != read for file, read in contents.items())

    def sources(self, root: str) -> set[Path]:
        """The files in which a root and all that it uses are defined."""
        definition = self._root(root)
        reached = self._digested(definition).reached if definition is not None else ()
        return {source.file for source in reached}

    def _root(self, root: str) -> Definition | None:
        """What a root names; None if it belongs to an installed library."""
        module, _, name = root.partition(":")
        if module.endswith(".py"):
            file = Path(module)
            source = self._sources.file(file) if file.is_file() else None
        else:
            found = self._sources.module(module)
            if not module.startswith("kdsteps.") and found is None:
                return None
            source = found if isinstance(found, Source) else None
        if source is None:
            raise ValueError(f"code identity: there is no module {module}")
        if not name:
            return Definition(source, EVERYTHING)
        target = self._sources.lookup(source, name.partition(".")[0])
        if isinstance(target, Definition):
            return target
        if isinstance(target, External):
            return None
        raise ValueError(f"code identity: {module} does not define {name!r}")

    def _effects(self, reached: set[Source]) -> set[str]:
        """Digests of the statements that act when used modules are imported.

        A user's module may be imported for its effects alone, so what it imports counts as well.
        """
        digests: set[str] = set()
        waiting, seen = list(reached), set(reached)
        while waiting:
            source = waiting.pop()
            nearby = set() if source.own else self._imports(source)
            if self._acting(source):
                node = self._digested(Definition(source, EFFECTS))
                digests.add(node.digest)
                nearby |= node.reached
            waiting += nearby - seen
            seen |= nearby
        reached |= seen
        return digests

    def _acting(self, source: Source) -> bool:
        return bool(source.effects or self._hidden(source))

    def _imports(self, source: Source) -> set[Source]:
        bindings = [each for found in source.names.values() for each in found]
        imported = [each for each in bindings if isinstance(each, Imported)]
        targets = [self._sources.target(each, source) for each in imported]
        found = {each.source for each in targets if isinstance(each, Module | Definition)}
        modules = [self._sources.module(each.module, source) for each in imported]
        return found | {each for each in modules if isinstance(each, Source)}

    def _hidden(self, source: Source) -> list[Definition]:
        """Definitions of a user's module that act although nothing names them.

        A decorator, a metaclass or `__init_subclass__` may register one somewhere; a call whose
        result nothing reads is made for its effect.
        """
        if source.own or not source.body:
            return []
        writer = Writer(self._sources, source, "", {})
        read = {
            node.id
            for statement in source.body
            for node in ast.walk(statement)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        }
        found = []
        for node in _statements(source.body):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                called = [
                    each.func if isinstance(each, ast.Call) else each
                    for each in node.decorator_list
                ]
                if any(_may_act(writer.chain(each)[0], _PURE) for each in called) or (
                    isinstance(node, ast.ClassDef) and self._announced(node, writer)
                ):
                    found.append(Definition(source, node.name))
            elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                bound = [each for target in targets for each in ast.walk(target)]
                names = {each.id for each in bound if isinstance(each, ast.Name)}
                calls = [each for each in ast.walk(node.value) if isinstance(each, ast.Call)]
                if not names & read and any(
                    _may_act(writer.chain(each.func)[0], _VALUES) for each in calls
                ):
                    found += [Definition(source, name) for name in sorted(names)]
        return found

    def _announced(self, node: ast.ClassDef, writer: Writer) -> bool:
        """Whether a base class of a user's class is notified of it."""
        if any(isinstance(writer.chain(each.value)[0], Definition) for each in node.keywords):
            return True
        for base in node.bases:
            target = writer.chain(base)[0]
            if not isinstance(target, Definition) or target.source.own:
                continue
            inner = Writer(self._sources, target.source, "", {})
            for parent in target.source.names.get(target.name, []):
                if isinstance(parent, ast.ClassDef) and (
                    any(getattr(each, "name", "") == "__init_subclass__" for each in parent.body)
                    or self._announced(parent, inner)
                ):
                    return True
        return False

    def _data_files(self, reached: set[Source]) -> list[str]:
        """Files without code in the folders of the used modules of the package."""
        folders = {source.file.parent for source in reached if source.own} - {self._package}
        return sorted({line for folder in folders for line in self._contents(folder)})

    def _contents(self, folder: Path) -> list[str]:
        if folder not in self._folders:
            self._folders[folder] = [
                f"{file.relative_to(folder)} {_hash(self._sources.bytes_of(file))}"
                for file in folder.rglob("*")
                if not {".py", ".pyc", "__pycache__"} & {file.suffix, *file.parts}
                and file.is_file()
            ]
        return self._folders[folder]

    @cached_property
    def _members(self) -> Members:
        """Methods and properties of settings classes by name, since they may compute."""
        found: Members = {}
        for module in SETTINGS:
            source = self._sources.settings_source(module)
            if source is None:
                continue
            for node in source.body:
                for member in node.body if isinstance(node, ast.ClassDef) else []:
                    if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                        name = f"{cast(ast.ClassDef, node).name}.{member.name}"
                        source.names[name] = [member]
                        found.setdefault(member.name, []).append(Definition(source, name))
        return found

    def _digested(self, start: Definition) -> _Node:
        """A definition's digest, after those of all that it uses (Tarjan's components)."""
        node = self._node(start)
        if node.digest:
            return node
        count, stack = 0, [start]
        path = [start]
        node.order = node.lowest = count
        while path:
            definition = path[-1]
            node = self._nodes[definition]
            for link in node.links:
                other = self._node(link)
                if other.digest:
                    continue
                if other.order < 0:
                    count += 1
                    other.order = other.lowest = count
                    stack.append(link)
                    path.append(link)
                    break
                node.lowest = min(node.lowest, other.order)
            else:
                path.pop()
                if path:
                    above = self._nodes[path[-1]]
                    above.lowest = min(above.lowest, node.lowest)
                if node.lowest == node.order:
                    first = stack.index(definition)
                    self._close(stack[first:])
                    del stack[first:]
        return self._nodes[start]

    def _close(self, circle: list[Definition]) -> None:
        """Compute the digests of definitions that use each other, or of one."""
        nodes = {definition: self._nodes[definition] for definition in circle}
        reached = {definition.source for definition in circle}
        for node in nodes.values():
            reached |= node.modules
            for link in _links(node.pieces):
                reached |= self._nodes[link].reached
        shared = frozenset(reached)
        inside = dict.fromkeys(circle, "circle")
        kinds = 0
        while kinds != (kinds := len(set(inside.values()))) or "circle" in inside.values():
            inside = {
                definition: _hash(self._text(node.pieces, inside))
                for definition, node in nodes.items()
            }
        together = "".join(sorted(inside.values()))
        for definition, node in nodes.items():
            node.digest, node.reached = _hash(inside[definition] + together), shared

    def _text(self, pieces: Iterable[Piece], inside: Mapping[Definition, str]) -> str:
        """A normal form with digests for its links; `inside` has those of its cycle."""
        return "".join(
            piece
            if isinstance(piece, str)
            else f"<{inside.get(piece) or self._nodes[piece].digest}>"
            for piece in pieces
        )

    def _node(self, definition: Definition) -> _Node:
        if definition not in self._nodes:
            pieces, modules = self._written(definition)
            node = self._nodes[definition] = _Node(pieces, modules)
            node.links = _links(pieces)
        return self._nodes[definition]

    def _written(self, definition: Definition) -> tuple[list[Piece], set[Source]]:
        source, name = definition
        if name == EVERYTHING:
            pieces: list[Piece] = []
            for inner in sorted(source.names):
                if isinstance(self._sources.lookup(source, inner), Definition) and "." not in inner:
                    pieces += [inner, Definition(source, inner)]
            for _, star in source.stars:
                if isinstance(module := self._sources.module(star, source), Source):
                    pieces.append(Definition(module, EVERYTHING))
            return pieces, set()
        writer = Writer(self._sources, source, name, self._members)
        if name == EFFECTS:
            writer.statements(source.effects)
            return [*writer.pieces, *self._hidden(source)], writer.modules
        for binding in source.names[name]:
            if isinstance(binding, Imported):
                writer._target(writer._imported(binding))
            else:
                writer.statements([binding])
        return writer.pieces, writer.modules


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported, those inside of others included."""
    for statement in body:
        if for_types_or_scripts(statement):
            continue
        yield statement
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for part in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(statement, part, []))
            for handler in getattr(statement, "handlers", []):
                yield from _statements(handler.body)


def _may_act(target: object, pure: tuple[str, ...]) -> bool:
    """Whether calling something may do more than return a value; kdsteps has no registries."""
    if isinstance(target, External):
        registers = target.name.startswith("torch.library")
        return registers or target.name.split(".")[0] not in pure
    return isinstance(target, Definition) and not target.source.own


def _has_identity(definition: Definition) -> bool:
    """Whether two objects of the user with this definition's contents are not interchangeable.

    Two classes are not, nor are two lists or other values that can change. Functions and constants
    are.
    """
    if definition.source.own:
        return False
    for node in definition.source.names.get(definition.name, []):
        if isinstance(node, ast.ClassDef):
            return True
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            parts = ast.walk(node.value)
            if not all(isinstance(part, ast.Constant | ast.Tuple | ast.Load) for part in parts):
                return True
    return False


def _links(pieces: Iterable[Piece]) -> Iterator[Definition]:
    return (piece for piece in pieces if isinstance(piece, Definition))


def _hash(content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    return blake2b(data, digest_size=8).hexdigest()


def _installed(root: str) -> str:
    """A root inside an installed library: its name and the version of the library."""
    top = root.partition(":")[0].partition(".")[0]
    owners = packages_distributions().get(top, [])
    return " ".join([root, *(f"{owner}=={version(owner)}" for owner in owners)])
