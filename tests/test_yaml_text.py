"""params.yaml is read as DVC reads it, and what is not YAML is said with its line and a remedy."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from kdsteps.study.yaml_text import NotYaml, read_yaml

ROOT = Path(__file__).parents[1]
SHIPPED = [ROOT / "params.yaml", *sorted((ROOT / "recipes").glob("*.yaml"))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_are_read_as_dvc_reads_them(path):
    assert read_yaml(path.read_text()) == YAML(typ="safe", pure=True).load(path)


def test_numbers_are_read_as_people_write_them():
    text = "[5e-4, 1e3, -2.5E+1, 5, 0.1, 1e]"
    assert read_yaml(text) == [5e-4, 1000.0, -25.0, 5, 0.1, "1e"]


def test_keys_are_text_as_they_are_written():
    assert read_yaml("no: 1\n2024: 2\n2024-01-01: 3\n1.50: 4\ntrue: 5") == {
        "no": 1,
        "2024": 2,
        "2024-01-01": 3,
        "1.50": 4,
        "true": 5,
    }


@pytest.mark.parametrize("text", ["2024-01-02", "2024-13-45"])
def test_a_value_that_looks_like_a_date_is_text(text):
    assert read_yaml(f"title: {text}") == {"title": text}


def test_merged_keys_may_be_replaced():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}"
    assert read_yaml(text)["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize("word", ["yes", "no", "On", "off", "1:30", "1:30.5", "0100", "-017", "08"])
def test_what_yaml_1_1_reads_differently_is_refused_unless_quoted(word):
    with pytest.raises(NotYaml) as raised:
        read_yaml(f"a: 1\nb: [x, {word}]")
    assert raised.value.line == 2
    assert repr(word) in raised.value.problem
    assert "quotes" in raised.value.problem
    assert read_yaml(f"b: '{word}'") == {"b": word}


@pytest.mark.parametrize(
    ("text", "line", "found", "remedy"),
    [
        ("a:\n\t- b", 2, "a tab", "spaces"),
        ("a: 1\nb: {c: 1, c: 2}", 2, "the key 'c' appears twice", "delete one"),
        ("a: 1\na: 2", 2, "the key 'a' appears twice", "delete one"),
        ("1: a\n'1': b", 2, "the key '1' appears twice", "delete one"),
        ("a: b: c", 1, "a second colon", "quote the text"),
        ("a: 1\nfoo", 2, "no colon after the key", "`key: value`"),
        ("a: [1, 2}", 1, "a comma or the closing bracket", "missing"),
        ("a: {b: 1 c: 2}", 1, "a comma or the closing bracket", "missing"),
        ("a:\n  b: 1\n c: 2", 3, "does not match those above", "indent it like its neighbors"),
        ("a: 1\n---\nb: 2", 2, "another document", "leave out the line `---`"),
        ("a: *b", 1, "undefined alias 'b'", "define it"),
        ("a: 'b", 1, "a quote", "not closed"),
        ("a: @b", 1, "'@'", "quote the text"),
        ("[1]: 2", 1, "a list or mapping is used as a key", "quotes"),
        ("a: 1\nb: \x00", 2, "'\\x00'", "delete it"),
        ('a: 1\nb: "x\\ud800"', 2, "'\\ud800'", "delete it"),
        ('"a\\0": 1', 1, "'\\x00'", "delete it"),
        ("a: !mine 3", 1, "'!mine'", "without `!`"),
        ("a: !!int x", None, "its tag", "without `!!`"),
        ("[" * 3000, None, "nested too deeply", "close the brackets"),
    ],
)
def test_what_is_not_yaml_is_said_with_its_line_and_remedy(text, line, found, remedy):
    with pytest.raises(NotYaml) as raised:
        read_yaml(text)
    assert raised.value.line == line
    assert found in raised.value.problem
    assert remedy in raised.value.problem


def test_a_tag_runs_nothing(tmp_path):
    mark = tmp_path / "ran"
    with pytest.raises(NotYaml, match="tag"):
        read_yaml(f"a: !!python/object/apply:os.mkdir ['{mark}']")
    assert not mark.exists()


def bomb(levels: int = 9) -> str:
    """A list of nine aliases of a list of nine aliases and so on: 9 to the power of `levels`."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        aliases = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} [{aliases}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: " + "x" * 1_000_000, "1,000,003 characters"),
        (bomb(), "more than 20,000 values"),
        ("build: [" + "0, " * 200_000 + "]", "more than 20,000 values"),
        ("models: &a {b: *a}", "more than 20,000 values"),
        ("a: " + "x" * 1_001, "1,001 characters"),
        ("a: " + "9" * 5_000, "5,000 characters"),
    ],
)
def test_what_is_too_large_is_refused_at_once(text, found):
    started = time.process_time()
    with pytest.raises(NotYaml, match=found):
        read_yaml(text)
    assert time.process_time() - started < 1
