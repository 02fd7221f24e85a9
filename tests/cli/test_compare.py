"""`smop compare` and `smop methods`, as a user meets them."""

import json

import pytest

QUICK = ("--max-steps", 4, "--eval-steps", 2, "--set", "batch_size=8")


def test_one_command_prints_scores_costs_and_what_they_mean(smop, toy_task, saved_models, tmp_path):
    arguments = (
        "compare", "-t", toy_task, "-m", saved_models["t5"], "-o", tmp_path,
        "--methods", "smop,single,lora-8", "--seeds", 2, *QUICK,
    )  # fmt: skip
    code, out, err = smop(*arguments)
    assert code == 0, err
    assert "toy on t5: 2 seeds, 6 test examples (16.67 points each)" in out
    assert "always the majority label" in out
    for name in ("smop", "single", "lora-8"):
        assert any(line.startswith(name) for line in out.splitlines())
    worth = [line for line in out.splitlines() if "worth of routing by seed: " in line]
    assert len(worth) == 1
    assert worth[0].startswith("smop: ")
    assert worth[0].count(" to ") == 2
    assert "not significant" in out or "better" in out or "worse" in out
    tables = out.split("score: mean")[0].split("Scores\n")[1]
    assert max(map(len, tables.splitlines())) <= 80
    for column in ("trained", "allocated", "s/100", "MiB", "GFLOPs"):
        assert column in out
        assert f"{column}" in out.split("trained: parameters")[0]
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert [row["name"] for row in written["methods"]] == ["smop", "single", "lora-8"]
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    code, again, err = smop(*arguments)
    assert "step" not in err  # nothing was trained a second time
    assert again == out


def test_controls_come_with_a_flag(smop, toy_task, saved_models, tmp_path):
    code, out, err = smop(
        "compare", "-t", toy_task, "-m", saved_models["t5"], "-o", tmp_path,
        "--methods", "smop:k=2:l=3", "--seeds", 1, "--controls", *QUICK,
    )  # fmt: skip
    assert code == 0, err
    for name in ("prompt-tuning:l=3", "prompt-tuning:l=6", "smop:routing=uniform:k=2:l=3"):
        assert name in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "smop,lara-8"), "unknown method 'lara-8'; did you mean lora-8"),
        (("--methods", "smop,smop"), "method 'smop' is named twice"),
        (("--methods", ","), "--methods names no method; see smop methods"),
        (("--methods", "smop", "--trials", "4"), "trials=4 exceeds the 3 learning rates"),
        (("--methods", "smop", "--set", "batch_size"), "expected KEY=VALUE"),
        (("--methods", "smop", "--set", "batchsize=3"), "unknown option 'batchsize'"),
        (("--methods", "smop:lr=abc"), "learning_rate='abc' must be a number above 0"),
        (("--methods", "single,smop:top_k=9"), "top_k=9 exceeds num_prompts=4"),
        (("--methods", "single:k=2"), "num_prompts=2 is no option of single"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    smop, toy_task, saved_models, tmp_path, arguments, message
):
    code, out, err = smop(
        "compare", "-t", toy_task, "-m", saved_models["t5"], "-o", tmp_path / "x", *arguments
    )
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "x").exists()


def test_methods_lists_every_name_with_its_options(smop):
    code, out, _ = smop("methods")
    assert code == 0
    for words in ("lora-8", "rank=8", "smop-top2", "Table", "houlsby-48", "bottlenecks"):
        assert words in out


def test_train_takes_a_short_name_and_any_other_option(smop, toy_task, saved_models, tmp_path):
    code, out, err = smop(
        "train", "-t", toy_task, "-m", saved_models["t5"], "-o", tmp_path / "run",
        "--method", "smop-top2", "--max-steps", 2, "--eval-steps", 1, "--batch-size", 8,
        "--set", "router_learning_rate=0.01", "--set", "z_loss=0.001", "--recipe", "paper",
    )  # fmt: skip
    assert code == 0, err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    given = {key: value for key, value in result["method"].items() if value is not None}
    assert given == {"name": "smop", "top_k": 2, "z_loss": 0.001}
    assert "at a learning rate of 0.5 (recipe paper, dropout on)" in out


def test_training_options_after_a_name_are_the_run_s(smop, toy_task, saved_models, tmp_path):
    code, _, err = smop(
        "train", "-t", toy_task, "-m", saved_models["t5"], "-o", tmp_path / "run", "--method",
        "smop:batch_size=7:weight_decay=0.1:patience=3:max_steps=2:eval_steps=1",
    )  # fmt: skip
    assert code == 0, err
    text = (tmp_path / "run" / "spec.yaml").read_text()
    for line in ("batch_size: 7", "weight_decay: 0.1", "patience: 3", "max_steps: 2"):
        assert line in text
