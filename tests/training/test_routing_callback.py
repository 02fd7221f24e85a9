"""What a router does is reported through anyone's Trainer, and nothing is changed by looking."""

import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from peft_smop import RoutingCallback, SMoPConfig
from peft_smop.errors import ConfigError
from tiny import KINDS, THREE, VOCABULARY, adapted, decided

QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}


def rows(name, count, *, seed=3, tokens=6):
    """Labelled rows, as a Trainer takes them."""
    generator = torch.Generator().manual_seed(seed)
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


class Reporter(TrainerCallback):
    """Records what Weights & Biases would have been told, and the passes of the training."""

    def __init__(self):
        self.told, self.routes = [], []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.told.append(dict(logs))

    def on_substep_end(self, args, state, control, model=None, **kwargs):
        self.routes.append(model.last_routes)

    on_step_end = on_substep_end

    def values(self, key):
        return [logs[key] for logs in self.told if key in logs]


def trainer_of(model, folder, *, train=None, validation=None, collate=None, **options):
    """A plain Trainer with a reporter, which stands before any callback that is added."""
    args = TrainingArguments(
        str(folder),
        **{"max_steps": 4, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 3,
           "learning_rate": 0.1, "logging_steps": 2, **QUIET, **options},
    )  # fmt: skip
    reporter = Reporter()
    more = {} if collate is None else {"data_collator": collate}
    trainer = Trainer(
        model=model, args=args, train_dataset=train, eval_dataset=validation,
        callbacks=[reporter], **more,
    )  # fmt: skip
    return trainer, reporter


def loss_of(model, row):
    """-log p(labels) of one row, summed over its labels."""
    made = {key: value[None] for key, value in row.items()}
    counted = made["labels"] if made["labels"].dim() == 1 else made["labels"][0]
    with torch.no_grad():
        return float(model(**made).loss) * int((counted != -100).sum())


@pytest.mark.parametrize("name", THREE)
def test_an_evaluation_reports_load_entropy_and_regret_as_counted_by_hand(name, tmp_path):
    model = adapted(KINDS[name], num_prompts=3)
    own = rows(name, 7)
    trainer, reporter = trainer_of(model, tmp_path, validation=own)
    trainer.add_callback(RoutingCallback(trainer))
    returned = trainer.evaluate()
    chosen, entropies, regrets = [], [], []
    for row in own:
        routed = loss_of(model, row)
        routes = model.last_routes
        p = routes.logits[0].softmax(dim=0).tolist()
        chosen.append(int(routes.chosen[0]))
        entropies.append(-sum(x * math.log(x) for x in p))
        under = []
        for j in range(3):
            with model.forced_prompt(j):
                under.append(loss_of(model, row))
        regrets.append(routed - min(under))
    assert len(set(chosen)) > 1
    expected = {
        **{f"eval_routing_load_{j}": chosen.count(j) / 7 for j in range(3)},
        "eval_routing_entropy": sum(entropies) / 7,
        "eval_routing_regret": sum(regrets) / 7,
    }
    assert expected["eval_routing_regret"] > 0
    (told,) = [logs for logs in reporter.told if "eval_routing_regret" in logs]
    for key, value in expected.items():
        assert told[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key
        assert returned[key] == told[key]
    assert "eval_loss" in returned


def test_training_passes_are_reported_without_an_evaluation_set(tmp_path):
    model = adapted(KINDS["t5"], num_prompts=3)
    trainer, reporter = trainer_of(
        model, tmp_path, train=rows("t5", 24), gradient_accumulation_steps=2, max_steps=4
    )
    trainer.add_callback(RoutingCallback(trainer))
    trainer.train()
    assert len(reporter.routes) == 8
    assert len(reporter.values("routing_entropy")) == 2  # behind every second step's loss
    for part, entropy in enumerate(reporter.values("routing_entropy")):
        passes = reporter.routes[4 * part : 4 * part + 4]  # two steps of two passes
        chosen = torch.cat([routes.chosen for routes in passes]).tolist()
        p = torch.cat([routes.logits for routes in passes]).softmax(dim=1)
        for j in range(3):
            load = reporter.values(f"routing_load_{j}")[part]
            assert load == pytest.approx(chosen.count(j) / 16)
        assert entropy == pytest.approx(float(-(p * p.log()).sum(dim=1).mean()), rel=1e-5)
    assert not any("regret" in key for logs in reporter.told for key in logs)


def drawing(batch):
    """A collator that draws from every generator, as augmenting ones do."""
    random.random()
    np.random.rand()
    torch.rand(1)
    return {key: torch.stack([row[key] for row in batch]) for key in batch[0]}


@pytest.mark.parametrize("routing", ["linear", "posterior"])
@pytest.mark.parametrize("name", THREE)
def test_training_with_it_ends_with_the_same_bits(name, routing, tmp_path):
    """With dropout, noise, shuffling and a collator that draws."""
    found = []
    for watched in (False, True):
        model = adapted(KINDS[name], num_prompts=3, routing=routing)
        trainer, _ = trainer_of(
            model, tmp_path / str(watched), train=rows(name, 24), validation=rows(name, 5, seed=4),
            collate=drawing, eval_strategy="steps", eval_steps=1, logging_steps=1, max_steps=6,
        )  # fmt: skip
        if watched:
            trainer.add_callback(RoutingCallback(trainer))
        trainer.train()
        history = [e for e in trainer.state.log_history if "routing" not in " ".join(e)]
        losses = [(e.get("loss"), e.get("eval_loss")) for e in history if "train_loss" not in e]
        # not Python's own, from which the checks of shapes draw in these tests
        draws = (np.random.rand(), float(torch.rand(1)))
        found.append((model.state_dict(), losses, draws))
    (plain, losses, draws), (watched, others, same) = found
    assert all(torch.equal(watched[key], value) for key, value in plain.items())
    assert others == losses
    assert same == draws


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_mode_random_numbers_and_last_routes_are_left_as_they_were(tmp_path):
    model = adapted(KINDS["t5"], num_prompts=3)
    trainer, _ = trainer_of(model, tmp_path, validation=rows("t5", 5), collate=drawing)
    callback = RoutingCallback(trainer)
    trainer.evaluate()
    loader = trainer.get_eval_dataloader()
    model.train()
    model.base_model.model.encoder.eval()
    modes = [module.training for module in model.modules()]
    before, drawn = model.smop_layer.last, states()
    metrics = {"eval_runtime": 1.0}
    callback.on_evaluate(
        trainer.args, trainer.state, trainer.control, metrics=metrics, eval_dataloader=loader
    )
    assert "eval_routing_regret" in metrics
    assert model.smop_layer.last is before
    assert states() == drawn
    assert [module.training for module in model.modules()] == modes
    assert int(model.smop_layer["default"].steps) == 0


def test_a_limit_takes_rows_from_everywhere_in_the_data(tmp_path):
    model = adapted(KINDS["t5"], num_prompts=3)
    own = rows("t5", 12)
    trainer, reporter = trainer_of(model, tmp_path, validation=own)
    trainer.add_callback(RoutingCallback(trainer, rows=4))
    trainer.evaluate()
    chosen = []
    for place in (0, 3, 6, 9):
        loss_of(model, own[place])
        chosen.append(int(model.last_routes.chosen[0]))
    for j in range(3):
        assert reporter.values(f"eval_routing_load_{j}") == [chosen.count(j) / 4]


class Stream(IterableDataset):
    """Rows without a length."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def test_streams_and_several_sets_are_evaluated_too(tmp_path):
    model = adapted(KINDS["t5"], num_prompts=3)
    trainer, reporter = trainer_of(model, tmp_path, validation=rows("t5", 6))
    trainer.add_callback(RoutingCallback(trainer, rows=4))
    whole = trainer.evaluate()
    streamed = trainer.evaluate(Stream([rows("t5", 6)[i] for i in (0, 1, 3, 4)]))
    for key in ("eval_routing_load_0", "eval_routing_entropy", "eval_routing_regret"):
        assert streamed[key] == pytest.approx(whole[key])
    trainer.evaluate({"near": rows("t5", 3), "far": rows("t5", 3, seed=9)})
    for which in ("near", "far"):
        assert len(reporter.values(f"eval_{which}_routing_regret")) == 1


def named(batch):
    """A collator for rows that name their adapter."""
    tensors = {k: torch.stack([row[k] for row in batch]) for k in batch[0] if k != "adapter_names"}
    return {**tensors, "adapter_names": [row["adapter_names"] for row in batch]}


def test_rows_of_mixed_batches_count_for_their_own_adapter(tmp_path):
    kind = KINDS["t5"]
    model = adapted(kind, num_prompts=3)
    for name, options in {
        "other": {"num_prompts": 2},
        "idle": {"num_prompts": 2},
        "plain": {"routing": "single"},
    }.items():
        model.add_adapter(name, SMoPConfig(task_type=kind.task_type, **options))
        decided(model, name, seed=11)
    model.set_requires_grad(["default", "other", "plain"])
    names = ["default", "other", "__base__", "plain", "other", "default", "default"]
    own = [{**row, "adapter_names": name} for row, name in zip(rows("t5", 7), names, strict=True)]
    trainer, reporter = trainer_of(
        model, tmp_path, train=own * 4, validation=own, collate=named, remove_unused_columns=False
    )
    trainer.add_callback(RoutingCallback(trainer))
    found = trainer.evaluate()
    for adapter, k in (("default", 3), ("other", 2)):
        chosen, regrets = [], []
        for row in [row for row in own if row["adapter_names"] == adapter]:
            made = {key: value for key, value in row.items() if key != "adapter_names"}
            model.set_adapter(adapter)
            routed = loss_of(model, made)
            chosen.append(int(model.last_routes.chosen[0]))
            under = []
            for j in range(k):
                with model.forced_prompt(j):
                    under.append(loss_of(model, made))
            regrets.append(routed - min(under))
        for j in range(k):
            share = found[f"eval_routing_{adapter}_load_{j}"]
            assert share == pytest.approx(chosen.count(j) / len(chosen))
        regret = found[f"eval_routing_{adapter}_regret"]
        assert regret == pytest.approx(sum(regrets) / len(regrets), rel=1e-4, abs=1e-5)
    assert not any("plain" in key or "idle" in key or "base" in key for key in found)
    model.set_adapter("default")
    model.set_requires_grad(["default", "other", "plain"])
    trainer.train()
    for adapter, k in (("default", 3), ("other", 2)):
        loads = [reporter.values(f"routing_{adapter}_load_{j}") for j in range(k)]
        assert [sum(parts) for parts in zip(*loads, strict=True)] == pytest.approx([1, 1])


def test_regret_may_choose_the_best_state(tmp_path):
    model = adapted(KINDS["t5"], num_prompts=3)
    trainer, reporter = trainer_of(
        model, tmp_path, train=rows("t5", 24), validation=rows("t5", 6, seed=4),
        eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
        load_best_model_at_end=True, metric_for_best_model="eval_routing_regret",
        greater_is_better=False,
    )  # fmt: skip
    trainer.add_callback(RoutingCallback(trainer))
    trainer.train()
    assert trainer.state.best_metric == min(reporter.values("eval_routing_regret"))


@pytest.mark.parametrize("options", [{"top_k": 2}, {"routing": "gumbel"}, {"routing": "released"}])
def test_every_kind_of_router_is_watched(options, tmp_path):
    trainer, reporter = trainer_of(
        adapted(KINDS["t5"], num_prompts=3, **options), tmp_path, train=rows("t5", 12),
        validation=rows("t5", 5), eval_strategy="steps", eval_steps=2,
    )  # fmt: skip
    trainer.add_callback(RoutingCallback(trainer))
    trainer.train()
    for key in ("routing_load_2", "routing_entropy", "eval_routing_load_2", "eval_routing_regret"):
        assert all(math.isfinite(value) for value in reporter.values(key))
        assert len(reporter.values(key)) == 2, key


class TestRefusals:
    """What cannot be watched is said at the door."""

    def test_a_model_without_an_adapter(self, tmp_path):
        trainer, _ = trainer_of(KINDS["t5"].model(), tmp_path)
        with pytest.raises(ConfigError, match=r"no PEFT model with one; give the Trainer"):
            RoutingCallback(trainer)

    def test_an_adapter_without_a_router(self, tmp_path):
        trainer, _ = trainer_of(adapted(KINDS["t5"], routing="single"), tmp_path)
        with pytest.raises(ConfigError, match="no adapter of this model has one"):
            RoutingCallback(trainer)

    @pytest.mark.parametrize("given", [-1, 2.5, True, None])
    def test_a_number_of_rows_that_is_none(self, given, tmp_path):
        trainer, _ = trainer_of(adapted(KINDS["t5"]), tmp_path)
        with pytest.raises(ConfigError, match=r"rows=.* must be a whole number"):
            RoutingCallback(trainer, rows=given)

    def test_an_evaluation_without_labels_unless_it_is_left_out(self, tmp_path):
        model = adapted(KINDS["bert"])
        own = [{k: v for k, v in row.items() if k != "labels"} for row in rows("bert", 4)]
        trainer, _ = trainer_of(model, tmp_path, validation=own)
        trainer.add_callback(RoutingCallback(trainer))
        with pytest.raises(ConfigError, match="they have none; give them labels, or use rows=0"):
            trainer.evaluate()
        trainer, reporter = trainer_of(model, tmp_path, validation=own)
        trainer.add_callback(RoutingCallback(trainer, rows=0))
        trainer.evaluate()
        assert not any("routing" in key for logs in reporter.told for key in logs)


def test_the_package_is_imported_without_what_the_callback_needs():
    script = (
        "import json, sys, peft_smop\n"
        "before = 'peft_smop.training' in sys.modules\n"
        "from peft_smop import RoutingCallback\n"
        "print(json.dumps([before, RoutingCallback.__name__]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert json.loads(done.stdout) == [False, "RoutingCallback"], done.stderr[-2000:]
