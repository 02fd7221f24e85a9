"""A router that is fitted to finished prompts: the optimum of a stated objective."""

import pytest
import torch
from judged import labelled
from torch.testing import assert_close

from peft_smop import fit_router
from peft_smop.errors import ConfigError
from peft_smop.tuner.posterior import Posterior
from peft_smop.tuner.refit import JudgedRows
from tiny import KINDS, THREE, adapted


@pytest.mark.parametrize("name", THREE)
def test_rows_are_judged_by_the_losses_under_every_prompt(name):
    model, made = adapted(KINDS[name], routing="posterior", num_prompts=3), labelled(name)
    parts = [{key: value[i : i + 4] for key, value in made.items()} for i in (0, 4)]
    judged = JudgedRows.of(model, parts)
    losses = model.prompt_losses(**made)
    assert_close(judged.posterior, (-losses).softmax(dim=1))  # of answers of at most four tokens
    layer = model.smop_layer["default"]
    assert_close(judged.inputs @ layer.router_matrix(), model.router_logits(**made))


def test_a_long_answer_is_believed_no_more_than_in_training():
    model, made = adapted(KINDS["t5"], routing="posterior", num_prompts=3), labelled("t5")
    made["labels"] = made["labels"][:, :1].repeat(1, 8)
    judged = JudgedRows.of(model, [made])
    tempered = model.prompt_losses(**made) * Posterior().evidence / 8
    assert_close(judged.posterior, (-tempered).softmax(dim=1))


@pytest.mark.parametrize("k", [2, 3, 5])
def test_w_is_where_the_objective_s_gradient_is_zero(k):
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(40, 6, generator=generator).double() * 0.3 + 0.2
    q = torch.randn(40, k, generator=generator).double().mul(2).softmax(dim=1)
    for strength in (5.0, 500.0):
        matrix = JudgedRows(x, q).router(strength).double().requires_grad_()
        spread = x.numpy().std()
        gain = (q * (x @ matrix).log_softmax(dim=1)).sum(dim=1).mean()
        objective = strength * gain - (matrix * spread).square().sum() / 2
        gradient = torch.autograd.grad(objective, matrix)[0] / spread
        assert gradient.abs().max() < 0.01 * strength**0.5


def test_prompts_that_no_row_wants_and_rows_that_are_no_number_are_left_out():
    x, q = torch.eye(3), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    matrix = JudgedRows(x, q).router()
    assert matrix[:, 1].tolist() == [0, 0, 0]
    assert (x @ matrix).argmax(dim=1).tolist() == [0, 2, 2]
    broken = torch.cat([q, torch.full((1, 3), torch.nan)])
    assert_close(JudgedRows(torch.cat([x, x[:1]]), broken).router(), matrix)
    assert not JudgedRows(x, torch.tensor([[1.0, 0.0]] * 3)).router().any()


@pytest.mark.parametrize("name", ["t5", "llama"])  # BERT's random head hardly sees a prompt
def test_rows_are_sent_where_their_losses_are_least(name):
    model = adapted(KINDS[name], routing="posterior", num_prompts=3)
    made = labelled(name, rows=5)
    fit_router(model, [made], strength=1e6)
    assert torch.equal(
        model.router_logits(**made).argmax(dim=1), model.prompt_losses(**made).argmin(dim=1)
    )


def test_what_has_no_router_and_no_rows_are_refused():
    with pytest.raises(ConfigError, match="only an adapter with a router"):
        fit_router(adapted(KINDS["t5"], routing="single"), [labelled("t5")])
    with pytest.raises(ConfigError, match="no rows to fit"):
        fit_router(adapted(KINDS["t5"]), [])
    for strength in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="must be a number above 0"):
            fit_router(adapted(KINDS["t5"]), [labelled("t5")], strength=strength)
    with pytest.raises(ConfigError, match="has a router of shape"):
        adapted(KINDS["t5"]).set_router(torch.zeros(2, 2))
