"""Texts that are kept give what texts that are read again give, and are not read again."""

import copy

import pytest
import torch
from halved import CLOSE, METHODS, in_one_pass, trained
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch.testing import assert_close

from peft_smop import SMoPConfig
from peft_smop.errors import ConfigError
from peft_smop.rows import IGNORED_LABEL
from tiny import DECODERS, KINDS, adapted, answered, batch, decided, without_dropout


@pytest.mark.parametrize("name", DECODERS)
def test_kept_texts_give_the_same_and_are_not_read_again(name):
    model, made = (
        adapted(KINDS[name], position="after", **METHODS["posterior"]),
        answered(KINDS[name]),
    )
    without_dropout(model)
    if name == "gemma3":
        model.base_model.keep_texts(1)
        with pytest.raises(ConfigError, match="sliding windows"):
            trained(model, made)
        return
    loss, grads, _ = trained(model, made)
    model.base_model.keep_texts(1)
    first, _, computed = trained(model, made)
    # every text alone, then its row under each prompt
    assert [places for places, _ in computed[:5]] == [
        int((row != 0).sum()) for row in texts_alone(made)
    ]
    again, kept, after = trained(model, made)
    assert after == computed[5:]
    assert torch.equal(first, again)
    assert_close(first, loss)
    for key, grad in grads.items():
        assert_close(kept[key], grad, **CLOSE, msg=key)
    assert len(model.smop_layer.kept) == 5
    # a batch of other companions finds what it knows
    few = {key: value[1:3] for key, value in made.items()}
    _, _, computed = trained(model, few)
    assert all(with_gradient or places > 5 for places, with_gradient in computed)
    assert len(copy.deepcopy(model).smop_layer.kept) == 0
    model.base_model.keep_texts(0)
    assert model.smop_layer.kept is None


@pytest.mark.parametrize("name", [name for name in DECODERS if name != "gemma3"])
def test_over_kept_texts_a_pass_without_gradient_computes_its_prompts_alone(name):
    model = adapted(KINDS[name], num_prompts=3, position="after").eval()
    made = batch(KINDS[name], rows=5, tokens=9)
    lengths = [9, 7, 8, 3, 9]
    for i, length in enumerate(lengths):  # as an evaluation pads them
        made["input_ids"][i, : 9 - length] = 0
        made["attention_mask"][i] = (torch.arange(9) >= 9 - length).long()
    positions = (made["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    answer = made["input_ids"][:, -2:].flip(1)

    def asked(**more):
        with torch.no_grad():
            first = model(**made, **more, use_cache=True)
            then = model(
                input_ids=answer,
                attention_mask=torch.cat([made["attention_mask"], torch.ones(5, 2).long()], dim=1),
                past_key_values=first.past_key_values,
                use_cache=True,
            )
        return first.logits[:, -1], then.logits

    expected = asked()
    model.base_model.keep_texts(1)
    computed = []
    handle = model.smop_layer.hooks.backbone.module.register_forward_hook(
        lambda module, args, kwargs, output: computed.append(
            next(
                kwargs[k].shape[:2]
                for k in ("inputs_embeds", "input_ids")
                if kwargs.get(k) is not None
            )
        ),
        with_kwargs=True,
    )
    for more in ({}, {"position_ids": positions}):
        computed.clear()
        found = asked(**more)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, rtol=1e-3, atol=1e-5)
    handle.remove()
    assert computed == [(5, 5), (5, 2)]  # prompts, and then answers
    assert len(model.smop_layer.kept) == len(lengths)
    with torch.no_grad():
        assert model(**made, use_cache=False).past_key_values is None
        model.base_model.model.config.use_cache = False
        assert model(**made).past_key_values is None


def same_as_without(model, made, monkeypatch, **more):
    """What a pass without gradient says, which is what it says where no texts are kept."""
    with torch.no_grad(), monkeypatch.context() as patched:
        kept = model(**made, **more).logits
        patched.setattr(model.smop_layer, "kept", None)
        expected = model(**made, **more).logits
    return kept, expected


@pytest.mark.parametrize("names", [["one", "longer"], ["one", "__base__"]])
def test_over_kept_texts_prompts_of_several_lengths_are_one_pass(names, monkeypatch):
    model = adapted(KINDS["llama"], num_prompts=2, position="after", adapter="one").eval()
    model.add_adapter(
        "longer",
        SMoPConfig(task_type="CAUSAL_LM", num_prompts=2, num_virtual_tokens=7, position="after"),
    )
    decided(model, "longer", seed=9)
    model.base_model.keep_texts(1)
    made = batch(KINDS["llama"], rows=2, tokens=6)
    made["attention_mask"] = torch.ones(2, 6).long()
    assert torch.equal(*same_as_without(model, made, monkeypatch, adapter_names=names))


@pytest.mark.parametrize("lengths", [[3, 2, 3], [9, 7, 9]])
def test_windows_that_count_padding_are_one_pass(lengths, monkeypatch):
    model = adapted(KINDS["gemma3"], num_prompts=3, position="after").eval()
    model.base_model.keep_texts(1)
    made = batch(KINDS["gemma3"], rows=3, tokens=max(lengths) + 1)
    columns = torch.arange(max(lengths) + 1)
    made["attention_mask"] = torch.stack([columns > max(lengths) - n for n in lengths]).long()
    assert torch.equal(*same_as_without(model, made, monkeypatch))


def test_token_types_reach_texts_and_prompts_alike(monkeypatch):
    model = adapted(KINDS["gpt2"], num_prompts=3, position="after")
    without_dropout(model)
    made = answered(KINDS["gpt2"])
    types = {"token_type_ids": torch.full_like(made["input_ids"], 7)}
    loss, grads, _ = trained(model, {**made, **types})
    expected, whole, _ = in_one_pass(monkeypatch, model, {**made, **types})
    assert torch.equal(loss, expected)
    assert all(torch.equal(grads[key], grad) for key, grad in whole.items())
    model.eval().base_model.keep_texts(1)
    plain = {k: v for k, v in batch(KINDS["gpt2"], rows=2, tokens=5).items() if k == "input_ids"}
    more = {"token_type_ids": torch.full((2, 5), 7)}
    assert torch.equal(*same_as_without(model, plain, monkeypatch, **more))


def test_what_is_kept_is_of_one_precision_and_of_the_adapters_beside(monkeypatch):
    model = adapted(KINDS["llama"], num_prompts=3, position="after").eval()
    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    with pytest.warns(UserWarning, match="multiple adapters"):
        inject_adapter_in_model(lora, model.base_model.model)
    model.base_model.model.requires_grad_(False)
    model.base_model.keep_texts(1)
    made = batch(KINDS["llama"], rows=2, tokens=6)
    made["attention_mask"] = torch.ones(2, 6).long()
    with torch.autocast("cpu", torch.bfloat16):
        same_as_without(model, made, monkeypatch)
    assert_close(*same_as_without(model, made, monkeypatch), rtol=1e-4, atol=1e-6)
    for part in model.modules():
        if isinstance(part, LoraLayer):
            part.enable_adapters(False)
    assert_close(*same_as_without(model, made, monkeypatch), rtol=1e-4, atol=1e-6)


def test_texts_that_the_memory_does_not_hold_are_read_together():
    model = adapted(KINDS["llama"], num_prompts=3, position="after").eval()
    model.base_model.keep_texts(1e-9)
    made = batch(KINDS["llama"], rows=4, tokens=6)
    made["attention_mask"] = torch.ones(4, 6).long()
    passes = []
    model.smop_layer.hooks.backbone.module.register_forward_hook(
        lambda module, args, output: passes.append(1)
    )
    with torch.no_grad():
        model(**made)
        passes.clear()
        model(**made)
    assert len(passes) == 1


def test_over_kept_texts_what_is_unlike_them_is_one_pass(monkeypatch):
    model = adapted(KINDS["llama"], num_prompts=3, position="after").eval()
    model.base_model.keep_texts(1)
    made = batch(KINDS["llama"], rows=3, tokens=6)
    ones = torch.ones(3, 6).long()
    holes, behind = ones.clone(), ones.clone()
    holes[0, 2], behind[1, 4:] = 0, 0
    others = {
        "holes": {"attention_mask": holes},
        "padding behind": {"attention_mask": behind},
        "other positions": {"position_ids": torch.arange(6).expand(3, -1) + 2},
        "states of all layers": {"output_hidden_states": True},
    }
    for what, more in others.items():
        with torch.no_grad():
            kept = model(**{**made, "attention_mask": ones, **more}).logits
            with monkeypatch.context() as patched:
                patched.setattr(model.smop_layer, "kept", None)
                expected = model(**{**made, "attention_mask": ones, **more}).logits
        assert torch.equal(kept, expected), what
    assert len(model.smop_layer.kept) == 0


def texts_alone(made):
    """The attended tokens before each row's answer."""
    ends = (made["labels"] != IGNORED_LABEL).cumsum(dim=1) == 0
    return made["input_ids"] * (ends & (made["attention_mask"] != 0))


def test_kept_texts_stay_within_their_memory():
    model, made = adapted(KINDS["llama"], num_prompts=3, position="after"), answered(KINDS["llama"])
    model.base_model.keep_texts(1)
    trained(model, made)
    size = model.smop_layer.kept.bytes
    model.base_model.keep_texts(0.6 * size / 2**30)
    loss, _, _ = trained(model, made)
    kept = model.smop_layer.kept
    assert 0 < len(kept) < 5
    assert kept.bytes <= 0.6 * size
    assert torch.equal(trained(model, made)[0], loss)


def test_rows_with_holes_or_of_padding_alone_are_read_with_their_batch(monkeypatch):
    model, made = adapted(KINDS["llama"], num_prompts=3, position="after"), answered(KINDS["llama"])
    made["attention_mask"][0, 1] = 0
    made["attention_mask"][4], made["labels"][4] = 0, IGNORED_LABEL
    expected = in_one_pass(monkeypatch, model, made)[0]
    model.base_model.keep_texts(1)
    assert_close(trained(model, made)[0], expected)
    assert len(model.smop_layer.kept) == 0


def test_weights_that_change_end_what_was_kept_of_them(monkeypatch):
    model, made = adapted(KINDS["llama"], num_prompts=3, position="after"), answered(KINDS["llama"])
    model.base_model.keep_texts(1)
    trained(model, made)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    loss, _, _ = trained(model, made)
    assert_close(loss, in_one_pass(monkeypatch, model, made)[0])


def test_texts_are_not_kept_where_they_would_grow_stale():
    model = adapted(KINDS["llama"], num_prompts=3, position="after")
    for wrong in (-1, True, "much", float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="number of GiB"):
            model.base_model.keep_texts(wrong)
    model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(ConfigError, match="backbone itself is trained"):
        model.base_model.keep_texts(1)


def test_another_active_adapter_finds_what_is_kept():
    model, made = adapted(KINDS["llama"], num_prompts=3, position="after"), answered(KINDS["llama"])
    model.add_adapter("other", SMoPConfig(task_type="CAUSAL_LM", position="after"))
    model.base_model.keep_texts(1)
    trained(model, made)
    model.set_adapter("other")
    _, _, computed = trained(model, made)
    assert all(with_gradient for _, with_gradient in computed)
    assert len(model.smop_layer.kept) == 5
