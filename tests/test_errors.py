from peft_smop.errors import DataError, unknown


def test_a_data_error_names_file_line_value_and_expectation():
    error = DataError.at("train.jsonl", 3, "label 'maybe'", expected="one of yes, no")
    assert str(error) == "train.jsonl, line 3: label 'maybe'; expected one of yes, no"


def test_an_unknown_name_is_answered_with_the_nearest_ones():
    assert "did you mean copa?" in str(unknown("task", "coppa", ["cb", "copa", "rte"]))
    assert "known: cb, rte" in str(unknown("task", "zzzz", ["rte", "cb"]))
