"""Noise, losses and gradients are those of one process with all rows, whoever computes them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from tiny import KINDS, THREE, adapted, batch, without_dropout

TESTS = Path(__file__).parents[1]
TWO_PROCESSES = (
    "data parallel, encoder",
    "data parallel, decoder",
    "data parallel, gumbel",
    "fully sharded, encoder",
    "fully sharded, decoder",
    "tensor parallel",
    "the package's own step",
)


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """How far the gradients of two processes are from those of one, relative to the largest."""
    script = TESTS / "distributed" / "ranks.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, tmp_path_factory.mktemp("ranks")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("how", TWO_PROCESSES)
def test_two_processes_have_the_gradients_of_one(how, apart):
    """With noise, load balancing and z-loss, whose loads are counted over both."""
    assert apart[how] < 1e-6


def labelled(name):
    made = batch(KINDS[name], rows=6)
    if name == "bert":
        made["labels"] = torch.arange(6) % 2
    if name == "llama":
        made["labels"] = made["input_ids"].index_fill(1, torch.arange(4), -100)
        made["attention_mask"][:, 4:] = 1
    return made


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("routing", ["linear", "gumbel", "stochastic"])
@pytest.mark.parametrize("name", THREE)
def test_accumulated_passes_have_the_gradient_of_one(name, routing):
    found = []
    for parts in (1, 2, 3):
        model = without_dropout(adapted(KINDS[name], routing=routing)).train()
        for i in range(parts):
            own = {k: v[i::parts].contiguous() for k, v in labelled(name).items()}
            (model(**own).loss / parts).backward()
        found.append(gradients(model))
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for key, gradient in found[0].items():
            assert_close(other[key], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("routing", ["linear", "stochastic"])
@pytest.mark.parametrize("name", THREE)
def test_a_whole_model_that_is_computed_again_draws_the_same(name, routing, reentrant):
    made, found = labelled(name), []
    x = torch.zeros((), requires_grad=True)  # a reentrant pass wants an input with a gradient
    for again in (False, True):
        model = without_dropout(adapted(KINDS[name], routing=routing)).train()

        def loss(anchor, model=model):
            return model(**made).loss + 0 * anchor

        if again:
            checkpoint(loss, x, use_reentrant=reentrant).backward()
        else:
            loss(x).backward()
        found.append(gradients(model))
    for key, gradient in found[0].items():
        assert_close(found[1][key], gradient, rtol=1e-5, atol=1e-7)
