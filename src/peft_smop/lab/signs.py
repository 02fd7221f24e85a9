"""What a finished run shows of itself, by which one can tell why it did not learn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PromptEmbedding
from torch import Tensor, nn

from peft_smop.errors import CheckpointError, RunError
from peft_smop.lab.prepare import Prepared, meant, prepare
from peft_smop.lab.spec import RunSpec
from peft_smop.lab.trained import Trained, load_trained, part_of_task
from peft_smop.scoring import Formulation
from peft_smop.scoring.formulation import to_device, told
from peft_smop.tasks import Example
from peft_smop.tuner import SMoPModel
from peft_smop.tuner.initialisation import spread_of

LOOKED_AT = 128
"""Training examples whose losses are computed: enough for a tenth of a nat, and soon done."""


@dataclass(frozen=True)
class PromptScale:
    """How wide prompts are, in standard deviations of the backbone's own embeddings."""

    at_start: float
    at_end: float
    moved: float
    """Root mean square of the way that a prompt's number went."""


@dataclass(frozen=True)
class Signs:
    """Of one run; losses are means over answers' tokens, in nats, of the same training examples."""

    asked: str
    """The options by which commands take the same task and backbone."""
    learning_rate: float
    spread: float
    """The standard deviation of the backbone's embeddings."""
    steps: int
    epochs: float
    """How often a training example was seen."""
    stopped_early: bool
    curve: tuple[float, ...]
    """The training loss as it was logged."""
    loss_before: float
    loss_after: float
    loss_dropping: float
    """After training, with the backbone's dropout as in training."""
    test_low: float
    """The lower end of the test score's interval."""
    majority: float
    """Score of always the commonest label."""
    answers: dict[str, float]
    """Share of the test examples that were given a label, commonest first."""
    cut: float
    """Share of the training inputs that were longer than `max_length`."""
    max_length: int
    scale: PromptScale | None
    """None: the method has no prompts."""
    routing: str | None
    """None: one prompt, or none."""
    load: tuple[float, ...]
    regret: float | None
    """What the best prompt of each row would add, in points, where a certificate tells."""
    is_misread: bool
    """Whether a head reads the first token of a backbone that was trained to be read otherwise."""


def signs_of(path: Path) -> Signs:
    """Read a finished run, and ask its model before and after training.

    Args:
        path: the run's directory.

    Raises:
        SMoPError: it is no finished run, or what it was trained on cannot be had.
    """
    trained = load_trained(path)
    spec, directory = trained.spec, trained.directory
    if not directory.is_finished:
        raise CheckpointError(
            f"{path} is an adapter without its run, whose history would tell; give the run"
        )
    result = directory.read_result()
    part = part_of_task(trained, "train")
    if not part.is_own:
        raise RunError(
            f"the task's data are not those that {directory.split} names, with which the run was"
            " trained; restore them, or train again"
        )
    examples = _spread_out(part.train)
    after, routing = _prompts(trained.model), _routing(trained)
    loss_after = mean_loss(trained.model, trained.formulation, examples)
    loss_dropping = loss_after
    if spec.training.dropout is not False:  # versions that did not keep it left it on
        loss_dropping = mean_loss(trained.model, trained.formulation, examples, dropping=True)
    del trained  # one backbone at a time
    prepared = prepare(spec)
    formulation, test = prepared.formulation, result.test
    formulation.truncated = 0
    for example in prepared.train:
        formulation.encode(example)
    cut = formulation.truncated / len(prepared.train)
    spread = spread_of(prepared.backbone.model.get_input_embeddings())
    before = _prompts(prepared.model)
    if before is not None and result.routing is not None:
        gone = result.routing.pruned
        before = before[[j for j in range(len(before)) if j not in gone]] if gone else before
    scale = None
    if before is not None and after is not None and before.shape == after.shape:
        scale = PromptScale(
            at_start=float(before.std()) / spread,
            at_end=float(after.std()) / spread,
            moved=float((after - before).square().mean().sqrt()) / spread,
        )
    steps = result.training.steps
    return Signs(
        asked=spec.asked,
        learning_rate=result.training.learning_rate,
        spread=spread,
        steps=steps,
        epochs=steps * spec.training.batch_size / len(prepared.train),
        stopped_early=result.training.stopped_early,
        curve=_curve(directory.read_metrics()),
        loss_before=mean_loss(prepared.model, formulation, examples),
        loss_after=loss_after,
        loss_dropping=loss_dropping,
        test_low=test.low,
        majority=test.majority,
        answers=_answers(directory.read_predictions()),
        cut=cut,
        max_length=spec.training.max_length,
        scale=scale,
        routing=routing,
        load=test.load,
        regret=None if result.routing is None else result.routing.regret.value,
        is_misread=_is_misread(spec, prepared),
    )


def _is_misread(spec: RunSpec, prepared: Prepared) -> bool:
    """Whether a head reads the first token though its backbone is known to be meant otherwise."""
    if spec.method.pooling is not None or prepared.pooling == "mean":
        return False
    try:
        return meant(spec, prepared.backbone) == "mean"
    except CheckpointError:  # what cannot be known now is no reason to say nothing of the rest
        return False


def mean_loss(
    model: nn.Module,
    formulation: Formulation,
    examples: Sequence[Example],
    *,
    dropping: bool = False,
    batch_size: int = 16,
) -> float:
    """Mean loss of the answers' tokens, as prompts are chosen in evaluation.

    Args:
        model: what is asked; it is left in its mode.
        formulation: how the task is put to it.
        examples: labelled.
        dropping: with the backbone's dropout.
        batch_size: examples in a pass.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    if dropping:
        # not by `train`, which would also make the router draw
        tuner = SMoPModel.of(model)
        own = set() if tuner is None else set(tuner.smop_layer.modules())
        for module in modes:
            module.training = module not in own
    device, total, count = next(model.parameters()).device, 0.0, 0
    try:
        with torch.no_grad(), torch.random.fork_rng(enabled=dropping):
            torch.manual_seed(0)
            for start in range(0, len(examples), batch_size):
                features = [formulation.encode(e) for e in examples[start : start + batch_size]]
                batch = formulation.collate(features)
                with told(model, features), formulation.answers_only(model, batch["labels"]):
                    logits = model(**to_device(batch, device)).logits
                losses, _ = formulation.answer_losses(logits, batch["labels"])
                total, count = total + float(losses.sum()), count + losses.numel()
    finally:
        for module, was in modes.items():
            module.training = was
    return total / count


def _spread_out(examples: Sequence[Example]) -> list[Example]:
    """Up to `LOOKED_AT` examples, from all over."""
    step = max(1, len(examples) // LOOKED_AT)
    return list(examples[::step][:LOOKED_AT])


def _prompts(model: nn.Module) -> Tensor | None:
    """A copy of an adapted model's prompts, in one tensor; None: it has none of its own scale."""
    adapter = SMoPModel.adapter_of(model)
    if adapter is not None:
        with torch.no_grad():
            return adapter.soft_prompts().cpu().clone()
    encoder: Any = getattr(model, "prompt_encoder", None)
    if not encoder:
        return None
    name = next(iter(encoder))
    if not isinstance(encoder[name], PromptEmbedding):  # a network's input is no prompt
        return None
    return encoder[name].embedding.weight.detach().float().cpu().clone()


def _routing(trained: Trained) -> str | None:
    adapter = SMoPModel.adapter_of(trained.model)
    if adapter is None or adapter.router is None or adapter.prompts.shape[0] == 1:
        return None
    return trained.spec.method.routing or "linear"


def _curve(rows: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    return tuple(float(row["loss"]) for row in rows if "loss" in row)


def _answers(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    counted = Counter(str(row["prediction"]) for row in rows)
    return {label: n / counted.total() for label, n in counted.most_common()}
