"""README and docs: links lead somewhere, and commands, files and keys of params.yaml exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from _commands import STUDY

from kdsteps.cli.commands import COMMANDS
from kdsteps.cli.main import main
from kdsteps.jobs.graph import STAGES
from kdsteps.study.entries import Params
from kdsteps.study.schema import study_schema
from kdsteps.study.yaml_text import NotYaml, read_yaml

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "config/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
BLOCK = re.compile(r"^```\w*\n(.*?)^```\n|((?:^(?: {4}|\t)[^\n]*\n)+)", re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return BLOCK.sub("\n", page.read_text())


def code(page: Path) -> Iterator[str]:
    """The code of a page: lines of its blocks, and what its text has between backticks."""
    for fenced, indented in BLOCK.findall(page.read_text()):
        yield from map(str.strip, f"{fenced}{indented}".splitlines())
    yield from (" ".join(each.split()) for each in re.findall(r"`([^`]+)`", prose(page)))


# links


def problem(page: Path, link: str) -> str | None:
    """What is wrong with a link, if anything; addresses on the internet are not tried."""
    if re.match("[a-z]+:", link):
        return None
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    if not target.exists():
        return f"{link}: there is no such file"
    if anchor and anchor not in anchors(target):
        return f"{link}: there is no such heading"
    return None


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@PAGE
def test_every_link_leads_to_a_file_and_a_heading(page):
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub("`[^`]*`", "", prose(page)))
    assert [found for link in links if (found := problem(page, link))] == []


def test_a_link_that_leads_nowhere_is_found():
    page = ROOT / "README.md"
    assert problem(page, "docs/nowhere.md")
    assert problem(page, "docs/tuning.md#nowhere")
    assert problem(page, "docs/tuning.md#what-can-be-tuned") is None


def test_the_index_has_every_page():
    listed = re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs/README.md").read_text())
    assert sorted(listed) == sorted(
        {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    )


# commands and files


@cache
def help_of(command: str) -> str:
    """What `kdsteps COMMAND --help` prints."""
    with redirect_stdout(StringIO()) as printed, suppress(SystemExit):
        main([command, "--help"])
    return printed.getvalue()


@PAGE
def test_every_command_exists_with_its_options(page):
    for line in code(page):
        for command, rest in re.findall(r"^(?:.*&& )?kdsteps ([a-z]+)\b([^|&#]*)", line):
            assert command in COMMANDS, line
            for option in re.findall(r"(?<!\S)(--[a-z][a-z-]*)", rest):
                assert re.search(rf"{option}(?![\w-])", help_of(command)), line


def test_an_option_that_does_not_exist_is_found():
    assert re.search(r"--top(?![\w-])", help_of("predict"))
    assert not re.search(r"--jobs(?![\w-])", help_of("check")), "the start of --jobs-per-gpu"


@PAGE
def test_every_target_of_make_and_every_file_exists(page):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = [name for line in code(page) for name in re.findall(r"^make ([a-z]+)", line)]
    assert set(named) <= set(targets)
    files = r"\b((?:recipes|benchmarks|tools|tests|profiles|containers)/[\w./-]+\.(?:py|yaml))"
    assert [
        name for name in re.findall(files, page.read_text()) if not (ROOT / name).exists()
    ] == []


# params.yaml


def fragments(page: Path) -> Iterator[dict[str, Any]]:
    """What a page shows of params.yaml: sections with their keys, in blocks and in the text."""
    blocks = [f"{fenced}{indented}" for fenced, indented in BLOCK.findall(page.read_text())]
    inline = re.findall(r"`([a-z]+: [^`]+)`", prose(page))
    for text in (*blocks, *inline):
        with suppress(NotYaml):  # code in another language
            read = read_yaml(re.sub(r"^ *\.\.\.\n", "", text, flags=re.MULTILINE))
            if isinstance(read, dict) and read and read.keys() <= Params.model_fields.keys():
                yield {name: completed(name, section) for name, section in read.items()}


def completed(name: str, section: Any) -> Any:
    """A section on top of that of a study, without entries that name code which is not here."""
    if not isinstance(section, dict):
        return section
    entries = {key: entry for key, entry in section.items() if "./" not in str(entry)}
    return STUDY.get(name, {}) | entries


@pytest.fixture(scope="module")
def validator() -> Any:
    return jsonschema.Draft202012Validator(study_schema())


@PAGE
def test_every_key_of_params_yaml_exists(page, validator):
    for fragment in fragments(page):
        errors = validator.iter_errors(STUDY | fragment)
        assert [f"{fragment}: {error.message}" for error in errors] == []


@PAGE
def test_every_key_that_is_named_with_its_section_exists(page):
    for line in code(page):
        if (
            (found := re.fullmatch(r"([a-z]+)\.([a-z_]+)", line))
            and found[1] in STAGES
            and found[2] != "json"
        ):
            assert re.search(rf"^  {found[2]}: ", help_of(found[1]), re.MULTILINE), line
