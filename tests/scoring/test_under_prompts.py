"""Which prompts a mixture is no worse without, counted by hand."""

import numpy as np
import pytest
import torch

from peft_smop.scoring import UnderPrompts, better_router, under_prompts, worth_keeping
from peft_smop.tuner.refit import JudgedRows


@pytest.fixture(autouse=True)
def _few_are_enough(monkeypatch):
    monkeypatch.setattr(under_prompts, "LEAST_EXAMPLES", 0)


def made(losses, router):
    """Two labels, of which the first is true, with these losses (k, n) and logits (n, k)."""
    right = torch.exp(-torch.tensor(losses, dtype=torch.float64))
    likely = torch.stack([right, 1 - right], dim=-1).log()
    router = torch.tensor(router, dtype=torch.float64)
    truth = np.zeros(likely.shape[1], dtype=np.int64)
    whole = UnderPrompts(truth, truth, truth, likely, router, torch.eye(len(router)))
    return whole.keeping(range(len(losses)))


def test_a_prompt_goes_whose_rows_fare_better_with_the_router_s_next():
    # rows 0 and 1 are sent to prompt 0, row 2 to prompt 1, row 3 to prompt 2
    router = [[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0]]
    # without 0: rows 0 and 1 by prompt 1, 0.1 + 0.1 for 0.9 + 0.3; without 1: 2.0 for 0.2;
    # without 2: 1.5 for 0.1
    losses = [[0.9, 0.3, 3.0, 3.0], [0.1, 0.1, 0.2, 1.5], [3.0, 3.0, 2.0, 0.1]]
    found = made(losses, router)
    assert found.routes.tolist() == [0, 0, 1, 2]
    assert worth_keeping(found) == [1, 2]
    less = found.keeping([1, 2])
    assert less.routes.tolist() == [0, 0, 0, 1]
    own = less.losses[less.routes, torch.arange(4)].tolist()
    assert own == pytest.approx([0.1, 0.1, 0.2, 0.1])


def test_a_prompt_that_gets_no_row_goes_and_one_that_is_needed_stays():
    router = [[3.0, 2.0, 1.0], [2.0, 3.0, 1.0], [2.0, 3.0, 1.0]]
    losses = [[0.1, 2.0, 2.0], [2.0, 0.1, 0.1], [0.0, 0.0, 0.0]]
    assert worth_keeping(made(losses, router)) == [0, 1]  # the third is best, and never chosen


def test_two_stay_though_one_would_do():
    losses = [[0.1, 0.1], [0.5, 0.5], [0.6, 0.6]]
    found = made(losses, [[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]])
    assert worth_keeping(found) == [0, 1]


def test_losses_without_end_are_compared_too():
    losses = [[np.inf, np.inf], [0.5, np.inf], [0.1, np.inf]]
    found = made(losses, [[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert worth_keeping(found) == [1, 2]


def test_losses_that_are_no_number_are_the_worst_there_are():
    found = made([[0.1, 0.1], [np.nan, np.nan], [0.2, 0.3]], [[3.0, 2.0, 1.0], [1.0, 3.0, 2.0]])
    assert worth_keeping(found) == [0, 2]


def test_of_few_examples_to_a_prompt_nothing_is_taken(monkeypatch):
    monkeypatch.setattr(under_prompts, "LEAST_EXAMPLES", 10)
    losses = [[0.1] * 29, [0.5] * 29, [0.6] * 29]
    assert worth_keeping(made(losses, [[3.0, 2.0, 1.0]] * 29)) == [0, 1, 2]
    losses = [[0.1] * 30, [0.5] * 30, [0.6] * 30]
    assert worth_keeping(made(losses, [[3.0, 2.0, 1.0]] * 30)) == [0, 2]


def test_a_router_is_another_s_only_where_the_examples_losses_are_less():
    # rows are their own features: two kinds, each right under a prompt of its own
    losses = [[0.1, 0.1, 3.0, 3.0], [3.0, 3.0, 0.1, 0.1]]
    wrong = made(losses, [[0.0, 1.0]] * 4)
    share = torch.softmax(-torch.tensor(losses, dtype=torch.float64), dim=0).T
    better, matrix = better_router(wrong, JudgedRows(torch.eye(4), share))
    assert better.routes.tolist() == [0, 0, 1, 1]
    assert (wrong.inputs @ matrix).argmax(dim=1).tolist() == [0, 0, 1, 1]
    assert better.loss == pytest.approx(0.1)
    assert wrong.loss == pytest.approx((3 + 3 + 0.1 + 0.1) / 4)
    assert better_router(better, JudgedRows(torch.eye(4), share)) is None
