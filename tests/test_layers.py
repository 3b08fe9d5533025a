"""The layers of the package, one way: words, things, craft, stages, door."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "kdsteps"

WORDS = "_wording _yaml disk errors fingerprint grid machine memory parts records schema settings"
THINGS = "artifacts data device models"
CRAFT = (
    "compiling features keeping measures methods optimizers outputs pairs report scores statistics "
    "stones teacher training"
)
DOOR = "__main__ look verify"
LAYERS = {
    name: depth
    for depth, names in enumerate((WORDS, THINGS, CRAFT, "stages", DOOR))
    for name in names.split()
}


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


def test_the_table_of_layers_for_contributors_is_this_one():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (words|things|craft|stages|door) \| `([^`]+)` \|", text, re.MULTILINE)
    said = [set(modules.split()) for _, modules in rows]
    assert said == [set(names.split()) for names in (WORDS, THINGS, CRAFT, "stages", DOOR)]


def test_every_module_has_a_layer():
    assert {top(path) for path in modules()} <= LAYERS.keys()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_its_own_layer_and_those_below(path: Path):
    for name in imports(path):
        package, _, rest = name.partition(".")
        if package == "kdsteps" and rest:
            other = rest.split(".")[0]
            assert LAYERS[other] <= LAYERS[top(path)], f"{path.name} imports {name}"


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


def test_the_craft_takes_plain_values_instead_of_settings():
    for path in modules():
        if LAYERS[top(path)] == LAYERS["training"]:
            assert not any("settings" in name.split(".") for name in imports(path)), str(path)


def test_words_and_help_do_without_torch_and_pandas():
    words = ", ".join(f"kdsteps.{name}" for name in WORDS.split())
    code = (
        f"import sys, {words}, kdsteps.__main__\n"
        "assert not {'torch', 'pandas', 'torchvision', 'timm'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=True)


def test_a_stage_imports_torchvision_and_timm_only_where_they_are_used():
    code = (
        "import sys, kdsteps.stages.distil, kdsteps.stages.train, kdsteps.stages.evaluate\n"
        "assert not {'torchvision', 'timm', 'sklearn', 'altair'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=True)
