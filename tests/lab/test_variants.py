"""Short names for methods."""

import pytest

from peft_smop.errors import ConfigError
from peft_smop.lab import RunSpec, matched_controls, variant, variants
from peft_smop.methods import METHODS


def test_every_listed_variant_is_a_method_with_options_it_has():
    for name, one in variants().items():
        RunSpec.of({"task": "cb", "method": one.method, "training": one.training})
        assert one.spec.name in METHODS, name
        assert len(one.rates("paper")) == len(one.rates("default")) == 3
    assert {one.spec.name for one in variants().values()} == set(METHODS)


def test_the_paper_s_search_spaces_are_the_paper_s():
    assert variant("smop").rates("paper") == (0.5, 0.3, 0.1)
    assert variant("prompt-tuning-100").rates("paper") == (0.5, 0.3, 0.1)
    for name in ("full", "houlsby-8", "lora-2"):
        assert variant(name).rates("paper") == (1e-4, 5e-5, 1e-5)


def test_options_follow_the_name():
    one = variant("smop:k=8:l=3:router_learning_rate=0.01:perturbation=false")
    assert one.method == {
        "name": "smop",
        "num_prompts": 8,
        "num_virtual_tokens": 3,
        "perturbation": False,
    }
    assert one.training == {"router_learning_rate": 0.01}
    assert variant("lora-8:lr=0.001").rates("paper") == (0.001,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smopp", "unknown method 'smopp'; did you mean smop"),
        ("smop:kk=3", "^'smop:kk=3': unknown option 'kk'"),
        ("smop:k", "'k' should be KEY=VALUE"),
        ("smop:k=", "'k=' should be KEY=VALUE"),
        ("smop:k=2:num_prompts=3", "num_prompts is given twice, as 2 and 3"),
        ("smop:name=lora", "unknown option 'name'"),
        ("smop:k=abc", "num_prompts='abc' must be a whole number"),
        ("smop:init_text=12", "init_text=12 must be a text"),
        ("smop:position=behind", "position='behind' must be one of 'before', 'after'"),
        ("smop:keep_texts=nan", "keep_texts='nan' must be a number"),
        ("smop:lr=abc", "learning_rate='abc' must be a number above 0"),
        ("smop:k=[", r"num_prompts='\[' must be a whole number"),
    ],
)
def test_a_name_that_says_nothing_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        variant(text)


def test_controls_have_the_length_of_one_prompt_and_of_all():
    found = [one.name for one in matched_controls([variant("smop:k=3:l=7"), variant("lora-8")])]
    assert found == ["prompt-tuning:l=7", "prompt-tuning:l=21", "smop:routing=uniform:k=3:l=7"]
    assert not matched_controls([variant("lora-8"), variant("single")])
    assert not matched_controls([variant("smop:routing=single")])


def test_controls_that_are_there_already_are_not_added_under_another_name():
    named = [variant("smop"), variant("prompt-tuning-20"), variant("smop-uniform")]
    assert [c.name for c in matched_controls(named)] == ["prompt-tuning:l=5"]


def test_controls_share_what_is_not_the_routing():
    mixture = variant("smop:top_k=2:parameterisation=low-rank:batch_size=8:router_learning_rate=1")
    short, long, uniform = matched_controls([mixture])
    assert uniform.method == {
        "name": "smop",
        "routing": "uniform",
        "num_prompts": 4,
        "num_virtual_tokens": 5,
        "parameterisation": "low-rank",
    }
    for control in (short, long, uniform):
        assert control.training == {"batch_size": 8}
