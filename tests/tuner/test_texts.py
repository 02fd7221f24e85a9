"""Texts that are read once give what one pass over text, prompt and answer gives."""

import pytest
import torch
from halved import CLOSE, METHODS, in_one_pass, trained
from torch.testing import assert_close

from peft_smop import SMoPConfig
from peft_smop.rows import IGNORED_LABEL, cut
from tiny import DECODERS, KINDS, adapted, answered, decided, without_dropout


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
