"""Equations 3, 4 and 5 of the paper, with numbers worked out by hand."""

import math

import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close

from by_hand import ByHand
from peft_smop import SMoPConfig
from peft_smop.rows import RowAdapters
from peft_smop.tuner.deciding import mean_embedding
from peft_smop.tuner.noise import normal, row_keys
from peft_smop.tuner.routing import RowState
from peft_smop.tuner.scope import context_mask, left_padding
from peft_smop.tuner.splice import Layout
from peft_smop.tuner.strategies import Linear, Single
from tiny import KINDS, batch

LN3 = math.log(3.0)


def layer(*, perturbation=False, training=False) -> ByHand:
    """Two prompts of one token in two dimensions; the router reads the two coordinates as
    logits."""
    made = ByHand()
    made.add_adapter(
        "a",
        prompts=torch.tensor([[[1.0, 2.0]], [[10.0, 20.0]]]),
        router=torch.eye(2),
        strategy=Linear(perturbation=perturbation),
        seed=7,
    )
    return made.train(training)


def test_the_router_reads_the_mean_of_the_attended_embeddings():
    x = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]])
    assert_close(mean_embedding(x, torch.tensor([[True, True, False]])), torch.tensor([[2.0, 4.0]]))
    assert_close(mean_embedding(x[:, :2], None), torch.tensor([[2.0, 4.0]]))


def test_equation_3_is_the_softmax_of_the_router_s_logits():
    # logits (ln 3, 0): p = (3/4, 1/4)
    routing = Linear(perturbation=False)(torch.tensor([[LN3, 0.0], [0.0, LN3]]), RowState())
    assert routing.indices.tolist() == [[0], [1]]
    assert_close(routing.weights, torch.tensor([[0.75], [0.75]]))


def test_equation_4_scales_the_chosen_prompt_by_its_probability():
    # p = (3/4, 1/4) chooses P_1: 0.75 * (1, 2); p = (1/4, 3/4) chooses P_2: 0.75 * (10, 20)
    prompts = layer().soft_prompts(
        torch.tensor([[LN3, 0.0], [0.0, LN3]]), RowAdapters(("a",), None, 2)
    )
    assert_close(prompts, torch.tensor([[[0.75, 1.5]], [[7.5, 15.0]]]))


def test_equation_5_multiplies_the_logits_by_one_plus_the_noise_in_training():
    logits = torch.tensor([[LN3, -1.0]])
    keys = row_keys(torch.tensor([7]), torch.tensor([0]), torch.tensor([0]))
    noise = normal(keys, 2)
    expected = [LN3 * (1 + noise[0, 0].item()), -1.0 * (1 + noise[0, 1].item())]
    total = sum(math.exp(v) for v in expected)
    routing = Linear(perturbation=True)(logits, RowState(keys))
    assert_close(routing.logits, torch.tensor([expected]))
    assert_close(
        routing.weights.item(), max(math.exp(v) for v in expected) / total, rtol=1e-6, atol=0
    )


def test_the_noise_is_standard_normal_and_independent_between_rows_steps_and_seeds():
    n = 20_000
    zeros, ranks = torch.zeros(n, dtype=torch.int64), torch.arange(n)
    draws = normal(row_keys(zeros, zeros, ranks), 4)
    assert abs(draws.mean().item()) < 0.015
    assert abs(draws.std().item() - 1) < 0.015
    assert abs((draws.abs() < 1.0).float().mean().item() - 0.6827) < 0.01
    assert (torch.corrcoef(draws.T) - torch.eye(4)).abs().max() < 0.03
    for other in (row_keys(zeros, zeros + 1, ranks), row_keys(zeros + 1, zeros, ranks)):
        both = torch.stack([draws[:, 0], normal(other, 1)[:, 0]])
        assert torch.corrcoef(both)[0, 1].abs() < 0.03


def test_the_perturbation_is_there_in_training_only_and_repeats_from_the_same_step():
    mean, rows = torch.tensor([[LN3, 0.5]] * 3), RowAdapters(("a",), None, 3)
    quiet = layer(perturbation=True)
    assert_close(quiet.soft_prompts(mean, rows), layer().soft_prompts(mean, rows))
    assert quiet["a"].steps == 0
    first, again = layer(perturbation=True, training=True), layer(perturbation=True, training=True)
    one = first.soft_prompts(mean, rows)
    assert torch.equal(first.soft_prompts(mean, rows), one)  # computed again within a step
    first.end_step()
    two = first.soft_prompts(mean, rows)
    assert not torch.equal(one, two)
    assert not torch.equal(one[0], one[1])
    assert torch.equal(again.soft_prompts(mean, rows), one)
    again["a"].steps.fill_(1)  # resumed after the first step
    assert torch.equal(again.soft_prompts(mean, rows), two)


def test_an_adapter_s_noise_does_not_depend_on_the_rows_it_shares_a_batch_with():
    both = layer(perturbation=True, training=True)
    both.add_adapter(
        "b",
        prompts=torch.ones(2, 1, 2),
        router=torch.eye(2),
        strategy=Linear(perturbation=True),
        seed=3,
    )
    mean = torch.tensor([[LN3, 0.5], [0.1, 0.7], [LN3, 0.2]])
    said = torch.tensor([11, 12, 13])
    mixed = both.soft_prompts(mean, RowAdapters(("a", "b"), (0, 1, 0), 3), said)
    alone = layer(perturbation=True, training=True).soft_prompts(
        mean[[2, 0]], RowAdapters(("a",), None, 2), said[[2, 0]]
    )
    assert_close(mixed[[2, 0]], alone)


def test_single_gives_every_row_the_one_prompt_unscaled():
    made = ByHand()
    prompt = torch.randn(1, 3, 2)
    made.add_adapter("a", prompts=prompt, router=None, strategy=Single(), seed=0)
    prompts = made.soft_prompts(torch.randn(4, 2), RowAdapters(("a",), None, 4))
    assert torch.equal(prompts, prompt.expand(4, -1, -1))


def test_gradients_reach_the_prompts_the_router_and_nothing_of_the_backbone():
    kind = KINDS["t5"]
    model = get_peft_model(kind.model(), SMoPConfig(task_type=kind.task_type)).train()
    model(**batch(kind)).loss.backward()
    touched = {name.rsplit(".", 1)[1] for name, p in model.named_parameters() if p.grad is not None}
    assert touched == {"prompts", "router"}
    assert model.smop_layer["default"].router.grad.abs().sum() > 0
    chosen = set(model.last_routes.indices.flatten().tolist())
    moved = model.smop_layer["default"].prompts.grad.abs().sum(dim=(1, 2)) > 0
    assert set(moved.nonzero().flatten().tolist()) == chosen


def test_the_layout_puts_the_prompt_after_left_padding_and_slack_before_it():
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]])
    layout = Layout.of(padding=left_padding(mask), lengths=torch.tensor([2, 1]), tokens=3, width=2)
    x = torch.tensor([[[-9.0], [1.0], [2.0]], [[3.0], [4.0], [-9.0]]])
    prompts = torch.tensor([[[10.0], [11.0]], [[20.0], [0.0]]])
    assert layout.embeddings(prompts, x)[..., 0].tolist() == [[-9, 10, 11, 1, 2], [0, 20, 3, 4, -9]]
    assert layout.mask(mask).tolist() == [[0, 1, 1, 1, 1], [0, 1, 1, 1, 0]]
    assert layout.positions(None).tolist() == [[0, 0, 1, 2, 3], [0, 0, 1, 2, 3]]
    assert layout.drop(layout.embeddings(prompts, x))[..., 0].tolist() == x[..., 0].tolist()


def test_with_slack_on_the_right_every_token_keeps_the_slot_it_has_alone():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    layout = Layout.of(
        padding=left_padding(mask), lengths=torch.tensor([2, 0]), tokens=3, width=2, slack="right"
    )
    x = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [-9.0]]])
    prompts = torch.tensor([[[10.0], [11.0]], [[0.0], [0.0]]])
    assert layout.embeddings(prompts, x)[..., 0].tolist() == [[10, 11, 1, 2, 3], [4, 5, -9, 0, 0]]
    assert layout.mask(mask).tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert layout.drop(layout.embeddings(prompts, x))[..., 0].tolist() == x[..., 0].tolist()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([-100, -100, 5, 6], [True, True, False, False]),
        ([-100, 5, -100, 6], [True, False, False, False]),
        ([-100, -100, -100, -100], [True, True, True, True]),  # no answer: the whole row
    ],
)
def test_the_context_ends_at_the_first_label(labels, expected):
    attended = torch.ones(1, 4, dtype=torch.bool)
    assert context_mask(torch.tensor([labels]), attended)[0].tolist() == expected
