"""The commands as a user meets them."""

import io
import json
import socket

import pytest

QUICK = ("--max-steps", 2, "--eval-steps", 1, "--batch-size", 8)


@pytest.fixture
def trained(smop, toy_task, saved_models, tmp_path):
    code, out, err = smop(
        "train", "-t", toy_task, "-m", saved_models["t5"], "-o", tmp_path / "run", *QUICK
    )
    assert code == 0, err
    assert "majority label" in out
    assert "toy smop seed 0: step 2/2" in err
    return tmp_path / "run"


@pytest.mark.parametrize("command", ["train", "cost", "evaluate", "predict", "tasks", "demo"])
def test_every_command_s_help_shows_an_example(smop, command):
    code, out, _ = smop(command, "--help")
    assert code == 0
    assert f"smop {command}" in out
    assert "Example" in out or "Usage" in out


def test_evaluate_repeats_the_run_s_own_test_score(smop, trained, tmp_path):
    code, out, _ = smop("evaluate", trained, "-o", tmp_path / "score.json")
    assert code == 0
    assert "test accuracy" in out
    result = json.loads((trained / "result.json").read_text())["test"]
    written = json.loads((tmp_path / "score.json").read_text())
    assert written == result
    code, out, _ = smop("evaluate", trained, "--part", "validation")
    assert "validation accuracy" in out


def test_train_says_what_the_routing_is_worth_as_routes_does(smop, trained, toy_task, saved_models):
    again = ("train", "-t", toy_task, "-m", saved_models["t5"], "-o", trained, *QUICK, "--resume")
    _, out, _ = smop(*again)
    result = json.loads((trained / "result.json").read_text())
    verdict = result["routing"]["verdict"]
    assert f"{verdict} (6 of 6 validation examples; more: smop routes {trained})" in out
    assert verdict in smop("routes", trained)[1]


def test_predict_reads_a_file_or_standard_input_and_writes_json_lines(
    smop, trained, tmp_path, monkeypatch
):
    path = tmp_path / "input.jsonl"
    path.write_text('{"text": "the cat is red", "id": "x"}\n{"text": "the dog is blue"}\n')
    code, out, _ = smop("predict", trained, path)
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row.get("id") for row in rows] == ["x", None]
    added = {"prediction", "confidence", "probabilities", "prompt", "prompt_probability"}
    assert set(rows[0]) == {"id", "text"} | added
    assert set(rows[0]["probabilities"]) == {"warm", "cold"}
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes()), "utf-8"))
    code, piped, _ = smop("predict", trained)
    assert piped == out
    code, nothing, _ = smop("predict", trained, path, "-o", tmp_path / "out.jsonl")
    assert nothing == ""
    assert (tmp_path / "out.jsonl").read_text() == out


def test_tasks_lists_them_all_and_shows_one(smop):
    code, out, _ = smop("tasks")
    assert code == 0
    for name in ("medley", "boolq", "cb", "copa", "multirc", "rte", "wic"):
        assert name in out
    code, out, _ = smop("tasks", "cb")
    assert "cb hypothesis: {hypothesis} . premise: {premise}" in out


def test_an_own_task_is_shown_with_its_examples_counted(smop, toy_task):
    code, out, _ = smop("tasks", toy_task)
    assert code == 0
    for said in ("toy", "warm", "cold", "accuracy", "rows.jsonl", "train: 48", "the cat"):
        assert said in " ".join(out.split())


def test_an_address_that_is_taken_is_one_sentence_before_anything_loads(smop, tmp_path):
    pytest.importorskip("fastapi")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = smop("serve", tmp_path, "--port", port)
    assert code == 2
    assert f"127.0.0.1:{port} cannot be listened at" in err
    assert "--port" in err
