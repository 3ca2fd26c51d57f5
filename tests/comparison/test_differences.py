"""Intervals of differences equal those of SciPy, and noise is called noise."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from semmae.comparison import differences
from semmae.comparison.differences import Difference

A, B = [0.50, 0.54, 0.51], [0.53, 0.58, 0.53]


def groups(a: list[float], b: list[float], *, seeds: tuple[list, list] | None = None, error: float | None = None):
    """Return two settings with one score each."""
    frames = [pd.DataFrame({"knn.a.top1": values}) for values in (a, b)]
    for number, frame in enumerate(frames):
        if seeds:
            frame["pretrain.seed"] = seeds[number]
        if error is not None:
            frame["knn.a.top1_se"] = error
    return dict(zip("ab", frames, strict=True))


def compare(*args, **options) -> Difference:
    [difference] = differences.compute(groups(*args, **options), "knn.a.top1", "a")
    return difference


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_runs_with_equal_seeds_are_paired_in_any_order(order: list[int]):
    found = compare(A, [B[i] for i in order], seeds=([0, 1, 2], order))
    interval = stats.ttest_rel(B, A).confidence_interval(0.95)
    assert (found.value - found.margin, found.value + found.margin) == pytest.approx((interval.low, interval.high))
    assert found.method == "paired over 3 seeds"
    assert found.verdict == "higher"


@pytest.mark.parametrize("seeds", [None, ([0, 1, 2], [3, 4, 5]), ([0, 0, 1], [0, 1, 2])])
def test_runs_without_common_seeds_have_the_interval_of_welch(seeds: tuple[list, list] | None):
    found = compare(A, B, seeds=seeds)
    interval = stats.ttest_ind(B, A, equal_var=False).confidence_interval(0.95)
    assert (found.value - found.margin, found.value + found.margin) == pytest.approx((interval.low, interval.high))
    assert found.verdict == "noise"


def test_a_single_run_is_compared_with_several_by_their_common_variance():
    found = compare(A, [0.7])
    assert found.margin == pytest.approx(stats.t.ppf(0.975, 2) * np.std(A, ddof=1) * math.sqrt(4 / 3))


def test_a_difference_within_the_sampling_error_of_a_single_run_is_noise():
    found = compare([0.500, 0.501], [0.53], error=0.02)
    assert found.margin == pytest.approx(1.959964 * 0.02 * math.sqrt(2))
    assert found.verdict == "noise"
    assert compare([0.500, 0.501], [0.53], error=0.001).verdict == "higher"


def test_two_single_runs_have_the_sampling_errors_of_their_scores():
    found = compare([0.50], [0.53], error=0.02)
    assert found.margin == pytest.approx(1.959964 * 0.02 * math.sqrt(2))
    assert found.verdict == "noise"
    assert found.sentence().startswith(
        "The difference between b and a is noise: +0.030, 95 % interval -0.025 to +0.085"
    )
    assert compare([0.60], [0.50], error=0.02).verdict == "lower"


def test_without_any_error_the_verdict_is_unknown():
    found = compare([0.5], [0.9])
    assert (found.margin, found.verdict, found.interval) == (None, "unknown", "-")
    assert "its error is unknown" in found.sentence()


def test_a_setting_without_the_score_is_left_out():
    assert differences.compute(groups([0.5, 0.6], [math.nan, math.nan]), "knn.a.top1", "a") == []


def test_the_interval_contains_the_true_difference_in_95_of_100_cases():
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        seed_effect = random.normal(0, 0.05, 4)  # shared by both settings, as the same seed is
        a, b = (0.5 + seed_effect + random.normal(shift, 0.01, 4) for shift in (0.0, 0.02))
        found = compare(list(a), list(b), seeds=([0, 1, 2, 3], [0, 1, 2, 3]))
        hits += abs(found.value - 0.02) <= found.margin
    assert 0.92 < hits / 400 < 0.98
