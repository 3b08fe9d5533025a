"""YAML 1.2 as DVC reads it; values that YAML 1.1 would read differently are errors."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

MAX_CHARACTERS = 1_000_000
MAX_VALUES = 20_000  # with every alias written out
MAX_PLAIN = 1_000  # characters of a value without quotes
_TAG = "tag:yaml.org,2002:"
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # an escape such as "\\ud800" has them

# What a reader of YAML 1.1 takes for a boolean, a number of base 60 and a number of base 8.
_READ_DIFFERENTLY = {
    r"(?i:yes|no|on|off)": "write true or false, or put it in quotes",
    r"[-+]?[1-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?": "put it in quotes",
    r"[-+]?0[0-9_]+": "leave out the leading zero, or put it in quotes",
}
# What the parser says about common mistakes (`{}`), with what would be right.
_ADVICE = {
    r"'\\t'": "a tab is used for indentation; indent with spaces",
    "mapping values are not allowed": (
        "a second colon is not allowed here; indent the line like its neighbors, or quote the text"
    ),
    "could not find expected ':'": "there is no colon after the key; write `key: value`",
    r"expected ',' or '[\]}]'": "a comma or the closing bracket is missing",
    "<block end>": (
        "the line does not match those above; indent it like its neighbors, and close all brackets"
    ),
    "tag": "{}; write the plain value, without `!`",
    "another document": "another document begins here; leave out the line `---`",
    "undefined alias": "{}; define it with `&` above, or write the value",
    "unexpected end of stream": "a quote is not closed",
    "cannot start any token": "{}; quote the text",
}


class NotYaml(ValueError):
    """What is wrong, in which line if known, and what would be right."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.problem, self.line = problem, line


def read_yaml(text: str) -> Any:
    """The content of a YAML text, with every key as text.

    Raises:
        NotYaml: It is not YAML, is too large, has a key twice in one mapping, or a value that
            YAML 1.1 and 1.2 read differently.
    """
    if len(text) > MAX_CHARACTERS:
        raise NotYaml(f"it has {len(text):,} characters; {MAX_CHARACTERS:,} is the limit")
    _check_count(text)
    yaml = YAML(typ="safe", pure=True)
    try:
        document = yaml.compose(text)
        _check(document)
        return None if document is None else yaml.constructor.construct_document(document)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"the character {chr(error.character)!r} is not allowed; delete it"
        raise NotYaml(problem, line) from error
    except DuplicateKeyError as error:
        key = re.search(r'duplicate key "(.*?)"', str(error.problem))
        found = f"the key {key[1]!r}" if key else "a key"
        raise NotYaml(f"{found} appears twice; delete one of them", _line(error)) from error
    except MarkedYAMLError as error:
        problem = str(error.problem or error.context or "it cannot be parsed")
        advice = (said for part, said in _ADVICE.items() if re.search(part, problem))
        raise NotYaml(
            next(advice, "{}; correct that line").format(problem), _line(error)
        ) from error
    except RecursionError as error:
        raise NotYaml("it is nested too deeply; close the brackets") from error
    except NotYaml:
        raise
    except (ValueError, KeyError) as error:  # such as `!!int x`
        raise NotYaml("a value does not match its tag; write it without `!!`") from error


def _check_count(text: str) -> None:
    """Reject a long text with too many values by a fast parser, before the exact one reads it."""
    import yaml

    if len(text) < MAX_VALUES:
        return
    values = (event for event in _events(text) if isinstance(event, yaml.ScalarEvent))
    if next(itertools.islice(values, MAX_VALUES, None), None) is not None:
        raise NotYaml(f"it has more than {MAX_VALUES:,} values")


def _events(text: str) -> Iterator[Any]:
    """What a parser in C finds in a text, until its first mistake."""
    import yaml

    with suppress(yaml.YAMLError):
        yield from yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _check(document: Node | None) -> None:
    """Reject what is too large or ambiguous, and make every key a string, as written."""
    waiting = [document] if document is not None else []
    count = 0
    while waiting:
        count += 1
        if count > MAX_VALUES:
            raise NotYaml(f"it has more than {MAX_VALUES:,} values (with aliases written out)")
        node = waiting.pop()
        if isinstance(node, ScalarNode):
            _check_scalar(node)
        elif isinstance(node, SequenceNode):
            waiting.extend(node.value)
        elif isinstance(node, MappingNode):
            for key, value in node.value:
                _make_text(key)
                waiting.append(value)


def _check_scalar(node: ScalarNode) -> None:
    line = node.start_mark.line + 1
    _check_characters(node)
    if node.style is not None:  # quoted
        return
    if len(node.value) > MAX_PLAIN:
        found = f"{len(node.value):,} characters; {MAX_PLAIN:,} is the limit"
        raise NotYaml(f"a value has {found}", line)
    for pattern, advice in _READ_DIFFERENTLY.items():
        if re.fullmatch(pattern, node.value):
            problem = f"{node.value!r} means different things in YAML 1.1 and 1.2; {advice}"
            raise NotYaml(problem, line)
    if node.tag == _TAG + "timestamp":
        node.tag = _TAG + "str"


def _check_characters(node: ScalarNode) -> None:
    if found := _NOT_TEXT.search(node.value):
        problem = f"the character {found[0]!r} is not allowed; delete it"
        raise NotYaml(problem, node.start_mark.line + 1)


def _make_text(key: Node) -> None:
    if not isinstance(key, ScalarNode):
        problem = "a list or mapping is used as a key; put it in quotes"
        raise NotYaml(problem, key.start_mark.line + 1)
    _check_characters(key)
    if key.tag != _TAG + "merge":
        key.tag = _TAG + "str"


def _line(error: MarkedYAMLError) -> int | None:
    mark = error.problem_mark or error.context_mark
    return mark.line + 1 if mark else None
