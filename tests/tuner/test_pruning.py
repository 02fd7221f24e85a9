"""Prompts that are taken away: the rest answer as they did, and are saved as any adapter is."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.testing import assert_close

from peft_smop import SMoPConfig
from peft_smop.errors import ConfigError
from tiny import KINDS, THREE, adapted, batch

KEPT = [0, 2, 4]


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def answers(model, made, prompt):
    with model.forced_prompt(prompt):
        return model(**made).logits


@pytest.mark.parametrize("routing", ["posterior", "linear", "gumbel"])
@pytest.mark.parametrize("name", THREE)
def test_the_others_answer_as_they_did_and_the_router_chooses_among_them(name, routing, tmp_path):
    kind, options = KINDS[name], {"num_prompts": 5, "routing": routing}
    model, made = adapted(kind, **options), batch(kind, rows=8)
    logits, before = model.router_logits(**made), [answers(model, made, j) for j in KEPT]
    prompts = model.smop_layer["default"].prompts[KEPT]
    model.keep_prompts(KEPT)
    assert torch.equal(model.smop_layer["default"].prompts, prompts)
    if routing != "linear":  # there a prompt has the weight of its probability among those left
        for place, expected in enumerate(before):
            assert torch.equal(answers(model, made, place), expected)
    routed = model(**made).logits
    assert_close(model.router_logits(**made), logits[:, KEPT])  # last bits differ
    assert torch.equal(model.last_routes.chosen, logits[:, KEPT].argmax(dim=1))
    assert model.peft_config["default"].num_prompts == 3
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(kind.model(), tmp_path).eval()
    assert torch.equal(again(**made).logits, routed)


def test_what_is_left_trains_on():
    kind = KINDS["t5"]
    model = adapted(kind, num_prompts=4, routing="posterior").train()
    with torch.enable_grad():
        model(**batch(kind))  # a pass that no step follows
    model.keep_prompts([1, 3])
    layer, made = model.smop_layer["default"], batch(kind)
    assert layer.usage.sum() == pytest.approx(1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    was = layer.prompts.clone(), layer.router.clone()
    for _ in range(4):
        with torch.enable_grad():
            model(**made).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(layer.prompts, was[0])
    assert not torch.equal(layer.router, was[1])


@pytest.mark.parametrize(
    ("prompts", "options", "sentence"),
    [
        ([], {}, "must be given some, each once"),
        ([1, 1], {}, "must be given some, each once"),
        ([4], {}, "choose 0 to 3"),
        ([True], {}, "choose 0 to 3"),
        ([0], {"top_k": 2}, "exceeds num_prompts=1"),
        ([0], {"parameterisation": "residual"}, "cannot be taken away one by one"),
        ([0], {"routing": "hashed"}, "what a router chooses"),
        ([0], {"routing": "uniform"}, "what a router chooses"),
        ([1], {"routing": "fixed", "fixed_prompt": 1}, "what a router chooses"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_nothing_is_taken(prompts, options, sentence):
    model = adapted(KINDS["t5"], num_prompts=4, **options)
    with pytest.raises(ConfigError, match=sentence):
        model.keep_prompts(prompts)
    assert len(model.smop_layer["default"].prompts) == 4
    assert model.peft_config["default"].num_prompts == 4


def test_texts_of_every_prompt_go_with_it(tmp_path):
    model = adapted(KINDS["t5"], num_prompts=3)
    config = model.peft_config["default"]
    config.init, config.init_text = "text", ["one", "two", "three"]
    config.init_token_ids = [[1], [2], [3]]
    config.tokenizer_name_or_path = config.init_tokenizer = "one that is not here"
    model.keep_prompts([0, 2])
    assert model.peft_config["default"].init_text == ["one", "three"]
    assert model.peft_config["default"].init_token_ids == [[1], [3]]
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(KINDS["t5"].model(), tmp_path)
    assert torch.equal(loaded.smop_layer["default"].prompts, model.smop_layer["default"].prompts)


def test_uses_of_nothing_are_no_number_less():
    model = adapted(KINDS["t5"], num_prompts=3, routing="posterior")
    model.smop_layer["default"].usage.copy_(torch.tensor([1.0, 0.0, 0.0]))
    model.keep_prompts([1, 2])
    assert model.smop_layer["default"].usage.tolist() == [0.5, 0.5]


MISSHAPEN = {
    "nothing": ({}, "nothing to route by"),
    "a row": ({"input_ids": torch.ones(3).long()}, r"give \(rows, tokens\)"),
    "no tokens": ({"input_ids": torch.ones(2, 0).long()}, "have no tokens"),
    "a mask": (
        {"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(2, 4)},
        "one number for each token",
    ),
}


@pytest.mark.parametrize("what", MISSHAPEN)
def test_a_router_is_asked_of_what_a_pass_takes(what):
    given, sentence = MISSHAPEN[what]
    with pytest.raises(ConfigError, match=sentence):
        adapted(KINDS["t5"]).router_logits(**given)


def test_of_several_adapters_one_is_named(tmp_path):
    config = SMoPConfig(task_type="SEQ_2_SEQ_LM", num_prompts=3)
    model = get_peft_model(KINDS["t5"].model(), config)
    model.add_adapter("other", config)  # the same, of which one adapter's is another then
    model.keep_prompts([2], "other")
    model.save_pretrained(tmp_path)
    assert config.num_prompts == 3
    for name, folder in (("default", tmp_path), ("other", tmp_path / "other")):
        loaded = PeftModel.from_pretrained(KINDS["t5"].model(), folder)
        own = model.smop_layer[name].prompts
        assert torch.equal(loaded.smop_layer["default"].prompts, own)
    counts = {name: len(model.smop_layer[name].prompts) for name in ("default", "other")}
    assert counts == {"default": 3, "other": 1}
    for call in (model.keep_prompts, model.forced_prompt):
        with pytest.raises(ConfigError, match="there is no adapter 'third'"), call([0], "third"):
            pass
    single = adapted(KINDS["t5"], routing="single")
    with pytest.raises(ConfigError, match="has no router"):
        single.router_logits(**batch(KINDS["t5"]))
