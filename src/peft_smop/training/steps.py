"""One training step's forward and backward: of one run, or of several at once.

    run 0   b rows  ┐                        ┌ part 0: rows of similar length ─ forward, backward
    run 1   b rows  ├ sorted by length, cut ─┤ part 1: …
    run 2   b rows  ┘                        └ …

A part is one pass over a mixed batch, every row with its own run's adapter. Each token's loss
counts by its own run's number of tokens, so that a run's loss and gradients are those of its own
batch, however its rows are divided and whatever shares the pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from peft_smop.errors import RunError
from peft_smop.rows import cut, on_device
from peft_smop.scoring import Features, Formulation, to_device, told
from peft_smop.training.attention import fastest_attention
from peft_smop.tuner import SMoPModel
from peft_smop.tuner.reading import reads_apart


@dataclass(frozen=True)
class Rows:
    """One run's rows of one step. No container, so that no library looks for tensors in it."""

    features: Sequence[Features]
    adapter: str | None = None
    """Whose they are; None: the model's active adapter's."""


def forward_backward(
    model: nn.Module,
    formulation: Formulation,
    runs: Sequence[Rows],
    *,
    max_padding: float,
    backward: Callable[[Tensor], Any] = Tensor.backward,
    most_rows: int | None = None,
) -> Float[Tensor, "r"]:
    """Compute the loss of every run's rows, and leave the gradients in the parameters.

    Args:
        model: in training mode; where runs name adapters, a SMoP model that has them.
        formulation: how the task is put to it.
        runs: the rows of each of the r runs.
        max_padding: most tokens computed over tokens of text, beyond which the rows are divided
            between several passes; not done where rows are not independent of each other.
        backward: what to do with a loss.
        most_rows: rows in a pass, where memory does not hold more; the loss is the same.

    Raises:
        RunError: rows that see each other would have to be divided.
    """
    device = next(model.parameters()).device
    tuner = SMoPModel.of(model)
    rows = [(run, features) for run, part in enumerate(runs) for features in part.features]
    adapters = [part.adapter or _active(tuner) for part in runs]
    names = [adapters[run] for run, _ in rows]
    of_step = Counter(names)
    tokens = _tokens(formulation, runs, device)
    losses = torch.zeros(len(runs), device=device)
    lengths = _lengths(tuner, formulation, [features for _, features in rows], adapters)
    longest = max(len(features["input_ids"]) for _, features in rows)
    with fastest_attention(model, longest):
        for members in _parts(tuner, lengths, adapters, max_padding, most_rows or len(rows)):
            features, own = [rows[i][1] for i in members], [names[i] for i in members]
            batch = formulation.collate(features)
            more = {} if runs[0].adapter is None else {"adapter_names": own}
            around = nullcontext() if tuner is None else tuner.terms_apart()
            narrow = formulation.answers_only(model, batch["labels"])
            with around as apart, told(model, features), narrow:
                logits = model(**to_device(batch, device), **more).logits
            found, of_row = formulation.answer_losses(logits, batch["labels"])
            if apart is not None and apart.excess is not None:
                found, of_row = torch.cat([found, apart.excess]), [*of_row, *range(len(members))]
            of_run = on_device([rows[members[row]][0] for row in of_row], device)
            each = torch.zeros_like(losses).index_add(0, of_run, found / tokens[of_run])
            if apart is not None and apart.terms:
                # each is a mean over the part's rows of its adapter
                in_part = Counter(own)
                each = each + torch.stack(
                    [
                        apart.terms[name] * (in_part[name] / of_step[name])
                        if name in apart.terms
                        else each.new_zeros(())
                        for name in adapters
                    ]
                )
            backward(each.sum())
            losses += each.detach()
    return losses


def _tokens(
    formulation: Formulation, runs: Sequence[Rows], device: torch.device
) -> Float[Tensor, "r"]:
    """How many losses each run's answers have; over several processes their mean.

    Gradients are averaged over processes, so that dividing by the mean gives each token of the step
    the same weight, whichever process it is in.
    """
    counts = [sum(formulation.answer_length(f) for f in run.features) for run in runs]
    tokens = on_device([float(count) for count in counts], device)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tokens)
        tokens = tokens / dist.get_world_size()
    return tokens


def _lengths(
    tuner: SMoPModel | None,
    formulation: Formulation,
    features: Sequence[Features],
    adapters: Sequence[str],
) -> list[int]:
    """How much a pass computes of each row: where texts are read before it, answers alone."""
    layer = None if tuner is None else tuner.smop_layer
    if layer is not None and reads_apart(layer, layer.hooks.backbone, adapters):
        return [formulation.answer_length(f) for f in features]
    return [len(f["input_ids"]) for f in features]


def _parts(
    tuner: SMoPModel | None,
    lengths: Sequence[int],
    adapters: Sequence[str],
    max_padding: float,
    most_rows: int,
) -> list[list[int]]:
    """Which rows share a pass: all of them, where one row's part in the loss sees another row."""
    if tuner is not None and not tuner.smop_layer.rows_are_independent(adapters):
        if most_rows < len(lengths):
            raise RunError(
                f"the device's memory does not hold a batch of {len(lengths)}, and rows of this"
                " method see each other, so that it cannot be divided; lower --batch-size"
            )
        return [list(range(len(lengths)))]
    parts = cut(lengths, max_padding)
    return [part[i : i + most_rows] for part in parts for i in range(0, len(part), most_rows)]


def _active(tuner: SMoPModel | None) -> str:
    return "" if tuner is None else tuner.active_adapters[0]
