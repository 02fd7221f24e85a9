"""Prompts that are taken away: the rest answer as they did, and are saved as any adapter is."""

import pytest
import torch
from peft import PeftModel
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


@pytest.mark.parametrize("routing", ["posterior", "linear", "hashed"])
@pytest.mark.parametrize("name", THREE)
def test_the_others_answer_as_they_did_and_the_router_chooses_among_them(name, routing, tmp_path):
    kind, options = KINDS[name], {"num_prompts": 5, "routing": routing}
    model, made = adapted(kind, **options), batch(kind, rows=8)
    # weighted by its probability among all, or among those that are left, a prompt is another
    is_scaled = routing == "linear"
    before = None if is_scaled else [answers(model, made, j) for j in KEPT]
    logits = None if routing == "hashed" else model.base_model.router_logits(**made)
    model.base_model.keep_prompts(KEPT)
    if before is not None:
        for place, expected in enumerate(before):
            assert torch.equal(answers(model, made, place), expected)
    routed = model(**made).logits
    if logits is not None:
        assert_close(model.base_model.router_logits(**made), logits[:, KEPT])  # last bits differ
        assert torch.equal(model.base_model.last_routes.chosen, logits[:, KEPT].argmax(dim=1))
    assert model.peft_config["default"].num_prompts == 3
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(kind.model(), tmp_path).eval()
    assert torch.equal(again(**made).logits, routed)
    trained = again.train()
    assert set(dict(trained.smop_layer["default"].named_parameters())) <= {"prompts", "router"}


def test_what_is_left_trains_on():
    kind = KINDS["t5"]
    model = adapted(kind, num_prompts=4, routing="posterior").train()
    model.base_model.keep_prompts([1, 3])
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
    ],
)
def test_what_cannot_be_kept_is_refused_and_nothing_is_taken(prompts, options, sentence):
    model = adapted(KINDS["t5"], num_prompts=4, **options)
    with pytest.raises(ConfigError, match=sentence):
        model.base_model.keep_prompts(prompts)
    assert len(model.smop_layer["default"].prompts) == 4
    assert model.peft_config["default"].num_prompts == 4


def test_of_several_adapters_one_is_named():
    model = adapted(KINDS["t5"], num_prompts=3)
    model.add_adapter("other", SMoPConfig(task_type="SEQ_2_SEQ_LM", num_prompts=3))
    model.base_model.keep_prompts([2], "other")
    counts = {name: len(model.smop_layer[name].prompts) for name in ("default", "other")}
    assert counts == {"default": 3, "other": 1}
    for call in (model.base_model.keep_prompts, model.base_model.forced_prompt):
        with pytest.raises(ConfigError, match="there is no adapter 'third'"), call([0], "third"):
            pass
    single = adapted(KINDS["t5"], routing="single")
    with pytest.raises(ConfigError, match="has no router"):
        single.base_model.router_logits(**batch(KINDS["t5"]))
