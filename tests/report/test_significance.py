"""The paired bootstrap, against cases whose answer is known."""

import math

import numpy as np
import pytest

from peft_smop.report import holm, paired_bootstrap


def outcomes(right, *, seed=0, label=1):
    """Predictions of a two-label task: right or wrong by example."""
    return {(seed, str(i)): (label, label if r else 1 - label) for i, r in enumerate(right)}


def test_equal_predictions_differ_by_nothing_and_are_never_significant():
    same = outcomes([True, False] * 20)
    found = paired_bootstrap(same, same, metric="accuracy", labels=2)
    assert (found.points, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert found.words == "not significant"


def test_gains_that_cancel_over_seeds_are_exactly_nothing():
    # sevenths: two examples more with one seed, and one less with each of two others
    gains = ([0, 1], [], []), ([], [0], [1])
    one, two = (
        {
            (seed, str(i)): (1, int(i in right))
            for seed, right in enumerate(rights)
            for i in range(7)
        }
        for rights in reversed(gains)
    )
    found = paired_bootstrap(one, two, metric="accuracy", labels=2)
    assert (found.points, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_one_example_of_fifty_six_is_not_significant():
    # CB: the other method has one example more
    one, two = [True] * 40 + [False] * 16, [True] * 41 + [False] * 15
    found = paired_bootstrap(outcomes(one), outcomes(two), metric="accuracy", labels=2)
    assert found.points == pytest.approx(100 / 56)
    # without that one example in the draw, (1 - 1/56) ** 56 = 36.5 %, there is no difference
    assert found.p == pytest.approx(2 * (1 - 1 / 56) ** 56, abs=0.03)
    assert found.words == "not significant"


def test_the_interval_is_the_normal_one_where_there_are_many_examples():
    generator = np.random.default_rng(0)
    one, two = generator.random(2000) < 0.6, generator.random(2000) < 0.7
    found = paired_bootstrap(outcomes(one), outcomes(two), metric="accuracy", labels=2)
    gain = two.astype(float) - one
    width = 1.96 * gain.std() / math.sqrt(2000) * 100
    assert found.points == pytest.approx(100 * gain.mean())
    assert found.low == pytest.approx(found.points - width, abs=0.2)
    assert found.high == pytest.approx(found.points + width, abs=0.2)
    assert found.words == "better"
    back = paired_bootstrap(outcomes(two), outcomes(one), metric="accuracy", labels=2)
    assert back.words == "worse"


def test_seeds_of_one_example_are_drawn_together():
    """Ten copies of the same predictions are no more evidence than one."""
    generator = np.random.default_rng(1)
    one, two = generator.random(100) < 0.6, generator.random(100) < 0.7

    def copies(right, count):
        return {key: v for s in range(count) for key, v in outcomes(right, seed=s).items()}

    single = paired_bootstrap(copies(one, 1), copies(two, 1), metric="accuracy", labels=2)
    ten = paired_bootstrap(copies(one, 10), copies(two, 10), metric="accuracy", labels=2)
    assert (ten.points, ten.low, ten.high, ten.p) == pytest.approx(
        (single.points, single.low, single.high, single.p)
    )


def test_other_metrics_are_resampled_as_they_are_defined():
    # F1 of label 1: one finds 1 of 2, with no false alarm (2/3); the other both (1)
    truth = [1, 1, 0, 0] * 10
    one = {(0, str(i)): (y, int(y and i % 4 == 0)) for i, y in enumerate(truth)}
    two = {(0, str(i)): (y, y) for i, y in enumerate(truth)}
    found = paired_bootstrap(one, two, metric="f1", labels=2)
    assert found.points == pytest.approx(100 * (1 - 2 / 3))
    assert found.words == "better"


def test_the_difference_is_the_mean_over_seeds_of_each_seed_s_metric():
    """Pooling F1 over seeds would weigh a seed by its positive predictions."""
    truth = [1, 1, 0, 0]
    predicted = {
        0: ([1, 1, 1, 1], [1, 1, 0, 0]),  # F1 2/3 -> 1
        1: ([1, 0, 0, 0], [0, 0, 0, 1]),  # F1 2/3 -> 0
    }
    one, two = (
        {(s, str(i)): (truth[i], predicted[s][which][i]) for s in predicted for i in range(4)}
        for which in (0, 1)
    )
    found = paired_bootstrap(one, two, metric="f1", labels=2)
    assert found.points == pytest.approx(100 * ((1 - 2 / 3) + (0 - 2 / 3)) / 2)


def test_methods_without_a_common_example_cannot_be_compared():
    with pytest.raises(ValueError, match="share no test example"):
        paired_bootstrap(
            outcomes([True], seed=0), outcomes([True], seed=1), metric="accuracy", labels=2
        )


def test_holm_s_correction_by_hand():
    # sorted 0.01, 0.02, 0.04: times 3, 2, 1 -> 0.03, 0.04, 0.04
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
