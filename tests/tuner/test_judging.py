"""Posterior routing in models: which rows are judged, and the training that it makes."""

import copy
import math

import pytest
import torch
from judged import judge, labelled, trained
from peft import PeftModel, get_peft_model
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

from peft_smop import SMoPConfig
from peft_smop.errors import ConfigError
from peft_smop.tuner.deciding import router_logits
from peft_smop.tuner.noise import fingerprints, row_keys, uniform
from peft_smop.tuner.posterior import Posterior
from tiny import KINDS, THREE, adapted, batch, without_dropout


@pytest.mark.parametrize("name", THREE)
def test_prompt_losses_are_the_losses_of_forced_prompts(name):
    model, made = adapted(KINDS[name]), labelled(name)
    found = model.prompt_losses(**made, chunk=5)
    for j in range(4):
        for i in range(6):
            own = {k: v[i : i + 1] for k, v in made.items()}
            with model.forced_prompt(j), torch.no_grad():
                loss = model(**own).loss
            counted = {"t5": 3, "llama": 3, "bert": 1}[name]
            assert_close(found[i, j], loss * counted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", THREE)
def test_a_training_pass_adds_the_cross_entropy_and_trains_the_drawn_prompt(name):
    model, made = trained(name), labelled(name)
    losses = model.prompt_losses(**made)
    model.train()
    adapter = model.smop_layer["default"]
    with model.terms_apart() as apart:
        output = model(**made)
    routes = model.last_routes
    counted = {"t5": 3.0, "llama": 3.0, "bert": 1.0}[name]
    q = adapter.strategy.posterior(
        losses, torch.full((6,), counted), routes.logits, torch.full((4,), 0.25)
    )
    expected = -(q * routes.logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert_close(apart.terms["default"], expected, rtol=1e-4, atol=1e-5)
    read = made["attention_mask"].bool()
    if name == "llama":
        read = read & (torch.arange(7) < 4)
    keys = row_keys(adapter.seed[None], adapter.steps[None], fingerprints(made["input_ids"], read))
    drawn = (uniform(keys, 1) > q.cumsum(dim=1)).sum(dim=1)
    assert torch.equal(routes.chosen, drawn)
    joined = model(**made).loss
    assert_close(joined, output.loss + expected, rtol=1e-4, atol=1e-5)
    joined.backward()
    assert adapter.router.grad.abs().sum() > 0
    touched = adapter.prompts.grad.abs().sum(dim=(1, 2)) > 0
    assert set(touched.nonzero().flatten().tolist()) == set(drawn.tolist())


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("embedded", [False, True])
def test_what_the_router_says_is_known_without_a_pass(name, embedded):
    model, made = trained(name), labelled(name)
    if embedded:
        made["inputs_embeds"] = model.get_input_embeddings()(made.pop("input_ids")).detach()
        made["inputs_embeds"][made["attention_mask"] == 0] = math.nan
    model(**made)
    found = router_logits(model.smop_layer, "default", made)
    assert torch.equal(found, model.last_routes.logits)


def test_judging_may_leave_steps_out():
    model, made = trained("bert", every=3), labelled("bert")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    judged = []
    for _ in range(6):
        model(**made).loss.backward()
        judged.append(model.smop_layer["default"].router.grad.abs().sum() > 0)
        optimizer.step()
        optimizer.zero_grad()
    assert judged == [True, False, False, True, False, False]


@pytest.mark.parametrize("name", THREE)
def test_in_evaluation_it_is_one_pass_and_the_best_prompt_unscaled(name):
    model, made = adapted(KINDS[name], routing="posterior", num_prompts=4), labelled(name)
    passes = []
    model.get_base_model().register_forward_hook(lambda *a: passes.append(1))
    model(**made)
    assert len(passes) == 1
    routes = model.last_routes
    assert torch.equal(routes.indices[:, 0], routes.logits.argmax(dim=1))
    assert routes.probabilities.eq(1).all()


@pytest.mark.parametrize("name", THREE)
def test_with_one_prompt_it_is_prompt_tuning_to_the_last_bit(name):
    made = labelled(name)
    one = without_dropout(adapted(KINDS[name], routing="posterior", num_prompts=1)).train()
    plain = without_dropout(adapted(KINDS[name], routing="single")).train()
    with torch.no_grad():
        plain.smop_layer["default"].prompts.copy_(one.smop_layer["default"].prompts)
    found, expected = one(**made), plain(**made)
    assert torch.equal(found.logits, expected.logits)
    assert_close(found.loss, expected.loss, rtol=0, atol=1e-7)  # a cross-entropy of 0
    found.loss.backward()
    expected.loss.backward()
    assert torch.equal(
        one.smop_layer["default"].prompts.grad, plain.smop_layer["default"].prompts.grad
    )


@pytest.mark.parametrize("name", THREE)
def test_in_a_mixed_batch_every_adapter_is_judged_by_its_own_rows(name):
    made = labelled(name)

    def zoo():
        model = adapted(KINDS[name], routing="posterior", num_prompts=4, judged=1.0)
        model.add_adapter("plain", SMoPConfig(task_type=KINDS[name].task_type))
        model.set_requires_grad(["default", "plain"])
        return without_dropout(model).train()

    names = ["default", "plain", "__base__", "default", "default", "plain"]
    own = {k: v[[0, 3, 4]] for k, v in made.items()}
    mixed, alone = zoo(), zoo()
    with mixed.terms_apart() as found:
        mixed(**made, adapter_names=names)
    routes = mixed.last_routes
    with alone.terms_apart() as expected:
        alone(**own)
    assert set(found.terms) == {"default"}
    assert_close(found.terms["default"], expected.terms["default"], rtol=1e-4, atol=1e-5)
    assert torch.equal(routes.chosen[[0, 3, 4]], alone.last_routes.chosen)


@pytest.mark.parametrize("judged", [0.2, 1.0])
def test_adapters_of_different_sizes_share_a_pass_in_which_not_all_rows_are_judged(judged):
    options = {"routing": "posterior", "judged": judged}
    model = adapted(KINDS["t5"], num_prompts=2, **options)
    model.add_adapter("large", SMoPConfig(task_type="SEQ_2_SEQ_LM", num_prompts=6, **options))
    model.set_requires_grad(["default", "large"])
    without_dropout(model).train()
    made, names = labelled("t5"), ["default", "large"] * 3
    for i in (0, 2, 4):
        part = {k: v[i : i + 2] for k, v in made.items()}
        table = judge(model, part, names[:2])
        assert table is None or table.shape == (2, 6)
        model(**part, adapter_names=names[:2]).loss.backward()


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: {"attention_mask": made["attention_mask"][:, :-1]}, "has the shape"),
        (lambda made: {"attention_mask": made["attention_mask"][:, None]}, "two-dimensional"),
        (lambda made: {"labels": made["labels"][:-1]}, "labels have 5 rows for 6"),
        (lambda made: {"adapter_names": ["default"] * 7}, "7 entries"),
        (lambda made: {"input_ids": None}, "give input_ids or inputs_embeds"),
    ],
)
def test_what_the_pass_would_refuse_is_refused_before_rows_are_judged(name, change, message):
    model, made = trained(name), labelled(name)
    with pytest.raises(ConfigError, match=message):
        model(**{**made, **change(made)})


def test_without_labels_it_is_refused_but_generation_is_not():
    model = trained("t5")
    made = batch(KINDS["t5"])
    labels = made.pop("labels")
    with pytest.raises(ConfigError, match="routing='posterior' learns from the labels"):
        model(**made, decoder_input_ids=labels)
    model.generate(**made, max_new_tokens=2)


def test_a_share_of_the_rows_is_judged_by_what_they_say():
    model, made = trained("bert", judged=0.5), labelled("bert")
    passes = []
    model.get_base_model().register_forward_pre_hook(
        lambda m, a, k: passes.append(len(k["input_ids"])), with_kwargs=True
    )
    one = judge(model, made)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    other = judge(model, {k: v[order] for k, v in made.items()})
    assert torch.equal(one[order].isnan(), other.isnan())
    judged = (~one.isnan().any(dim=1)).sum().item()
    assert 0 < judged < 6
    assert sum(passes) == 4 * judged * 2  # both times
    # however the step is divided
    parts = [judge(model, {k: v[i : i + 2] for k, v in made.items()}) for i in (0, 2, 4)]
    rows = [torch.full((2, 4), math.nan) if part is None else part for part in parts]
    assert_close(torch.cat(rows), one, equal_nan=True)


@pytest.mark.parametrize("name", THREE)
def test_rows_that_are_told_their_prompt_are_not_judged(name):
    model, made = trained(name), labelled(name)
    with model.routed([0, -1, 2, -1, -1, 3]):
        table = judge(model, made)
        model(**made)
    assert table.isnan().any(dim=1).tolist() == [True, False, True, False, False, True]
    assert model.last_routes.chosen[[0, 2, 5]].tolist() == [0, 2, 3]
    with model.forced_prompt(1):
        assert judge(model, made) is None


def test_a_row_without_a_finite_loss_is_left_out_and_harms_no_other():
    strategy, losses = Posterior(), torch.rand(5, 4)
    zeros, thirds = torch.zeros(5, 4), torch.full((4,), 0.25)
    broken = losses.clone()
    broken[2] = math.inf
    broken[3, 1] = math.inf
    q = strategy.posterior(broken, torch.ones(5), zeros, thirds)
    assert q[2].isnan().all()
    assert q[[0, 1, 3, 4]].isfinite().all()
    assert q[3, 1] == 0
    kept = [0, 1, 3, 4]
    alone = strategy.posterior(broken[kept], torch.ones(4), zeros[kept], thirds)
    assert_close(q[kept], alone)
    model = trained("bert")
    adapter = model.smop_layer["default"]
    adapter.note_usage(q)
    adapter.note_usage(torch.full((1, 4), math.nan))
    adapter.end_usage()
    assert adapter.usage.isfinite().all()


def test_a_step_whose_losses_were_not_numbers_leaves_the_router_able_to_learn():
    model, made = trained("t5"), labelled("t5")
    adapter = model.smop_layer["default"]
    head = model.get_base_model().lm_head
    poison = head.register_forward_hook(lambda m, a, out: out * math.nan)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    model(**made).loss.backward()
    poison.remove()
    optimizer.zero_grad()
    for _ in range(2):
        model(**made).loss.backward()
        assert adapter.router.grad.abs().sum() > 0
        optimizer.step()
        optimizer.zero_grad()
        assert adapter.usage.isfinite().all()


def test_a_model_cast_to_half_precision_trains_on():
    model, made = trained("t5"), labelled("t5")
    model.to(torch.bfloat16)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**made).loss.backward()
    optimizer.step()
    assert model.smop_layer["default"].usage.isfinite().all()


def test_usage_counts_for_the_adapter_whose_rows_passed_though_another_shares_its_tensors():
    model, made = trained("t5"), labelled("t5")
    adapter = model.smop_layer["default"]
    tensors = [*adapter.parameters(), *adapter.buffers()]
    twins = [copy.deepcopy(adapter, {id(t): t for t in tensors}) for _ in range(4)]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = adapter.usage.clone()
    model(**made).loss.backward()
    optimizer.step()
    assert adapter.steps == 1
    assert not torch.equal(adapter.usage, before)
    assert twins[0].usage is adapter.usage


@pytest.mark.parametrize("name", THREE)
def test_ten_lines_of_plain_peft_train_it(name, tmp_path):
    kind = KINDS[name]
    config = SMoPConfig(task_type=kind.task_type, routing="posterior", num_prompts=4)
    model = get_peft_model(kind.model(), config)
    made = labelled(name, rows=8)
    rows = [{key: value[i] for key, value in made.items()} for i in range(8)]
    arguments = TrainingArguments(
        tmp_path, max_steps=3, per_device_train_batch_size=4, learning_rate=0.1, use_cpu=True,
        report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    adapter = model.smop_layer["default"]
    assert adapter.steps == 3
    assert not torch.equal(adapter.usage, torch.full((4,), 0.25))


def test_killed_and_resumed_it_ends_as_if_never_killed(tmp_path):
    kind, made = KINDS["t5"], labelled("t5")

    def train(model, steps):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            model(**made).loss.backward()
            optimizer.step()
        return model

    straight = train(trained("t5", judged=0.5), 4)
    train(trained("t5", judged=0.5), 2).save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(kind.model(), tmp_path, is_trainable=True)
    resumed = train(without_dropout(again).train(), 2)
    others = straight.state_dict()
    for key, value in resumed.state_dict().items():
        if "smop" in key:
            assert torch.equal(value, others[key]), key


@pytest.mark.parametrize("parts", [1, 3])
def test_accumulated_and_recomputed_passes_see_the_same_usage(parts):
    """It counts from the next step on; what a pass notes changes no other pass of its step."""
    model, made = trained("bert"), labelled("bert")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = model.smop_layer["default"].usage.clone()
    for i in range(parts):
        model(**{k: v[i::parts] for k, v in made.items()}).loss.backward()
        assert torch.equal(model.smop_layer["default"].usage, before)
    optimizer.step()
    assert not torch.equal(model.smop_layer["default"].usage, before)
