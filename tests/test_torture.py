"""The fault harness: a short run of it, and what it would notice."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _study import TINY, clean_environment
from safetensors.torch import save_file

TORTURE = Path(__file__).parents[1] / "tools/torture"
sys.path.insert(0, str(TORTURE))

import damage  # noqa: E402
import readers  # noqa: E402
from mutations import mutations  # noqa: E402
from outcomes import Failed, Outcomes, SilentlyWrong  # noqa: E402
from studies import last_traceback, same  # noqa: E402


@pytest.mark.slow
def test_damage_and_mistakes_are_survived(tmp_path: Path):
    file = tmp_path / "outcomes.json"
    kinds = ["--only", "damage", "--only", "params"]
    command = [sys.executable, TORTURE, *kinds, "--count", "4", "--json", file]
    done = subprocess.run(
        list(map(str, command)),
        cwd=tmp_path,
        env=clean_environment() | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) > 35 and all(row["survived"] == row["tried"] > 0 for row in rows)
    assert "damage: train_audit/audit.json" in {row["kind"] for row in rows}


def test_every_way_to_fail_is_counted_and_makes_the_run_fail():
    outcomes = Outcomes()
    with outcomes.trial("a", "fine"):
        pass
    assert outcomes.clean
    for error in (Failed("x"), KeyError("y"), SilentlyWrong("z")):
        with outcomes.trial("a", "bad"):
            raise error
    row = outcomes.rows["a"]
    counts = (row.tried, row.survived, len(row.failed), len(row.silent))
    assert counts == (4, 1, 2, 1)
    assert not outcomes.clean
    assert "| a | 4 | 1 | 2 | 1 |" in outcomes.table()


def flipped(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Outcomes:
    """The outcomes of 100 flips and 4 truncations of a saved training state."""
    monkeypatch.chdir(folder)
    files, outcomes, rng = [readers.saved_state()], Outcomes(), random.Random(0)
    kind = damage.Kind("state", files, readers.of_states(files))
    for number in range(104):
        damage._trial(kind, outcomes, rng, number - 100 if number >= 100 else None)
    return outcomes


def test_damage_of_a_training_state_is_noticed(monkeypatch, tmp_path):
    outcomes = flipped(monkeypatch, tmp_path)
    assert outcomes.clean and outcomes.rows["damage: state"].survived == 104


def test_a_reader_that_does_not_check_is_silently_wrong(monkeypatch, tmp_path):
    def unchecked(path: Path) -> object:
        return Path(path).read_bytes()

    monkeypatch.setattr(readers, "load_state", unchecked)
    assert len(flipped(monkeypatch, tmp_path).rows["damage: state"].silent) == 104


def test_weights_are_compared_by_their_bytes_and_metrics_without_times(tmp_path):
    for number in range(2):
        save_file({"a": torch.tensor([float(number)])}, tmp_path / f"{number}.safetensors")
    assert not same(tmp_path / "0.safetensors", tmp_path / "1.safetensors")
    for name, accuracy, seconds in (("a", 0.5, 1), ("b", 0.5, 2), ("c", 0.75, 1)):
        content = {"accuracy": accuracy, "provenance": {"seconds": seconds}}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert same(tmp_path / "a.json", tmp_path / "b.json")
    assert not same(tmp_path / "a.json", tmp_path / "c.json")


def test_a_seed_makes_the_same_mistakes_again_and_another_seed_others():
    first, again, other = (list(mutations(TINY, random.Random(s), 64)) for s in (1, 1, 2))
    assert first == again != other
    assert len({content for _, content in first}) > 50


@pytest.mark.parametrize(
    ("file", "error", "counts"),
    [
        ("kdsteps/__init__.py", "KeyboardInterrupt", False),
        ("kdsteps/__init__.py", "ImportError", True),
        ("kdsteps/__main__.py", "KeyboardInterrupt", True),
        ("workflow/Snakefile", "KeyboardInterrupt", True),
    ],
)
def test_an_interrupt_before_anything_begins_is_no_failure(file: str, error: str, counts: bool):
    said = (
        "Traceback (most recent call last):\n"
        f'  File "/study/{file}", line 5, in <module>\n    import typing\n\n{error}\nlater lines\n'
    )
    assert bool(last_traceback(said)) == counts
