"""The evidence on real texts: piles by the rules that are written down, tables from records."""

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


def test_the_page_s_tables_are_those_of_the_records():
    records = {path.stem: recording.read(path) for path in sorted(recording.RECORDS.glob("*.json"))}
    assert records
    page = tables.PAGE.read_text(encoding="utf-8")
    assert tables.written_into(page, tables.tables_of(records)) == page


def test_a_record_is_written_a_line_for_each_run_and_read_again():
    for path in recording.RECORDS.glob("*.json"):
        record = recording.read(path)
        assert recording.written(record) == path.read_text(encoding="utf-8")
        assert len(path.read_text().splitlines()) == len(record["runs"]) + 3


def told_run(seed, predicted, **more):
    """A run of two labels, and four examples that are 0 0 1 1."""
    right = sum(a == b for a, b in zip(predicted or (), (0, 0, 1, 1), strict=False))
    return {
        "name": "single l=5",
        "recipe": "default",
        "options": {},
        "steps": 1000,
        "evaluated_every": 250,
        "batch": 16,
        "split": None,
        "precision": "float32",
        "rate": 0.02,
        "seed": seed,
        "validation": 50.0,
        "test": 25.0 * right,
        "majority": 50.0,
        "seconds": 1800.0,
        "trainable": 1234,
        "load": [1.0],
        "routing": None,
        "predicted": predicted,
        **more,
    }


def recorded(*runs):
    truth = {str(run["seed"]): [0, 0, 1, 1] for run in runs}
    return {"metric": "accuracy", "labels": 2, "truth": truth, "runs": list(runs)}


def test_a_table_holds_methods_against_one_prompt_by_shared_seeds_and_the_best_rate():
    mixture = {
        "name": "smop k=2",
        "load": [0.25, 0.75],
        "routing": {"worth": {"low": 1.0, "high": 3.0}},
    }
    record = recorded(
        told_run(0, [0, 1, 0, 0], **mixture, rate=0.5, validation=90.0),
        told_run(0, [0, 0, 0, 0], **mixture, validation=10.0),
        told_run(0, [1, 1, 0, 0]),
        told_run(1, [0, 0, 1, 1]),
    )
    *_, first, second = tables.table(record).splitlines()
    assert (
        first
        == "| single l=5 | 0.02, 1 | 1,000, 250, 16 | 50.0 ± 70.7 | 0.0, 100.0 |  |  |  | 1,234 |"
    )
    # 0.0 of the first's seed 0, and 25.0 of the better rate; of seed 1 the second has no run
    assert second.startswith("| smop k=2 | 0.5, 2 | 1,000, 250, 16 | 25.0 | 25.0 | +25.0 (")
    assert second.endswith("| +1.0 to +3.0 | 75 25 | 1,234 |")
    assert tables.hours(record) == 2.0


def test_another_recipe_or_option_is_a_row_of_its_own_and_no_difference_is_made_up():
    record = recorded(
        told_run(0, [0, 0, 1, 1], recipe="paper", rate=0.3),
        told_run(0, [0, 0, 1, 1], options={"dropout": False}),
        told_run(3, None),
    )
    usual, others = (tables.table(record, by_default=own).splitlines()[2:] for own in (True, False))
    assert [row.split(" | ")[0] for row in usual] == ["| single l=5"]
    assert [row.split(" | ")[0] for row in others] == [
        "| single l=5 dropout=False",
        "| single l=5, recipe paper",
    ]
    assert all(row.split(" | ")[5].strip() == "" for row in usual + others)


def test_a_task_in_a_row_is_what_took_as_many_steps_by_the_default_recipe():
    mixture, told = (
        {"name": "smop k=4 l=5 position=after routing=posterior"},
        {"name": "told position=after"},
    )
    record = recorded(
        told_run(0, [0, 0, 1, 1], name="single l=5 position=after"),
        told_run(1, [0, 0, 0, 1], name="single l=5 position=after"),
        told_run(0, [0, 0, 1, 1], name="single l=5 position=after", steps=2000),
        told_run(0, [0, 0, 0, 0], **mixture),
        told_run(0, [0, 0, 1, 1], **mixture, options={"schedule": "cosine"}),
        told_run(0, [0, 0, 0, 0], **told, evaluated_every=125),
        told_run(0, [0, 0, 1, 1], **told),
        told_run(1, [0, 0, 1, 1], **told),
        told_run(0, [0, 0, 1, 1], name="lora r=8", precision="bfloat16"),
        told_run(0, [0, 0, 1, 1], name="single l=20 position=after", steps=2000),
    )
    alone = recorded(told_run(0, [0, 0, 1, 1], **told))
    head, _, *rows = tables.summary(
        {**one, "task": "toy", "model": "tiny"} for one in (record, alone)
    ).splitlines()
    (row,) = (dict(zip(head.split(" | "), one.split(" | "), strict=True)) for one in rows)
    assert {name.strip("| "): cell for name, cell in row.items() if cell.strip("| ")} == {
        "task, backbone": "| `toy`, tiny",
        "steps": "1000",
        "one prompt, l=5": "87.5 ± 17.7 (2)",
        "mixture by posterior, k=4": "50.0 (1)",
        "told the source": "100.0 ± 0.0 (2)",
        "mixture less l=5": "-50.0 (-100.0 to +0.0)",
    }


def test_what_a_head_reads_has_rows_of_its_own():
    """Methods that change weights leave a head as it is, and stand in both."""
    own = {"options": {"pooling": "own"}}
    record = recorded(
        told_run(0, [0, 0, 1, 1]),
        told_run(0, [0, 0, 1, 0], **own),
        told_run(0, [0, 0, 0, 0], name="single l=20", **own),
        told_run(0, [1, 0, 1, 1], name="lora r=8"),
    )
    head, _, *rows = tables.summary([{**record, "task": "toy", "model": "tiny"}]).splitlines()
    found = [dict(zip(head.split(" | "), row.split(" | "), strict=True)) for row in rows]
    assert [row["| task, backbone"] for row in found] == [
        "| `toy`, tiny",
        "| `toy`, tiny, first token",
    ]
    assert [row["one prompt, l=5"] for row in found] == ["100.0 (1)", "75.0 (1)"]
    assert [row["one prompt, l=20"] for row in found] == ["", "50.0 (1)"]
    assert [row["LoRA, r=8"] for row in found] == ["75.0 (1)", "75.0 (1)"]
    each = tables.table(record)
    assert "single l=5, first token | 0.02" in each
    assert tables.table(record, by_default=False) == ""


def test_a_head_that_reads_the_mean_is_held_against_the_same_that_does_not():
    own = {"options": {"pooling": "own"}}
    record = recorded(
        told_run(0, [0, 0, 1, 1]),
        told_run(0, [0, 0, 0, 0], **own),
        told_run(1, [0, 0, 1, 0], **own),
        told_run(0, [0, 0, 1, 1], steps=500),
        told_run(0, [1, 0, 1, 1], name="lora r=8"),
    )
    _, _, *rows = tables.heads([{**record, "task": "toy", "model": "tiny"}]).splitlines()
    (row,) = rows
    said = "| `toy`, tiny | single l=5 | 1,000 | 62.5 ± 17.7 (2) | 100.0 (1) | +50.0 ("
    assert row.startswith(said)


def test_where_prompts_stand_has_rows_of_its_own_and_is_held_against_the_other_place():
    """Of an encoder, on which all stand before the text, nothing is said."""
    behind = {"name": "single l=5 position=after"}
    record = recorded(
        told_run(0, [0, 0, 1, 1], **behind),
        told_run(1, [0, 0, 1, 1], **behind),
        told_run(0, [0, 0, 0, 0]),
        told_run(0, [1, 0, 1, 1], name="lora r=8"),
        told_run(0, [0, 0, 0, 0], **behind, steps=500),
    )
    toys = [{**record, "task": "toy", "model": "tiny"}]
    head, _, *rows = tables.summary(toys).splitlines()
    found = [dict(zip(head.split(" | "), row.split(" | "), strict=True)) for row in rows]
    said = [(row["| task, backbone"], row["one prompt, l=5"], row["LoRA, r=8"]) for row in found]
    assert said == [
        ("| `toy`, tiny", "100.0 ± 0.0 (2)", "75.0 (1)"),
        ("| `toy`, tiny, before the text", "50.0 (1)", "75.0 (1)"),
    ]
    _, _, *rows = tables.places(toys).splitlines()
    (row,) = rows
    start = "| `toy`, tiny | single l=5 | 1,000 | 50.0 (1) | 100.0 ± 0.0 (2) | +50.0 ("
    assert row.startswith(start)
    # each place has its own reference, and what has no place the other prompts' usual one
    assert "| lora r=8 | 0.02, 1 | 1,000, 250, 16 | 75.0 | 75.0 | -25.0 (" in tables.table(record)
    encoder = recorded(told_run(0, [0, 0, 0, 0]))
    assert "before" not in tables.summary([{**encoder, "task": "toy", "model": "tiny"}])


def test_twice_the_steps_of_one_prompt_are_held_against_the_mixture():
    mixture = {"name": "smop k=4 l=5 routing=posterior", "load": [0.5, 0.5]}
    record = recorded(
        told_run(0, [0, 0, 1, 0], **mixture, steps=500),
        told_run(1, [0, 0, 1, 0], **mixture, steps=500),
        told_run(0, [0, 0, 1, 1], **mixture, steps=2000),
        told_run(0, [0, 0, 1, 1]),
        told_run(0, [0, 0, 0, 0], steps=500),
    )
    _, _, *rows = tables.equal_time([{**record, "task": "toy", "model": "tiny"}]).splitlines()
    (row,) = rows
    said = "| `toy`, tiny | 75.0 ± 0.0 (2), 500 | single l=5 100.0 (1) | 1,000 | -25.0 ("
    assert row.startswith(said)


def test_what_was_tried_with_one_prompt_is_told_by_rate_and_dropout():
    tried = (
        told_run(0, None, validation=70.0, rate=0.08),
        told_run(1, None, validation=72.0, rate=0.08),
        told_run(0, None, validation=60.0, rate=0.08, options={"dropout": True}),
        told_run(1, None, validation=50.0, recipe="paper", rate=0.5),
        told_run(0, None, rate=0.08, options={"schedule": "cosine"}),
        told_run(0, None, validation=90.0, options={"max_length": 8}),
        told_run(0, None, validation=40.0, rate=0.08, options={"pooling": "own"}),
        told_run(0, None, name="single l=20"),
    )
    head = {"task": "toy", "model": "minilm-l6"}
    said = "| toy, minilm-l6, 50.0 | single l=5 | 1,000, 250, 16 "
    assert tables.recipes([{**recorded(*tried), **head}]).splitlines()[2:] == [
        f"{said}| 0.08 | off | mean |  | default | 0: 70.0, 1: 72.0 | 71.0 |",
        f"{said}| 0.08 | off | mean | cosine |  | 0: 50.0 | 50.0 |",
        f"{said}| 0.08 | off | first token |  |  | 0: 40.0 | 40.0 |",
        f"{said}| 0.08 | on | mean |  |  | 0: 60.0 | 60.0 |",
        f"{said}| 0.5 | on | first token |  | paper | 1: 50.0 | 50.0 |",
    ]
    # of an unknown backbone no rate is the default
    head, unknown = {**head, "model": "other"}, said.replace("minilm-l6", "other")
    assert f"{unknown}| 0.08 | off |  |  |  |" in tables.recipes([{**recorded(*tried), **head}])
    # what drops nothing by itself has one row for each rate
    head, said = {**head, "model": "smollm2-135m"}, said.replace("minilm-l6", "smollm2-135m")
    assert tables.recipes([{**recorded(*tried[2:4], told_run(0, None)), **head}]).splitlines()[
        2:
    ] == [
        f"{said}| 0.02 | none |  |  |  | 0: 50.0 | 50.0 |",
        f"{said}| 0.08 | none |  |  |  | 0: 60.0 | 60.0 |",
        f"{said}| 0.5 | none |  |  | paper | 1: 50.0 | 50.0 |",
    ]


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


def test_unlike_runs_are_rows_of_their_own_and_the_reference_took_as_many_steps():
    record = recorded(
        told_run(0, [0, 0, 1, 1]),
        told_run(0, [1, 1, 1, 1], steps=100),
        told_run(0, [0, 0, 1, 1], name="single l=50", steps=100),
        told_run(0, [0, 0, 0, 0], name="lora", steps=100),
        told_run(1, [0, 0, 0, 0], name="lora", steps=100, batch=8),
        told_run(1, [0, 0, 1, 1], name="lora", steps=100, evaluated_every=20),
        told_run(0, [0, 0, 1, 1], precision="bfloat16", steps=100),
        told_run(0, [0, 0, 1, 1], name="lora", precision="bfloat16", steps=100),
    )
    rows = tables.table(record).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [
        "| single l=5",
        "| single l=5, bf16",
        "| single l=5",
        "| lora",
        "| lora",
        "| lora",
        "| lora, bf16",
        "| single l=50",
    ]
    # against one prompt in its own precision
    assert next(row for row in rows if "lora, bf16" in row).split(" | ")[5] == "+0.0 (+0.0 to +0.0)"
    assert any(
        row.split(" | ")[2] == "100, 250, 16" and "+50.0" in row for row in rows if "l=50" in row
    )


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
