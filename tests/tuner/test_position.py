"""A prompt behind its text is where one would put it by hand, in every kind of pass."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.testing import assert_close

from peft_smop import SMoPConfig
from peft_smop.errors import ConfigError
from peft_smop.rows import IGNORED_LABEL
from tiny import DECODERS, KINDS, WIDTH, adapted, answered, batch, decided, without_dropout

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
NEW = 4
GREEDY = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
MODES = {
    "greedy": GREEDY,
    "beams": {**GREEDY, "num_beams": 2, "num_return_sequences": 2},
    "without a cache": {**GREEDY, "use_cache": False},
}


def by_hand(model, made, i, prompt):
    """The logits of one row's tokens, with a prompt put behind its text by hand."""
    keep = made["attention_mask"][i].bool()
    ids, labels = made["input_ids"][i][keep], made["labels"][i][keep]
    end = int((labels != IGNORED_LABEL).long().argmax())
    x = model.get_input_embeddings()(ids)
    spliced = torch.cat([x[:end], prompt.to(x.dtype), x[end:]])[None]
    with model.disable_adapter():
        logits = model(inputs_embeds=spliced).logits[0]
    # the verdict on the answer's first token is the prompt's last
    return torch.cat([logits[: end - 1], logits[end + len(prompt) - 1 :]])


def given_prompts(model, adapter="default"):
    """What the last pass gave each row."""
    routes = model.last_routes
    prompts = model.smop_layer[adapter].soft_prompts()
    return [
        float(scale) * prompts[int(j)].detach()
        for scale, j in zip(routes.probabilities[:, 0], routes.indices[:, 0], strict=True)
    ]


@pytest.mark.parametrize("name", DECODERS)
def test_every_row_is_what_one_pass_by_hand_gives(name):
    model, made = adapted(KINDS[name], num_prompts=3, position="after"), answered(KINDS[name])
    logits = model(**made).logits
    assert logits.shape[:2] == made["input_ids"].shape
    for i, prompt in enumerate(given_prompts(model)):
        own = logits[i][made["attention_mask"][i].bool()]
        assert_close(own, by_hand(model, made, i, prompt), **CLOSE)


@pytest.mark.parametrize("name", DECODERS)
def test_loss_and_gradient_are_those_by_hand(name):
    model, made = adapted(KINDS[name], routing="single", position="after"), answered(KINDS[name])
    without_dropout(model.train())
    model(**made).loss.backward()
    found = model.smop_layer["default"].prompts.grad
    prompt = model.smop_layer["default"].prompts.detach()[0].clone().requires_grad_()
    losses, count = 0.0, 0
    for i in range(5):
        labels = made["labels"][i][made["attention_mask"][i].bool()]
        logits = by_hand(model, made, i, prompt)
        losses = losses + torch.nn.functional.cross_entropy(
            logits[:-1], labels[1:], ignore_index=IGNORED_LABEL, reduction="sum"
        )
        count += int((labels[1:] != IGNORED_LABEL).sum())
    (losses / count).backward()
    assert_close(found[0], prompt.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", DECODERS)
def test_what_is_generated_follows_text_and_prompt(name, mode):
    """Left padding, beams, with and without a cache: each token is the one that a pass over text,
    prompt and the tokens before it says."""
    model = adapted(KINDS[name], num_prompts=3, position="after")
    made = batch(KINDS[name])
    made["attention_mask"][1] = 1
    width = made["input_ids"].shape[1]
    out = model.generate(**made, **MODES[mode])
    repeats = len(out) // 4
    prompts = given_prompts(model)
    for i in range(4):
        for r in range(repeats):
            row = i * repeats + r
            whole = {
                "input_ids": out[row : row + 1],
                "attention_mask": torch.cat(
                    [made["attention_mask"][i], torch.ones(NEW, dtype=torch.long)]
                )[None],
            }
            labels = whole["input_ids"].clone()
            labels[:, :width] = IGNORED_LABEL
            said = by_hand(model, {**whole, "labels": labels}, 0, prompts[row])
            if mode != "beams":
                assert torch.equal(said[-NEW - 1 : -1].argmax(dim=-1), out[row, width:])
            again = model(**whole, labels=labels).logits[0, width - 1 :]
            assert_close(again, said[-NEW - 1 :], **CLOSE)
    if mode == "beams":
        alone = [
            model.generate(**{k: v[i : i + 1] for k, v in made.items()}, **MODES[mode])
            for i in range(4)
        ]
        assert torch.equal(torch.cat(alone)[:, width:], out[:, width:])


@pytest.mark.parametrize("name", DECODERS)
def test_rows_of_a_mixed_batch_are_as_alone(name):
    """Before, behind, of two lengths, and bare: in one batch, in one generation."""
    model = adapted(KINDS[name], num_prompts=2, position="after", adapter="behind")
    for other, options in {
        "longer": {"position": "after", "num_virtual_tokens": 7},
        "before": {"num_virtual_tokens": 3},
    }.items():
        config = SMoPConfig(task_type="CAUSAL_LM", num_prompts=2, **options)
        model.add_adapter(other, config)
        decided(model, other, seed=9)
    names = ["behind", "longer", "before", "__base__", "behind"]
    made = answered(KINDS[name])
    mixed = model(**made, adapter_names=names).logits
    for i, own in enumerate(names):
        keep = made["attention_mask"][i].bool()
        one = {key: value[i : i + 1][:, keep] for key, value in made.items()}
        assert_close(mixed[i][keep], model(**one, adapter_names=[own]).logits[0], **CLOSE)
    if name in ("gpt2", "opt"):
        return
    texts = {key: made[key][:, :4] for key in ("input_ids", "attention_mask")}
    texts["attention_mask"][:, -1] = 1
    together = model.generate(**texts, adapter_names=names, **GREEDY)
    for i, own in enumerate(names):
        one = {key: value[i : i + 1] for key, value in texts.items()}
        assert torch.equal(
            together[i : i + 1], model.generate(**one, adapter_names=[own], **GREEDY)
        )


def test_saved_and_loaded_it_stands_where_it_stood(tmp_path):
    model, made = adapted(KINDS["llama"], num_prompts=3, position="after"), answered(KINDS["llama"])
    expected = model(**made).logits
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(KINDS["llama"].model(), tmp_path)
    assert torch.equal(again(**made).logits, expected)


def test_the_router_never_sees_the_answer():
    model, made = adapted(KINDS["llama"], num_prompts=4, position="after"), answered(KINDS["llama"])
    model(**made)
    routes = model.last_routes
    counts = made["labels"] != IGNORED_LABEL
    changed = {**made, "input_ids": torch.where(counts, 50, made["input_ids"])}
    model(**changed)
    assert torch.equal(model.last_routes.logits, routes.logits)


@pytest.mark.parametrize("name", ["t5", "bart", "bert"])
def test_what_has_no_answer_behind_its_text_says_so(name):
    for task_type in (KINDS[name].task_type, None):
        with pytest.raises(ConfigError, match="position='after' is for causal LMs"):
            get_peft_model(KINDS[name].model(), SMoPConfig(task_type=task_type, position="after"))


def test_a_place_that_labels_do_not_show_is_refused():
    model, made = (
        adapted(KINDS["llama"], routing="single", position="after"),
        answered(KINDS["llama"]),
    )
    model.train()
    labels = made.pop("labels")
    with pytest.raises(ConfigError, match="pass labels to the model"):
        model(**made)
    labels = made["input_ids"].masked_fill(made["attention_mask"] == 0, IGNORED_LABEL)
    with pytest.raises(ConfigError, match="no text before the answer"):
        model(**made, labels=labels)


@pytest.mark.parametrize("name", DECODERS)
def test_without_labels_the_prompt_follows_the_whole_input(name):
    model, made = adapted(KINDS[name], num_prompts=3, position="after"), batch(KINDS[name])
    logits = model(**made).logits
    prompts = given_prompts(model)
    for i, prompt in enumerate(prompts):
        keep = made["attention_mask"][i].bool()
        x = model.get_input_embeddings()(made["input_ids"][i][keep])
        with model.disable_adapter():
            said = model(inputs_embeds=torch.cat([x, prompt.to(x.dtype)])[None]).logits[0]
        own = logits[i][keep]
        assert_close(own[-1], said[-1], **CLOSE)
        assert_close(own[:-1], said[: len(x) - 1], **CLOSE)
    assert x.shape[1] == WIDTH
