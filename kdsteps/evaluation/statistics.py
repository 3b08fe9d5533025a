"""Whether a difference between methods is more than noise: pairs by seed, intervals, corrections.

With the same seed two methods have the same initial student and the same order of images, so they
are compared by their differences within each seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

ROUNDING = 1e-12  # fractions that differ by less are equal, computed in another order
FARTHEST = 1e5  # t quantile from which on scipy's noncentral t takes minutes, and is wrong


@dataclass(frozen=True)
class Sample:
    """Summary of the numbers of several seeds.

    Attributes:
        count: Number of seeds.
        mean: Their mean.
        spread: Their standard deviation, with n - 1; None for a single seed.
        low: Lower end of the t interval of the mean; None where there is no spread.
        high: Upper end of that interval.
    """

    count: int
    mean: float
    spread: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference(Sample):
    """The difference of two methods, seed by seed.

    Attributes:
        p: Of the two-sided paired t-test; None for a single seed, and where all seeds differ by
            exactly the same amount and no resolution bounds their spread from below.
        effect: Cohen's d_z, the mean in units of the spread; None where there is no spread.
    """

    p: float | None
    effect: float | None


def sample(values: Sequence[float], confidence: float = 0.95) -> Sample:
    """Mean, spread and t interval of the numbers of several seeds.

    Raises:
        ValueError: There are no values.
    """
    if not len(values):
        raise ValueError("no values to summarize")
    count, mean = len(values), float(np.mean(values))
    if count == 1:
        return Sample(1, mean, None, None, None)
    spread = _spread(values)
    half = _half_width(spread, count, confidence)
    return Sample(count, mean, spread, mean - half, mean + half)


def paired(
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    confidence: float = 0.95,
    resolution: float = 0.0,
) -> Difference | None:
    """Compare `ours` with `theirs` over the seeds that both have; None if there are none.

    Args:
        ours: {seed: value}.
        theirs: {seed: value}.
        confidence: Of the interval, above 0 and below 1.
        resolution: The step between possible values, such as 1 / N for a fraction of N images.
            If all seeds differ by exactly the same amount, a t-test would claim certainty; their
            spread is then the smallest that such steps can show, one step in one seed.
    """
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    found = sample([ours[seed] - theirs[seed] for seed in seeds], confidence)
    if found.spread is None:
        return Difference(1, found.mean, None, None, None, None, None)
    if abs(found.mean) < ROUNDING and found.spread == 0:
        return Difference(found.count, 0.0, 0.0, 0.0, 0.0, 1.0, None)
    spread = found.spread or resolution / math.sqrt(found.count)
    if spread == 0:
        return Difference(found.count, found.mean, 0.0, None, None, None, None)
    half = _half_width(spread, found.count, confidence)
    low, high, effect = found.mean - half, found.mean + half, found.mean / spread
    p = 2 * float(special.stdtr(found.count - 1, -abs(effect) * math.sqrt(found.count)))
    return Difference(found.count, found.mean, spread, low, high, p, effect)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values for the number of tests.

    None, a test that could not be made, stays None and does not count.

    Source: Holm 1979, Scandinavian Journal of Statistics 6, pages 65 to 70.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = largest
    return adjusted


def typical_spread(spreads: Sequence[float | None]) -> float | None:
    """The median of several standard deviations, which one erratic method barely changes."""
    known = [spread for spread in spreads if spread is not None]
    return float(np.median(known)) if known else None


def power(gain: float, spread: float, count: int, alpha: float = 0.05) -> float:
    """Probability that a two-sided paired t-test detects a true mean difference of `gain`."""
    freedom = count - 1
    edge = _quantile(1 - alpha / 2, freedom)
    shift = gain / spread * math.sqrt(count)
    tails = [special.nctdtr(freedom, side * shift, -edge) for side in (-1, 1)]
    return float(np.nan_to_num(tails).sum())


def detectable(
    spread: float | None, count: int, alpha: float = 0.05, wanted: float = 0.8
) -> float | None:
    """The smallest true difference that a paired t-test detects with probability `wanted`.

    Args:
        spread: Standard deviation of the paired differences.
        count: Seeds.

    Returns:
        In the unit of `spread`; None where there is no spread, or only one seed, and for levels at
        which almost everything or almost nothing counts as detected.
    """
    if count < 2 or not spread or alpha >= wanted or _quantile(1 - alpha / 2, count - 1) > FARTHEST:
        return None
    most = 1.0
    while power(most, 1.0, count, alpha) < wanted:
        most *= 2
    ratio = optimize.brentq(lambda gain: power(gain, 1.0, count, alpha) - wanted, 0.0, most)
    return float(ratio) * spread


def seeds_needed(
    gain: float, spread: float | None, alpha: float = 0.05, wanted: float = 0.8, most: int = 1000
) -> int | None:
    """Number of seeds needed to detect a true difference of `gain`; None if over `most`."""
    if not spread or gain <= 0:
        return None
    low, high = 1, 2
    while power(gain, spread, high, alpha) < wanted:
        low, high = high, 2 * high
        if low > most:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if power(gain, spread, middle, alpha) >= wanted else (middle, high)
        )
    return high if high <= most else None


def rank_correlation(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Spearman's rank correlation, -1 to 1; None for under three points or constant values."""
    if len(ours) < 3 or np.ptp(ours) == 0 or np.ptp(theirs) == 0:
        return None
    from scipy import stats  # half a second, which only layer sweeps need

    return float(stats.spearmanr(ours, theirs).statistic)


def _half_width(spread: float, count: int, confidence: float) -> float:
    """Half the width of the t interval of a mean."""
    return _quantile((1 + confidence) / 2, count - 1) * spread / math.sqrt(count)


def _quantile(probability: float, freedom: int) -> float:
    """Of Student's t distribution."""
    return float(special.stdtrit(freedom, probability))


def _spread(values: Sequence[float]) -> float:
    """Standard deviation with n - 1, exactly 0 for values that are equal up to rounding."""
    spread = float(np.std(values, ddof=1))
    return 0.0 if spread < ROUNDING * max(1.0, float(np.max(np.abs(values)))) else spread
