"""Figures about returns, by hand."""

import numpy as np
import pytest

from kdmarl_core import metrics
from kdmarl_core.metrics import (
    Interval,
    mean_difference,
    normalised_retention,
    percent,
    standard_error,
)
from kdmarl_core.seeding import derive_seed


def returns(*values):
    return np.array(values, np.float64)


def around(mean, count, seed, spread=2.0):
    return mean + spread * np.random.default_rng(seed).standard_normal(count)


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        ([-10.0, -12.0], 1.0),
        ([-27.0, -25.0], 0.0),
        ([-14.0, -16.0], 11 / 15),
        ([-8.5, -9.0], 1.15),
    ],
)
def test_retention_by_hand(student, expected):
    """(R_student - R_random) / (R_teacher - R_random), teacher -11, random -26."""
    found = normalised_retention(returns(*student), returns(-10, -12), returns(-27, -25))
    assert found.value == pytest.approx(expected)


def test_a_raw_ratio_is_something_else():
    """Negative control: of negative returns the plain quotient would be above one."""
    student, teacher, random = returns(-15, -15), returns(-11, -11), returns(-26, -26)
    found = normalised_retention(student, teacher, random).value
    assert found < 1 < student.mean() / teacher.mean()


def test_the_scale_of_rewards_does_not_matter():
    players = around(-14, 50, 1), around(-11, 50, 2), around(-26, 50, 3)
    plain = normalised_retention(*players)
    scaled = normalised_retention(*(7.0 * values + 100.0 for values in players))
    assert scaled == pytest.approx(plain)


@pytest.mark.parametrize("counts", [(200, 200, 200), (200, 150, 100)], ids=["paired", "unpaired"])
def test_the_interval_contains_the_value_and_shrinks(counts):
    means = (-14.0, -11.0, -26.0)
    few, many = (
        normalised_retention(
            *(around(m, k * c, s) for s, (m, c) in enumerate(zip(means, counts, strict=True)))
        )
        for k in (1, 16)
    )
    for found in (few, many):
        assert found.low < found.value < found.high
        assert found.low < 0.8 < found.high
    assert many.high - many.low < 0.4 * (few.high - few.low)


def test_a_reference_that_is_now_and_then_no_better_than_random_leaves_no_upper_end():
    """Three wins of a thousand: in a twentieth of the draws there is none."""
    won = np.zeros(1000)
    won[:3] = 1.0
    students = np.zeros(1000)
    students[500:504] = 1.0
    found = normalised_retention(students, won, np.zeros(1000))
    assert found.value == pytest.approx(4 / 3)
    assert found.low < 1.0
    assert found.high == np.inf
    assert percent(found) == "133.3% [20.0, inf]"


def test_training_seeds_by_hand():
    """The mean over seeds, whatever the order; one seed is no different from a plain array."""
    teacher, random = returns(-10, -12), returns(-27, -25)
    seeds = [returns(-14, -16), returns(-10, -12), returns(-27, -25)]
    found = normalised_retention(seeds, teacher, random)
    assert found.value == pytest.approx((11 / 15 + 1.0 + 0.0) / 3)
    assert normalised_retention(seeds[::-1], teacher, random).value == pytest.approx(found.value)
    alone = normalised_retention(seeds[:1], teacher, random)
    assert alone.value == pytest.approx(11 / 15)


def test_seeds_that_differ_widen_the_interval():
    """As they do not if each does as well as the others."""
    teacher, random = around(-11, 300, 1), around(-26, 300, 2)
    alike = normalised_retention([around(-14, 300, s) for s in (3, 4, 5)], teacher, random)
    differing = [around(mean, 300, s) for mean, s in ((-11, 3), (-14, 4), (-17, 5))]
    found = normalised_retention(differing, teacher, random)
    assert found.value == pytest.approx(alike.value, abs=0.01)
    # 1.0, 0.8 and 0.6: standard error 0.2 / sqrt(3); Student's t at two degrees of freedom 4.303.
    assert found.high - found.low == pytest.approx(2 * 4.303 * 0.2 / np.sqrt(3), rel=0.05)
    assert alike.high - alike.low < 0.25 * (found.high - found.low)


def test_pairing_takes_out_what_episodes_have_in_common():
    """Hard episodes are hard for everyone: drawn together, they hardly widen the interval."""
    hardness = around(0, 300, 9, spread=5.0)
    players = [mean + hardness for mean in (-14.0, -11.0, -26.0)]
    paired = normalised_retention(*players)
    unpaired = normalised_retention(players[0], players[1][:-1], players[2])
    assert paired.high - paired.low < 0.01
    assert unpaired.high - unpaired.low > 0.02


def test_the_interval_is_the_same_each_time():
    players = around(-14, 30, 1), around(-11, 30, 2), around(-26, 30, 3)
    assert normalised_retention(*players) == normalised_retention(*players)


def test_the_interval_holds_the_truth_as_often_as_it_says(monkeypatch):
    """95 of 100, give or take: binomial with p = 0.95 has a standard deviation of 2.2."""
    monkeypatch.setattr(metrics, "BOOTSTRAP_DRAWS", 400)
    hits = 0
    for trial in range(100):
        seeds = 3 * trial + np.arange(3)
        players = [around(m, 40, s) for m, s in zip((-14.0, -11.0, -26.0), seeds, strict=True)]
        found = normalised_retention(*players, seed=trial)
        hits += found.low <= 0.8 <= found.high
    assert hits >= 87


def test_the_interval_over_three_trainings_holds_the_truth_as_often_as_it_says(monkeypatch):
    """So does that of a difference; a bootstrap of three seeds holds it in 81 of 100."""
    monkeypatch.setattr(metrics, "BOOTSTRAP_DRAWS", 100)
    rng = np.random.default_rng(0)
    teacher, random = np.full(40, -11.0), np.full(40, -26.0)
    kept = differ = 0
    for trial in range(300):
        ones, others = (
            [around(rng.normal(-14.0, 1.0), 40, rng.integers(2**31)) for _ in range(3)]
            for _ in range(2)
        )
        found = normalised_retention(ones, teacher, random, seed=trial)
        kept += found.low <= 0.8 <= found.high
        found = mean_difference(ones, others, seed=trial)
        differ += found.low <= 0.0 <= found.high
    assert kept >= 274  # 285, give or take: a standard deviation is 3.8
    assert differ >= 274


def test_a_difference_of_trainings_by_hand():
    """Means 1, 3 and 0, 2: standard error sqrt(2/2 + 2/2), two degrees of freedom."""
    ones, others = ([np.full(5, value) for value in values] for values in ((1.0, 3.0), (0.0, 2.0)))
    half = 4.303 * np.sqrt(2)
    found = mean_difference(ones, others)
    assert found == pytest.approx(Interval(1.0, 1.0 - half, 1.0 + half), rel=1e-3)
    # Of one training each only episodes are known to differ, and these do not.
    assert mean_difference(ones[:1], others[:1]) == Interval(1.0, 1.0, 1.0)


@pytest.mark.parametrize(("values", "expected"), [([5.0], 0.0), ([1.0, 3.0], 1.0), ([2.0] * 9, 0)])
def test_standard_error_by_hand(values, expected):
    assert standard_error(returns(*values)) == pytest.approx(expected)


def test_derived_seeds():
    seeds = {derive_seed(base, index) for base in range(30) for index in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert derive_seed(1, 2) == derive_seed(1, 2) != derive_seed(2, 1)


def test_nothing_can_be_kept_of_a_teacher_that_is_as_good_as_random():
    same = np.zeros(5)
    assert normalised_retention(np.ones(5), same, same) is None
    assert percent(None) == "undefined"
    assert percent(Interval(0.5, 0.251, 0.75)) == "50.0% [25.1, 75.0]"
