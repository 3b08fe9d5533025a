"""YAML 1.2 as DVC reads it, with a sentence where YAML 1.1 would read a value differently."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

MAX_CHARACTERS = 1_000_000
MAX_VALUES = 100_000  # with every alias written out

# What a reader of YAML 1.1 takes for a boolean, a number of base 60 and a number of base 8.
_READ_DIFFERENTLY = {
    r"(?i:yes|no|on|off)": "write true or false, or put it in quotes",
    r"[-+]?[1-9][0-9_]*(:[0-5]?[0-9])+": "put it in quotes",
    r"[-+]?0[0-7]+": "leave out the leading zero, or put it in quotes",
}
_ADVICE = {
    r"\\t": "indent with spaces instead of tabs",
    "mapping values are not allowed": "indent the line like its neighbors, or quote the text",
    "could not find expected ':'": "write `key: value`",
    "tag": "write the plain value, without `!`",
    "another document": "leave out the line `---`",
    "undefined alias": "define it with `&` above, or write the value",
}


class NotYaml(ValueError):
    """What is wrong, in which line if that is known, and what would be right."""

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
    try:
        for node in _nodes(YAML(typ="safe", pure=True).compose(text)):
            if isinstance(node, ScalarNode):
                _check_scalar(node)
        return _text_keys(YAML(typ="safe").load(text))
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"the character {error.character!r} is not allowed; delete it"
        raise NotYaml(problem, line) from error
    except DuplicateKeyError as error:
        key = re.search(r'duplicate key "(.*?)"', str(error.problem))
        found = f"the key {key[1]!r}" if key else "a key"
        raise NotYaml(f"{found} appears twice; delete one of them", _line(error)) from error
    except MarkedYAMLError as error:
        problem = str(error.problem or error.context or "it cannot be parsed")
        hint = next((hint for part, hint in _ADVICE.items() if re.search(part, problem)), None)
        raise NotYaml(f"{problem}; {hint or 'correct that line'}", _line(error)) from error
    except RecursionError as error:
        raise NotYaml("it is nested too deeply; close the brackets") from error


def _nodes(node: Node | None) -> Iterator[Node]:
    """Every node with each alias written out, as many as `MAX_VALUES`."""
    waiting = [node] if node is not None else []
    count = 0
    while waiting:
        count += 1
        if count > MAX_VALUES:
            raise NotYaml(f"it has more than {MAX_VALUES:,} values (aliases written out)")
        node = waiting.pop()
        yield node
        if isinstance(node, SequenceNode):
            waiting.extend(node.value)
        elif isinstance(node, MappingNode):
            waiting.extend(inner for _, inner in node.value)


def _check_scalar(node: ScalarNode) -> None:
    line = node.start_mark.line + 1
    if node.style is not None:  # quoted
        return
    if len(node.value) > 1000:
        raise NotYaml(f"a value has {len(node.value):,} characters; 1,000 is the limit", line)
    for pattern, advice in _READ_DIFFERENTLY.items():
        if re.fullmatch(pattern, node.value):
            problem = f"{node.value!r} means different things in YAML 1.1 and 1.2; {advice}"
            raise NotYaml(problem, line)


def _text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {_key(key): _text_keys(inner) for key, inner in value.items()}
    return [_text_keys(inner) for inner in value] if isinstance(value, list) else value


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key)
    raise NotYaml(f"the key {key!r} is not text; put it in quotes")


def _line(error: MarkedYAMLError) -> int | None:
    mark = error.problem_mark or error.context_mark
    return mark.line + 1 if mark else None
