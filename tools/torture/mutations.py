"""Mistakes in params.yaml, drawn at random: wrong values, names, keys and text that is not YAML."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import yaml

Content = Any
Path = tuple[str | int, ...]

_VALUES: tuple[Any, ...] = (
    *(None, True, False, [], {}, "", " ", "x", "no", "-", "~", "[", "é\u202e", "a" * 5000),
    *(0, -1, 1, 2, -0.0, 0.5, 1.5, 10**9, 10**20, 10**30, -(10**20), 2**63, 1e20, 1e-300, 1e308),
    *(float("nan"), float("inf"), -float("inf"), "NaN", "1e20", "0x10", "1_000", "12:30:45"),
    *(
        [1],
        [None],
        [[]],
        [{}],
        {"a": 1},
        {"": {}},
        {"a": {"b": {"c": []}}},
        [0] * 1000,
        list("abc"),
    ),
    *("../x", "/etc/passwd", "a/b", "./gone.py:Name", "gone.module:Name", "os:system", "kd", "big"),
    *("\x07", "\x00", "\x1b[31m", "a\nb", "{wildcard}", "$HOME", "`id`", "con", ".", ".."),
)
_TEXTS = (
    "9" * 5000,
    "1" + "0" * 4400,
    "!!python/object/apply:os.system [id]",
    "!!int x",
    "!!binary aGk=",
    "!!set {a, b}",
    "&a [*a]",
    "*gone",
    "&a {<<: *a}",
    "[" * 5000,
    "{a: " * 2000,
    "2024-01-01",
    "0o17",
    "017",
    ".inf",
    "1e400",
    "|\n  text",
    "'open",
    '"\\x07"',
    '"\\ud800"',
    "? [a]\n: b",
    "[" + ", ".join(["0"] * 200_000) + "]",
)
_BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


def mutations(params: Content, rng: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """What was done and the file, `count` times; each way of making a mistake in its turn."""
    for number in range(count):
        change = _CHANGES[number % len(_CHANGES)]
        name, text = change(copy.deepcopy(params), rng)
        yield name, text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


def _paths(content: Content, before: Path = ()) -> Iterator[Path]:
    """The path of every value below `content`."""
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in entries:
        yield (*before, key)
        if isinstance(value, dict | list):
            yield from _paths(value, (*before, key))


def _at(content: Content, path: Path) -> Content:
    for key in path:
        content = content[key]
    return content


def _pick(content: Content, rng: random.Random) -> Path:
    return rng.choice(list(_paths(content)))


def _dump(content: Content) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _value(content: Content, rng: random.Random) -> tuple[str, str]:
    """Another value somewhere."""
    path, value = _pick(content, rng), rng.choice(_VALUES)
    _at(content, path[:-1])[path[-1]] = value
    return f"{_named(path)} = {str(value)[:30]!r}", _dump(content)


def _option(content: Content, rng: random.Random) -> tuple[str, str]:
    """A value for a key that exists, but is not set in this study."""
    section, keys = rng.choice(list(_KEYS.items()))
    path, value = (*section.split("."), rng.choice(keys)), rng.choice(_VALUES)
    place = content
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = value
    return f"{_named(path)} = {str(value)[:30]!r}", _dump(content)


_KEYS = {
    "prepare": ("validation", "test", "seed", "per_class", "store"),
    "train": ("epochs", "batch_size", "learning_rate", "warmup", "optimizer", "mixup", "schedule"),
    "distil": ("epochs", "batch_size", "learning_rate", "flip", "randaugment", "precision"),
    "cache": ("images", "seed", "budget_gib", "outputs"),
    "score": ("num_layers", "select", "variant"),
    "build": ("cuts", "num_stones", "num_pairs", "projector", "pairs"),
    "evaluate": ("latency_runs", "calibration_bins", "batch_size", "metrics"),
    "report": ("title", "confidence"),
    "models.big": ("depth", "widths", "checkpoint", "normalize", "train", "family", "classes"),
    "methods.kd": ("temperature", "weight", "distil", "build", "method"),
    "pairs.pair": ("dataset", "teacher", "student", "distil", "build"),
    "datasets.digits": ("kind", "size", "seed", "path"),
}


def _key(content: Content, rng: random.Random) -> tuple[str, str]:
    """An unknown key, a renamed one, or a missing one."""
    places = [(), *(path for path in _paths(content) if isinstance(_at(content, path), dict))]
    place = _at(content, path := rng.choice(places))
    names = [str(value) for value in _VALUES if isinstance(value, str)] + [f"k{rng.random()}"]
    if place and rng.random() < 0.5:
        old = rng.choice(list(place))
        value = place.pop(old)
        if rng.random() < 0.5:
            place[f"{old}s"] = value
        return f"{_named((*path, old))} renamed or removed", _dump(content)
    place[name := rng.choice(names)] = rng.choice(_VALUES)
    return f"{_named((*path, name[:20]))} added", _dump(content)


def _text(content: Content, rng: random.Random) -> tuple[str, str]:
    """YAML that no value is dumped as, in the place of a value."""
    path, text = _pick(content, rng), rng.choice(_TEXTS)
    _at(content, path[:-1])[path[-1]] = "PLACE"
    return f"{_named(path)} = {text[:30]}", _dump(content).replace("PLACE", text)


def _bytes(content: Content, rng: random.Random) -> tuple[str, bytes]:
    """A character inserted or a bit flipped."""
    raw = bytearray(_dump(content).encode())
    where = rng.randrange(len(raw))
    if rng.random() < 0.5:
        raw[where] ^= 1 << rng.randrange(8)
        return f"byte {where} flipped", bytes(raw)
    raw[where:where] = (
        put := rng.choice([b"\t", b"\x00", b"\x07", b"\xff", b"\n", b":", b"-", b"%"])
    )
    return f"{put!r} inserted at {where}", bytes(raw)


def _whole(content: Content, rng: random.Random) -> tuple[str, str | bytes]:
    """The whole file."""
    text = _dump(content)
    files: dict[str, Callable[[], str | bytes]] = {
        "empty": lambda: "",
        "cut off": lambda: text[: rng.randrange(len(text))],
        "twice": lambda: text + text,
        "two documents": lambda: text + "---\n" + text,
        "a bomb": lambda: _BOMB + text,
        "a bomb as seeds": lambda: _BOMB + text.replace("seeds:", "seeds: *a11\nold:"),
        "UTF-16": lambda: text.encode("utf-16"),
        "zeros": lambda: b"\0" * 1000,
        "a long comment": lambda: text + "#" * 3_000_000,
        "tabs": lambda: text.replace("  ", "\t"),
        "as a list": lambda: _dump([content]),
        "Windows line ends": lambda: text.replace("\n", "\r\n"),
        "JSON": lambda: json.dumps(content),
        "many methods": lambda: _dump(content | {"methods": {f"m{n}": {} for n in range(3000)}}),
        "many seeds": lambda: _dump(content | {"seeds": list(range(2_000))}),
        "the same seed twice": lambda: _dump(content | {"seeds": [0, 0]}),
    }
    name = rng.choice(list(files))
    return f"the file is {name}", files[name]()


def _named(path: Path) -> str:
    return ".".join(map(str, path))


_CHANGES = (_value, _option, _key, _text, _value, _option, _bytes, _whole)
