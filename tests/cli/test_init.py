"""`smop init` looks at a file and writes a YAML that training takes."""

import json

import pytest
import yaml

from peft_smop.embedded.tickets import main, tickets
from peft_smop.tasks import load_task


@pytest.fixture
def file(tmp_path):
    main(tmp_path / "tickets.csv")
    return tmp_path / "tickets.csv"


def test_tickets_of_a_spreadsheet_become_a_task_with_every_row_as_it_was(smop, file):
    code, out, err = smop("init", file)
    assert code == 0, err
    content = yaml.safe_load(file.with_suffix(".yaml").read_text())
    assert content == {
        "name": "tickets",
        "template": "subject: {subject} body: {body}",
        "labels": {q: q for q in ("billing", "delivery", "login", "outage", "praise")},
        "data": "tickets.csv",
        "label": "queue",
        "id": "nr",
        "delimiter": ";",
    }
    assert "600 rows" in out
    assert "delimiter: ';'" in out
    task, split = load_task(file.with_suffix(".yaml"))
    found = {e.id: (e.text, task.labels[e.label]) for part in split_parts(split) for e in part}
    assert found == {
        row["nr"]: (f"subject: {row['subject']} body: {row['body']}", row["queue"])
        for row in tickets()
    }
    assert f"{len(split.train)} train" in out


def split_parts(split):
    return split.train, split.validation, split.test


def test_encoding_and_another_folder_are_written_down(smop, tmp_path):
    rows = ["text|label", *(f"Grüße und ein Text {i}|{'ab'[i % 2]}" for i in range(40))]
    (tmp_path / "d.csv").write_bytes("\n".join(rows).encode("latin-1"))
    (tmp_path / "tasks").mkdir()
    code, _, err = smop("init", tmp_path / "d.csv", "-o", tmp_path / "tasks" / "t.yaml")
    assert code == 0, err
    content = yaml.safe_load((tmp_path / "tasks" / "t.yaml").read_text())
    assert (content["encoding"], content["delimiter"], content["data"]) == (
        "cp1252", "|", "../d.csv",
    )  # fmt: skip
    assert load_task(tmp_path / "tasks" / "t.yaml").split.train[0].text.startswith("Grüße und")


def test_what_a_user_should_know_is_warned_of(smop, tmp_path):
    rows = [{"text": f"a text of number {i // 2}", "label": "ab"[i % 2]} for i in range(40)]
    rows += [{"text": "rare one here", "label": "A"}, {"text": "no label here", "label": None}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = smop("init", tmp_path / "d.jsonl")
    assert code == 0
    out = " ".join(out.split())
    for words in (
        "1 rows have no label",
        "fewer than 10 rows of A (1)",
        "differ in capitals alone: a, A",
        "20 texts stand there again",
        "training will refuse it",
        "line 42",
    ):
        assert words in out, words


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        ("a,b\n1,2\n3,4\n", [], ["no column", "--label"]),
        (
            "text,label\nsome words,a\nmore words,b\n" * 9,
            ["--label", "queue"],
            ["no column 'queue'"],
        ),
        ("a,label\n1,x\n2,y\n3,x\n4,y\n", [], ["looks like text", "--text"]),
    ],
)
def test_a_file_that_is_no_set_of_examples_is_refused(smop, tmp_path, content, arguments, words):
    (tmp_path / "d.csv").write_text(content.replace("\ntext,label", ""))
    code, _, err = smop("init", tmp_path / "d.csv", *arguments)
    assert code == 2
    for word in words:
        assert word in err, err


def test_nothing_is_written_over(smop, file):
    assert smop("init", file)[0] == 0
    before = file.with_suffix(".yaml").read_text()
    code, _, err = smop("init", file, "--name", "other")
    assert code == 2
    assert "--overwrite" in err
    assert file.with_suffix(".yaml").read_text() == before
    assert smop("init", file, "--name", "other", "--overwrite")[0] == 0
    assert smop("init", file, "-o", file, "--overwrite")[0] == 2


def test_control_characters_in_arguments_are_refused(smop):
    for arguments in (["\x1b[31m"], ["train", "--\x9bx"], ["tasks", "cb", "\x1b]0;x"]):
        code, out, err = smop(*arguments)
        assert code == 2
        assert "control characters" in err
        assert "\x1b" not in out + err
