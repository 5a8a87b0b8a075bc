"""Medians, spreads and intervals, against what is known of them."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import Estimate, UsageError
from sandbox.estimates import median_rank
from tests.support import known

pytestmark = pytest.mark.unprivileged

numbers = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=60)


@pytest.mark.parametrize(("count", "rank"), [(1, 0), (5, 0), (6, 1), (9, 2), (10, 2), (20, 6), (30, 10), (100, 40)])
def test_ranks_are_those_of_the_sign_tests_tables(count: int, rank: int):
    reached = 1 - 2 * sum(math.comb(count, heads) for heads in range(rank)) / 2**count if rank else None
    assert median_rank(count, 0.95) == (rank, reached)
    assert reached is None or reached >= 0.95
    narrower = 1 - 2 * sum(math.comb(count, heads) for heads in range(rank + 1)) / 2**count
    assert narrower < 0.95, "a narrower interval would do"


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_the_normal_distribution_goes_on_where_the_binomial_one_is_left(confidence: float):
    exact, beyond = median_rank(1000, confidence), median_rank(1001, confidence)
    assert abs(exact[0] - beyond[0]) <= 1
    assert beyond[1] == pytest.approx(confidence, abs=0.02)


def test_the_interval_holds_the_true_median_as_often_as_it_says():
    rng, truth = random.Random(1), math.log(2)  # a skewed distribution: the exponential one
    found = [Estimate.of([rng.expovariate(1.0) for _ in range(30)]) for _ in range(2000)]
    hits = sum(known(e.low) <= truth <= known(e.high) for e in found)
    # 95.7 % is promised by these ranks; 3 standard deviations of 2,000 trials are 1.4 %.
    assert 0.943 < hits / 2000 < 0.971


@given(numbers)
def test_figures_are_those_of_the_statistics_module_and_in_order(values: list[float]):
    e = Estimate.of(values)
    assert (e.count, e.median, e.min, e.max) == (len(values), statistics.median(values), min(values), max(values))
    assert e.min <= e.q1 <= e.median <= e.q3 <= e.max
    assert e.mad == statistics.median(abs(value - e.median) for value in values)
    assert (e.stdev is None) == (len(values) == 1)
    if e.low is None or e.high is None or e.confidence is None:
        assert len(values) < 6
    else:
        assert e.min <= e.low <= e.median <= e.high <= e.max
        assert e.confidence >= 0.95


def test_spread_is_a_share_of_the_median():
    assert Estimate.of([8, 9, 10, 11, 12]).spread == pytest.approx(0.2)
    assert Estimate.of([0, 0, 0]).spread is None


@pytest.mark.parametrize("values", [[], [math.nan], [1, math.inf]])
def test_what_has_no_median_is_refused(values: list[float]):
    with pytest.raises(UsageError, match="finite"):
        Estimate.of(values)


@pytest.mark.parametrize("confidence", [0, 0.4, 1, 95, True, "0.95"])
def test_what_is_no_confidence_is_refused(confidence: object):
    with pytest.raises(UsageError, match="confidence"):
        Estimate.of([1.0], confidence=confidence)
