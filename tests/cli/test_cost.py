"""`smop cost`, as a user meets it."""

import json

import pytest

METHODS = "smop,prompt-tuning-20,p-tuning-20,lora-8,houlsby-8,full"


def columns(out: str, first: str) -> dict[str, dict[str, str]]:
    """The table whose head begins so: method -> column -> cell."""
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(first + "  "))
    head = lines[start].removeprefix(first).split()
    found = {}
    for line in lines[start + 1 :]:
        if not line.strip():
            return found
        name, *cells = line.replace(" to ", "_").split()
        found[name] = dict(zip(head, cells, strict=False))
    return found


def test_one_command_prints_costs_ratios_and_what_they_mean(smop, tmp_path):
    code, out, err = smop(
        "cost", "-t", "medley", "-m", "embedded", "--methods", METHODS, "--steps", 2,
        "--batch-size", 8, "--json", tmp_path / "cost.json",
    )  # fmt: skip
    assert code == 0, err
    assert "1,050,496 parameters, weights loaded" in out
    costs, ratios = columns(out, "method"), columns(out, "ratio to the first")
    assert list(costs) == list(ratios) == METHODS.split(",")
    assert costs["smop"]["trained"] == "3,072"
    assert costs["full"]["%"] == "100.0000"
    for name in costs:
        text, same, mixed = (float(costs[name][c]) for c in ("text", "sorted", "random"))
        assert text < same < mixed
        low, high = map(float, costs[name]["quartiles"].split("_"))
        assert low <= float(costs[name]["s/100"]) <= high
    assert set(ratios["smop"].values()) == {"1.00"}
    assert float(ratios["prompt-tuning-20"]["text"]) > 1 > float(ratios["full"]["text"])
    for word in ("trained: ", "GFLOPs: ", "s/100: ", "MiB: ", "every figure over the first"):
        assert word in out
    assert "paper" not in ratios["smop"]  # it knows neither the model nor the task
    written = json.loads((tmp_path / "cost.json").read_text())
    (costing,) = written["costings"]
    assert [cost["method"] for cost in costing["costs"]] == METHODS.split(",")
    assert costing["costs"][0]["step"]["repeats"] == 2
    assert "torch" in written["environment"]


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_every_kind_of_model_with_batches_in_random_order(smop, toy_task, saved_models, kind):
    code, out, err = smop(
        "cost", "-t", toy_task, "-m", saved_models[kind], "--methods", "single,lora-2,full",
        "--steps", 1, "--batch-size", 4, "--batches", "random",
    )  # fmt: skip
    assert code == 0, err
    assert "the mean length in random batches" in out
    assert columns(out, "method").keys() == {"single", "lora-2", "full"}


def test_a_known_shape_needs_no_weights_and_a_given_length_no_data(smop):
    code, out, err = smop(
        "cost", "-t", "rte,wic", "-m", "t5-small", "--methods", "smop,full", "--length", 40,
        "--steps", 0,
    )  # fmt: skip
    assert code == 0, err
    assert "60,506,624 parameters, weights none" in out
    assert "40.0 tokens a row, 40.0 in sorted and 40.0 in random batches" in out
    assert "mean over 2 tasks" in out
    assert "s/100" not in out


def test_another_tokenizer_may_count(smop, toy_task, saved_models):
    arguments = ("cost", "-t", toy_task, "-m", "t5-small", "--methods", "smop", "--steps", 0)
    code, out, _ = smop(*arguments)
    assert code == 0
    assert "no tokenizer: 1.2 tokens for each word" in out
    code, out, _ = smop(*arguments, "--tokenizer", saved_models["t5"])
    assert code == 0
    assert "7.0 tokens a row" in out  # six words and an end
    assert str(saved_models["t5"]) in out


@pytest.mark.data
def test_the_paper_s_ratio_of_operations_on_rte_is_that_of_random_batches(smop, superglue):
    code, out, err = smop(
        "cost", "-t", "rte", "-m", "t5-base", "--data", superglue, "--steps", 0,
        "--methods", "smop,prompt-tuning-100",
    )  # fmt: skip
    assert code == 0, err
    ratios = columns(out.replace("paper", "paper-trained", 1), "ratio to the first")
    row = ratios["prompt-tuning-100"]
    paper = float(row["paper"])
    assert paper == 1.43  # 114.3 over 80.1
    assert float(row["random"]) == pytest.approx(paper, abs=0.06)
    assert float(row["text"]) > 1.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "medley", "--methods", "smop,lara-8"), "did you mean lora-8"),
        (("--task", "medley", "--methods", "smop,smop"), "'smop' is named twice"),
        (("--task", "medley", "--methods", ","), "--methods names no method"),
        (("--task", ","), "--task names no task"),
        (("--task", "meddley"), "did you mean medley"),
        (("--task", "medley", "--tokenizer", "nowhere"), "nowhere holds no tokenizer"),
        (("--task", "rte", "--data", "nowhere"), "nowhere: the folder is missing"),
        (("--task", "rte"), "or give --length"),
    ],
)
def test_a_mistake_is_one_sentence(smop, arguments, message):
    code, _, err = smop("cost", "-m", "embedded", "--steps", 0, *arguments)
    assert code == 2
    (line,) = err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--task", "medley", "--steps", -1),
        ("--task", "medley", "--batch-size", 0),
        ("--task", "medley", "--length", -5),
        ("--task", "medley", "--batches", "shuffled"),
    ],
)
def test_an_option_that_is_missing_or_cannot_be_is_refused(smop, arguments):
    code, _, err = smop("cost", *arguments)
    assert code == 2
    assert "Traceback" not in err
