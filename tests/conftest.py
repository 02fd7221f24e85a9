"""What all tests share: the environment, a small task, small models of each kind."""

import gc
import json
import os
import warnings
from pathlib import Path

import pytest
import torch
import yaml

import offline
import tiny
from saved import save

torch.set_num_threads(1)  # tiny models lose much more to waiting threads than they gain


def pytest_report_header():
    return f"environment: {offline.SETTINGS}"


@pytest.fixture(scope="session", autouse=True)
def _libraries_are_no_garbage():
    """What was imported is no longer looked through whenever garbage is collected."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


ANIMALS = ("cat", "dog", "cow", "hen", "owl", "fox")
COLOURS = ("red", "blue", "green", "black")


def _rows(count: int) -> list[dict[str, str]]:
    return [
        {"text": f"the {a} is {c} number {i}", "label": "warm" if c in ("red", "green") else "cold"}
        for i in range(count)
        for a, c in [(ANIMALS[i % 6], COLOURS[i * 7 % 4])]
    ]


@pytest.fixture(scope="session")
def toy_task(tmp_path_factory) -> Path:
    """A task of one's own: the YAML of 60 rows that say something warm or cold."""
    folder = tmp_path_factory.mktemp("toy")
    rows = [json.dumps(row) for row in _rows(60)]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "toy.yaml").write_text(
        "name: toy\ntemplate: '{text}'\nlabels: {warm: warm, cold: cold}\ndata: rows.jsonl\n"
    )
    return folder / "toy.yaml"


@pytest.fixture(scope="session")
def small_medley(tmp_path_factory):
    """A hundred rows of the generated task, as a task of one's own."""
    folder = tmp_path_factory.mktemp("small")
    from peft_smop.tasks import load_task

    task, split = load_task("medley")
    rows = [
        {"text": example.text, "label": task.labels[example.label]} for example in split.train[:100]
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    present = {row["label"] for row in rows}
    labels = {
        label: word
        for label, word in zip(task.labels, task.verbalizers, strict=True)
        if label in present
    }
    definition = {"name": "small", "template": "{text}", "labels": labels, "data": "rows.jsonl"}
    (folder / "small.yaml").write_text(yaml.safe_dump(definition))
    return folder / "small.yaml"


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory) -> dict[str, str]:
    """A tiny random model of each kind on disk, with a tokenizer for the toy task's words."""
    folder = tmp_path_factory.mktemp("models")
    texts = [row["text"] for row in _rows(60)] + [
        "warm cold answer: entailment contradiction neutral"
    ]
    return {name: str(save(tiny.KINDS[name], folder / name, texts=texts)) for name in tiny.THREE}


@pytest.fixture
def smop(monkeypatch, capsys):
    """Run the command in this process: smop("train", ...) -> (exit code, output, errors)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        from peft_smop.cli import main

        monkeypatch.setattr("sys.argv", ["smop", *map(str, arguments)])
        with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture(scope="session")
def superglue() -> Path:
    """The official files, or a skip."""
    named = os.environ.get("SUPERGLUE_DIR")
    beside = Path(__file__).parents[2] / "shared" / "data" / "superglue"
    found = Path(named) if named else beside
    if not found.is_dir():
        pytest.skip("the SuperGLUE files are not here; set SUPERGLUE_DIR to their folder")
    return found
