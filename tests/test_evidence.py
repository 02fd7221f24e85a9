"""The evidence on real texts: piles by the rules that are written down, tables from records."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from peft_smop.tasks import load_task

FOLDER = Path(__file__).parents[1] / "benchmarks" / "evidence"
LABELS = {
    "sst2": ["negative", "positive"],
    "trec": ["abbreviation", "description", "entity", "human", "location", "number"],
    "clinc150": ["bank", "car", "home", "work"],
    "banking77": ["card_lost", "fee", "top_up"],
}


@pytest.fixture(scope="module")
def piles():
    return SimpleNamespace(**runpy.run_path(str(FOLDER / "piles.py")))


@pytest.fixture(scope="module")
def tables():
    return SimpleNamespace(**runpy.run_path(str(FOLDER / "tables.py")))


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


def test_the_first_half_of_a_source_s_labels_is_answered_with_yes(piles, sources):
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


def test_a_letter_means_another_label_in_each_source(piles, sources):
    found = answers(piles.pile(sources, "letters"))
    assert {text for text, letter in found.items() if letter == "a"} == {
        "sst2 train negative",
        "trec train abbreviation",
        "clinc150 train bank",
    }
    assert found["trec train number"] == "f"
    assert not any(text.startswith("banking77") for text in found)


def test_parts_stay_apart_and_a_pile_is_the_same_whenever_it_is_made(piles, sources):
    one, two = (piles.pile(sources, "yesno") for _ in range(2))
    assert one == two
    for part, rows in one.items():
        assert all(f" {part} " in row["text"] for row in rows)


def test_a_pile_is_a_task_as_it_is_written(piles, sources, tmp_path):
    path = piles.write("yesno", piles.pile(sources, "yesno"), tmp_path / "tasks")
    task, split = load_task(str(path))
    assert list(task.labels) == ["no", "yes"]
    assert {example.population for example in split.train} == set(LABELS)


def test_the_page_s_tables_are_those_of_the_records(tables):
    told = {
        path.stem: tables.table(json.loads(path.read_text()))
        for path in tables.RECORDS.glob("*.json")
    }
    assert told
    page = tables.PAGE.read_text(encoding="utf-8")
    assert tables.written_into(page, told) == page


def test_a_table_s_row_has_mean_spread_and_difference_from_the_first(tables):
    method = {
        "name": "smop",
        "test": [50.0, 54.0],
        "difference": {"points": 1.25, "low": -0.5, "high": 3.0, "p": 0.2},
        "routing": [{"worth": {"value": 2.0, "low": 1.0, "high": 3.0}}, None],
        "load": [[0.25, 0.75], [1.0]],
        "trainable": 1234,
    }
    assert tables.table({"methods": [method]}).splitlines()[-1] == (
        "| smop | 52.0 ± 2.8 | 50.0, 54.0 | +1.2 (-0.5 to +3.0) | +1.0 to +3.0 | 75 25 | 1,234 |"
    )
