"""What a training step computes, judged rows included."""

import pytest
import torch

from peft_smop.costs import inference_flops, training_flops
from peft_smop.lab.operations import training_operations
from tiny import KINDS, THREE, adapted, batch


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
    expected = training_flops(plain, made) + 0.66 * inference_flops(plain, made)
    # but for the gradient of the router's one product
    expected -= 2 * rows * model.smop_layer["default"].router.numel()
    assert training_operations(model, made) == pytest.approx(expected, rel=1e-6)
    assert training_operations(plain, made) == training_flops(plain, made)
