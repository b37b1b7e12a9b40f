"""Intervals and exact tests against published values and SciPy's own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luigi_tasks.gate.statistics import (
    at_least,
    at_most,
    effective_size,
    find_growth,
    highest_difference,
    sign_test,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("right", "size", "low", "high"),
    [
        # Newcombe, Two-sided confidence intervals for the single proportion (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_is_the_published_one(right, size, low, high):
    found = wilson_interval(right / size, size)
    assert found[0] == pytest.approx(low, abs=5e-5)
    assert found[1] == pytest.approx(high, abs=5e-5)


@given(st.integers(1, 500), st.data())
def test_wilson_interval_holds_the_share_and_is_widest_in_small_samples(size, data):
    share = data.draw(st.integers(0, size)) / size
    low, high = wilson_interval(share, size)
    assert 0 <= low <= share <= high <= 1
    wide_low, wide_high = wilson_interval(share, size / 2)
    assert wide_low <= low + 1e-12
    assert high <= wide_high + 1e-12


def test_nothing_shown_says_nothing():
    assert wilson_interval(0.0, 0) == (0.0, 1.0)


@given(st.integers(1, 80), st.data())
def test_tails_are_the_sums_of_the_binomial_distribution(size, data):
    count = data.draw(st.integers(0, size))
    probability = data.draw(st.sampled_from([0.05, 0.3, 0.5, 0.9]))
    terms = [math.comb(size, k) * probability**k * (1 - probability) ** (size - k) for k in range(size + 1)]
    assert at_most(count, size, probability) == pytest.approx(sum(terms[: count + 1]), abs=1e-9)
    assert at_least(count, size, probability) == pytest.approx(sum(terms[count:]), abs=1e-9)


def test_tails_of_fractional_counts_lie_between_those_of_whole_ones():
    assert at_least(8, 20, 0.5) > at_least(8.5, 20.5, 0.5) > at_least(9, 20, 0.5)


def test_sign_test_is_mcnemars_exact_test():
    # Both sides together as in SciPy 1.11: stats.binomtest(9, 10).pvalue = 0.021484375.
    assert 2 * sign_test(9, 1) == pytest.approx(0.021484375)
    assert sign_test(0, 0) == 1
    assert sign_test(5, 5) > 0.5


def test_bursts_are_worth_the_number_of_bursts():
    assert effective_size([1] * 12) == 12
    assert effective_size([5] * 12) == 12
    assert effective_size([100, 1, 1]) == pytest.approx(102**2 / 10002)
    assert effective_size([]) == 0


def test_difference_of_paired_shares_is_bounded_as_published():
    # Newcombe 1998 (paired), the square-and-add bound for 10 and 0 of 100: the one Wilson limit alone.
    assert highest_difference(10, 0, 100) == pytest.approx(wilson_interval(0.1, 100, 0.9)[1])
    assert highest_difference(0, 0, 0) == 1


def test_a_large_sample_bounds_a_small_loss():
    assert highest_difference(600, 500, 100_000) * 100 < 0.2
    assert highest_difference(6, 5, 1000) * 100 > 0.5


@pytest.mark.parametrize("needed", [1.0, 3.7, 1000.0])
def test_growth_is_found_to_one_percent(needed):
    assert find_growth(lambda factor: factor >= needed) == pytest.approx(needed, rel=0.011)


def test_growth_without_end_is_none():
    assert find_growth(lambda _: False) is None
