"""What needs no model is answered before torch is imported, and fits a terminal."""

import subprocess
import sys

import pytest

LIGHT = [
    (["--help"], 0, "Usage"),
    (["--version"], 0, "smop 0."),
    (["train", "--help"], 0, "--max-steps"),
    (["compare", "--help"], 0, "--trials"),
    (["sweep", "--help"], 0, "--dry-run"),
    (["report", "--help"], 0, "--paper"),
    (["report", "nowhere"], 2, "nowhere is not a directory"),
    (["sweep", "-t", "medly"], 2, "did you mean medley"),
    (["predict", "--help"], 0, "INPUT"),
    (["serve", "--help"], 0, "--queue-rows"),
    (["serve", "nowhere"], 2, "nowhere is not a directory"),
    (["export", "--help"], 0, "onnx"),
    (["export", "nowhere", "-o", "out", "--format", "onnx"], 2, "nowhere is not a directory"),
    (["export", "nowhere", "-o", "out", "--format", "onx"], 2, "did you mean onnx"),
    (["tasks"], 0, "medley"),
    (["tasks", "cb"], 0, "premise"),
    (["methods"], 0, "smop-posterior"),
    (["trian"], 2, "train"),
    (["train", "--tsak", "cb"], 2, "--task"),
    (["train", "-t", "medley", "--seed", "one"], 2, "--seed"),
    (["train", "-t", "medly"], 2, "did you mean medley"),
    (["train", "-t", "medley", "--method", "smopp"], 2, "did you mean smop"),
    (["train", "-t", "medley", "--method", "smop:k=two"], 2, "must be a whole number"),
    (["train", "-t", "medley", "--method", "single:positon=after"], 2, "did you mean position"),
    (["train", "-t", "medley", "--method", "smop:routing=liner"], 2, "did you mean linear"),
    (["compare", "-t", "medley", "--methods", "smop,single:lr=0"], 2, "'single:lr=0': "),
    (["sweep", "-t", "medley", "--lr", "0.1,0"], 2, "learning_rate=0 must be"),
    (["sweep", "-t", "medley", "--k", "2,two"], 2, "num_prompts='two' must be"),
    (["train", "-t", "medley", "--lr", "fastx"], 2, "must be a number above 0"),
    (["train", "-t", "medley", "--routing", "liner"], 2, "did you mean linear"),
    (["train", "-t", "medley", "--set", "lerning_rate=1"], 2, "did you mean learning_rate"),
    (["train", "-t", "medley", "--set", "routing=posteriro"], 2, "did you mean posterior"),
    (["compare", "-t", "medley", "--set", "lerning_rate=1"], 2, "did you mean learning_rate"),
    (["sweep", "-t", "medley", "--set", "lerning_rate=1"], 2, "did you mean learning_rate"),
    (["compare", "-t", "medley", "--methods", "smop,lora8"], 2, "did you mean lora-8"),
    (["compare", "-t", "medley", "--methods", ","], 2, "names no method"),
    (["cost", "-t", "medley,rtee"], 2, "did you mean rte?"),
    (["tasks", "cbb"], 2, "did you mean cb?"),
    (["methods", "smop-posteriro"], 2, "did you mean smop-posterior"),
    (["evaluate", "nowhere"], 2, "nowhere is not a directory"),
    (["predict", "nowhere"], 2, "nowhere is not a directory"),
    (["routes", "nowhere"], 2, "nowhere is not a directory"),
]
PROGRAM = """
import io, sys
from contextlib import redirect_stderr, redirect_stdout
from peft_smop.cli import main
for arguments, code, word in {cases!r}:
    sys.argv = ["smop", *arguments]
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            main()
    except SystemExit as ended:
        assert (ended.code or 0) == code, (arguments, ended.code, said.getvalue())
    assert word in said.getvalue(), (arguments, said.getvalue())
    assert "Traceback" not in said.getvalue(), arguments
    heavy = {{"torch", "transformers", "peft", "sklearn", "matplotlib"}} & set(sys.modules)
    assert not heavy, (arguments, heavy)
"""


def test_help_lists_and_typing_errors_import_nothing_heavy():
    program = PROGRAM.format(cases=LIGHT)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_names_of_options_are_those_that_there_are():
    from peft_smop.methods import MethodSpec
    from peft_smop.names import method_options, routings, training_options
    from peft_smop.training import TrainingOptions
    from peft_smop.tuner.strategies import STRATEGIES

    assert set(method_options()) == set(MethodSpec.model_fields)
    assert set(training_options()) == set(TrainingOptions.model_fields)
    assert set(routings()) == set(STRATEGIES)


@pytest.mark.parametrize(
    "first",
    [
        "from peft_smop.tuner import SMoPConfig",
        "from peft_smop.bottleneck import BottleneckConfig",
        "import sys, importlib.util as util, peft_smop\nassert 'torch' not in sys.modules\n"
        "assert util.find_spec('peft')\nimport peft",
    ],
)
def test_peft_knows_both_methods_in_whatever_order_things_are_imported(first):
    known = "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known"
    program = f"{first}\n{known}\nassert {{'SMOP', 'BOTTLENECK'}} <= {{k.value for k in known}}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command", [("tasks",), ("tasks", "cb"), ("methods",), ("methods", "smop"), ("methods", "ia3")]
)
def test_lists_fit_eighty_columns_and_nothing_is_cut(smop, command):
    code, out, _ = smop(*command)
    assert code == 0
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80
    assert "…" not in out


def test_a_method_is_shown_with_its_own_options_and_those_of_its_training(smop):
    _, out, _ = smop("methods", "lora-8")
    assert "stands for: lora rank=8" in out
    assert "rank (r): whole number" in out
    assert "learning_rate (lr): number" in out
    assert "num_prompts" not in out
    _, out, _ = smop("methods", "smop-posterior")
    assert "num_prompts (k): whole number" in out
    assert "load_balancing: number" in out
    assert "posterior: " in out


def test_help_shows_options_in_groups(smop):
    _, out, _ = smop("train", "--help")
    for group in ("Task and data", "Model and method", "Training", "The run"):
        assert f"─ {group} ─" in out
