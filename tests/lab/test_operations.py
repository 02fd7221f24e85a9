"""What a training step computes, judged rows included."""

from contextlib import nullcontext

import pytest
import torch
from torch.testing import assert_close

from peft_smop.costs import inference_flops, training_flops
from peft_smop.lab.operations import training_loss, training_operations
from peft_smop.rows import answers_only
from tiny import KINDS, THREE, adapted, answered, batch


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("rows", [1, 6])
def test_judged_rows_count_at_their_mean_share(name, rows):
    """A third of the rows under 4 of 12 prompts, at every second step: 0.66 passes more."""
    made = batch(KINDS[name], rows=rows)
    if name == "bert":
        made["labels"] = torch.zeros(rows, dtype=torch.long)
    if name == "llama":
        made["labels"] = made["input_ids"].index_fill(1, torch.arange(4), -100)
    options = {"num_prompts": 12, "judged": 0.33, "candidates": 4, "every": 2}
    model = adapted(KINDS[name], routing="posterior", **options)
    plain = adapted(KINDS[name], num_prompts=12, perturbation=False)
    # a decoder's head is computed for the answers alone, in training and where it judges
    around = answers_only(plain, made["labels"]) if name == "llama" else nullcontext()
    once = training_flops(plain, made, loss=training_loss)
    with around:
        expected = once + 0.66 * inference_flops(plain, made)
    # but for the gradient of the router's one product
    expected -= 2 * rows * model.smop_layer["default"].router.numel()
    assert training_operations(model, made) == pytest.approx(expected, rel=1e-6)
    assert training_operations(plain, made) == once
    if name != "llama":
        assert once == training_flops(plain, made)


def test_a_loss_as_training_computes_it_is_the_models_own():
    """Also that of a model whose routing asks for more, which a bare pass adds by itself."""
    made = answered(KINDS["llama"])
    for options in (
        {"num_prompts": 3, "load_balancing": 0.5},
        {"num_prompts": 3, "routing": "posterior", "judged": 1.0},
        {"num_prompts": 3, "routing": "posterior", "exact": True},
    ):
        for position in ("before", "after"):
            model = adapted(KINDS["llama"], position=position, **options).train()
            assert_close(training_loss(model, made), model(**made).loss)


def test_behind_the_text_less_is_computed():
    """Of 9 tokens and a prompt of 5, those of prompt and answer alone on the way back."""
    made = answered(KINDS["llama"])
    for options in ({"routing": "single"}, {"num_prompts": 4, "routing": "posterior"}):
        counts = [
            training_operations(adapted(KINDS["llama"], position=position, **options), made)
            for position in ("before", "after")
        ]
        assert counts[1] < 0.9 * counts[0]
