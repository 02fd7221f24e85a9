"""One graph without a break, and the same numbers, in evaluation and in training."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
KINDS = ("t5", "llama", "bert")
EQUAL = [
    f"{name}, {mode}, {rows}"
    for name in KINDS
    for mode in ("evaluation", "training")
    for rows in ("one", "mixed")
]
OTHER_WAYS = ("gumbel with penalties, residual", "top-2, low-rank", "hashed", "two passes")


@pytest.fixture(scope="module")
def outcomes():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", TESTS / "tuner" / "compiled.py"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", EQUAL)
def test_one_graph_gives_what_the_eager_model_gives_with_the_same_noise(case, outcomes):
    assert outcomes[case] == "fine"


@pytest.mark.parametrize(
    ("name", "mode"), [("t5", "training"), ("llama", "evaluation"), ("bert", "training")]
)
def test_ten_sizes_of_batches_go_through_one_graph(name, mode, outcomes):
    assert outcomes[f"{name}, ten sizes, {mode}"] == "fine"


def test_adapters_may_be_switched_and_disabled_between_compiled_calls(outcomes):
    assert outcomes["switching"] == "fine"


@pytest.mark.parametrize("routing", ["single", "uniform", "fixed", "released", "stochastic"])
def test_the_strategies_that_draw_nothing_evaluate_in_one_graph(routing, outcomes):
    assert outcomes[f"{routing}, evaluation"] == "fine"


@pytest.mark.parametrize("case", OTHER_WAYS)
def test_other_strategies_losses_and_parameterisations_train_in_one_graph_as_well(case, outcomes):
    assert outcomes[case] == "fine"
