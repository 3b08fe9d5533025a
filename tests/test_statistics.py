"""The statistics against scipy, worked examples and their own laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from kdsteps.evaluation.statistics import (
    detectable,
    holm,
    paired,
    power,
    rank_correlation,
    sample,
    seeds_needed,
    typical_spread,
)

OURS = {0: 0.91, 1: 0.93, 2: 0.92, 3: 0.95}
THEIRS = {0: 0.90, 1: 0.90, 2: 0.91, 3: 0.92}


def test_paired_matches_scipy():
    found = paired(OURS, THEIRS)
    expected = stats.ttest_rel(list(OURS.values()), list(THEIRS.values()))
    interval = expected.confidence_interval(0.95)
    assert (found.p, found.low, found.high) == pytest.approx((expected.pvalue, *interval))


def test_paired_matches_an_example_worked_by_hand():
    # differences 1, 3, 1, 3: mean 2, spread 2/sqrt(3), standard error 1/sqrt(3), t = 2 sqrt(3)
    found = paired(OURS, THEIRS)
    assert found.mean == pytest.approx(0.02)
    assert found.spread == pytest.approx(0.02 / math.sqrt(3))
    assert found.effect == pytest.approx(math.sqrt(3))
    assert found.high - found.mean == pytest.approx(3.182446 * 0.01 / math.sqrt(3), rel=1e-6)
    assert found.p == pytest.approx(2 * stats.t.sf(2 * math.sqrt(3), 3))


def test_only_seeds_that_both_have_are_compared():
    assert paired(OURS | {9: 0.1}, THEIRS | {8: 0.99}) == paired(OURS, THEIRS)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_one_seed_has_a_difference_but_no_interval_and_no_p():
    found = paired({0: 0.9}, {0: 0.8})
    assert found.mean == pytest.approx(0.1)
    assert (found.count, found.spread, found.low, found.p, found.effect) == (
        1,
        None,
        None,
        None,
        None,
    )


def test_equal_methods_are_no_discovery():
    found = paired(OURS, OURS)
    assert (found.mean, found.low, found.high, found.p, found.effect) == (0, 0, 0, 1.0, None)


def test_a_constant_difference_claims_no_certainty():
    # 0.1 + 0.2 - 0.2 and the like: the same amount but for rounding, where t would be 1e15
    shifted = {seed: value + 0.01 for seed, value in OURS.items()}
    found = paired(shifted, OURS)
    assert found.mean == pytest.approx(0.01)
    assert (found.spread, found.p, found.low) == (0.0, None, None)


def test_a_constant_difference_has_the_least_spread_that_counting_can_show():
    # 5 of 100 images in each of 3 seeds; the least spread: one seed with 4 or 6, so 0.01 / sqrt(3)
    found = paired({0: 0.95, 1: 0.96, 2: 0.94}, {0: 0.90, 1: 0.91, 2: 0.89}, resolution=0.01)
    assert found.spread == pytest.approx(np.std([0.05, 0.05, 0.06], ddof=1))
    assert found.p == pytest.approx(2 * stats.t.sf(5 * 3, 2))
    # one image in every seed: t is the number of seeds, and three of them are not enough
    found = paired({0: 0.91, 1: 0.92, 2: 0.93}, {0: 0.90, 1: 0.91, 2: 0.92}, resolution=0.01)
    assert found.p == pytest.approx(2 * stats.t.sf(3, 2))
    assert found.low < 0 < found.high


def test_a_resolution_changes_nothing_where_seeds_differ():
    assert paired(OURS, THEIRS, resolution=0.01) == paired(OURS, THEIRS)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [sample(rng.normal(1.0, 2.0, size=4), 0.9) for _ in range(2000)]
    covered = np.mean([each.low < 1.0 < each.high for each in found])
    assert covered == pytest.approx(0.9, abs=3 * math.sqrt(0.9 * 0.1 / 2000))


def test_sample_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no values"):
        sample([])


def test_holm_matches_an_example_worked_by_hand():
    # sorted 0.01, 0.02, 0.03 times 3, 2, 1 gives 0.03, 0.04, 0.03; the last is lifted to 0.04
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])


def test_holm_leaves_out_tests_that_could_not_be_made():
    assert holm([None, 0.02, None, 0.5]) == [None, pytest.approx(0.04), None, pytest.approx(0.5)]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_lies_between_single_tests_and_bonferroni():
    p_values = np.random.default_rng(1).uniform(size=12).tolist()
    for raw, adjusted in zip(p_values, holm(p_values), strict=True):
        assert raw <= adjusted <= min(1.0, 12 * raw)


def test_power_without_a_difference_is_alpha():
    assert power(0.0, 1.0, 5, alpha=0.05) == pytest.approx(0.05)


def test_power_matches_a_simulation():
    rng = np.random.default_rng(2)
    draws = rng.normal(1.0, 1.0, size=(20_000, 5))
    seen = np.mean(stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05)
    assert power(1.0, 1.0, 5) == pytest.approx(seen, abs=0.012)


@pytest.mark.parametrize("count", [2, 3, 5, 30])
def test_a_detectable_difference_is_seen_four_times_in_five(count):
    gain = detectable(0.3, count)
    assert power(gain, 0.3, count) == pytest.approx(0.8, abs=1e-6)


def test_detectable_matches_the_textbook_at_many_seeds():
    # (1.959964 + 0.841621) / sqrt(n) for large n
    assert detectable(1.0, 10_000) == pytest.approx(2.801585 / 100, rel=1e-3)


def test_nothing_is_detectable_from_one_seed_or_no_spread():
    assert detectable(None, 3) is None
    assert detectable(0.0, 3) is None
    assert detectable(0.3, 1) is None


def test_seeds_needed_is_the_first_count_that_suffices():
    count = seeds_needed(0.01, 0.012)
    assert power(0.01, 0.012, count) >= 0.8 > power(0.01, 0.012, count - 1)
    assert seeds_needed(1e-6, 1.0) is None
    assert seeds_needed(0.01, None) is None


def test_one_erratic_method_does_not_set_the_typical_spread():
    assert typical_spread([0.3, None, 0.4, 90.0]) == 0.4
    assert typical_spread([None]) is None


def test_rank_correlation_knows_order_and_says_nothing_of_flat_numbers():
    assert rank_correlation([1, 2, 3, 4], [10, 100, 1000, 10_000]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)  # 1 - 6*4/(4*15)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    assert rank_correlation([1, 2], [1, 2]) is None


@pytest.mark.parametrize("alpha", [1e-7, 0.8, 0.95])
def test_at_absurd_levels_nothing_is_said_about_what_can_be_detected(alpha):
    assert detectable(0.01, 2, alpha) is None
