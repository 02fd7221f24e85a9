"""Files as people have them: read right, or refused in one sentence; none silently wrong."""

import codecs
import io
import os
import threading

import pytest

from peft_smop.errors import DataError
from peft_smop.tasks.own import load_own

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def parquet(**columns):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def csv(*lines, end="\n"):
    return (end.join(("text,label", *lines)) + end).encode()


RIGHT = [("one", "a"), ("two", "b")]
JSONL = b'{"text": "one", "label": "a"}\n{"text": "two", "label": "b"}\n'
NUMBERS = "labels: {1: a, 2: b}\n"
NUMBERED = [("one", "1"), ("two", "2")]
KINDS = {
    "plain csv": ("d.csv", csv("one,a", "two,b"), "", RIGHT),
    "csv with windows line ends": ("d.csv", csv("one,a", "two,b", end="\r\n"), "", RIGHT),
    "csv with a byte order mark": ("d.csv", codecs.BOM_UTF8 + csv("one,a", "two,b"), "", RIGHT),
    "csv without a last line end": ("d.csv", csv("one,a", "two,b")[:-1], "", RIGHT),
    "csv with blank lines": ("d.csv", csv("one,a", "", "  ", "two,b", ""), "", RIGHT),
    "csv with trailing empty columns": ("d.csv", b"text,label,,\none,a,,\ntwo,b,,\n", "", RIGHT),
    "csv with trailing delimiters in rows": ("d.csv", csv("one,a,", "two,b,,"), "", RIGHT),
    "csv with a nameless column that says something": (
        "d.csv", b"text,label,\none,a,\ntwo,b,more\n", "", ["line 3", "3 values"],
    ),
    "csv with spaces in its head": ("d.csv", b"text , label\none,a\ntwo,b\n", "", RIGHT),
    "csv with an empty name in its head": (
        "d.csv", b"text,,label\none,x,a\n", "", ["line 1", "column 2 has no name"],
    ),
    "csv of spreadsheets in europe, unsaid": (
        "d.csv", b"text;label\none;a\n", "", ["line 1", "';'", "delimiter: ';'"],
    ),
    "csv of spreadsheets in europe, said": (
        "d.csv", b"text;label\none;a\ntwo;b\n", "delimiter: ';'\n", RIGHT,
    ),
    "csv with tabs, unsaid": ("d.csv", b"text\tlabel\none\ta\n", "", ["a tab", "delimiter: '\\t'"]),
    "csv with tabs, said": ("d.csv", b"text\tlabel\none\ta\ntwo\tb\n", 'delimiter: "\\t"\n', RIGHT),
    "csv with pipes, said": ("d.csv", b"text|label\none|a\ntwo|b\n", "delimiter: '|'\n", RIGHT),
    "csv in latin-1, unsaid": (
        "d.csv", csv("Stra\u00dfe,a").decode().encode("latin-1"),
        "", ["line 2", "encoding: cp1252"],
    ),
    "csv in latin-1, said": (
        "d.csv", "text,label\nStra\u00dfe,a\n".encode("latin-1"), "encoding: latin-1\n",
        [("Stra\u00dfe", "a")],
    ),
    "csv in utf-16, unsaid": (
        "d.csv", csv("one,a").decode().encode("utf-16"), "", ["UTF-16", "encoding: utf-16"],
    ),
    "csv in utf-16, said": (
        "d.csv", csv("one,a", "two,b").decode().encode("utf-16"), "encoding: utf-16\n", RIGHT,
    ),
    "an encoding nobody knows": (
        "d.csv", csv("one,a"), "encoding: latin-99\n", ["t.yaml, line 5", "latin-99"],
    ),
    "csv with zero bytes": ("d.csv", b"text,label\no\x00ne,a\n", "", ["line 2", "zero byte"]),
    "csv with quotes, commas and line ends in values": (
        "d.csv", csv('"say ""so"", he said\nand left",a', "two,b"), "",
        [('say "so", he said\nand left', "a"), ("two", "b")],
    ),
    "csv with a quote within a value": (
        "d.csv", csv('a 15" screen,a', "two,b"), "", [('a 15" screen', "a"), ("two", "b")],
    ),
    "csv with a quote that swallows rows": (
        "d.csv", csv('"one,a', "two,b", 'three",a', "four,b"),
        "", ["line 2", "quote is not closed"],
    ),
    "csv with a quote that is never closed": ("d.csv", csv('"one,a', "two,b"), "", ["broken CSV"]),
    "csv with quotes that are only characters": (
        "d.csv", csv('"one,a', "two,b"), "quoting: none\n", [('"one', "a"), ("two", "b")],
    ),
    "csv with a row too short": ("d.csv", csv("one,a", "two"), "", ["line 3", "1 values"]),
    "csv with a row too long": ("d.csv", csv("one, or two,a"), "", ["line 2", "3 values"]),
    "csv without a head": ("d.csv", b"one,a\ntwo,b\n", "", ["line 1", "no column 'text'"]),
    "csv with an empty label": ("d.csv", csv("one,a", "two,"), "", ["line 3", "label ''"]),
    "csv with a very long value": ("d.csv", csv("x" * 200_000 + ",a"), "", [("x" * 200_000, "a")]),
    "csv whose labels are 1.0": ("d.csv", csv("one,1.0", "two,2"), NUMBERS, NUMBERED),
    "csv with labels in another normal form": (
        "d.csv", "text,label\none,e\u0301\n".encode(), "labels: {\u00e9: e, o: o}\n",
        [("one", "\u00e9")],
    ),
    "tsv with quotes as characters": (
        "d.tsv", b'text\tlabel\n"one\ta\ntwo\tb\n', "", [('"one', "a"), ("two", "b")],
    ),
    "tsv with quoted values, said": (
        "d.tsv", b'text\tlabel\n"o\tne"\ta\n', "quoting: double\n", [("o\tne", "a")],
    ),
    "plain jsonl": ("d.jsonl", JSONL, "", RIGHT),
    "jsonl with null for a label": (
        "d.jsonl", b'{"text": "one", "label": null}\n', "labels: {None: n, null: m}\n",
        ["line 1", "has no label"],
    ),
    "jsonl with NaN for a label": (
        "d.jsonl", b'{"text": "one", "label": NaN}\n', "labels: {nan: n, b: m}\n", ["has no label"],
    ),
    "jsonl with null for a text": (
        "d.jsonl", b'{"text": null, "label": "a"}\n', "", ["line 1", "'text' is None"],
    ),
    "jsonl with a list of labels": (
        "d.jsonl", b'{"text": "one", "label": ["a", "b"]}\n', "", ["line 1", "not one but a list"],
    ),
    "jsonl with a key twice": (
        "d.jsonl", b'{"text": "one", "text": "two", "label": "a"}\n', "", ["line 1", "twice"],
    ),
    "jsonl cut in its last line": ("d.jsonl", JSONL[:-9], "", ["line 2", "broken JSON"]),
    "json in place of jsonl": ("d.jsonl", b"[" + JSONL.replace(b"\n", b",\n"), "", ["line 1"]),
    "jsonl with true for a label": (
        "d.jsonl", b'{"text": "one", "label": true}\n{"text": "two", "label": "False"}\n',
        "labels: {true: y, false: n}\n", [("one", "true"), ("two", "false")],
    ),
    "jsonl with numbers for texts": (
        "d.jsonl", b'{"text": 3.0, "label": "a"}\n{"text": 3, "label": "b"}\n', "",
        [("3", "a"), ("3", "b")],
    ),
    "parquet with whole numbers": (
        "d.parquet", parquet(text=["one", "two"], label=[1, 2]), NUMBERS, NUMBERED,
    ),
    "parquet with numbers that became fractions": (
        "d.parquet", parquet(text=["one", "two"], label=[1.0, 2.0]), NUMBERS, NUMBERED,
    ),
    "parquet with a missing label among whole numbers": (
        "d.parquet", parquet(text=["one", "two"], label=pa.array([1, None])), NUMBERS,
        ["row 2", "has no label"],
    ),
    "parquet with NaN among labels": (
        "d.parquet", parquet(text=["one", "two"], label=[1.0, float("nan")]),
        "labels: {1: a, nan: b}\n", ["row 2", "has no label"],
    ),
    "parquet with categories": (
        "d.parquet", parquet(text=["one", "two"], label=pa.array(["a", "b"]).dictionary_encode()),
        "", RIGHT,
    ),
    "parquet cut short": (
        "d.parquet", parquet(text=["one"], label=["a"])[:-20], "", ["is not Parquet"],
    ),
    "labels as a list": ("d.csv", csv("one,a", "two,b"), "labels: [a, b]\n", RIGHT),
    "a spreadsheet": ("d.xlsx", b"PK\x03\x04", "", ["ending '.xlsx'", ".csv"]),
    "an empty file": ("d.csv", b"", "", ["no rows"]),
}  # fmt: skip


def load(tmp_path, name, extra):
    keys = {"labels": "labels: {a: a, b: b}\n"} if "labels" not in extra else {}
    yaml = f"name: t\ntemplate: '{{text}}'\ndata: {name}\n{keys.get('labels', '')}{extra}"
    (tmp_path / "t.yaml").write_text(yaml, encoding="utf-8")
    task, parts, _ = load_own(tmp_path / "t.yaml")
    return [(example.text, task.labels[example.label]) for example in parts["data"]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_file_is_read_right_or_refused_in_one_sentence(tmp_path, kind):
    name, content, extra, expected = KINDS[kind]
    (tmp_path / name).write_bytes(content)
    if isinstance(expected[0], tuple):
        assert load(tmp_path, name, extra) == expected
        return
    with pytest.raises(DataError) as caught:
        load(tmp_path, name, extra)
    for word in expected:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def test_there_are_as_many_kinds_as_the_documents_say():
    assert len(KINDS) >= 45


@pytest.mark.parametrize("name", ["pipe.jsonl", "pipe"])
def test_a_named_pipe_is_read_once_to_its_end(tmp_path, name):
    os.mkfifo(tmp_path / name)
    writer = threading.Thread(target=lambda: (tmp_path / name).write_bytes(JSONL))
    writer.start()
    assert load(tmp_path, name, "") == RIGHT
    writer.join()


def test_one_file_for_two_parts_is_refused_by_whatever_name(tmp_path):
    (tmp_path / "d.csv").write_bytes(csv("one,a", "two,b"))
    (tmp_path / "e.csv").symlink_to(tmp_path / "d.csv")
    for other in ("d.csv", "./d.csv", "e.csv"):
        (tmp_path / "t.yaml").write_text(
            f"name: t\ntemplate: '{{text}}'\nlabels: [a, b]\ntrain: d.csv\ntest: {other}\n"
        )
        with pytest.raises(DataError, match=r"t\.yaml, line 5: .* is the file of train too"):
            load_own(tmp_path / "t.yaml")


def test_rows_that_hold_lines_of_text_are_not_taken_for_swallowed_rows(tmp_path):
    (tmp_path / "d.csv").write_bytes(csv('"Dear Sir, Madam,\nnothing works\nYours, A",a', "two,b"))
    assert load(tmp_path, "d.csv", "")[0] == ("Dear Sir, Madam,\nnothing works\nYours, A", "a")


def test_sixty_rows_never_become_fewer_in_silence(tmp_path):
    lines = [f"text number {i},{'ab'[i % 2]}" for i in range(60)]
    lines[10] = '"' + lines[10]
    lines[17] = 'so ends"' + lines[17][lines[17].index(",") :]
    (tmp_path / "d.csv").write_bytes(csv(*lines))
    with pytest.raises(DataError, match=r"line 12: .*quote is not closed"):
        load(tmp_path, "d.csv", "")
