import pytest

from peft_smop.errors import ConfigError
from peft_smop.tasks import Task


def make(**changed):
    parts = {
        "name": "toy",
        "template": "toy a: {a} b: {b}",
        "labels": ("0", "1"),
        "verbalizers": ("no", "yes"),
    }
    return Task(**(parts | changed))


def test_a_template_is_filled_with_the_fields():
    assert make().render({"a": "one", "b": "two", "c": "left out"}) == "toy a: one b: two"


def test_braces_in_a_value_are_text():
    assert make().render({"a": "{b}", "b": "{}"}) == "toy a: {b} b: {}"


def test_doubled_braces_in_the_template_are_braces():
    assert make(template="{{{a}}} {a}").render({"a": "x"}) == "{x} x"


def test_fields_are_named_once_in_the_order_of_the_template():
    assert make(template="{b} {a.c} {b}").fields == ("b", "a.c")


@pytest.mark.parametrize(
    ("labels", "value", "index"),
    [
        (("false", "true"), True, 1),
        (("false", "true"), False, 0),
        (("false", "true"), "True", 1),
        (("False", "True"), "false", 0),
        (("0", "1"), 1, 1),
        (("0", "1"), "1", 1),
        (("0", "1"), 1.0, 1),
        (("0", "1"), True, None),
        (("0", "1"), 0.5, None),
        (("yes", "no"), "Yes", None),
        (("yes", "no"), None, None),
    ],
)
def test_a_label_is_found_however_the_format_writes_it(labels, value, index):
    assert make(labels=labels).label_index(value) == index


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"metric": "acuracy"}, "unknown metric 'acuracy'; did you mean accuracy?"),
        ({"labels": ("0",), "verbalizers": ("no",)}, "give at least two labels"),
        ({"labels": ("0", "1", "2")}, "one verbalizer for each"),
        ({"labels": ("true", "True")}, "label 'true' stands for two things"),
        ({"verbalizers": ("yes", "yes")}, "verbalizer 'yes' stands for two things"),
        ({"verbalizers": ("yes", " ")}, "an empty verbalizer in ('yes', ' ')"),
        ({"template": "no field"}, "template 'no field' has no field in braces"),
        ({"template": "{a"}, "write a brace itself twice"),
        ({"template": "{}"}, "a pair of braces holds a field's name"),
        ({"template": "{a:>9}"}, "a pair of braces holds a field's name"),
        ({"template": "{a!r}"}, "a pair of braces holds a field's name"),
        ({"may_be_empty": ("bb",)}, "unknown field of the template 'bb'; did you mean b?"),
        (
            {"metric": "f1", "labels": ("0", "1", "2"), "verbalizers": ("a", "b", "c")},
            "last of two labels, but there are 3",
        ),
    ],
)
def test_a_task_whose_parts_do_not_fit_is_refused(changed, sentence):
    with pytest.raises(ConfigError) as caught:
        make(**changed)
    assert sentence in str(caught.value)
