"""Text from elsewhere in Markdown, so that it is shown as it is and cannot become anything else."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&!$])")


def code(text: str) -> str:
    """A name as code, in which nothing is markup."""
    fence = "`" * (_longest_run(text) + 1)
    pad = " " if text[:1] in ("`", " ", "") or text[-1:] in ("`", " ") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def prose(text: str) -> str:
    """A sentence, with the characters escaped that are markup, and without links."""
    escaped = _SPECIAL.sub(r"\\\1", " ".join(text.split()))
    return escaped.replace("://", "\\://").replace("www.", "www\\.")


def code_block(text: str, language: str = "") -> str:
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[int] = ()) -> str:
    """Cells of Markdown as a table.

    Args:
        right: Columns of numbers.
    """
    rule = ["---:" if column in right else "---" for column in range(len(head))]
    return "\n".join(_row(cells) for cells in (head, rule, *rows))


def _row(cells: Sequence[str]) -> str:
    # a bar would end the cell, in code too; the backslash in front is removed before all else
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _longest_run(text: str) -> int:
    """Backticks in a row."""
    return max((len(run) for run in re.findall("`+", text)), default=0)
