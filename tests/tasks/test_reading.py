import pytest

from peft_smop.errors import DataError
from peft_smop.tasks.reading import read_rows, shown

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def fails(path, **options):
    with pytest.raises(DataError) as caught:
        read_rows(path, **options)
    return str(caught.value)


def test_jsonl_is_read_with_the_line_of_every_row(file):
    rows = read_rows(file("a.jsonl", '{"a": 1}\n\n{"a": "two"}\n'))
    assert [(row.fields, row.number) for row in rows] == [({"a": 1}, 1), ({"a": "two"}, 3)]


def test_byte_order_mark_crlf_and_blank_trailing_lines_are_accepted(file):
    content = b'\xef\xbb\xbf{"a": "x"}\r\n{"a": "y"}\r\n\r\n  \n'
    assert [row.fields["a"] for row in read_rows(file("a.jsonl", content))] == ["x", "y"]
    content = b"\xef\xbb\xbfa,b\r\nx,1\r\ny,2\r\n\r\n"
    assert [row.fields["a"] for row in read_rows(file("a.csv", content))] == ["x", "y"]


def test_a_line_separator_inside_a_json_string_ends_no_line(file):
    (row,) = read_rows(file("a.jsonl", '{"a": "x\u2028y\x85z"}\n'))
    assert row.fields["a"] == "x\u2028y\x85z"


def test_csv_values_may_hold_commas_quotes_and_line_ends(file):
    rows = read_rows(file("a.csv", 'a,b\n"x, ""y""\nz",1\nw,2\n'))
    assert [(row.fields["a"], row.number) for row in rows] == [('x, "y"\nz', 2), ("w", 4)]


def test_tabs_separate_the_values_of_tsv(file):
    (row,) = read_rows(file("a.tsv", "a\tb\nx, y\t1\n"))
    assert row.fields == {"a": "x, y", "b": "1"}


def test_parquet_rows_are_numbered_and_named_as_rows(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": ["x", "y"], "label": [0, 1]}), path)
    rows = read_rows(path)
    assert [row.fields for row in rows] == [{"a": "x", "label": 0}, {"a": "y", "label": 1}]
    assert str(rows[1].error("bad")) == f"{path}, row 2: bad"


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    assert fails(path) == f"{path}: the file is missing; expected a file here"


def test_a_directory_is_no_file(tmp_path):
    (tmp_path / "a.csv").mkdir()
    assert fails(tmp_path / "a.csv").endswith("a.csv: is a directory; expected a file")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.csv", ""), ("a.csv", "a,b\n"), ("a.parquet", "")],
)
def test_a_file_without_rows_is_refused(file, name, content):
    path = file(name, content)
    assert fails(path) == f"{path}: the file holds no rows; expected at least one"


def test_an_unknown_ending_is_answered_with_the_known_ones(file):
    path = file("a.xlsx", "x")
    assert fails(path) == (
        f"{path}: the ending '.xlsx' is unknown; expected .jsonl, .csv, .tsv, .parquet"
    )


def test_broken_json_is_named_with_line_and_column(file):
    path = file("a.jsonl", '{"a": 1}\n{"a": }\n')
    assert fails(path) == (
        f"{path}, line 2: broken JSON at column 7 (expecting value): '{{\"a\": }}'; "
        "expected one JSON object a line"
    )


def test_a_list_in_place_of_an_object_is_named(file):
    path = file("a.jsonl", '{"a": 1}\n\n[1, 2]\n')
    assert fails(path) == f"{path}, line 3: [1, 2]; expected a JSON object"


@pytest.mark.parametrize("line", ["[" * 100_000, "9" * 5000])
def test_json_beyond_all_bounds_is_an_error_and_no_crash(file, line):
    path = file("a.jsonl", line)
    assert fails(path).startswith(f"{path}, line 1: unreadable JSON: ")


def test_bytes_that_are_not_utf8_are_named_with_their_line(file):
    path = file("a.jsonl", b'{"a": "x"}\n{"a": "caf\xe9"}\n')
    assert fails(path) == f"{path}, line 2: byte 0xe9 is not UTF-8; expected UTF-8," + (
        " or encoding: cp1252, which is Latin-1 as Windows writes it"
    )
    path = file("a.csv", b"\xef\xbb\xbfa\nx\n\x81\n")
    assert fails(path) == f"{path}, line 3: byte 0x81 is not UTF-8; expected UTF-8"


def test_a_ragged_csv_row_is_named_with_the_columns(file):
    path = file("a.csv", "a,b\nx,1\ny\n")
    assert fails(path) == f"{path}, line 3: 1 values: 'y'; expected 2, one for each of a, b"
    path = file("b.csv", "a,b\nx,1,2\n")
    assert fails(path) == f"{path}, line 2: 3 values: 'x,1,2'; expected 2, one for each of a, b"


def test_a_missing_column_is_named_at_the_head(file):
    path = file("a.csv", "a,b\nx,1\n")
    assert fails(path, columns=["a", "label"]) == (
        f"{path}, line 1: no column 'label'; expected it beside a, b"
    )


def test_a_column_twice_is_refused(file):
    path = file("a.csv", "a,a\nx,1\n")
    assert fails(path) == f"{path}, line 1: column 'a' twice; expected each column once"


def test_an_open_quote_in_csv_is_named_where_the_record_begins(file):
    path = file("a.csv", 'a,b\nx,1\n"y,2\nz,3\n')
    assert fails(path) == (f"{path}, line 3: broken CSV (unexpected end of data); expected CSV")


def test_parquet_without_a_column_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": ["x"]}), path)
    assert fails(path, columns=["label"]) == f"{path}: no column 'label'; expected it beside a"


def test_what_is_not_parquet_is_refused(file):
    path = file("a.parquet", '{"a": 1}\n')
    assert fails(path) == f"{path}: is not Parquet; expected a Parquet file"


def test_long_values_are_cut_in_messages():
    assert shown("short") == "'short'"
    assert len(shown("x" * 1000)) == 60
    assert shown("x" * 1000).endswith("x…")
