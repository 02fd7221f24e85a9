"""The meters, against things whose cost is known."""

import pytest
import torch
from torch import nn

from peft_smop.costs import PeakMemory, training_flops
from tiny import KINDS, adapted, batch


class Product(nn.Module):
    """x W with a loss: 2·b·i·o operations forward, as many for each gradient that is asked for."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x, labels=None):
        loss = (x @ self.weight).sum()
        return type("Output", (), {"loss": loss})()


def test_a_matrix_product_counts_two_operations_for_each_multiply_and_add():
    model = Product(7, 11)
    # forward, and the gradient of the weight; the input asks for none
    assert training_flops(model, {"x": torch.randn(5, 7)}) == 2 * (2 * 5 * 7 * 11)


def test_counting_leaves_no_gradient_and_the_mode_as_it_was():
    model = adapted(KINDS["t5"])
    assert training_flops(model, batch(KINDS["t5"])) > 0
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_attention_is_counted():
    kind = KINDS["llama"]
    short, long = batch(kind, tokens=4), batch(kind, tokens=8)
    for made in (short, long):
        made["labels"] = made["input_ids"]
    model = adapted(kind, num_virtual_tokens=1)
    # twice the tokens are more than twice the work, as attention grows with the square
    few, many = training_flops(model, short), training_flops(model, long)
    assert many / few > (8 + 1) / (4 + 1)


def test_the_peak_counts_what_was_there_and_is_gone_inside_its_stretches_only():
    memory = PeakMemory()
    assert memory.bytes is None
    memory.start()
    block = torch.ones(64 * 2**20 // 4)
    del block
    memory.stop()
    if memory.bytes is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert 60 * 2**20 < memory.bytes < 200 * 2**20
    before = memory.bytes
    block = torch.ones(256 * 2**20 // 4)  # between two stretches
    del block
    memory.start()
    memory.stop()
    assert memory.bytes < before + 32 * 2**20
    less = PeakMemory()
    less.start()
    less.stop()
    assert less.bytes < 32 * 2**20
