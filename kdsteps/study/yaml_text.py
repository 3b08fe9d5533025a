"""YAML as people write it: 5e-4 is a number, and a key that stands twice is a mistake."""

from __future__ import annotations

import re
from typing import Any

import yaml

# What PyYAML says of frequent mistakes, in words that say what would be right.
_PLAIN_WORDS = {
    r"found character '\\t' that cannot start any token": "a tab stands there; indent by spaces",
    "mapping values are not allowed here": (
        "a colon stands where none can; indent the line as its neighbours, or quote the text"
    ),
    r"could not find expected ':'": "there is no colon behind the key; write `key: value`",
    r"expected '?<?block end>?'?,? but found .*": (
        "the line does not fit the ones above; indent it as its neighbours, and close every bracket"
    ),
    r"expected ',' or '[\]}]',? but got .*": "a comma or the closing bracket is missing",
    r"could not determine a constructor for the tag .*": (
        "a tag stands there (`!...`); write the plain value"
    ),
    r"expected a single document .*|but found another document": (
        "a second document begins there; leave out the line `---`"
    ),
    r"found undefined alias .*": "the name behind `*` is not defined above",
    r"found unexpected end of stream": "a quote or bracket is not closed",
    r"found character .* that cannot start any token": (
        "a character stands there that nothing can begin with; quote the text"
    ),
}


class NotYaml(ValueError):
    """What is wrong in which line, and what would be right."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.problem, self.line = problem, line


class _Loader(yaml.SafeLoader):
    """Safe, with the floats of YAML 1.2 (as DVC reads them), and no key twice.

    Keys are texts as they stand there: `no:` and `2024:` are names like any other.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _not_yaml("a list or mapping stands where a key should be; quote it", key)
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise _not_yaml(f"the key {key.value!r} stands there twice; leave one of them", key)
            seen.add(key.value)
            key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:timestamp", _text)


def read_yaml(text: str) -> Any:
    """The content of a YAML text.

    Raises:
        NotYaml: It is not YAML, or a key stands twice in one mapping.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader, see above
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"the character {chr(error.character)!r} cannot stand there; delete it"
        raise NotYaml(problem, line) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise NotYaml(_said(error), mark.line + 1 if mark else None) from error
    except RecursionError as error:
        raise NotYaml("it is nested too deeply; close the brackets") from error


def _not_yaml(problem: str, node: yaml.Node) -> NotYaml:
    return NotYaml(problem, node.start_mark.line + 1)


def _said(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "it cannot be parsed"
    for pattern, plain in _PLAIN_WORDS.items():
        if re.fullmatch(pattern, problem):
            return plain
    return f"{problem}; mend that line"
