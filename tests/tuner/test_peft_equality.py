"""`routing="single"` is PEFT's prompt tuning to the last bit; where the two differ is said here."""

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from torch.testing import assert_close
from transformers import BertConfig, BertModel

from peft_smop import SMoPConfig
from tiny import KINDS, VOCABULARY, batch, row

LENGTH = 5


def pair(build, task_type):
    """PEFT's prompt tuning and ours, on the same weights and with the same prompt."""
    theirs = get_peft_model(
        build(),
        PromptTuningConfig(
            task_type=task_type, num_virtual_tokens=LENGTH, num_transformer_submodules=1
        ),
    ).eval()
    ours = get_peft_model(
        build(), SMoPConfig(task_type=task_type, routing="single", num_virtual_tokens=LENGTH)
    ).eval()
    prompt = theirs.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        prompt.copy_(torch.randn(prompt.shape, generator=torch.Generator().manual_seed(3)))
        ours.smop_layer["default"].prompts.copy_(prompt[None])
    return theirs, ours


def right_padded(name, *, padding: bool):
    made = batch(KINDS[name], rows=2)
    if not padding:
        made["attention_mask"].fill_(1)
    return made


def bert():
    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
        )
    )


@pytest.mark.parametrize("padding", [False, True], ids=["full rows", "right padding"])
def test_on_an_encoder_decoder_logits_and_loss_are_equal_to_the_last_bit(padding):
    theirs, ours = pair(KINDS["t5"].model, "SEQ_2_SEQ_LM")
    made = right_padded("t5", padding=padding)
    expected, found = theirs(**made), ours(**made)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.loss, expected.loss)


@pytest.mark.parametrize("padding", [False, True], ids=["full rows", "right padding"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "opt"])
def test_on_a_causal_lm_the_tokens_logits_are_equal_to_the_last_bit(name, padding):
    theirs, ours = pair(KINDS[name].model, "CAUSAL_LM")
    made = right_padded(name, padding=padding)
    expected, found = theirs(**made).logits, ours(**made).logits
    keep = made["attention_mask"].bool()
    assert found.shape[1] == expected.shape[1] - LENGTH == 7
    assert torch.equal(found[keep], expected[:, LENGTH:][keep])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_loss_of_a_causal_lm_is_peft_s_although_labels_need_no_padding_here(name):
    theirs, ours = pair(KINDS[name].model, "CAUSAL_LM")
    made = right_padded(name, padding=True)
    labels = made["input_ids"].masked_fill(made["attention_mask"] == 0, -100)
    # PEFT also scores the first token, which is predicted from the last virtual token
    first_unscored = labels.clone()
    first_unscored[:, 0] = -100
    assert_close(ours(**made, labels=labels).loss, theirs(**made, labels=first_unscored).loss)


def test_gradients_of_the_prompt_are_peft_s():
    theirs, ours = pair(KINDS["t5"].model, "SEQ_2_SEQ_LM")
    made = right_padded("t5", padding=True)
    theirs(**made).loss.backward()
    ours(**made).loss.backward()
    expected = theirs.prompt_encoder["default"].embedding.weight.grad
    assert_close(ours.smop_layer["default"].prompts.grad[0], expected)


@pytest.mark.parametrize("padding", [False, True], ids=["full rows", "right padding"])
def test_on_an_encoder_the_tokens_states_are_equal_to_the_last_bit(padding):
    theirs, ours = pair(bert, "FEATURE_EXTRACTION")
    made = right_padded("bert", padding=padding)
    expected = theirs(**made).last_hidden_state
    assert torch.equal(ours(**made).last_hidden_state, expected[:, LENGTH:])


def test_peft_pools_the_first_virtual_token_where_this_pools_cls():
    theirs, ours = pair(bert, "FEATURE_EXTRACTION")
    made = right_padded("bert", padding=True)
    expected, pool = theirs(**made), ours.get_base_model().pooler.eval()
    states = expected.last_hidden_state
    assert torch.equal(expected.pooler_output, pool(states))
    assert_close(ours(**made).pooler_output, pool(states[:, LENGTH:]))
    assert not torch.allclose(ours(**made).pooler_output, expected.pooler_output, atol=1e-2)


def test_peft_puts_the_prompt_before_left_padding_where_this_puts_it_after():
    """So the tokens' positions move in PEFT; here a row is what it is alone."""
    theirs, ours = pair(KINDS["gpt2"].model, "CAUSAL_LM")
    made = batch(KINDS["gpt2"])  # row 2 has three places of left padding
    single = ours(**row(made, 2)).logits
    assert_close(single, theirs(**row(made, 2)).logits[:, LENGTH:])
    assert_close(ours(**made).logits[2:3, 3:], single)
    assert not torch.allclose(theirs(**made).logits[2:3, LENGTH + 3 :], single, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")  # PEFT's
@pytest.mark.parametrize("name", ["t5", "llama", "gpt2"])
def test_greedy_generation_is_peft_s(name):
    kind = KINDS[name]
    theirs, ours = pair(kind.model, kind.task_type)
    made = right_padded(name, padding=False)
    made.pop("labels", None)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    assert torch.equal(ours.generate(**made, **options), theirs.generate(**made, **options))


@pytest.mark.parametrize("name", ["t5", "llama", "bert"])
def test_the_trainable_numbers_are_peft_s(name):
    kind = KINDS[name]
    theirs, ours = pair(kind.model, kind.task_type)
    assert ours.get_nb_trainable_parameters()[0] == theirs.get_nb_trainable_parameters()[0]
