"""Results of earlier code that were accepted as they are: results/accepted.json.

The file is in git together with the metrics. An entry is valid only for the file that was accepted:
when a job is rerun, its new result does not count as accepted, even if it has the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from pathlib import Path

from kdsteps.errors import KdstepsError
from kdsteps.files.digests import digest_if_any
from kdsteps.files.text import read_json, write_json
from kdsteps.jobs.provenance import provenance_of_file

ACCEPTED = Path("results/accepted.json")


@dataclass(frozen=True)
class Entry:
    """One accepted result.

    Attributes:
        rule: The rule of its job.
        digest: Of the file that represents it.
        made_with: The digest of the code that made it.
        accepted_for: The digest of the code that it was accepted for.
        settings: A digest of the settings that it was accepted for.
        date: When it was accepted, such as 2026-01-31.
    """

    rule: str
    digest: str
    made_with: str
    accepted_for: str
    settings: str
    date: str


def read_accepted(path: str | Path = ACCEPTED) -> dict[str, Entry]:
    """The accepted results that still exist, by the file that represents each.

    Raises:
        KdstepsError: The list is damaged.
    """
    if not Path(path).is_file():
        return {}
    try:
        entries = {name: _entry(entry) for name, entry in read_json(path)["results"].items()}
    except (KdstepsError, KeyError, TypeError, AttributeError) as error:
        raise KdstepsError(
            f"{path}: is not a list of accepted results; restore it from git or delete it"
        ) from error
    return {name: entry for name, entry in entries.items() if _holds(name, entry)}


def _holds(name: str, entry: Entry) -> bool:
    """Whether a file is the accepted one, and was not made again since."""
    if digest_if_any(name) != entry.digest:
        return False
    known = provenance_of_file(Path(name))
    return known is None or known.code == entry.accepted_for


def _entry(found: Mapping[str, str]) -> Entry:
    return Entry(**{each.name: found[each.name] for each in fields(Entry)})


def write_accepted(entries: Mapping[str, Entry]) -> None:
    """Write the list, without results of the very code that they are accepted for.

    The file is removed if there are no others.
    """
    content = {
        name: asdict(entry)
        for name, entry in sorted(entries.items())
        if entry.made_with != entry.accepted_for
    }
    if not content:
        ACCEPTED.unlink(missing_ok=True)
        return
    write_json(ACCEPTED, {"results": content})


def accepted_lines(path: str | Path) -> list[str]:
    """A summary with one line per day: `1 train, 38 distil on 2026-01-31`."""
    days: dict[str, Counter[str]] = {}
    for entry in read_accepted(path).values():
        days.setdefault(entry.date, Counter())[entry.rule] += 1
    return [
        f"{', '.join(f'{count} {rule}' for rule, count in counts.items())} on {day}"
        for day, counts in sorted(days.items())
    ]


def witness(outputs: Iterable[str]) -> str:
    """The file that represents a job's result: the smallest one that carries its settings."""

    def order(path: str) -> tuple[bool, int, str]:
        return (Path(path).suffix not in (".json", ".parquet"), Path(path).stat().st_size, path)

    return min(outputs, key=order)


def text_digest(text: str) -> str:
    """A digest of settings as the JSON text of a job."""
    return blake2b(text.encode(), digest_size=8).hexdigest()
