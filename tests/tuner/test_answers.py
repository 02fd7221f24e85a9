"""A decoder asked for its verdicts on the answers alone says what it says of everything."""

import threading

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from torch.testing import assert_close

from peft_smop.rows import IGNORED_LABEL, answers_only, verdicts
from peft_smop.tuner import SMoPConfig
from tiny import KINDS, adapted, batch

DECODERS = [name for name, kind in KINDS.items() if kind.task_type == "CAUSAL_LM"]


def labelled(kind, **sizes):
    """Rows whose last tokens but padding are an answer; one of them has none."""
    made = batch(kind, rows=5, tokens=9, **sizes)
    labels = made["input_ids"].masked_fill(made["attention_mask"] == 0, IGNORED_LABEL)
    labels[:, :5] = IGNORED_LABEL
    labels[4] = IGNORED_LABEL
    return {**made, "labels": labels}


def wrapped(name, method):
    kind = KINDS[name]
    if method == "smop":
        return adapted(kind, num_prompts=3)
    config = {
        "prompt tuning": PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4),
        "lora": LoraConfig(task_type=TaskType.CAUSAL_LM, target_modules="all-linear"),
        "head": SMoPConfig(task_type="CAUSAL_LM", modules_to_save=["lm_head"]),
    }[method]
    return get_peft_model(kind.model(), config)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, method) for name in DECODERS for method in ("smop", "prompt tuning")),
        ("llama", "lora"),
        ("llama", "head"),
    ],
)
def test_losses_and_gradients_are_those_of_the_whole_head(name, method):
    model, made = wrapped(name, method), labelled(KINDS[name])
    found = []
    for narrow in (False, True):
        model.zero_grad()
        if narrow:
            with answers_only(model, made["labels"]):
                output = model(**made)
            assert output.loss is None
        else:
            output = model(**made)
        said, targets, rows = verdicts(output.logits, made["labels"])
        loss = torch.nn.functional.cross_entropy(said, targets)
        loss.backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        assert grads
        found.append((loss.detach(), rows, grads))
    assert_close(found[1][0], found[0][0])
    assert found[1][1].tolist() == found[0][1].tolist()
    assert found[1][2].keys() == found[0][2].keys()
    for key, grad in found[0][2].items():
        assert_close(found[1][2][key], grad, rtol=1e-4, atol=1e-6, msg=key)
    # where nothing was computed beside ours the model's own loss is the same number
    assert_close(found[0][0], model(**made).loss.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_the_head_is_computed_for_the_answers_alone(name):
    model, made = adapted(KINDS[name], num_prompts=3), labelled(KINDS[name])
    count = int((made["labels"][:, 1:] != IGNORED_LABEL).sum())
    with answers_only(model, made["labels"]):
        assert model(**made).logits.shape == (count, model.config.get_text_config().vocab_size)
    assert model(**made).logits.shape[:2] == made["labels"].shape
    assert model(**made).loss is not None


def test_rows_judged_within_are_read_at_their_own_answers():
    model = adapted(KINDS["llama"], num_prompts=3, routing="posterior", judged=0.5)
    made = labelled(KINDS["llama"])
    model.train()
    expected = model(**made).loss
    with model.terms_apart() as apart, answers_only(model, made["labels"]):
        logits = model(**made).logits
    said, targets, _ = verdicts(logits, made["labels"])
    loss = torch.nn.functional.cross_entropy(said, targets)
    assert_close(loss + apart.terms["default"], expected)


def test_another_threads_pass_is_whole():
    model, made = adapted(KINDS["llama"], num_prompts=3), labelled(KINDS["llama"])
    whole = model(**made).logits
    other = []
    with answers_only(model, made["labels"]):
        thread = threading.Thread(target=lambda: other.append(model(**made)))
        thread.start()
        thread.join()
        # and one for fewer rows within reads those rows alone
        few = {key: value[:2] for key, value in made.items()}
        with answers_only(model, few["labels"]):
            inner = model(**few).logits
    assert torch.equal(other[0].logits, whole)
    assert other[0].loss is not None
    assert_close(inner, verdicts(whole[:2], few["labels"])[0])
