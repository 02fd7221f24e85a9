"""Scores worked out by hand."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from peft_smop.scoring import compute, majority_label, score


def test_accuracy_with_its_majority_line_and_what_one_example_is_worth():
    # 3 of 4 right; the training data's most common label, 1, would be right once
    found = score("accuracy", [0, 0, 1, 2], [0, 0, 1, 1], labels=3, majority_label=1)
    assert found.value == 75.0
    assert found.majority == 25.0
    assert found.examples == 4
    assert found.points_per_example == 25.0
    assert set(found.others) == {"macro_f1"}
    # class 0: 1; class 1: precision 1/2, recall 1: 2/3; class 2: 0
    assert found.others["macro_f1"] == pytest.approx(100 * (1 + 2 / 3 + 0) / 3)


def test_f1_is_that_of_the_last_label_over_all_rows():
    # positives: truth 3, predicted 2, both 2: precision 1, recall 2/3
    found = score("f1", [1, 1, 1, 0], [1, 1, 0, 0], labels=2, majority_label=0)
    assert found.value == pytest.approx(80.0)
    assert found.majority == 0.0
    assert found.others["accuracy"] == 75.0


def test_the_interval_holds_the_score_is_seeded_and_narrows_with_more_examples():
    few = score("accuracy", [0, 1] * 10, [0, 0] * 10, labels=2, majority_label=0)
    many = score("accuracy", [0, 1] * 500, [0, 0] * 500, labels=2, majority_label=0)
    assert few.low < 50 < few.high
    assert many.high - many.low < few.high - few.low
    # binomial: 1.96 * sqrt(0.25 / 1000) = 3.1 points to each side
    assert many.high - many.low == pytest.approx(6.2, abs=0.8)
    assert few == score("accuracy", [0, 1] * 10, [0, 0] * 10, labels=2, majority_label=0)


def test_the_majority_label_is_the_most_common_and_the_first_among_equals():
    assert majority_label([1, 1, 0, None]) == 1
    assert majority_label([1, 0]) == 0


@pytest.mark.parametrize(
    ("metric", "labels"),
    [("accuracy", 2), ("accuracy", 9), ("f1", 2), ("macro_f1", 2), ("macro_f1", 9)],
)
def test_metrics_of_samples_are_scikit_learn_s_of_the_rows_drawn(metric, labels):
    generator = np.random.default_rng(labels)
    n = 12  # few, so that some samples lack a label altogether
    truth, predicted = generator.integers(0, labels, n), generator.integers(0, labels, n)
    rows = [np.arange(n), *(generator.integers(0, n, n) for _ in range(50)), np.zeros(n, int)]
    weights = np.stack([np.bincount(own, minlength=n) for own in rows]).astype(np.float32)
    expected = {
        "accuracy": accuracy_score,
        "f1": lambda y, z: f1_score(y, z, pos_label=1, zero_division=0.0),
        "macro_f1": lambda y, z: f1_score(
            y, z, labels=range(labels), average="macro", zero_division=0.0
        ),
    }[metric]
    found = compute(metric, truth, predicted, labels, weights=weights)
    assert found == pytest.approx([expected(truth[own], predicted[own]) for own in rows])
    assert compute(metric, truth, predicted, labels).item() == pytest.approx(found[0])
