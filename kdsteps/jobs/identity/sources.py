"""Python files as code identity sees them: found without importing, parsed once, names resolved.

Followed are the modules of the package, except the neutral subpackages, which do not affect
results, and the user's own files outside site-packages and the standard library. Everything else is
external and counts by the name under which it is used.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, TypeGuard

NEUTRAL = frozenset({"errors", "files", "study", "jobs", "cli"})
"""Rooms that decide no number: what they hand on is in a job's settings or its files."""
COMPUTING = frozenset(
    {
        "kdsteps.files.walk",
        "kdsteps.study.joints",
        "kdsteps.study.run_length",
        "kdsteps.study.section",
    }
)
"""Modules of these rooms that stages compute with."""

COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
EVERYTHING = "*"  # the name of all definitions of a module together
EFFECTS = "<effects>"  # the name of the statements of a module that define nothing


class Definition(NamedTuple):
    """Something a followed module defines under a name."""

    source: Source
    name: str


class Module(NamedTuple):
    """A followed module, as an object."""

    source: Source


class Neutral(NamedTuple):
    """Something of a neutral subpackage; `module` is its dotted name if it is a module."""

    module: str


class External(NamedTuple):
    """Something of a library, by its dotted name."""

    name: str


Target = Definition | Module | Neutral | External


class Imported(NamedTuple):
    """What an import statement binds: a module, or a name of one."""

    module: str
    name: str | None


@dataclass(eq=False)
class Source:
    """One parsed file.

    Attributes:
        file: Where it is.
        name: Its dotted name; empty for a file that is given by its path.
        own: Whether it belongs to the package.
        body: Its statements.
        names: What binds each name of the module: imports, and statements of `body`.
        stars: Modules imported by `from ... import *`, with the number of each statement.
        last: The number of the last statement that binds each name.
        effects: Statements that do more than define names.
    """

    file: Path
    name: str
    own: bool
    body: list[ast.stmt]
    names: dict[str, list[Imported | ast.stmt]] = field(default_factory=dict)
    stars: list[tuple[int, str]] = field(default_factory=list)
    last: dict[str, int] = field(default_factory=dict)
    effects: list[ast.stmt] = field(default_factory=list)
    resolved: dict[str, Target | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, statement in enumerate(self.body):
            if isinstance(statement, ast.Import | ast.ImportFrom):
                for name, imported in self.imported(statement):
                    if name == "*":
                        self.stars.append((number, imported.module))
                    else:
                        self._bind(name, imported, number)
            elif not for_types_or_scripts(statement):
                for name in _bound(statement):
                    self._bind(name, statement, number)
                if _acts(statement):
                    self.effects.append(statement)

    def _bind(self, name: str, binding: Imported | ast.stmt, number: int) -> None:
        self.names.setdefault(name, []).append(binding)
        self.last[name] = number

    def imported(self, statement: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Imported]]:
        """The names that an import statement binds, with what each refers to."""
        for alias in statement.names:
            if isinstance(statement, ast.ImportFrom):
                module = self._absolute(statement)
                yield alias.asname or alias.name, Imported(module, alias.name)
            elif alias.asname:
                yield alias.asname, Imported(alias.name, None)
            else:
                top = alias.name.partition(".")[0]
                yield top, Imported(top, None)

    def _absolute(self, statement: ast.ImportFrom) -> str:
        if not statement.level:
            return statement.module or ""
        parts = self.name.split(".")
        if self.file.name != "__init__.py":
            parts.pop()
        parts = parts[: len(parts) - statement.level + 1]
        return ".".join([*parts, statement.module] if statement.module else parts)


class Sources:
    """Every file that was looked at, by module and by path.

    Attributes:
        contents: Of each file that was read, the digest that `digest_if_any` returns.
    """

    def __init__(self, package: Path) -> None:
        self.package = package
        self.contents: dict[Path, str] = {}
        self._modules: dict[tuple[str, Path | None], Source | Neutral | None] = {}
        self._files: dict[Path, Source] = {}

    def file(self, path: Path) -> Source:
        """A file of the user, given by its path."""
        return self._read(path.resolve(), "", own=False)

    def module(self, name: str, importer: Source | None = None) -> Source | Neutral | None:
        """A module as `importer` would find it; None if it is external."""
        inside = name == "kdsteps" or name.startswith("kdsteps.")
        if not inside and importer is not None and importer.own:
            return None
        beside = importer.file.parent if importer and not importer.name else None
        key = (name, None if inside else beside)
        if key not in self._modules:
            self._modules[key] = self._own(name) if inside else self._users(name, beside)
        return self._modules[key]

    def settings_source(self, name: str) -> Source | None:
        """A module of a neutral subpackage, read nevertheless."""
        file = _module_file(self.package.joinpath(*name.split(".")[1:]))
        return self._read(file, name, own=True) if file else None

    def lookup(self, source: Source, name: str) -> Target | None:
        """What a name of a module refers to; None if the module does not bind it."""
        if name not in source.resolved:
            source.resolved[name] = None  # a circle of imports ends here
            source.resolved[name] = self._lookup(source, name)
        return source.resolved[name]

    def target(self, imported: Imported, importer: Source) -> Target:
        """What an import statement of `importer` binds."""
        if imported.name is not None:
            return self.member(imported.module, imported.name, importer)
        found = self.module(imported.module, importer)
        if isinstance(found, Source):
            return Module(found)
        return External(imported.module) if found is None else found

    def member(self, module: str, name: str, importer: Source) -> Target:
        """What `module.name` refers to: a definition, a re-exported one, or a submodule."""
        found, dotted = self.module(module, importer), f"{module}.{name}"
        if isinstance(found, Neutral):
            return Neutral(dotted if _module_file(self._path(dotted)) else "")
        if found is None:
            return External(dotted)
        if (target := self.lookup(found, name)) is not None:
            return target
        inner = self.module(dotted, importer)
        if inner is not None:
            return Module(inner) if isinstance(inner, Source) else inner
        return (
            Definition(found, "__getattr__") if "__getattr__" in found.names else External(dotted)
        )

    def _lookup(self, source: Source, name: str) -> Target | None:
        for number, star in reversed(source.stars):
            if number < source.last.get(name, -1):
                break
            if isinstance(found := self.module(star, source), Source):
                target = self.lookup(found, name)
                if target is not None:
                    return target
        bindings = source.names.get(name)
        if bindings is None:
            return None
        (first, *others) = bindings
        if isinstance(first, Imported) and not others:
            return self.target(first, source)
        return Definition(source, name)

    def _own(self, name: str) -> Source | Neutral | None:
        room = name.split(".")[1:2]
        if room and room[0] in NEUTRAL and name not in COMPUTING:
            return Neutral(name)
        file = _module_file(self._path(name))
        return self._read(file, name, own=True) if file else None

    def _path(self, name: str) -> Path:
        return self.package.joinpath(*name.split(".")[1:])

    def _users(self, name: str, beside: Path | None) -> Source | None:
        """A module outside the package: next to the importer, in the study, or installed."""
        top, *rest = name.split(".")
        folders = [folder for folder in (beside, Path.cwd()) if folder is not None]
        for folder in folders:
            if file := _module_file(folder.joinpath(top, *rest)):
                return self._read(file.resolve(), name, own=False)
        try:
            spec = find_spec(top)
        except (ImportError, ValueError):
            return None
        if spec is None:
            for folder in self._added_folders(beside):
                file = _module_file(folder.joinpath(top, *rest))
                if file is not None and not is_installed(file):
                    return self._read(file.resolve(), name, own=False)
        locations = [Path(each) for each in (spec and spec.submodule_search_locations) or ()]
        for location in locations:
            file = _module_file(location.joinpath(*rest)) if rest else location / "__init__.py"
            if file and file.is_file() and not is_installed(file):
                return self._read(file.resolve(), name, own=False)
        if spec is None or spec.origin is None:
            bases = [*(folder / top for folder in folders), *locations]
            return self._folder(name, [base.joinpath(*rest) for base in bases])
        if rest or not spec.origin.endswith(".py"):
            return None
        file = Path(spec.origin)
        return None if is_installed(file) else self._read(file.resolve(), name, own=False)

    def _added_folders(self, beside: Path | None) -> Iterator[Path]:
        """What the user's code may add to `sys.path`: folders above it, and those it names."""
        users = [source for source in self._files.values() if not source.own]
        if beside is not None:
            yield from list(beside.parents)[:_ABOVE]
        for source in users:
            for node in (node for statement in source.body for node in ast.walk(statement)):
                if isinstance(node, ast.Constant) and _may_be_path(node.value):
                    yield source.file.parent / node.value
                    yield Path.cwd() / node.value

    def _folder(self, name: str, candidates: list[Path]) -> Source | None:
        """A package without `__init__.py`: it defines nothing, and its modules can be imported."""
        for folder in candidates:
            if folder.is_dir() and not is_installed(folder):
                file = (folder / "__init__.py").resolve()
                return self._files.setdefault(file, Source(file, name, False, []))
        return None

    def _read(self, file: Path, name: str, *, own: bool) -> Source:
        if file not in self._files:
            self._files[file] = Source(file, name, own, ast.parse(self.bytes_of(file)).body)
        return self._files[file]

    def bytes_of(self, file: Path) -> bytes:
        """What is in a file; its digest is added to `contents`."""
        content = file.read_bytes()
        self.contents[file] = blake2b(content, digest_size=20).hexdigest()
        return content


_ABOVE = 3  # folders above a file


def _may_be_path(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value.encode()) < 200 and value.isprintable()


_INSTALLED = tuple(
    Path(path).resolve()
    for key, path in sysconfig.get_paths().items()
    if key in ("stdlib", "platstdlib", "purelib", "platlib")
)


def is_installed(file: Path) -> bool:
    """Whether a file belongs to an installed library or to Python itself."""
    file = file.resolve()
    return bool({"site-packages", "dist-packages"} & set(file.parts)) or any(
        file.is_relative_to(folder) for folder in _INSTALLED
    )


def _module_file(base: Path) -> Path | None:
    candidates = (base.with_name(f"{base.name}.py"), base / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def for_types_or_scripts(statement: ast.stmt) -> bool:
    """`if TYPE_CHECKING:` and `if __name__ == "__main__":`, which do nothing in a job."""
    if not isinstance(statement, ast.If) or statement.orelse:
        return False
    test = statement.test
    if isinstance(test, ast.Compare):
        return ast.unparse(test) == "__name__ == '__main__'"
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
    return name == "TYPE_CHECKING"


def _bound(statement: ast.stmt) -> list[str]:
    """The names of the module that a statement binds, in order."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    found: dict[str, None] = {}
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = None
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found[node.id] = None
        elif isinstance(node, ast.alias):
            found[node.asname or node.name.partition(".")[0]] = None
        elif isinstance(node, COMPREHENSIONS | ast.Lambda):
            continue
        waiting.extend(reversed(list(ast.iter_child_nodes(node))))
    return list(found)


def _acts(statement: ast.stmt) -> bool:
    """Whether a statement of a module does more than bind names: registers, sets, prints."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return False
    if isinstance(statement, ast.Expr):
        return not isinstance(statement.value, ast.Constant)
    if isinstance(statement, ast.Assign | ast.AugAssign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return any(
            isinstance(node, ast.Attribute | ast.Subscript)
            for target in targets
            for node in ast.walk(target)
        )
    if isinstance(statement, ast.If | ast.Try):
        inner = [*statement.body, *statement.orelse]
        if isinstance(statement, ast.Try):
            inner += [*statement.finalbody]
            inner += [line for handler in statement.handlers for line in handler.body]
        return any(_acts(line) for line in inner)
    return not isinstance(statement, ast.Import | ast.ImportFrom | ast.Pass | ast.Global)
