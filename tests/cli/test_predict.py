"""`smop predict`: people's files in and out."""

import csv
import io
import json
import re

import pytest

from answering import MOOD, PAIR, save_adapter
from peft_smop.scoring.classes import class_scores

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
ROWS = [
    {"nr": 1, "text": "the miller was glad, and \"sang\"", "label": "good"},
    {"nr": 2, "text": "nobody came\nto the gate", "label": "bad"},
    {"nr": 3, "text": "größer 🙂 bread", "label": "good"},
    {"nr": 4, "text": "it rained on the old bridge", "label": None},
]  # fmt: skip
ADDED = ["prediction", "prompt", "prompt_probability", "confidence"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return save_adapter(tmp_path_factory.mktemp("a") / "mood", 1)


def written(path):
    ending = path.suffix
    if ending == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))
    elif ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        rows = ROWS if ending == ".csv" else [ROWS[3] | {"nr": n} for n in range(4)]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(
                file, ["nr", "text", "label"], delimiter="\t" if ending == ".tsv" else ","
            )
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.mark.parametrize("out", [".jsonl", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("into", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_kind_in_and_out_keeps_the_columns(smop, adapter, tmp_path, into, out):
    source = written(tmp_path / f"in{into}")
    code, _, err = smop("predict", adapter, source, "-o", tmp_path / f"out{out}")
    assert code == 0, err
    assert "4 rows, 4 answered" in err
    before, after = read(source), read(tmp_path / f"out{out}")
    for old, new in zip(before, after, strict=True):
        assert list(new)[: len(old)] == list(old)
        assert {k: str(new[k] or "") for k in old} == {k: str(old[k] or "") for k in old}
        assert set(ADDED) < set(new)
        if out == ".jsonl":
            assert set(new["probabilities"]) == {"good", "bad"}
        else:
            assert 0 < float(new["probability_good"]) < 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({f"in{into}", f"out{out}"})


def test_standard_output_says_what_a_file_says(smop, adapter, tmp_path):
    source = written(tmp_path / "in.csv")
    _, out, _ = smop("predict", adapter, source)
    smop("predict", adapter, source, "-o", tmp_path / "out.jsonl")
    assert [json.loads(line) for line in out.splitlines()] == read(tmp_path / "out.jsonl")


def test_a_line_in_is_a_line_out(adapter):
    """The answer to a line comes before the next line is written."""
    import os
    import subprocess
    import sys

    process = subprocess.Popen(
        [sys.executable, "-m", "peft_smop.cli", "predict", str(adapter)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ,
    )  # fmt: skip
    for text in ("one bread", "two dogs"):
        process.stdin.write(json.dumps({"text": text}).encode() + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["text"] == text
    _, err = process.communicate()
    assert process.returncode == 0, err


def test_bad_rows_are_refused_or_put_aside_and_counted(smop, adapter, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "one"}\n{"text": ""}\n{"txt": 1}\n{"te\n[1]\n{"text": "six"}\n')
    code, _, err = smop("predict", adapter, source, "-o", tmp_path / "out.csv")
    assert code == 2
    assert "line 4" in err
    assert not (tmp_path / "out.csv").exists()
    code, _, err = smop("predict", adapter, source, "-o", tmp_path / "out.csv", "--skip-bad")
    assert code == 0, err
    assert "6 rows, 2 answered; 4 bad ones are in" in err
    assert [row["text"] for row in read(tmp_path / "out.csv")] == ["one", "six"]
    aside = read(tmp_path / "out.csv.bad.jsonl")
    assert [row["row"] for row in aside] == [2, 3, 4, 5]
    assert "field 'text' is empty" in aside[0]["error"]
    assert aside[1]["content"] == {"txt": 1}
    assert aside[2]["content"] == '{"te'


def test_a_threshold_abstains(smop, adapter, tmp_path):
    source = written(tmp_path / "in.jsonl")
    _, out, _ = smop("predict", adapter, source)
    sure = sorted(json.loads(line)["confidence"] for line in out.splitlines())
    _, out, err = smop("predict", adapter, source, "--threshold", (sure[1] + sure[2]) / 2)
    rows = [json.loads(line) for line in out.splitlines()]
    assert sum(row["prediction"] is None for row in rows) == 2
    assert "2 below" in err
    assert "none" in err


def test_labels_in_the_input_are_scored_class_by_class(smop, adapter, tmp_path):
    source = written(tmp_path / "in.jsonl")
    _, out, err = smop("predict", adapter, source)
    rows = [json.loads(line) for line in out.splitlines()]
    right = sum(row["prediction"] == row["label"] for row in rows)
    assert f"3 have a label: {right} right" in err
    assert re.search(r"good +\S+ +\S+ +\S+ +2\n", err)
    assert "have a label" not in smop("predict", adapter, source, "--label", "nr")[2]


def test_labels_that_the_task_does_not_have_are_told_and_not_scored(smop, adapter, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("text,label\nwarm sun,good\ncold snow,blah\ncold ice,blah\nsnow,\n")
    code, _, err = smop("predict", adapter, source)
    assert code == 0
    assert "1 have a label" in err
    said = "not scored are 2 rows, whose label is none of the task's: 'blah' (2)"
    assert said in err
    source.write_text("text,label\nwarm sun,blah\n")
    assert "not scored are 1 rows" in smop("predict", adapter, source)[2]


def test_a_label_s_column_that_is_not_there_is_refused(smop, adapter, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("text,label\nwarm sun,warm\n")
    code, _, err = smop("predict", adapter, source, "--label", "lable")
    assert code == 2
    assert "unknown column 'lable'; did you mean label" in err


def test_precision_recall_and_f1_of_every_class_by_hand():
    truth, given = [0, 0, 1, 2, 2, 2, 1, 0], [0, 1, 1, 2, 0, 2, 1, 2]
    expected = [(1 / 2, 1 / 3, 2 / 5, 3), (2 / 3, 1, 4 / 5, 2), (2 / 3, 2 / 3, 2 / 3, 3)]
    for one, wanted in zip(class_scores(truth, given, PAIR.labels), expected, strict=True):
        assert (one.precision, one.recall, one.f1, one.examples) == pytest.approx(wanted)
    (one, other) = class_scores([0, 0], [None, 0], MOOD.labels)
    assert (one.taken_for, one.precision, one.recall) == ((1, 0, 1), 1.0, 0.5)
    assert (other.precision, other.recall, other.f1) == (None, None, 0.0)


@pytest.mark.parametrize("name", ["in.jsonl", "./in.jsonl", "link.jsonl", "hard.jsonl"])
def test_the_input_is_never_written_over(smop, adapter, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    source = written(tmp_path / "in.jsonl")
    (tmp_path / "link.jsonl").symlink_to(source)
    (tmp_path / "hard.jsonl").hardlink_to(source)
    before = source.read_bytes()
    code, _, err = smop("predict", adapter, source, "-o", name)
    assert code == 2
    assert "is what is read" in err
    code, _, err = smop("predict", adapter, source, "--skip-bad", "--bad", name)
    assert code == 2
    assert source.read_bytes() == before


def test_columns_of_the_same_name_are_not_lost(smop, adapter, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("text,prompt\none,mine\n")
    code, _, err = smop("predict", adapter, source)
    assert code == 2
    assert "column 'prompt'" in err
    _, out, _ = smop("predict", adapter, source, "--prefix", "smop_")
    row = json.loads(out)
    assert row["prompt"] == "mine"
    assert isinstance(row["smop_prompt"], int)


def test_control_characters_never_reach_a_terminal(smop, adapter, tmp_path, monkeypatch):
    text = "red \x1b[31m \x9b31m \x07 \u202e end"
    monkeypatch.setattr(
        "sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps({"text": text}).encode()), "utf-8")
    )
    code, out, _ = smop("predict", adapter)
    assert code == 0
    assert json.loads(out)["text"] == text
    bad = tmp_path / "in\x1b[31m.jsonl"
    bad.write_text('{"text": ["\\u001b[31m"]}\n')
    told = [out, *smop("predict", adapter, bad)[1:], *smop("tasks", "c\x1b[31mb")[1:]]
    (tmp_path / "t.yaml").write_text("name: t\ntemplate: '{a}'\nlabels: [x, y]\ndata: t.csv\n")
    (tmp_path / "t.csv").write_text("a\x1b[31m,b\n1,2\n")
    told += smop("train", "-t", tmp_path / "t.yaml", "-m", "embedded")[1:]
    assert "x1b[31m" in "".join(told)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", "".join(told))
