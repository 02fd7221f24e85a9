"""Training: gradients, the Trainer of transformers, checkpoints, resuming."""

import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from peft_smop import SMoPConfig
from tiny import KINDS, THREE, VOCABULARY, adapted, alone, batch, decided, row, without_dropout

# transformers is renaming it; both names must work
CHECKPOINTING = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no"}


def rows(name, count=24, tokens=6):
    """Random examples, as a Trainer takes them."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, VOCABULARY, (count, tokens), generator=generator)
    labels = {
        "t5": ids[:, :3].clone(),
        "llama": torch.where(torch.arange(tokens) < 4, -100, ids),
        "bert": torch.randint(0, 2, (count,), generator=generator),
    }[name]
    return [
        {"input_ids": i, "attention_mask": torch.ones_like(i), "labels": y}
        for i, y in zip(ids, labels, strict=True)
    ]


def trainer(model, name, directory, **options):
    arguments = {
        "output_dir": str(directory),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.1,
        "save_strategy": "no",
        **QUIET,
        **options,
    }
    kind = Seq2SeqTrainer if "predict_with_generate" in options else Trainer
    settings = Seq2SeqTrainingArguments if kind is Seq2SeqTrainer else TrainingArguments
    return kind(
        model=model,
        args=settings(**arguments),
        train_dataset=rows(name),
        eval_dataset=rows(name, count=5),
    )


def tensors(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def moved(before, after):
    return {key for key in before if not torch.equal(before[key], after[key])}


@pytest.mark.parametrize("name", THREE)
def test_gradients_are_those_of_the_method_written_out(name):
    """By automatic differentiation of the bare model with p_c P_c put before its embeddings."""
    kind = KINDS[name]
    made, bare = row(batch(kind), 0), kind.model().requires_grad_(False)
    model = adapted(kind)
    layer = model.smop_layer
    parts = (layer["default"].prompts, layer["default"].router)
    _, _, x = alone(bare, layer, made)
    if kind.task_type == "SEQ_2_SEQ_LM":
        loss = bare(inputs_embeds=x, labels=made["labels"]).logits.square().sum()
    elif kind.task_type == "CAUSAL_LM":
        loss = bare(inputs_embeds=x).logits[:, 5:].square().sum()
    else:
        loss = bare.bert(inputs_embeds=x).last_hidden_state[:, 5:].square().sum()
    expected = torch.autograd.grad(loss, parts)
    if kind.task_type == "SEQ_CLS":
        mine = model(**made, output_hidden_states=True).hidden_states[-1]
    else:
        mine = model(**made).logits
    found = torch.autograd.grad(mine.square().sum(), parts)
    for one, other in zip(found, expected, strict=True):
        assert other.abs().sum() > 0
        assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", THREE)
def test_a_trainer_moves_prompts_router_and_head_and_nothing_else(name, tmp_path):
    model = adapted(KINDS[name])
    before = tensors(model)
    trainer(model, name, tmp_path).train()
    expected = {f"smop_adapters.default.{part}" for part in ("prompts", "router", "steps")}
    if name == "bert":
        expected |= {f"modules_to_save.default.{part}" for part in ("weight", "bias")}
    after = moved(before, tensors(model))
    assert all(any(key.endswith(part) for key in after) for part in expected)
    assert len(after) == len(expected)
    assert model.smop_layer["default"].steps == 6


def test_training_lowers_the_loss():
    kind = KINDS["t5"]
    model, made = adapted(kind).train(), batch(kind)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(40):
        loss = model(**made).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_evaluation_between_training_steps_draws_no_noise_and_counts_no_step():
    kind = KINDS["t5"]
    model, made = adapted(kind).train(), batch(kind)
    model(**made)
    with torch.no_grad():
        model.eval()
        one, two = model(**made).logits, model(**made).logits
        model.train()
    assert torch.equal(one, two)
    assert model.smop_layer["default"].steps == 0


def test_the_best_checkpoint_is_loaded_at_the_end_and_generation_predicts(tmp_path):
    model = adapted(KINDS["t5"])
    made = trainer(
        model,
        "t5",
        tmp_path,
        predict_with_generate=True,
        generation_max_length=4,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
        learning_rate=1.0,
    )
    scores = iter([0.1, 0.9, 0.2])
    kept = []

    def score(prediction):
        # generated: the decoder's first token, three more, then padding
        assert (prediction.predictions[:, 1:4] > 0).any()
        assert set(prediction.predictions[:, 4:].flatten().tolist()) <= {0, -100}
        kept.append(tensors(model))
        return {"score": next(scores)}

    made.compute_metrics = score
    made.train()
    assert made.state.best_model_checkpoint.endswith("checkpoint-4")
    assert moved(kept[1], tensors(model)) == set()
    assert moved(kept[2], tensors(model)) != set()
    files = {path.name for path in (tmp_path / "checkpoint-4").iterdir()}
    assert "adapter_model.safetensors" in files
    assert not any(name.startswith(("model.", "pytorch_model")) for name in files)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_a_resumed_run_ends_where_the_straight_one_ends_to_the_last_bit(name, tmp_path):
    """Perturbation on: the count of steps is in the checkpoint, so the noise goes on."""

    def fresh():
        return without_dropout(adapted(KINDS[name]))

    straight = fresh()
    trainer(straight, name, tmp_path / "straight").train()
    first = fresh()
    # the schedule must be that of six steps, so the run is stopped rather than shortened
    stopped = trainer(first, name, tmp_path / "two", save_strategy="steps", save_steps=3)
    stopped.train()
    assert (tmp_path / "two" / "checkpoint-3").is_dir()
    resumed = fresh()
    trainer(resumed, name, tmp_path / "two").train(
        resume_from_checkpoint=str(tmp_path / "two" / "checkpoint-3")
    )
    expected, found = tensors(straight), tensors(resumed)
    assert int(found["base_model.model.smop.smop_adapters.default.steps"]) == 6
    assert moved(expected, found) == set()
    assert moved(tensors(fresh()), found) != set()


def test_a_step_counts_once_however_many_batches_are_accumulated(tmp_path):
    model = adapted(KINDS["t5"])
    trainer(model, "t5", tmp_path, max_steps=2, gradient_accumulation_steps=2).train()
    assert model.smop_layer["default"].steps == 2


class _Around(torch.optim.SGD):
    """An optimizer that lets another one do its work, once or more often, or fails at it."""

    def __init__(self, parameters, inner, times=1, failure=None):
        super().__init__(parameters, lr=0.1)
        self.inner, self.times, self.failure = inner, times, failure

    def step(self, closure=None):
        for _ in range(self.times):
            self.inner.step()
        if self.failure is not None:
            raise self.failure


def test_a_step_counts_once_however_many_optimizers_take_it_within_each_other():
    model = adapted(KINDS["t5"]).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    outer = _Around(parameters, torch.optim.SGD(parameters, lr=0.1), times=2)
    model(**batch(KINDS["t5"])).loss.backward()
    outer.step()
    assert model.smop_layer["default"].steps == 1


def test_a_step_counts_though_another_one_within_it_failed():
    model = adapted(KINDS["t5"]).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    failing = _Around(parameters, torch.optim.SGD(parameters, lr=0.1), failure=RuntimeError())

    class Catches(_Around):
        def step(self, closure=None):
            with pytest.raises(RuntimeError):
                self.inner.step()

    model(**batch(KINDS["t5"])).loss.backward()
    Catches(parameters, failing).step()
    assert model.smop_layer["default"].steps == 1


@pytest.mark.parametrize("failure", [RuntimeError(), KeyboardInterrupt()])
def test_a_step_that_failed_hides_no_other_optimizer_s_steps(failure):
    model = adapted(KINDS["t5"]).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    plain = torch.optim.SGD(parameters, lr=0.1)
    model(**batch(KINDS["t5"])).loss.backward()
    with pytest.raises(type(failure)):
        _Around(parameters, plain, failure=failure).step()
    assert model.smop_layer["default"].steps == 0
    for _ in range(3):
        plain.step()
    assert model.smop_layer["default"].steps == 3


@CHECKPOINTING
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["not reentrant", "reentrant"])
@pytest.mark.parametrize("name", THREE)
def test_gradient_checkpointing_gives_the_gradients_it_saves_memory_for(name, use_reentrant):
    kind = KINDS[name]
    made = batch(kind)
    gradients = []
    for checkpointing in (False, True):
        model = without_dropout(adapted(kind)).train()
        model.config.use_cache = False
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": use_reentrant}
            )
        model(**made, **labels_for(name, made)).loss.backward()
        gradients.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
        assert model.smop_layer["default"].steps == 0
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        assert_close(gradients[1][key], gradient)


def labels_for(name, made):
    return {
        "t5": {},
        "llama": {
            "labels": made["input_ids"]
            .masked_fill(made["attention_mask"] == 0, -100)
            .index_fill(1, torch.arange(4), -100)
        },
        "bert": {"labels": torch.tensor([0, 1, 0, 1])},
    }[name]


@CHECKPOINTING
@pytest.mark.parametrize("name", THREE)
def test_a_trainer_with_gradient_checkpointing_trains(name, tmp_path):
    model = adapted(KINDS[name])
    before = tensors(model)
    trainer(model, name, tmp_path, max_steps=2, gradient_checkpointing=True).train()
    assert any("prompts" in key for key in moved(before, tensors(model)))


@pytest.mark.parametrize("name", THREE)
def test_bf16_autocast_trains_and_the_router_computes_in_fp32(name):
    kind = KINDS[name]
    model, made = adapted(kind).train(), batch(kind)
    exact = adapted(kind).train()
    exact(**made, **labels_for(name, made))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**made, **labels_for(name, made)).loss
    loss.backward()
    assert torch.isfinite(loss)
    layer = model.smop_layer
    for part in (layer["default"].prompts, layer["default"].router):
        assert part.grad.dtype == torch.float32
        assert torch.isfinite(part.grad).all()
        assert part.grad.abs().sum() > 0
    assert torch.equal(model.last_routes.logits, exact.last_routes.logits)


def test_a_trainer_with_bf16_and_evaluation_in_bf16_trains(tmp_path):
    model = adapted(KINDS["t5"])
    made = trainer(
        model, "t5", tmp_path, max_steps=2, bf16=True, bf16_full_eval=True, eval_strategy="steps",
        eval_steps=1,
    )  # fmt: skip
    made.train()
    assert made.evaluate()["eval_loss"] > 0  # outside of training the whole model is cast


def test_a_backbone_in_bf16_trains_its_fp32_prompts():
    kind = KINDS["t5"]
    model = decided(
        get_peft_model(kind.model().to(torch.bfloat16), SMoPConfig(task_type=kind.task_type))
    ).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    before = model.smop_layer["default"].prompts.detach().clone()
    model(**batch(kind)).loss.backward()
    optimizer.step()
    after = model.smop_layer["default"].prompts.detach()
    assert not torch.equal(after, before)
    assert torch.equal(after.bfloat16(), before.bfloat16())  # bf16 would have lost the step


def test_every_prompt_of_a_training_run_can_be_reached_through_the_noise():
    """The noise is why more than one prompt is tried for one and the same row (section 2.3)."""
    kind = KINDS["t5"]
    model, made = adapted(kind).train(), row(batch(kind), 0)
    seen = set()
    for step in range(60):
        model.smop_layer["default"].steps.fill_(step)
        model(**made)
        seen.add(model.last_routes.indices.item())
    assert len(seen) > 1


def test_the_seed_of_the_configuration_decides_the_noise():
    kind = KINDS["t5"]
    made = batch(kind)

    def logits(seed, global_seed):
        model = adapted(kind, seed=0)
        model.smop_layer["default"].seed.fill_(seed)
        torch.manual_seed(global_seed)
        without_dropout(model).train()(**made)
        return model.last_routes.logits

    assert torch.equal(logits(1, 1), logits(1, 2))
    assert not torch.equal(logits(1, 1), logits(2, 1))
