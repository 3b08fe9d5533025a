"""What came out, in words: who won, by how much, and whether that is more than noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kdsteps.evaluation.statistics import ROUNDING, Difference, paired
from kdsteps.report.formats import decimals, listed, p_value, percent, plural, points, with_sign
from kdsteps.report.tables import Comparison, MethodRow, PairTable

Mood = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Finding:
    """The verdict on one pair.

    Attributes:
        headline: Who won and by how much.
        answer: Whether that is more than noise, in a few words.
        mood: How the answer is coloured.
        sentences: What it rests on.
    """

    headline: str
    answer: str
    mood: Mood
    sentences: list[str]


def verdict(table: PairTable) -> Finding:
    """The verdict on one pair; losing methods are named as plainly as the winner."""
    answer, mood = _answer(table)
    sentences = [_against(table, table.best, word) for word in table.best.versus]
    sentences += [*_runner_up(table), *_behind(table), *_power(table), _resolution(table)]
    return Finding(_headline(table), answer, mood, sentences)


def outcome(comparison: Comparison) -> str:
    """A verdict in the words of the tables."""
    return {
        "better": "better",
        "worse": "worse",
        "undecided": "not decided",
        "equal": "equal",
        "single": "single run",
    }[comparison.verdict]


def _headline(table: PairTable) -> str:
    digits, best = decimals(table.num_images), table.best
    reached = with_sign(best.accuracy.mean, digits)
    if len(table.rows) == 1:
        return f"{best.method} reached {reached}"
    tied = [row for row in table.rows if best.accuracy.mean - row.accuracy.mean < ROUNDING]
    if len(tied) > 1:
        return f"{listed([row.method for row in tied])} tie at {reached}"
    if best.method == table.references.get("labels"):
        return f"No method beat the labels alone, which reach {reached}"
    if not best.versus:
        return f"{best.method} won with {reached}"
    word, comparison = next(iter(best.versus.items()))
    gain = points(comparison.difference.mean, digits).removeprefix("+")
    return f"{best.method} won with {reached}, {gain} points above {table.references[word]}"


def _answer(table: PairTable) -> tuple[str, Mood]:
    best = table.best
    if best.accuracy.count == 1:
        return "One seed: a single run cannot be told from noise", "undecided"
    if not best.versus:
        return "Nothing to compare with", "undecided"
    word, comparison = next(iter(best.versus.items()))
    found, seeds = comparison.verdict, plural(comparison.difference.count, "seed")
    name = table.references[word]
    if found == "better":
        return f"More than noise: better than {name} over {seeds}", "better"
    if found == "worse":  # paired seeds can differ from all seeds
        return f"Worse than {name} on the seeds both have", "worse"
    if found == "single":
        return f"Only one seed in common with {name}: no telling from noise", "undecided"
    return f"Not shown to be more than noise over {seeds}", "undecided"


def _against(table: PairTable, row: MethodRow, word: str) -> str:
    comparison, name = row.versus[word], table.references[word]
    found, digits = comparison.difference, decimals(table.num_images)
    start = f"{row.method} against {name}: {points(found.mean, digits)} points"
    if found.count == 1:
        return f"{start} on one seed, a single run each, so there is no interval."
    over = f"paired over {plural(found.count, 'seed')}"
    if found.p is None:
        return f"{start} in every one of {found.count} seeds; without spread there is no test."
    tests = sum(
        word in each.versus and each.versus[word].p_adjusted is not None for each in table.rows
    )
    corrected = f" after Holm’s correction for {tests} comparisons" if tests > 1 else ""
    return f"{start}, {_interval(found, table)}, p {_is(comparison.p_adjusted)}{corrected}, {over}."


def _runner_up(table: PairTable) -> list[str]:
    """The second best, where it is not one of the references already spoken of."""
    if len(table.rows) < 2 or table.rows[1].method in table.references.values():
        return []
    best, second = table.rows[:2]
    found = paired(best.values, second.values, table.confidence, 1 / table.num_images)
    if found is None or found.mean < ROUNDING:
        return []
    behind = points(found.mean, decimals(table.num_images)).removeprefix("+")
    start = f"The runner-up, {second.method}, lies {behind}"
    if found.p is None:
        return [f"{start} points behind."]
    tested = f"{_interval(found, table)}, p {_is(found.p)}"
    return [f"{start} points behind ({tested}; not corrected, although picked by results)."]


def _behind(table: PairTable) -> list[str]:
    """Every method that fell behind a reference."""
    sentences, digits = [], decimals(table.num_images)
    for word, name in table.references.items():
        there = [(row.method, row.versus[word]) for row in table.rows if word in row.versus]
        lost = [
            f"{method} ({points(found.difference.mean, digits)}, {_certainty(found)})"
            for method, found in there
            if found.difference.mean < -ROUNDING
        ]
        if lost:
            sentences.append(f"Behind {name}: {listed(lost)}.")
    return sentences


def _certainty(comparison: Comparison) -> str:
    return {
        "worse": "more than noise",
        "single": "a single run",
    }.get(comparison.verdict, "may be noise")


def _power(table: PairTable) -> list[str]:
    digits = decimals(table.num_images)
    if len(table.rows) > 1 and table.best.accuracy.count == 1:
        return ["With one seed no gain can be told from noise; three seeds are a beginning."]
    for word, found in table.power.items():
        least = percent(found.gain, digits)
        sentence = (
            f"With {plural(found.seeds, 'seed')} a gain under {least} points over "
            f"{table.references[word]} cannot be told from noise here"
        )
        if found.gain <= 0.01:
            return [f"{sentence}."]
        if found.seeds_for_point is None:
            return [f"{sentence}; one point would take over 1,000 seeds."]
        return [f"{sentence}; one point would take {found.seeds_for_point} seeds."]
    return []


def _resolution(table: PairTable) -> str:
    worth = percent(1 / table.num_images, 2)
    return f"There are {table.num_images:,} test images; one of them is worth {worth} points."


def _interval(found: Difference, table: PairTable) -> str:
    digits = decimals(table.num_images)
    sure = f"{100 * table.confidence:g}\u00a0%"
    return f"{sure} interval {points(found.low, digits)} to {points(found.high, digits)}"


def _is(p: float | None) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"
