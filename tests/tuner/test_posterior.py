"""Posterior routing: its equations by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from peft_smop import SMoPConfig
from peft_smop.errors import ConfigError
from peft_smop.tuner.noise import row_keys
from peft_smop.tuner.posterior import Posterior
from peft_smop.tuner.routing import RowState
from tiny import KINDS, adapted

LN2, LN3 = math.log(2.0), math.log(3.0)
EVENLY = torch.tensor([0.5, 0.5])


def test_the_posterior_is_the_prior_times_the_likelihood_by_bayes_rule():
    """p = (3/4, 1/4), likelihoods (1/6, 1/2): q = (3/24, 3/24) / (6/24) = (1/2, 1/2)."""
    losses = torch.tensor([[math.log(6.0), LN2], [LN3, LN3]])
    logits = torch.tensor([[LN3, 0.0], [LN3, 0.0]])
    q = Posterior(balance=0.0).posterior(losses, torch.ones(2), logits, EVENLY)
    assert_close(q, torch.tensor([[0.5, 0.5], [0.75, 0.25]]))


def test_an_answer_is_believed_no_more_than_a_few_tokens():
    """Losses of 40 tokens count as 4 of them do: a tenth."""
    losses, zeros = torch.tensor([[10 * LN3, 0.0]]), torch.zeros(1, 2)
    q = Posterior(balance=0.0).posterior(losses, torch.tensor([40.0]), zeros, EVENLY)
    assert_close(q, torch.tensor([[0.25, 0.75]]))
    q = Posterior(balance=0.0).posterior(losses / 10, torch.tensor([3.0]), zeros, EVENLY)
    assert_close(q, torch.tensor([[0.25, 0.75]]))


def test_balance_divides_by_how_much_a_prompt_was_used():
    """Use (1/4, 3/4) is (1/2, 3/2) of an equal one: q ∝ (2, 2/3), or, squared, (4, 4/9)."""
    usage, zeros = torch.tensor([0.25, 0.75]), torch.zeros(1, 2)

    def found(balance, used=usage):
        return Posterior(balance=balance).posterior(zeros, torch.ones(1), zeros, used)

    assert_close(found(0.0), torch.tensor([[0.5, 0.5]]))
    assert_close(found(1.0), torch.tensor([[0.75, 0.25]]))
    assert_close(found(2.0), torch.tensor([[0.9, 0.1]]))
    # what is hardly used is lifted as if it had a twentieth of an equal use
    assert_close(found(1.0, torch.tensor([0.0, 1.0])), torch.tensor([[40 / 41, 1 / 41]]))


def test_use_is_a_running_mean_over_the_rows_of_steps():
    """Of 16 rows a step counts a sixteenth; of 128 not the half, but a quarter."""
    adapter = adapted(KINDS["bert"], routing="posterior", num_prompts=2).smop_layer["default"]
    for half in (4, 12):  # in two passes
        adapter.note_usage(torch.tensor([[1.0, 0.0]]).repeat(half, 1))
    assert_close(adapter.usage, EVENLY)
    adapter.end_usage()
    assert_close(adapter.usage, torch.tensor([0.53125, 0.46875]))
    adapter.usage.copy_(EVENLY)
    adapter.note_usage(torch.tensor([[1.0, 0.0]]).repeat(128, 1))
    adapter.end_usage()
    assert_close(adapter.usage, torch.tensor([0.625, 0.375]))


def test_a_posterior_divides_the_share_of_the_prompts_that_a_row_was_put_under():
    """Priors (1/2, 1/4, 1/4), likelihoods (1/6, 1/2, unknown): (1/12, 1/8) of 3/4, and 1/4."""
    losses = torch.tensor([[math.log(6.0), LN2, math.nan]])
    logits = torch.tensor([[LN2, 0.0, 0.0]])
    thirds = torch.full((3,), 1 / 3)
    q = Posterior(balance=0.0).posterior(losses, torch.ones(1), logits, thirds)
    assert_close(q, torch.tensor([[0.3, 0.45, 0.25]]))


def test_rows_are_put_under_the_router_s_best_prompts_and_others_at_random():
    n = 6_000
    logits = torch.tensor([0.0, 3.0, -1.0, 2.0, 1.0]).repeat(n, 1)
    keys = row_keys(torch.zeros(1).long(), torch.zeros(1).long(), torch.arange(n))
    tried = Posterior(candidates=3).tried(logits, keys)
    assert (tried[:, :2] == torch.tensor([1, 3])).all()
    shares = torch.bincount(tried[:, 2], minlength=5) / n
    assert_close(shares, torch.tensor([1, 0, 1, 0, 1]) / 3, rtol=0, atol=0.02)
    every = Posterior(candidates=8).tried(logits[:3], keys[:3])
    assert every.sort(dim=1).values.tolist() == [[0, 1, 2, 3, 4]] * 3
    assert Posterior().tried(torch.zeros(2, 1), keys[:2]).tolist() == [[0], [0]]


def test_the_router_s_loss_is_the_cross_entropy_with_the_posterior():
    logits = torch.tensor([[LN3, 0.0], [0.0, 0.0]], requires_grad=True)
    q = torch.tensor([[0.5, 0.5], [math.nan, math.nan]])
    routing = Posterior(judged=0.5)(logits, RowState(torch.tensor([1, 2]), posterior=q))
    expected = -(0.5 * math.log(0.75) + 0.5 * math.log(0.25)) / 0.5
    assert_close(routing.loss, torch.tensor([expected, 0.0]))
    routing.loss.sum().backward()
    # d/dw of the cross-entropy is p - q
    assert_close(logits.grad, torch.tensor([[0.25, -0.25], [0.0, 0.0]]) / 0.5)
    assert routing.weights.tolist() == [[1.0], [1.0]]


def test_a_prompt_is_drawn_from_the_posterior_and_for_unjudged_rows_from_the_sharpened_prior():
    n = 20_000
    q = torch.tensor([0.5, 0.2, 0.3]).repeat(n, 1)
    q[::2] = math.nan
    logits = torch.tensor([0.0, 2.0, 1.0]).repeat(n, 1)
    keys = row_keys(torch.zeros(1).long(), torch.zeros(1).long(), torch.arange(n))
    indices = Posterior()(logits, RowState(keys, posterior=q)).indices[:, 0]
    prior = torch.bincount(indices[::2], minlength=3) / (n / 2)
    assert_close(prior, (4 * logits[0]).softmax(dim=-1), rtol=0, atol=0.02)
    shares = torch.bincount(indices[1::2], minlength=3) / (n / 2)
    assert_close(shares, torch.tensor([0.5, 0.2, 0.3]), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judged": 0.0}, "judged=0.0 must be above 0"),
        ({"judged": 1.5}, "judged=1.5"),
        ({"candidates": 1}, "candidates=1 must be at least 2"),
        ({"every": 0}, "every=0 must be at least 1 step"),
        ({"exact": True, "judged": 0.5}, "judged=0.5 contradicts exact=True"),
        ({"balance": -0.1}, "balance=-0.1 must be at least 0"),
        ({"evidence": 0.0}, "evidence=0.0 must be above 0"),
        ({"perturbation": True}, "contradicts routing='posterior'"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        SMoPConfig(routing="posterior", **options)
