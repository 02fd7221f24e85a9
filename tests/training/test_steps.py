"""A step's loss and gradients are its own batch's, however its rows are divided or accompanied."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from peft_smop import SMoPConfig
from peft_smop.rows import cut
from peft_smop.scoring import formulate
from peft_smop.tasks import Example, Task
from peft_smop.training import Rows, forward_backward
from tiny import without_dropout

TASK = Task("toy", "{text}", ("warm", "cold"), ("warm", "cold answer:"))
ANIMALS = ("cat", "dog", "cow", "hen", "owl", "fox")
KINDS = {
    "t5": (AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM"),
    "llama": (AutoModelForCausalLM, "CAUSAL_LM"),
    "bert": (AutoModelForSequenceClassification, "SEQ_CLS"),
}
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def example(i):
    """Rows of 3 to 23 words, so that a batch of them is mostly padding."""
    words = " ".join(ANIMALS[(i + j) % 6] for j in range(1 + i * 7 % 20))
    return Example(str(i), f"the {words}", i % 2)


def backbone(saved_models, kind):
    auto, task_type = KINDS[kind]
    base = without_dropout(auto.from_pretrained(saved_models[kind]))
    tokenizer = AutoTokenizer.from_pretrained(saved_models[kind])
    return base, formulate(TASK, base, tokenizer, task_type=task_type, max_length=40)


def mixed(saved_models, kind, **options):
    """A model with the adapters x and y, and twelve encoded rows."""
    base, formulation = backbone(saved_models, kind)
    config = SMoPConfig(task_type=KINDS[kind][1], num_virtual_tokens=3, **options)
    model = get_peft_model(base, config, adapter_name="x")
    model.add_adapter("y", SMoPConfig(**{**config.to_dict(), "is_initialised": False, "seed": 7}))
    for name, parameter in model.named_parameters():
        if {"x", "y"} & set(name.split(".")):
            parameter.requires_grad_(True)
    with torch.no_grad():  # a router that chooses
        for adapter in model.smop_layer.adapters().values():
            if adapter.router is not None:
                adapter.router.copy_(torch.randn_like(adapter.router))
    return model.train(), formulation, [formulation.encode(example(i)) for i in range(12)]


def gradients(model):
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=64), st.floats(1.0, 2.0))
def test_every_row_is_in_one_part_and_padding_stays_below_the_limit(lengths, limit):
    parts = cut(lengths, limit)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    padded = sum(max(lengths[i] for i in part) * len(part) for part in parts)
    assert padded <= limit * sum(lengths) + 1e-6


def test_rows_are_not_divided_without_need_and_then_where_it_saves_most():
    assert cut([5, 4, 5, 5], 1.1) == [[0, 1, 2, 3]]
    assert cut([10, 100, 11, 95], 1.1) == [[1, 3], [2, 0]]
    assert cut([3, 9, 1], math.inf) == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("t5", {}),
        ("llama", {}),
        ("bert", {}),
        ("t5", {"routing": "gumbel"}),
        ("t5", {"routing": "linear", "top_k": 2}),
        ("t5", {"routing": "stochastic", "consistency": 0.5}),
        ("t5", {"routing": "posterior", "judged": 0.5}),
        ("bert", {"routing": "posterior"}),
        ("llama", {"routing": "posterior", "exact": True}),
        ("bert", {"routing": "hashed"}),
        ("llama", {"routing": "single"}),
        ("llama", {"position": "after"}),
    ],
)
def test_a_step_in_parts_has_the_loss_and_gradients_of_the_whole_step(saved_models, kind, options):
    found = []
    for limit in (math.inf, 1.05):
        torch.manual_seed(0)
        model, formulation, rows = mixed(saved_models, kind, **options)
        for step in range(2):  # the second step draws its own noise
            model.zero_grad()
            for name in model.smop_layer:
                model.smop_layer[name].steps.fill_(step)
            losses = forward_backward(
                model,
                formulation,
                [Rows(rows[:8], "x"), Rows(rows[8:], "y")],
                max_padding=limit,
            )
        found.append((losses, gradients(model)))
    assert len(cut([len(row["input_ids"]) for row in rows], 1.05)) > 1
    (losses, whole), (parted, divided) = found
    assert_close(parted, losses, **CLOSE)
    assert whole.keys() == divided.keys()
    for name, gradient in whole.items():
        assert_close(divided[name], gradient, **CLOSE)


@pytest.mark.parametrize("kept", [0, 1])
def test_behind_texts_read_before_it_a_step_is_one_pass_whatever_their_lengths(saved_models, kept):
    model, formulation, rows = mixed(saved_models, "llama", position="after")
    model.base_model.keep_texts(kept)
    passes = []
    handle = model.smop_layer.hooks.backbone.module.register_forward_hook(
        lambda module, args, kwargs, output: passes.append(
            (torch.is_grad_enabled(), kwargs["inputs_embeds"].shape[:2].numel())
        ),
        with_kwargs=True,
    )
    forward_backward(model, formulation, [Rows(rows, "x")], max_padding=1.3)
    handle.remove()
    texts = [len(row["input_ids"]) for row in rows]
    assert len(cut(texts, 1.3)) > 1
    read = sum(places for with_gradient, places in passes if not with_gradient)
    assert sum(texts) <= read <= 1.1 * sum(texts)
    longest = max(len(row["answer"]) for row in rows)
    assert [n for with_gradient, n in passes if with_gradient] == [len(rows) * (3 + longest)]


@pytest.mark.parametrize("routing", ["linear", "posterior"])
@pytest.mark.parametrize("kind", KINDS)
def test_runs_in_one_step_have_the_losses_and_gradients_they_have_alone(
    saved_models, kind, routing
):
    model, formulation, rows = mixed(saved_models, kind, routing=routing)
    runs = [Rows(rows[:5], "x"), Rows(rows[5:], "y")]
    together = forward_backward(model, formulation, runs, max_padding=1.1)
    joint = gradients(model)
    for one, loss in zip(runs, together, strict=True):
        (alone,) = forward_backward(model, formulation, [one], max_padding=1.1)
        assert_close(alone, loss, **CLOSE)
    apart = gradients(model)
    assert joint.keys() == apart.keys()
    for name, gradient in joint.items():
        assert_close(apart[name], gradient, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["smop", "exact", "prompt tuning", "lora"])
def test_a_batch_s_loss_is_the_model_s_own(saved_models, kind, method):
    base, formulation = backbone(saved_models, kind)
    config = {
        "smop": SMoPConfig(task_type=KINDS[kind][1], perturbation=False),
        "exact": SMoPConfig(task_type=KINDS[kind][1], routing="posterior", exact=True),
        "prompt tuning": PromptTuningConfig(
            task_type=KINDS[kind][1], num_virtual_tokens=4, num_transformer_submodules=1
        ),
        "lora": LoraConfig(task_type=KINDS[kind][1]),
    }[method]
    model = get_peft_model(base, config).train()
    rows = [formulation.encode(example(i)) for i in range(6)]
    wanted = model(**formulation.collate(rows)).loss
    wanted.backward()
    expected = gradients(model)
    (loss,) = forward_backward(model, formulation, [Rows(rows)], max_padding=1.05)
    assert_close(loss, wanted.detach(), **CLOSE)
    for name, gradient in gradients(model).items():
        assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("options", [{"load_balancing": 0.1}, {"routing": "released"}])
def test_a_batch_whose_rows_see_each_other_is_never_divided(saved_models, options):
    passes = []
    base, formulation = backbone(saved_models, "t5")
    model = get_peft_model(base, SMoPConfig(task_type="SEQ_2_SEQ_LM", **options)).train()
    model.register_forward_hook(lambda *a: passes.append(1))
    rows = [formulation.encode(example(i)) for i in range(12)]
    forward_backward(model, formulation, [Rows(rows)], max_padding=1.05)
    assert len(passes) == 1


def test_a_routing_loss_joins_the_loss_of_its_own_run(saved_models):
    base, formulation = backbone(saved_models, "t5")
    model = get_peft_model(base, SMoPConfig(task_type="SEQ_2_SEQ_LM", z_loss=0.3), "x").train()
    model.add_adapter("y", SMoPConfig(task_type="SEQ_2_SEQ_LM"))
    rows = [formulation.encode(example(i)) for i in range(6)]
    batch = formulation.collate(rows)
    runs = [Rows(rows, "x"), Rows(rows, "y")]
    x, y = forward_backward(model, formulation, runs, max_padding=math.inf)
    assert_close(x, model(**batch, adapter_names=["x"] * 6).loss.detach(), **CLOSE)
    assert_close(y, model(**batch, adapter_names=["y"] * 6).loss.detach(), **CLOSE)


def test_a_run_whose_loss_is_not_a_number_leaves_the_others_theirs(saved_models):
    model, formulation, rows = mixed(saved_models, "t5")
    runs = [Rows(rows[:6], "x"), Rows(rows[6:], "y")]
    forward_backward(model, formulation, runs, max_padding=1.1)
    healthy = gradients(model)
    with torch.no_grad():
        model.smop_layer["x"].prompts.fill_(math.nan)
    x, y = forward_backward(model, formulation, runs, max_padding=1.1)
    assert x.isnan()
    assert y.isfinite()
    for name, gradient in gradients(model).items():
        if ".y." in name:
            assert_close(gradient, healthy[name], **CLOSE)


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: values asked for, shapes that follow data."""

    asking = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in self.asking:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("routing", ["linear", "gumbel", "stochastic", "hashed", "single"])
def test_a_forward_asks_the_device_for_no_more_than_the_bare_backbone_does(saved_models, routing):
    base, formulation = backbone(saved_models, "t5")
    batch = formulation.collate([formulation.encode(example(i)) for i in range(6)])
    with Waits() as bare:
        base(**batch).loss.backward()
    model = get_peft_model(base, SMoPConfig(task_type="SEQ_2_SEQ_LM", routing=routing)).train()
    with Waits() as ours:
        model(**batch).loss.backward()
    passes = 2 if routing == "stochastic" else 1
    assert len(ours.found) <= passes * len(bare.found)
