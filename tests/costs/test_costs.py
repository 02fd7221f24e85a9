"""The meters, against things whose cost is known."""

import csv
import time
from pathlib import Path
from statistics import mean

import pytest
import torch
from torch import nn

from peft_smop.costs import (
    Cost,
    FlopsByLength,
    PeakMemory,
    SampleFlops,
    inference_flops,
    mean_cost,
    measure,
    training_flops,
)
from peft_smop.methods import random_backbone
from peft_smop.report import cost_ratios
from peft_smop.tasks.superglue import SUPERGLUE
from tiny import KINDS, THREE, adapted, batch


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
    short, long = shaped(kind, 4, 5), shaped(kind, 4, 10)
    model = adapted(kind, num_virtual_tokens=1)
    # twice the tokens are more than twice the work, as attention grows with the square
    few, many = training_flops(model, short), training_flops(model, long)
    assert many / few > (10 + 1) / (5 + 1)


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


def test_inference_is_one_forward_pass():
    model = Product(7, 11)
    assert inference_flops(model, {"x": torch.randn(5, 7)}) == 2 * (5 * 7 * 11)
    assert model.training


def shaped(kind, rows, tokens):
    """A batch without padding."""
    ids = torch.randint(3, 100, (rows, tokens))
    labels = {
        "SEQ_2_SEQ_LM": torch.ones(rows, 3, dtype=torch.long),
        "CAUSAL_LM": ids.index_fill(1, torch.arange(4), -100),
        "SEQ_CLS": torch.zeros(rows, dtype=torch.long),
    }[kind.task_type]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@pytest.mark.parametrize("count", [inference_flops, training_flops])
@pytest.mark.parametrize("options", [{}, {"parameterisation": "residual"}])
@pytest.mark.parametrize("name", THREE)
def test_operations_by_length_are_those_counted_at_other_rows_and_lengths(name, options, count):
    kind = KINDS[name]
    model = adapted(kind, **options)
    fitted = FlopsByLength.fit(lambda rows, n: count(model, shaped(kind, rows, n)))
    for rows, tokens in ((1, 24), (3, 51)):
        counted = count(model, shaped(kind, rows, tokens))
        assert fitted.of([tokens] * rows) == pytest.approx(counted, rel=1e-6)


def test_rows_of_their_own_length_cost_their_own_share():
    flops = FlopsByLength(f=1, g=2, c=3, d=4, q=5)
    assert flops.of([1, 2]) == 1 + 2 * 2 + (3 + 4 + 5) + (3 + 8 + 20)


def test_steps_are_timed_in_turn_and_the_warm_up_is_left_out():
    order, clock = [], {"slow": 0.02, "quick": 0.0}

    def step(name):
        def run():
            order.append(name)
            # a first run is slow for everyone
            time.sleep(0.2 if order.count(name) == 1 else clock[name])

        return run

    told = []
    times = measure({n: step(n) for n in clock}, repeats=3, warmup=1, on_step=told.append)
    assert order == told == ["slow", "quick"] * 4
    assert 0.02 <= times["slow"].low <= times["slow"].median <= times["slow"].high < 0.2
    assert times["quick"].median < 0.02
    assert times["slow"].repeats == 3


def test_nothing_can_be_said_of_no_repeat():
    with pytest.raises(ValueError, match="repeats=0"):
        measure({}, repeats=0)


def test_the_mean_over_tasks_keeps_what_was_not_measured_unknown():
    one = Cost("a", 1, 1, 1.0, SampleFlops(1, 2, 3), SampleFlops(3, 4, 5), memory=10)
    other = Cost("a", 1, 1, 1.0, SampleFlops(3, 4, 5), SampleFlops(5, 6, 7), memory=20)
    assert mean_cost([one, other]) == Cost(
        "a", 1, 1, 1.0, SampleFlops(2, 3, 4), SampleFlops(4, 5, 6), memory=15
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("t5-small", 60_506_624), ("t5-base", 222_903_552), ("t5-large", 737_668_096)],
)
def test_the_shapes_have_the_published_number_of_parameters(name, parameters):
    assert random_backbone(name, drawn=False).num_parameters() == parameters


def test_the_paper_s_tables_9_to_11_average_to_its_table_1():
    from peft_smop.report import paper

    groups: dict[tuple[str, ...], dict[str, float]] = {}
    with (Path(paper.__file__).parent / "paper_tables.csv").open() as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            if row["table"] in ("9", "10", "11"):
                asked = ("table", "model", "method", "total_prompt_length", "metric")
                own = groups.setdefault(tuple(row[key] for key in asked), {})
                own[row["task"].lower()] = float(row["mean"])
    assert len(groups) == 24
    for place, found in groups.items():
        assert mean(found[task] for task in SUPERGLUE) == pytest.approx(
            found["average"], abs=0.06
        ), place


def test_ratios_are_ours_and_the_paper_s_where_it_has_them():
    def made(method, trainable, flops):
        sample = SampleFlops(flops, flops, flops)
        return Cost(method, trainable, trainable, 0.0, sample, sample)

    costs = [made("smop", 2, 10), made("full", 8, 5), made("lora-8", 4, 10)]
    first, full, lora = cost_ratios(costs, model="somewhere/t5-base", tasks=["rte"])
    assert set(first.ours.values()) == {1.0}
    assert (full.ours["trained"], full.ours["inference text"]) == (4.0, 0.5)
    assert full.paper["inference"] == pytest.approx(78.3 / 80.1)
    assert full.paper["seconds"] == pytest.approx(76.5 / 54.2)
    assert lora.paper == {}
    assert cost_ratios(costs, model="t5-base", tasks=["rte", "medley"])[1].paper == {}
    both = cost_ratios(costs, model="t5-base", tasks=["rte", "wic"])[1]
    assert both.paper["memory"] == pytest.approx((13.9 + 4.1) / (11.0 + 3.1))
