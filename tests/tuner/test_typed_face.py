"""What a type checker and `help` see of the public face."""

import subprocess
import sys
import warnings

import pytest
from peft import get_peft_model

from peft_smop import Routes, SMoPConfig, SMoPModel
from peft_smop.tuner.config import PENALTY_OPTIONS, ROUTING_OPTIONS
from peft_smop.tuner.strategies import STRATEGIES, RoutingName
from tiny import KINDS, batch

PROGRAM = """
from peft_smop import SMoPConfig, SMoPModel

SMoPConfig(routing="{routing}", top_k=2)
SMoPConfig(init="{init}")

def look(tuner: SMoPModel) -> int:
    reveal_type(tuner.last_routes)
    reveal_type(SMoPModel.of(tuner))
    return 1
"""


def checked(tmp_path, **programs):
    """What the type checker says of each program, read together: libraries take their time."""
    for name, words in programs.items():
        (tmp_path / f"{name}.py").write_text(PROGRAM.format(**words))
    said = subprocess.run(
        [sys.executable, "-m", "mypy", "--follow-imports", "silent", "--ignore-missing-imports",
         "--cache-dir", tmp_path / "cache", *(f"{name}.py" for name in programs)],
        capture_output=True, text=True, cwd=tmp_path,
    ).stdout.splitlines()  # fmt: skip
    return ["\n".join(line for line in said if line.startswith(f"{name}.py")) for name in programs]


def test_a_misspelt_routing_or_start_does_not_pass_the_type_checker(tmp_path):
    pytest.importorskip("mypy")
    right, wrong = checked(
        tmp_path,
        right={"routing": "linear", "init": "labels"},
        wrong={"routing": "lin", "init": "label"},
    )
    assert "error" not in right
    assert "Routes | None" in right
    assert "SMoPModel | None" in right
    assert wrong.count("[arg-type]") == 2


def test_every_strategy_has_its_name_in_the_type_and_every_option_its_help():
    from typing import get_args

    assert set(get_args(RoutingName)) == set(STRATEGIES)
    for name, (_, said) in (ROUTING_OPTIONS | PENALTY_OPTIONS).items():
        assert said, name
        assert f"        {name}: " in SMoPConfig.__doc__


def test_every_field_of_the_configuration_is_documented():
    from dataclasses import fields

    from peft import PeftConfig

    inherited = {one.name for one in fields(PeftConfig)} - {"task_type"}
    for one in fields(SMoPConfig):
        if one.name not in inherited | {"task_type", "modules_to_save"}:
            assert f"        {one.name}: " in SMoPConfig.__doc__, one.name


def test_wrapping_and_asking_warn_of_nothing():
    script = (
        "import warnings; warnings.simplefilter('error')\n"
        "import peft_smop\n"
        "from peft import get_peft_model\n"
        "from transformers import BertConfig, BertModel\n"
        "bert = BertModel(BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1,"
        " num_attention_heads=2, intermediate_size=16))\n"
        "get_peft_model(bert, peft_smop.SMoPConfig(task_type='FEATURE_EXTRACTION'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_tuner_is_found_in_what_a_trainer_wraps():
    kind = KINDS["t5"]
    with warnings.catch_warnings():
        model = get_peft_model(kind.model(), SMoPConfig(task_type=kind.task_type))
    tuner = SMoPModel.of(model)
    assert tuner is model.base_model
    assert SMoPModel.of(kind.model()) is None
    model(**batch(kind))
    assert isinstance(tuner.last_routes, Routes)
