"""Inputs that have no one place for a prompt, or padding that says nothing about itself."""

import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close
from transformers import DataCollatorWithFlattening, MixtralConfig, MixtralForCausalLM

from peft_smop import SMoPConfig
from peft_smop.errors import ConfigError
from tiny import KINDS, VOCABULARY, adapted, batch, decided, row

SEVERAL = r"holds several sequences.*row of its own"


def text_of(kind, **more):
    return {k: v for k, v in batch(kind, **more).items() if k != "labels"}


# -- several sequences in one row ----------------------------------------------------------------


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "gpt2"])
def test_positions_that_start_again_are_refused(name, labels):
    model = adapted(KINDS[name])
    ids = text_of(KINDS[name], rows=1, tokens=8)["input_ids"]
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
    more = {"labels": ids.index_fill(1, torch.arange(3), -100)} if labels else {}
    with pytest.raises(ConfigError, match=SEVERAL):
        model(input_ids=ids, position_ids=positions, **more)
    with pytest.raises(ConfigError, match=SEVERAL):
        model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids), **more)


@pytest.mark.parametrize("key", ["cu_seq_lens_q", "seq_idx"])
def test_arguments_of_packed_rows_are_refused(key):
    model = adapted(KINDS["llama"])
    ids = text_of(KINDS["llama"], rows=1, tokens=8)["input_ids"]
    with pytest.raises(ConfigError, match=SEVERAL):
        model(input_ids=ids, **{key: torch.tensor([0, 5, 8])})


def test_a_padding_free_collator_s_batch_is_refused():
    model = adapted(KINDS["llama"]).train()
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
        {"input_ids": [8, 9], "labels": [-100, 9]},
    ]
    made = DataCollatorWithFlattening(return_tensors="pt")(rows)
    with pytest.raises(ConfigError, match=SEVERAL):
        model(**made)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_positions_of_padded_rows_as_generate_makes_them_are_one_sequence(name):
    kind = KINDS[name]
    model, made = adapted(kind), text_of(kind)
    mask = made["attention_mask"]
    positions = (mask.cumsum(dim=1) - 1).masked_fill(mask == 0, 1)
    expected = model(**made).logits
    found = model(**made, position_ids=positions).logits
    kept = mask.bool()
    assert_close(found[kept], expected[kept], rtol=1e-4, atol=1e-5)


# -- padding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["t5", "bert", "llama"])
def test_padding_that_no_mask_declares_is_refused(name, side):
    kind = KINDS[name]
    model = adapted(kind)
    made = {k: v for k, v in batch(kind).items() if k != "attention_mask"}
    padding = model.smop_layer.hooks.backbone.padding_id
    assert padding == 0
    model(**made)  # without padding there is nothing to declare
    made["input_ids"][1, -1 if side == "right" else 0] = padding
    with pytest.raises(ConfigError, match=r"begin or end in padding \(token 0\).*attention_mask"):
        model(**made)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["t5", "llama", "bert"])
def test_what_stands_under_padding_does_not_matter(name, garbage):
    kind = KINDS[name]
    model, made = adapted(kind), batch(kind)
    x = model.get_input_embeddings()(made.pop("input_ids")).detach()
    expected = model(inputs_embeds=x, **made).logits
    routes = model.last_routes
    spoiled = x.masked_fill(made["attention_mask"][:, :, None] == 0, garbage)
    found = model(inputs_embeds=spoiled, **made).logits
    assert_close(model.last_routes.logits, routes.logits)
    kept = made["attention_mask"].bool() if name == "llama" else ...
    assert_close(found[kept], expected[kept], rtol=1e-4, atol=1e-5)


# -- room ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "opt", "bert", "roberta", "bart"])
def test_a_text_and_prompt_beyond_the_positions_are_refused(name):
    kind = KINDS[name]
    model = adapted(kind)
    room = model.smop_layer.hooks.backbone.num_positions
    assert room in (62, 64)  # RoBERTa's table of 64 begins at position 2
    fits = batch(kind, rows=1, tokens=room - 5)
    assert model(**fits).logits.isfinite().all()
    with pytest.raises(ConfigError, match=rf"prompt of 5 virtual tokens exceed.* {room} positions"):
        model(**batch(kind, rows=1, tokens=room - 4))


def test_the_router_of_a_mixture_of_experts_is_told_of_the_text_alone():
    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=3, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    bare = MixtralForCausalLM(config).eval()
    model = decided(get_peft_model(bare, SMoPConfig(task_type="CAUSAL_LM")))
    made = batch(KINDS["llama"])
    made["labels"] = made["input_ids"].index_fill(1, torch.arange(4), -100)
    output = model.train()(**made, output_router_logits=True)
    assert output.router_logits[0].shape == (4 * 7, 3)
    assert output.aux_loss.isfinite()
    output.loss.backward()


@pytest.mark.parametrize("mask", ["ready-made", "a dictionary"])
def test_other_masks_are_refused(mask):
    model, made = adapted(KINDS["llama"]), text_of(KINDS["llama"])
    given = {
        "ready-made": torch.ones(4, 1, 7, 7, dtype=torch.bool),
        "a dictionary": {"full_attention": torch.ones(4, 1, 7, 7, dtype=torch.bool)},
    }[mask]
    with pytest.raises(ConfigError, match="two-dimensional attention mask"):
        model(input_ids=made["input_ids"], attention_mask=given)


# -- noise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["tokens", "embeddings"])
@pytest.mark.parametrize("name", ["t5", "bert"])
def test_a_row_s_noise_is_its_own_wherever_it_stands(name, form):
    """In another place, with other neighbours, with more padding, by itself, computed again."""
    kind = KINDS[name]
    model, made = adapted(kind).train(), batch(kind, rows=5)
    made.pop("labels", None)
    more = {"decoder_input_ids": torch.ones(5, 1, dtype=torch.long)} if name == "t5" else {}

    def logits(rows, padding=0):
        own = {k: v[rows] for k, v in {**made, **more}.items()}
        for key in ("input_ids", "attention_mask"):
            own[key] = torch.nn.functional.pad(own[key], (0, padding))
        if form == "embeddings":
            own["inputs_embeds"] = model.get_input_embeddings()(own.pop("input_ids"))
        model(**own)
        return model.last_routes.logits

    whole = logits([0, 1, 2, 3, 4])
    assert torch.equal(logits([0, 1, 2, 3, 4]), whole)
    assert_close(logits([3, 1]), whole[[3, 1]])
    assert_close(logits([4], padding=3), whole[[4]])
    quiet = model.eval()
    assert not torch.allclose(logits([0, 1, 2, 3, 4]), whole)
    assert quiet.smop_layer["default"].steps == 0


def test_rows_that_say_the_same_draw_the_same_and_others_do_not():
    model = adapted(KINDS["bert"]).train()
    made = row(batch(KINDS["bert"]), 0)
    ids = made["input_ids"].repeat(3, 1)
    ids[2, 0] += 1
    model(input_ids=ids, attention_mask=torch.ones_like(ids))
    logits = model.last_routes.logits
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])
