"""The rooms of the package: imports go one way, and an underscore means private to a folder."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "kdsteps"

ROOMS = [
    *("errors", "places", "files", "study", "jobs", "loggers", "data", "models", "teachers"),
    *("plans", "scores", "methods", "training", "evaluation", "export", "report", "stages"),
    "rehearsal",
    "cli",
    "__main__",
]
WITHOUT_TORCH = ("errors", "places", "study", "jobs", "loggers", "cli")  # the Snakefile imports
CORE = ("data", "models", "teachers", "plans", "scores", "methods", "evaluation")


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def top(path: Path) -> str:
    """The name in `LAYERS` that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its head or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def test_the_table_of_rooms_for_contributors_is_this_one():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| `([a-z]+)` \|", text, re.MULTILINE)
    assert rows == ROOMS[:-1]


def test_every_module_has_a_room():
    assert {top(path) for path in modules()} == set(ROOMS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_its_own_room_and_those_above(path: Path):
    for name in imports(path):
        package, _, rest = name.partition(".")
        if package == "kdsteps" and rest:
            other = rest.split(".")[0]
            assert ROOMS.index(other) <= ROOMS.index(top(path)), f"{path.name} imports {name}"


def test_no_modules_import_each_other_in_a_circle():
    def dotted(path: Path) -> str:
        name = ".".join(("kdsteps", *path.relative_to(PACKAGE).with_suffix("").parts))
        return name.removesuffix(".__init__")

    named = {dotted(path) for path in modules()}
    graph = {
        dotted(path): {
            module
            for name in imports(path)
            if (module := name if name in named else name.rpartition(".")[0]) in named
        }
        for path in modules()
    }
    assert "kdsteps.models.cut.span" in graph["kdsteps.models.cut.cutting"]
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_an_underscored_module_is_imported_in_its_own_folder_only(path: Path):
    folder = ".".join(("kdsteps", *path.relative_to(PACKAGE).parts[:-1]))
    for name in imports(path):
        owner, private, _ = name.partition("._")
        assert not private or not name.startswith("kdsteps") or owner == folder, name


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_imports_neither_snakemake_nor_dvc(path: Path):
    assert not {name.split(".")[0] for name in imports(path)} & {"snakemake", "dvc"}


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "stages").glob("[a-z]*.py")), ids=lambda p: p.stem
)
def test_a_stage_imports_no_other_stage(path: Path):
    private = ("kdsteps.stages._",)
    others = {name for name in imports(path) if name.startswith("kdsteps.stages.")}
    assert all(name.startswith(private) for name in others)


def test_the_core_below_training_takes_plain_values_instead_of_settings():
    for path in modules():
        if top(path) in CORE and path.parent.name != "models":
            parts = {part for name in imports(path) for part in name.split(".")}
            assert not any(part.endswith("settings") for part in parts), str(path)


def test_planning_and_help_do_without_torch_and_pandas():
    named = [
        ".".join(("kdsteps", *path.relative_to(PACKAGE).with_suffix("").parts))
        for path in modules()
        if top(path) in WITHOUT_TORCH and path.stem != "__init__"
    ]
    code = (
        f"import sys, {', '.join(named)}\n"
        "heavy = {'torch', 'pandas', 'torchvision', 'timm', 'onnx', 'onnxruntime', 'onnxscript'}\n"
        "assert not heavy & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=True)


@pytest.mark.parametrize(
    ("stages", "heavy"),
    [
        (("distil", "train", "evaluate"), {"torchvision", "timm", "sklearn", "altair"}),
        (("distil", "evaluate"), {"scipy", "triton"}),  # the jobs of which a study has many
    ],
)
def test_a_stage_imports_libraries_only_where_they_are_used(stages, heavy):
    named = ", ".join(f"kdsteps.stages.{stage}" for stage in stages)
    code = f"import sys, {named}\nassert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=True)
