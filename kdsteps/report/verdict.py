"""The result of a pair in words: which method did best, and whether by more than noise."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from kdsteps.evaluation.chance import at_chance
from kdsteps.evaluation.statistics import ROUNDING, Difference, holm, paired
from kdsteps.jobs.words import plural
from kdsteps.report.formats import decimals, listed, p_value, percent, points, with_sign
from kdsteps.report.tables import Comparison, MethodRow, PairTable, verdict_of

Mood = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Finding:
    """The verdict on one pair.

    Attributes:
        headline: No more than the evidence supports: a method "won" only if it is better than
            every other method after correction.
        answer: Whether the difference is more than noise, in a few words.
        mood: The color of the answer.
        sentences: The evidence.
    """

    headline: str
    answer: str
    mood: Mood
    sentences: list[str]


def verdict(table: PairTable) -> Finding:
    """The verdict on one pair; methods that lost are named as clearly as the one that won."""
    if not table.rows:
        return Finding("Every run diverged", "No result", "worse", _diverged(table))
    best, runner_up = table.rows[0], table.rows[1] if len(table.rows) > 1 else None
    answer, mood = _answer(table)
    sentences = [*_diverged(table), *_at_chance(table)]
    sentences += [_against(table, best, word) for word in best.versus]
    if runner_up is not None:
        sentences += _runner_up(table, best, runner_up)
    sentences += [*_behind(table), *_power(table), _resolution(table)]
    return Finding(_headline(table), answer, mood, sentences)


OUTCOMES = {
    "better": "better",
    "worse": "worse",
    "undecided": "not decided",
    "equal": "equal",
    "single": "single run",
}
"""Verdicts in the terms of the tables."""


def beats_all(table: PairTable) -> bool:
    """Whether the best method is better than every other one, each by more than noise."""
    return len(table.rows) > 1 and not _rivals(table)


def _rivals(table: PairTable) -> list[MethodRow]:
    """The methods that the best one is not better than by more than noise, the best first.

    The best method was picked by its results, so Holm's correction is over all pairs of methods.
    A method that diverged for some seeds does not win: its other runs are a selection.
    """
    best, alpha = table.best, 1 - table.confidence
    pairs = list(combinations(table.rows, 2))
    found = [
        paired(one.values, other.values, table.confidence, 1 / table.num_images)
        for one, other in pairs
    ]
    adjusted = holm([difference.p if difference else None for difference in found])
    beaten = [
        other.method
        for (one, other), difference, p in zip(pairs, found, adjusted, strict=True)
        if one is best
        and difference is not None
        and verdict_of(difference, p, alpha, (one.method, other.method), table.diverged) == "better"
    ]
    return [row for row in table.rows[1:] if row.method not in beaten]


def _headline(table: PairTable) -> str:
    best = table.best
    if len(table.rows) == 1:
        return f"{_reached(best, table, 'reached')}"
    whole = [row for row in table.rows if row.method not in table.diverged]
    tied = [row for row in whole if abs(best.accuracy.mean - row.accuracy.mean) < ROUNDING]
    if len(tied) > 1:
        names = listed([row.method for row in tied])
        return f"{'One run each: ' * (table.num_seeds == 1)}{names} tie at {_at(best, table)}"
    if table.num_seeds == 1:
        second = table.rows[1]
        return (
            f"One run each: {_reached(best, table, 'reached')}, "
            f"{second.method} {_at(second, table)}"
        )
    if best.method == table.references.get("labels"):
        methods = "No method without diverged runs" if table.diverged else "No method"
        return f"{methods} did better than {_reached(best, table)}"
    if not best.versus:
        return _without_reference(table)
    word, comparison = next(iter(best.versus.items()))
    reference = table.row(table.references[word])
    if comparison.verdict != "better":
        return f"{_reached(best, table)} and {_reached(reference, table)} cannot be told apart"
    verb = "won" if beats_all(table) else "beat"
    gain = points(comparison.difference.mean, decimals(table.num_images)).removeprefix("+")
    if verb == "won":
        return f"{best.method} won: {_at(best, table)}, {gain} points above {reference.method}"
    return f"{best.method} beat {reference.method} by {gain} points, at {_at(best, table)}"


def _without_reference(table: PairTable) -> str:
    rivals = _rivals(table)
    if not rivals:
        return f"{table.best.method} won: {_at(table.best, table)}"
    return f"{_reached(table.best, table)} and {_reached(rivals[0], table)} cannot be told apart"


def _reached(row: MethodRow, table: PairTable, verb: str = "") -> str:
    """`kd reached 93.1%`, or without a verb `kd (93.1%)`."""
    return f"{row.method} {verb} {_at(row, table)}" if verb else f"{row.method} ({_at(row, table)})"


def _at(row: MethodRow, table: PairTable) -> str:
    return with_sign(row.accuracy.mean, decimals(table.num_images))


def _answer(table: PairTable) -> tuple[str, Mood]:
    best = table.best
    if table.num_seeds == 1:
        return "One seed: a single run cannot be told from noise", "undecided"
    if not best.versus:
        if beats_all(table):
            return "More than noise: better than every other method", "better"
        return "Nothing to compare with" if len(table.rows) == 1 else "Not decided", "undecided"
    word, comparison = next(iter(best.versus.items()))
    found, seeds = comparison.verdict, plural(comparison.difference.count, "seed")
    name = table.references[word]
    if found == "better":
        if best.method == table.references.get("labels"):
            return f"More than noise: {best.method} is better than {name} over {seeds}", "worse"
        if beats_all(table):
            return f"More than noise: better than every other method over {seeds}", "better"
        return f"More than noise: better than {name} over {seeds}", "better"
    if found == "worse":  # paired seeds can differ from all seeds
        return f"Worse than {name} on the seeds that both have", "worse"
    if found == "single":
        return f"Only one seed in common with {name}: cannot be told from noise", "undecided"
    return f"Not shown to be more than noise over {seeds}", "undecided"


def _diverged(table: PairTable) -> list[str]:
    """Which runs are missing from the numbers, and why."""
    if not table.diverged:
        return []
    lost = [
        f"{method} (seed{'' if len(seeds) == 1 else 's'} {listed([str(seed) for seed in seeds])})"
        for method, seeds in table.diverged.items()
    ]
    return [
        f"Diverged: {listed(lost)}. These runs have no numbers. A method’s other runs are then a "
        "selection in its favor: it is listed last and is not called better than another."
    ]


def _at_chance(table: PairTable) -> list[str]:
    """Methods with runs that learned nothing that shows."""
    lowest = {row.method: min(row.values.values()) for row in table.rows}
    found = [
        f"{method} ({with_sign(accuracy, decimals(table.num_images))})"
        for method, accuracy in lowest.items()
        if at_chance(accuracy, table.chance)
    ]
    if not found:
        return []
    return [
        f"At the level of chance ({with_sign(table.chance)}) with at least one seed: "
        f"{listed(found)}. Such a student has not learned to tell the classes apart: look at its "
        "curves, and try another learning rate, weight decay or optimizer."
    ]


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


def _runner_up(table: PairTable, best: MethodRow, second: MethodRow) -> list[str]:
    """The second best, unless it is a reference and already mentioned."""
    if second.method in table.references.values():
        return []
    found = paired(best.values, second.values, table.confidence, 1 / table.num_images)
    if found is None or found.mean < ROUNDING:
        return []
    behind = points(found.mean, decimals(table.num_images)).removeprefix("+")
    start = f"The runner-up, {second.method}, is {behind} points behind"
    if found.p is None:
        return [f"{start}."]
    tested = f"{_interval(found, table)}, p {_is(found.p)}"
    return [f"{start} ({tested}; not corrected, although both were picked by their results)."]


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
    if len(table.rows) > 1 and table.num_seeds == 1:
        return ["With one seed no gain can be told from noise; start with three seeds."]
    for word, found in table.power.items():
        sentence = (
            f"With {plural(found.seeds, 'seed')}, a single comparison detects a true gain of "
            f"{percent(found.gain, digits)} points over {table.references[word]} four times in "
            "five, and a smaller one less often"
        )
        if found.gain <= 0.01:
            return [f"{sentence}."]
        if found.seeds_for_point is None:
            return [f"{sentence}; one point would take over 1,000 seeds."]
        return [f"{sentence}; one point would take {found.seeds_for_point} seeds."]
    return []


def _resolution(table: PairTable) -> str:
    worth = percent(1 / table.num_images, 2)
    return (
        f"There are {table.num_images:,} test images, so one image is {worth} points. Always "
        f"predicting the most common class would give {with_sign(table.chance)}."
    )


def _interval(found: Difference, table: PairTable) -> str:
    digits = decimals(table.num_images)
    sure = f"{100 * table.confidence:g}%"
    return f"{sure} interval {points(found.low, digits)} to {points(found.high, digits)}"


def _is(p: float | None) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"
