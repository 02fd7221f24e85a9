"""The evidence on real texts: piles by the rules that are written down, records of runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import attention
import piles
import pytest
import recording
import tables
import torch

from peft_smop.errors import ConfigError, RunError
from peft_smop.lab import RunSpec, run
from peft_smop.tasks import load_task
from told_runs import told_run

FOLDER = Path(__file__).parents[1] / "benchmarks" / "evidence"
LABELS = {
    "sst2": ["negative", "positive"],
    "trec": ["abbreviation", "description", "entity", "human", "location", "number"],
    "clinc150": ["bank", "car", "home", "work"],
    "banking77": ["card_lost", "fee", "top_up"],
}


@pytest.fixture
def sources(tmp_path):
    for source, labels in LABELS.items():
        (tmp_path / source).mkdir()
        key = "domain" if source == "clinc150" else "label"
        for part in ("train", "validation", "test"):
            rows = [
                {"id": f"{source}-{part}-{i}", "text": f"{source} {part} {label}", key: label}
                for i, label in enumerate(labels)
            ]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / source / f"{part}.jsonl").write_text(lines)
    return tmp_path


def answers(parts):
    return {row["text"]: row["label"] for row in parts["train"]}


def test_the_first_half_of_a_source_s_labels_is_answered_with_yes(sources):
    found = answers(piles.pile(sources, "yesno"))
    assert found == {
        "sst2 train negative": "yes",
        "sst2 train positive": "no",
        "trec train abbreviation": "yes",
        "trec train description": "yes",
        "trec train entity": "yes",
        "trec train human": "no",
        "trec train location": "no",
        "trec train number": "no",
        "clinc150 train bank": "yes",
        "clinc150 train car": "yes",
        "clinc150 train home": "no",
        "clinc150 train work": "no",
        "banking77 train card_lost": "yes",
        "banking77 train fee": "no",
        "banking77 train top_up": "no",
    }


def test_a_letter_means_another_label_in_each_source(sources):
    found = answers(piles.pile(sources, "letters"))
    assert {text for text, letter in found.items() if letter == "a"} == {
        "sst2 train negative",
        "trec train abbreviation",
        "clinc150 train bank",
    }
    assert found["trec train number"] == "f"
    assert not any(text.startswith("banking77") for text in found)


def test_parts_stay_apart_and_a_pile_is_the_same_whenever_it_is_made(sources):
    one, two = (piles.pile(sources, "yesno") for _ in range(2))
    assert one == two
    for part, rows in one.items():
        assert all(f" {part} " in row["text"] for row in rows)


def test_a_pile_is_a_task_as_it_is_written(sources, tmp_path):
    path = piles.write("yesno", piles.pile(sources, "yesno"), tmp_path / "tasks")
    task, split = load_task(str(path))
    assert list(task.labels) == ["no", "yes"]
    assert {example.population for example in split.train} == set(LABELS)


def test_a_record_is_written_a_line_for_each_run_and_read_again():
    for path in recording.RECORDS.glob("*.json"):
        record = recording.read(path)
        assert recording.written(record) == path.read_text(encoding="utf-8")
        assert len(path.read_text().splitlines()) == len(record["runs"]) + 3


def test_what_is_not_there_is_one_sentence(tmp_path):
    said = {
        "tables.py": ["--of", str(tmp_path)],
        "piles.py": [str(tmp_path), str(tmp_path / "out")],
        "probe.py": ["no-model", str(tmp_path)],
    }
    for script, arguments in said.items():
        command = [sys.executable, str(FOLDER / script), *arguments]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert found.returncode == 2, found.stderr
        assert re.fullmatch(rf"error: {re.escape(str(tmp_path))}.*; expected .*\n", found.stderr)


def test_finished_runs_join_the_record_of_their_task(tmp_path, monkeypatch):
    records = tmp_path / "records"
    monkeypatch.setattr(recording, "RECORDS", records)
    run, head = (
        told_run(0, [0, 0, 1, 1]),
        {"task": "toy", "model": "tiny"},
    )
    (tmp_path / "store" / "one").mkdir(parents=True)
    (tmp_path / "store" / "one" / "result.json").touch()
    for seed, test in ((0, 50.0), (1, 75.0), (0, 100.0)):
        now = {**run, "seed": seed, "test": test}
        own = {**head, "truth": {str(seed): [0, 0, 1, seed]}}
        monkeypatch.setattr(recording, "run_of", lambda _, was=(now, own): was)
        (path,) = recording.collect([tmp_path / "store"])
    runs, truth = (recording.read(path)[key] for key in ("runs", "truth"))
    assert truth == {"0": [0, 0, 1, 0], "1": [0, 0, 1, 1]}
    assert [(run["seed"], run["test"]) for run in runs] == [(0, 100.0), (1, 75.0)]
    other = {**head, "truth": {"0": [1, 0, 1, 1]}}
    monkeypatch.setattr(recording, "run_of", lambda _: (run, other))
    with pytest.raises(RunError, match="other examples"):
        recording.collect([tmp_path / "store"])
    monkeypatch.setattr(
        recording,
        "run_of",
        lambda _: ({**run, "split": {"train": "b"}}, {**head, "truth": {"0": [0, 0, 1, 0]}}),
    )
    record = recording.read(path)
    record["runs"][0]["split"] = {"train": "a"}
    path.write_text(recording.written(record))
    with pytest.raises(RunError, match="trained on other examples"):
        recording.collect([tmp_path / "store"])


def test_a_run_made_again_is_held_against_what_is_recorded_of_it(
    toy_task, saved_models, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(recording, "RECORDS", tmp_path / "records")
    said_of = {
        "task": str(toy_task),
        "model": saved_models["bert"],
        "method": {"name": "single"},
        "training": {"max_steps": 3, "eval_steps": 3, "batch_size": 4},
    }
    wanted = RunSpec.of(said_of)
    score = f"{run(wanted, tmp_path / 'store' / 'one').test.value:.1f}"

    def said(*arguments):
        monkeypatch.setattr(sys, "argv", ["tables.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            tables.main()
        return stopped.value.code, capsys.readouterr().out

    assert said("--again", tmp_path / "store") == (1, f"one: {score}, not in the records\n")
    (place,) = recording.collect([tmp_path / "store"])
    assert said("--again", tmp_path / "store") == (0, f"one: {score}, the same answers\n")
    record = recording.read(place)
    (known,) = record["runs"]
    known["predicted"][0] = 1 - known["predicted"][0]
    known["test"] = 12.5
    place.write_text(recording.written(record))
    assert said("--again", tmp_path / "store") == (
        1,
        f"one: {score}, 1 other answers, recorded 12.5\n",
    )
    known["predicted"] = None
    place.write_text(recording.written(record))
    assert said("--again", tmp_path / "store")[1].endswith(
        "another score, of which no answers are recorded\n"
    )
    record["truth"]["0"][0] = 1 - record["truth"]["0"][0]
    place.write_text(recording.written(record))
    assert said("--again", tmp_path / "store")[0] == 2
    assert said("--again", tmp_path / "store", "--write")[0] == 2
    # of what ran by no CPU's own vector units a record has a row of its own
    known = recording.run_of(tmp_path / "store" / "one")[0]["options"]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    run(wanted, tmp_path / "store" / "any")
    assert recording.run_of(tmp_path / "store" / "any")[0]["options"] == known | {"cpu": "any"}


def test_where_the_first_token_looks_is_divided_between_four():
    """Two rows, one head: a prompt of one, then the first token, a text, its end, and padding."""
    given = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.0], [0.5, 0.1, 0.1, 0.1, 0.2]])
    attention_ = torch.zeros(2, 1, 5, 5)
    attention_[:, 0, 1] = given
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    found = attention.shares(attention_, mask, 1)
    assert found == pytest.approx([0.15, 0.3, 0.25, 0.3])


def test_of_a_decoder_there_is_no_first_token_to_follow(toy_task, saved_models, tmp_path):
    for kind, method in (("llama", "single"), ("bert", "lora")):
        wanted = {"max_steps": 1}
        content = {"task": str(toy_task), "model": saved_models[kind], "training": wanted}
        run(RunSpec.of({**content, "method": {"name": method}}), tmp_path / kind)
        with pytest.raises(ConfigError, match="has no prompts before an encoder"):
            attention.table(tmp_path / kind)
    content |= {"method": {"name": "single"}}
    run(RunSpec.of(content), tmp_path / "prompts")
    assert len(attention.table(tmp_path / "prompts").splitlines()) == 2 + 2
