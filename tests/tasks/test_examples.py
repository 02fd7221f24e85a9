import io

import pytest

from peft_smop.errors import DataError
from peft_smop.tasks import Example, Task, read_inputs
from peft_smop.tasks.examples import Columns, to_examples
from peft_smop.tasks.reading import Row

TASK = Task("toy", "toy a: {a} b: {b}", ("no", "maybe"), ("no", "maybe"), may_be_empty=("b",))


def row(number=1, **fields):
    return Row({"a": "x", "b": "y", "label": "no"} | fields, "toy.jsonl", number)


def fails(*rows, **columns):
    with pytest.raises(DataError) as caught:
        to_examples(rows, TASK, Columns(**columns))
    return str(caught.value)


def test_a_row_becomes_an_example():
    columns = Columns(label="gold", id="key", group="author", population="kind")
    fields = {"a": "x", "b": 3, "gold": "maybe", "key": 7, "author": "ann", "kind": "short"}
    assert to_examples([Row(fields, "toy.jsonl", 1)], TASK, columns) == (
        Example("7", "toy a: x b: 3", 1, group="ann", population="short"),
    )


def test_a_row_without_an_id_is_known_by_its_line():
    examples = to_examples([row(1), row(3)], TASK, Columns())
    assert [example.id for example in examples] == ["1", "3"]


def test_a_field_that_may_be_empty_is_accepted_empty():
    assert to_examples([row(b="")], TASK, Columns())[0].text == "toy a: x b: "


def test_a_missing_field_is_named_beside_those_found():
    broken = Row({"a": "x", "label": "no"}, "toy.jsonl", 4)
    assert fails(broken) == "toy.jsonl, line 4: no field 'b' beside a, label; expected a, b"


@pytest.mark.parametrize("value", [None, True, ["x"], {"x": 1}, float("nan")])
def test_a_field_of_the_wrong_type_is_named(value):
    assert fails(row(a=value)) == f"toy.jsonl, line 1: field 'a' is {value!r}; expected a text"


@pytest.mark.parametrize("value", ["", "  \t"])
def test_an_empty_text_is_named(value):
    assert fails(row(1), row(2, a=value)) == (
        "toy.jsonl, line 2: field 'a' is empty; expected a text"
    )


def test_half_a_surrogate_pair_is_named():
    assert fails(row(a="x\ud800")) == (
        "toy.jsonl, line 1: field 'a' holds '\\ud800'; expected Unicode text"
    )


def test_an_unknown_label_is_answered_with_the_known_ones():
    assert fails(row(label="perhaps")) == (
        "toy.jsonl, line 1: label 'perhaps'; expected one of no, maybe"
    )


def test_a_missing_label_is_named():
    broken = Row({"a": "x", "b": "y"}, "toy.jsonl", 1)
    assert fails(broken) == (
        "toy.jsonl, line 1: no field 'label' beside a, b; expected one of no, maybe"
    )


def test_a_duplicate_id_names_both_lines():
    assert fails(row(1, id=5), row(2, id=6), row(9, id="5"), id="id") == (
        "toy.jsonl, line 9: id '5' was already that of line 1; expected every id once"
    )


def test_an_id_must_be_a_text_or_a_number():
    assert fails(row(id=None), id="id") == "toy.jsonl, line 1: field 'id' is None; expected a text"
    assert "expected a text or a number" in fails(row(id=True), id="id")
    assert "no field 'id' beside a, b, label" in fails(row(), id="id")


def test_long_values_are_cut_in_messages():
    assert len(fails(row(label="long " * 1000))) < 150


def test_inputs_are_rendered_from_fields_or_taken_as_they_are(tmp_path):
    path = tmp_path / "new.jsonl"
    path.write_text(
        '{"a": "x", "b": "y", "id": "first"}\n'
        '{"text": "toy a: v b: w"}\n'
        '{"a": 1, "b": "", "idx": 9}'
    )
    assert read_inputs(TASK, path) == (
        Example("first", "toy a: x b: y", None),
        Example("2", "toy a: v b: w", None),
        Example("9", "toy a: 1 b: ", None),
    )


def test_the_fields_of_the_template_win_over_a_field_named_text():
    stream = io.BytesIO(b'{"a": "x", "b": "y", "text": "of something else"}')
    assert read_inputs(TASK, stream)[0].text == "toy a: x b: y"


def test_standard_input_is_decoded_as_utf8_and_named():
    stdin = io.TextIOWrapper(io.BytesIO('{"text": "né"}\n'.encode()), encoding="ascii")
    assert read_inputs(TASK, stdin)[0].text == "né"
    broken = io.TextIOWrapper(io.BytesIO(b'{"text": "x"}\n{"txt": "y"}\n'))
    with pytest.raises(DataError) as caught:
        read_inputs(TASK, broken)
    assert str(caught.value) == (
        "<stdin>, line 2: no field 'a' beside txt; expected a, b, or 'text' alone"
    )


def test_a_stream_of_text_is_read_too():
    assert read_inputs(TASK, io.StringIO('{"text": "x"}'))[0].text == "x"


def test_empty_input_is_refused():
    with pytest.raises(DataError) as caught:
        read_inputs(TASK, io.BytesIO(b"\n"))
    assert str(caught.value) == "<stdin>: no rows; expected one JSON object a line"


def test_an_input_id_twice_is_refused():
    stream = io.BytesIO(b'{"text": "x", "id": 1}\n{"text": "y", "id": 1}\n')
    with pytest.raises(DataError, match="line 2: id '1' was already that of line 1"):
        read_inputs(TASK, stream)
