"""Texts that are read once give what one pass over text, prompt and answer gives."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch.testing import assert_close

from peft_smop import SMoPConfig
from peft_smop.errors import ConfigError
from peft_smop.rows import IGNORED_LABEL, cut
from peft_smop.tuner import reading
from tiny import DECODERS, KINDS, adapted, answered, batch, decided, without_dropout

CLOSE = {"rtol": 1e-3, "atol": 1e-6}
METHODS = {
    "single": {"routing": "single"},
    "smop": {"num_prompts": 3},
    "posterior": {"num_prompts": 3, "routing": "posterior", "judged": 1.0},
    "exact": {"num_prompts": 3, "routing": "posterior", "exact": True},
    "stochastic": {"num_prompts": 3, "routing": "stochastic"},
}


def trained(model, made, **more):
    """Loss and gradients of one training pass, and how many places the backbone computed."""
    model.train()
    model.zero_grad()
    computed = []
    handle = model.smop_layer.hooks.backbone.module.register_forward_hook(
        lambda module, args, kwargs, output: computed.append(
            (kwargs["inputs_embeds"].shape[:2].numel(), torch.is_grad_enabled())
        ),
        with_kwargs=True,
    )
    loss = model(**made, **more).loss
    handle.remove()
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), grads, computed


def in_one_pass(monkeypatch, model, made, **more):
    with monkeypatch.context() as patched:
        patched.setattr(reading, "_may_be_halved", lambda *_: False)
        return trained(model, made, **more)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DECODERS)
def test_loss_and_gradients_are_those_of_one_pass(name, method, monkeypatch):
    model = adapted(KINDS[name], position="after", **METHODS[method])
    without_dropout(model)
    made = answered(KINDS[name])
    loss, grads, computed = trained(model, made)
    expected, whole, all_places = in_one_pass(monkeypatch, model, made)
    assert_close(loss, expected)
    assert grads.keys() == whole.keys()
    for key, grad in whole.items():
        assert_close(grads[key], grad, **CLOSE, msg=key)
    texts = int((made["labels"] == IGNORED_LABEL).sum())
    assert sum(n for n, with_gradient in computed if not with_gradient) >= texts // 2
    longest = max(n for n, with_gradient in computed if with_gradient)
    assert longest < max(n for n, with_gradient in all_places if with_gradient)


def test_a_judged_step_reads_each_text_once():
    model, made = (
        adapted(KINDS["llama"], position="after", **METHODS["posterior"]),
        answered(KINDS["llama"]),
    )
    _, _, computed = trained(model, made)
    b, n = made["input_ids"].shape
    lengths = (made["attention_mask"] * (made["labels"] == IGNORED_LABEL)).sum(dim=1).tolist()
    parts = cut(lengths, 1.1)
    without, (trained_through,) = (
        [places for places, with_gradient in computed if with_gradient == which]
        for which in (False, True)
    )
    texts, judged = without[: len(parts)], without[len(parts) :]
    assert len(parts) > 1
    assert texts == [len(part) * max(lengths[row] for row in part) for part in parts]
    # 5 virtual tokens and the longest answer, for 3 prompts
    assert sum(judged) == 3 * trained_through
    assert trained_through < b * (5 + n)


@pytest.mark.parametrize("name", DECODERS)
def test_rows_of_several_adapters_and_bare_ones_share_the_texts(name, monkeypatch):
    model = adapted(KINDS[name], num_prompts=2, position="after", adapter="one")
    model.add_adapter(
        "longer",
        SMoPConfig(task_type="CAUSAL_LM", num_prompts=2, num_virtual_tokens=7, position="after"),
    )
    decided(model, "longer", seed=9)
    without_dropout(model)
    model.set_requires_grad(["one", "longer"])
    made, names = answered(KINDS[name]), ["one", "longer", "__base__", "one", "longer"]
    loss, grads, _ = trained(model, made, adapter_names=names)
    expected, whole, _ = in_one_pass(monkeypatch, model, made, adapter_names=names)
    assert_close(loss, expected)
    assert len(grads) >= 2
    for key, grad in whole.items():
        assert_close(grads[key], grad, **CLOSE, msg=key)


def test_one_prompt_before_its_text_makes_it_one_pass():
    model = adapted(KINDS["llama"], num_prompts=2, position="after", adapter="behind")
    model.add_adapter("before", SMoPConfig(task_type="CAUSAL_LM", num_prompts=2))
    decided(model, "before", seed=9)
    made = answered(KINDS["llama"])
    names = ["behind", "before", "behind", "before", "behind"]
    _, _, computed = trained(model, made, adapter_names=names)
    assert computed == [(5 * (9 + 5), True)]


@pytest.mark.parametrize("name", DECODERS)
def test_what_is_trained_or_looked_at_within_the_text_keeps_its_gradient(name, monkeypatch):
    model, made = adapted(KINDS[name], position="after", routing="single"), answered(KINDS[name])
    without_dropout(model)
    ids = made.pop("input_ids")
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    model.train()
    model(inputs_embeds=x, **made).loss.backward()
    # also of a text's last token, which no prompt comes before
    assert x.grad[0, 3].any()
    model.get_input_embeddings().weight.requires_grad_(True)
    _, grads, computed = trained(model, {"input_ids": ids, **made})
    assert all(with_gradient for _, with_gradient in computed)
    weight = next(grad for key, grad in grads.items() if len(grad) == 100)
    assert weight[ids[0, 3]].any()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradient_checkpointing_gives_the_same_gradients(name):
    made = answered(KINDS[name])
    found = []
    for checkpointed in (False, True):
        model = adapted(KINDS[name], num_prompts=3, position="after")
        without_dropout(model)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        found.append(trained(model, made)[:2])
    assert_close(found[1][0], found[0][0])
    for key, grad in found[0][1].items():
        assert_close(found[1][1][key], grad, **CLOSE, msg=key)


@pytest.mark.parametrize("name", DECODERS)
def test_losses_under_every_prompt_read_texts_once(name, monkeypatch):
    model, made = adapted(KINDS[name], num_prompts=3, position="after"), answered(KINDS[name])
    losses = model.prompt_losses(**made, chunk=4)
    for j in range(3):
        with model.forced_prompt(j):
            logits = model(**made).logits
        own = torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2),
            made["labels"][:, 1:],
            ignore_index=IGNORED_LABEL,
            reduction="none",
        ).sum(dim=1)
        scale = model.last_routes.probabilities[:, 0]
        assert torch.isfinite(scale).all()
        assert_close(losses[:, j], own, rtol=1e-3, atol=1e-4)


def test_what_a_caller_looks_into_comes_from_one_pass():
    model, made = adapted(KINDS["llama"], num_prompts=3, position="after"), answered(KINDS["llama"])
    model.train()
    output = model(**made, output_hidden_states=True)
    assert output.hidden_states[-1].shape[:2] == made["input_ids"].shape
    output = model(**made, use_cache=True)
    assert output.past_key_values.get_seq_length() == 9 + 5
    as_tuple = model(**made, return_dict=False)
    assert_close(as_tuple[0], model(**made).loss)


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
