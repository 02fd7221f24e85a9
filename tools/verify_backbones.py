"""Before which backbones does the tuner put soft prompts rightly? Decided by experiment.

    python tools/verify_backbones.py                      every model type, a table on the screen
    python tools/verify_backbones.py --types llama,t5     only these
    python tools/verify_backbones.py --write              into verified.json and docs/backbones.md
    python tools/verify_backbones.py --write --resume     only what verified.json does not have yet
    python tools/verify_backbones.py --tables             docs/backbones.md from verified.json

Each case is a tiny random model with an adapter, held against a bare copy of the model that is
given the embeddings [p_c P_c; X] of one row without padding. The reference uses nothing of the
tuner but its tensors.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import inspect
import io
import json
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from peft_smop import SMoPConfig
from peft_smop.errors import SMoPError
from tiny_models import CAUSAL, CLASSES, KINDS, SEQ2SEQ, STATES, VOCABULARY, build, candidates

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "src" / "peft_smop" / "tuner" / "verified.json"
TABLE = ROOT / "docs" / "backbones.md"
COMMAND = "python tools/verify_backbones.py --write"

TOLERANCE = 1e-4
SECONDS = 60
NEW_TOKENS = 5
LENGTHS = (7, 5, 6, 4, 7)
CONTEXT = 3
"""Tokens before the first label, in training."""
MATTERS = 1e-2
"""By how much a prompt must move what a model answers for the checks to see anything."""

Found = dict[str, Tensor]
"""What a model answered about one row, by name, without padding."""
Batch = dict[str, Tensor]


class Mismatch(AssertionError):
    """Two answers that should be the same and are not."""


class Late(Exception):
    """A case that took too long."""


class NoReferenceError(Exception):
    """The bare model cannot be asked what the method would answer."""


def tensors(model: PeftModel, name: str) -> tuple[nn.Parameter, nn.Parameter]:
    """An adapter's prompts (k, l, e) and its router (e, k)."""
    layer = model.smop_layer
    return layer[name].prompts, layer[name].router


def options(kind: str, **more: Any) -> SMoPConfig:
    """The configuration of an adapter; a model that nobody has verified is not to be refused."""
    if any(f.name == "unverified" for f in dataclasses.fields(SMoPConfig)):
        more["unverified"] = True
    return SMoPConfig(task_type=kind, **more)


# ---------------------------------------------------------------------------- inputs and outputs


@dataclass
class Case:
    """One model type as one kind of model."""

    model_type: str
    kind: str
    name: str
    bare: PreTrainedModel = field(repr=False)
    scale: float = 1.0
    """By what the model multiplies its embedding module's output before anyone can give it."""

    @property
    def pad_id(self) -> int:
        found = getattr(self.bare.config.get_text_config(), "pad_token_id", None)
        return found if isinstance(found, int) and 0 <= found < VOCABULARY else 0

    def embedded(self, ids: Tensor) -> Tensor:
        """The embeddings of ids, as the model would hand them on."""
        return self.bare.get_input_embeddings()(ids) * self.scale

    @functools.cached_property
    def rows(self) -> list[Batch]:
        """Rows of different lengths, without special tokens but the end that classifiers want."""
        generator = torch.Generator().manual_seed(1)
        rows = []
        for length in LENGTHS:
            ids = torch.randint(10, VOCABULARY - 10, (1, length), generator=generator)
            if self.kind == CLASSES and self.bare.config.is_encoder_decoder:
                ids[0, -1] = self.bare.config.eos_token_id
            made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if self.kind == SEQ2SEQ:
                answer = torch.randint(10, VOCABULARY - 10, (1, 4), generator=generator)
                answer[0, 0] = self.bare.config.decoder_start_token_id
                made["decoder_input_ids"] = answer
            rows.append(made)
        return rows

    def padded(self, side: str, rows: list[Batch] | None = None) -> Batch:
        """Rows in one batch, padded on one side."""
        rows = self.rows if rows is None else rows
        longest = max(r["input_ids"].shape[1] for r in rows)
        batch: dict[str, list[Tensor]] = {}
        for row in rows:
            missing = longest - row["input_ids"].shape[1]
            around = (missing, 0) if side == "left" else (0, missing)
            batch.setdefault("input_ids", []).append(
                pad(row["input_ids"], around, value=self.pad_id)
            )
            batch.setdefault("attention_mask", []).append(pad(row["attention_mask"], around))
            if "decoder_input_ids" in row:
                batch.setdefault("decoder_input_ids", []).append(row["decoder_input_ids"])
        return {name: torch.cat(parts) for name, parts in batch.items()}

    def read(self, output: Any, mask: Tensor) -> list[Found]:
        """Every row's answer, at its own tokens."""
        found: list[Found] = []
        for i, kept in enumerate(mask.bool()):
            if self.kind == CAUSAL:
                found.append({"logits": _tokens(output.logits, kept, i)})
            elif self.kind == STATES:
                row = {"states": _tokens(output.last_hidden_state, kept, i)}
                if getattr(output, "pooler_output", None) is not None:
                    row["pooled"] = output.pooler_output[i]
                found.append(row)
            else:
                found.append({"logits": output.logits[i]})
        return found

    def labels(self, rows: int, width: int, mask: Tensor | None = None) -> Batch:
        """Labels of this kind, none for padding and for a causal LM's context."""
        generator = torch.Generator().manual_seed(2)
        if self.kind == CLASSES:
            return {"labels": torch.arange(rows) % 2}
        if self.kind == STATES:
            return {}
        size = (rows, 4 if self.kind == SEQ2SEQ else width)
        labels = torch.randint(10, VOCABULARY - 10, size, generator=generator)
        if self.kind == CAUSAL:
            labels[:, :CONTEXT] = -100
            if mask is not None:
                labels = labels.masked_fill(mask == 0, -100)
        return {"labels": labels}


def _tokens(states: Tensor, kept: Tensor, row: int) -> Tensor:
    if states.shape[1] != len(kept):
        raise Mismatch(f"{states.shape[1]} positions for {len(kept)} tokens")
    return states[row][kept]


def difference(one: Found, other: Found) -> float:
    """The largest difference, relative to values above 1."""
    if one.keys() != other.keys():
        raise Mismatch(f"outputs {sorted(one)} and {sorted(other)}")
    worst = 0.0
    for name in one:
        a, b = one[name].detach().float(), other[name].detach().float()
        if a.shape != b.shape:
            raise Mismatch(f"{name} of shape {tuple(a.shape)} and {tuple(b.shape)}")
        if not torch.isfinite(a).all() or not torch.isfinite(b).all():
            raise Mismatch(f"{name} not finite")
        if a.numel():
            worst = max(worst, ((a - b).abs().max() / b.abs().max().clamp(min=1)).item())
    return worst


def same(one: Found, other: Found) -> None:
    """Raise unless two answers agree."""
    worst = difference(one, other)
    if worst > TOLERANCE:
        raise Mismatch(f"{worst:.1e}")


# ------------------------------------------------------------------------------- the reference


def spliced(case: Case, model: PeftModel, row: Batch, name: str = "default", context: int = 0):
    """[p_c P_c; X] of one row without padding, by the method's own words."""
    prompts, router = tensors(model, name)
    given = case.bare.get_input_embeddings()(row["input_ids"])
    read = given[0, :context] if context else given[0]
    p = (read.float().mean(dim=0) @ router).softmax(dim=0)
    c = p.argmax()
    # what is spliced is spliced where embeddings are given, so the prompt is not scaled with them
    return torch.cat(
        [(p[c] * prompts[c])[None].to(given.dtype), case.embedded(row["input_ids"])], 1
    )


@contextmanager
def _replaced(module: nn.Module, x: Tensor, width: int, *, drops: bool) -> Iterator[None]:
    """Let a module read x whatever it is given, and give its states without the first `width`."""
    own = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        for name in ("input_ids", "attention_mask", "token_type_ids", "position_ids"):
            kwargs.pop(name, None)
        kwargs["inputs_embeds"], kwargs["return_dict"] = x, True
        if kwargs.get("global_attention_mask") is not None:
            kwargs["global_attention_mask"] = pad(kwargs["global_attention_mask"], (width, 0))
        output = own(**kwargs)
        if drops:
            output.last_hidden_state = output.last_hidden_state[:, width:]
        return output

    kept = {}

    def after_encoder(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        kept["states"] = output if isinstance(output, Tensor) else output[0]

    def before_pooler(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if args[0].dim() == 2:  # the first state alone
            return (kept["states"][:, width], *args[1:])
        return (args[0][:, width:], *args[1:])

    pooler, hooks = getattr(module, "pooler", None) if drops else None, []
    if pooler is not None:
        hooks.append(pooler.register_forward_pre_hook(before_pooler))
    if pooler is not None and isinstance(pooler, nn.Linear):
        hooks.append(module.encoder.register_forward_hook(after_encoder))
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        for hook in hooks:
            hook.remove()


@contextmanager
def _without_encoder_mask(decoder: nn.Module) -> Iterator[None]:
    own = decoder.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        kwargs["encoder_attention_mask"] = None
        return own(*args, **kwargs)

    decoder.forward = forward
    try:
        yield
    finally:
        del decoder.forward


def reference(case: Case, x: Tensor, row: Batch, labels: Batch | None = None) -> Any:
    """The bare model's output for spliced embeddings, with the prompt's places taken out."""
    bare, labels = case.bare, labels or {}
    width = x.shape[1] - row["input_ids"].shape[1]
    if case.kind == SEQ2SEQ:
        more = labels or {"decoder_input_ids": row["decoder_input_ids"]}
        return bare(inputs_embeds=x, **more)
    if case.kind == CAUSAL:
        if labels:
            labels = {"labels": pad(labels["labels"], (width, 0), value=-100)}
        output = bare(inputs_embeds=x, **labels)
        output.logits = output.logits[:, width:]
        return output
    if case.kind == STATES:
        with _replaced(bare, x, width, drops=True):
            return bare.forward()
    if bare.config.is_encoder_decoder:
        with (
            _replaced(bare.get_encoder(), x, width, drops=False),
            _without_encoder_mask(bare.get_decoder()),
        ):
            return bare(**row, **labels)
    with _replaced(bare.base_model, x, width, drops=True):
        return bare(**row, **labels)


def embeddings_are_the_ids(case: Case) -> None:
    """Find how embeddings must be given so that the bare model answers as to ids.

    Raises:
        NoReferenceError: it has no way to be given embeddings that mean the ids.
    """
    row, tried = case.rows[0], []
    alone = case.read(case.bare(**row), row["attention_mask"])[0]
    width = case.embedded(row["input_ids"]).shape[-1]
    for scale in (1.0, width**0.5):
        case.scale = scale
        try:
            output = reference(case, case.embedded(row["input_ids"]), row)
            tried.append(difference(case.read(output, row["attention_mask"])[0], alone))
        except Late:
            raise
        except Exception as error:
            raise NoReferenceError(_sentence(error)) from error
        if tried[-1] <= TOLERANCE:
            return
    case.scale = 1.0
    raise NoReferenceError(
        f"the bare model answers ids and their embeddings differently, by {tried[0]:.1e}"
    )


# ----------------------------------------------------------------------------------- the checks


@dataclass
class Trial:
    """A case with its adapters and what its checks have found."""

    case: Case
    model: PeftModel
    failed: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_padding: bool = False

    def check(self, name: str, run: Callable[[Trial], None]) -> bool:
        """Run one check; whether it passed."""
        try:
            run(self)
        except Late:
            raise
        except SMoPError as error:
            self.refused[name] = _sentence(error, named=False)
        except Mismatch as error:
            self.failed[name] = str(error)
        except Exception as error:
            self.failed[name] = _sentence(error)
        else:
            return True
        return False

    def answer(self, batch: Batch, names: list[str] | None = None) -> list[Found]:
        more = {} if names is None else {"adapter_names": names}
        return self.case.read(self.model(**batch, **more), batch["attention_mask"])


def _sentence(error: BaseException, *, named: bool = True) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    first = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    text = f"{type(error).__name__}: {first}" if named else first
    return text if len(text) <= 220 else text[:217] + "..."


def adapted(case: Case) -> PeftModel:
    """The case's model with two adapters, whose rows go different ways."""
    model = get_peft_model(
        copy.deepcopy(case.bare),
        options(case.kind, num_prompts=3, num_virtual_tokens=3, perturbation=False),
    )
    model.add_adapter(
        "second", options(case.kind, num_prompts=2, num_virtual_tokens=5, perturbation=False)
    )
    model.eval()
    for seed, name in enumerate(("default", "second")):
        draw(case, model, name, seed)
    return model


def draw(case: Case, model: PeftModel, name: str, seed: int) -> None:
    """Draw prompts that matter and a router that sends rows different ways."""
    prompts, router = tensors(model, name)
    given = [case.bare.get_input_embeddings()(row["input_ids"])[0] for row in case.rows]
    spread = torch.cat(given).std()
    means = torch.stack([x.mean(dim=0) for x in given])
    for trial in range(100):
        generator = torch.Generator().manual_seed(100 * seed + trial)
        prompts.copy_(torch.randn(prompts.shape, generator=generator) * spread * 2)
        router.copy_(torch.randn(router.shape, generator=generator) / spread)
        p = (means @ router).softmax(dim=1).sort(dim=1).values
        ways = (means @ router).argmax(dim=1).unique()
        if len(ways) == router.shape[1] and (p[:, -1] - p[:, -2]).min() > 0.02:
            return


def alone_equals_the_reference(trial: Trial) -> None:
    case = trial.case
    for row in case.rows[:3]:
        expected = case.read(reference(case, spliced(case, trial.model, row), row), _mask(row))[0]
        same(trial.answer(row)[0], expected)


def reads_its_neighbours(case: Case) -> bool:
    """Whether what a model answers about a token depends on another one."""
    row, other = case.rows[0], dict(case.rows[0])
    other["input_ids"] = row["input_ids"].clone()
    # heads pool the first or the last token; that one must not be the one that differs
    place = 3 if case.kind == CLASSES else 0
    other["input_ids"][0, place] = 10 + (other["input_ids"][0, place] - 9) % (VOCABULARY - 20)
    one, two = (case.read(case.bare(**r), _mask(r))[0] for r in (row, other))
    name = "states" if case.kind == STATES else "logits"
    if case.kind in (CAUSAL, STATES):
        return difference({name: one[name][1:]}, {name: two[name][1:]}) > TOLERANCE
    return difference({name: one[name]}, {name: two[name]}) > TOLERANCE


def the_prompt_matters(trial: Trial) -> None:
    case, row = trial.case, trial.case.rows[0]
    apart = difference(trial.answer(row)[0], case.read(case.bare(**row), _mask(row))[0])
    if apart < MATTERS:
        raise Mismatch(f"with and without a prompt only {apart:.1e} apart")


def _mask(row: Batch) -> Tensor:
    return row["attention_mask"]


def _batch_equals_rows(trial: Trial, side: str) -> None:
    for row, found in zip(trial.case.rows, trial.answer(trial.case.padded(side)), strict=True):
        same(found, trial.answer(row)[0])


def right_padding(trial: Trial) -> None:
    _batch_equals_rows(trial, "right")


def left_padding(trial: Trial) -> None:
    _batch_equals_rows(trial, "left")


def bare_is_moved(case: Case, side: str) -> bool:
    """Whether padding on this side moves what the bare model answers, or breaks it."""
    try:
        batch = case.padded(side)
        found = case.read(case.bare(**batch), batch["attention_mask"])
        for row, one in zip(case.rows, found, strict=True):
            same(one, case.read(case.bare(**row), _mask(row))[0])
    except Late:
        raise
    except Exception:
        return True
    return False


def generated(model: Any, case: Case, batch: Batch, **more: Any) -> tuple[Tensor, Tensor]:
    """New tokens (b, t) and the logits they were chosen by (b, t, v)."""
    inputs = {k: v for k, v in batch.items() if k != "decoder_input_ids"}
    out = model.generate(
        **inputs,
        **more,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=case.pad_id,
        # a special token in the text would mean something to some models, whatever its embedding
        suppress_tokens=[*range(10), *range(VOCABULARY - 10, VOCABULARY)],
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences[:, -NEW_TOKENS:], torch.stack(out.logits, dim=1)


def _generation_equals_steps(trial: Trial, rows: list[Batch], side: str) -> None:
    case, model = trial.case, trial.model
    batch = case.padded(side, rows)
    tokens, logits = generated(model, case, batch)
    for row, new, found in zip(rows, tokens, logits, strict=True):
        x = spliced(case, model, row)
        start = torch.full((1, 1), getattr(case.bare.config, "decoder_start_token_id", 0) or 0)
        for step in range(NEW_TOKENS):
            text = new[None, :step]
            if case.kind == SEQ2SEQ:
                output = case.bare(inputs_embeds=x, decoder_input_ids=torch.cat([start, text], 1))
            else:
                output = case.bare(inputs_embeds=torch.cat([x, case.embedded(text)], dim=1))
            same({f"step {step + 1}": found[step]}, {f"step {step + 1}": output.logits[0, -1]})


def generation_of_a_batch(trial: Trial) -> None:
    """All rows at once, with padding on the left."""
    _generation_equals_steps(trial, trial.case.rows, "left")


def generation_of_rows(trial: Trial) -> None:
    """Rows one by one, where padding on the left moves the bare model."""
    for row in trial.case.rows[:2]:
        _generation_equals_steps(trial, [row], "left")


def generation_equals_the_bare_models(trial: Trial) -> None:
    """What the bare model generates when it is given the spliced embeddings."""
    case, model = trial.case, trial.model
    for row in case.rows[:2]:
        x = spliced(case, model, row)
        given = {"inputs_embeds": x, "attention_mask": torch.ones(x.shape[:2], dtype=torch.int64)}
        expected = generated(case.bare, case, given)[1][0]
        same({"logits": generated(model, case, row)[1][0]}, {"logits": expected})


def bare_generates_padded(case: Case) -> bool:
    try:
        _, found = generated(case.bare, case, case.padded("left"))
        for row, one in zip(case.rows, found, strict=True):
            same({"logits": one}, {"logits": generated(case.bare, case, row)[1][0]})
    except Late:
        raise
    except Exception:
        return False
    return True


def bare_generates(case: Case) -> str | None:
    """Why the bare model itself cannot generate with its cache what it answers without."""
    row = case.rows[0]
    try:
        new, found = generated(case.bare, case, row)
        start = torch.full((1, 1), getattr(case.bare.config, "decoder_start_token_id", 0) or 0)
        for step in range(NEW_TOKENS):
            if case.kind == SEQ2SEQ:
                text = torch.cat([start, new[:, :step]], dim=1)
                logits = case.bare(**{**row, "decoder_input_ids": text}).logits
            else:
                logits = case.bare(torch.cat([row["input_ids"], new[:, :step]], dim=1)).logits
            same({"step": found[0, step]}, {"step": logits[0, -1]})
    except Late:
        raise
    except Exception as error:
        return _sentence(error)
    return None


def bare_has_no_loss(case: Case) -> str | None:
    """Why the bare model cannot be trained on text alone."""
    row = case.rows[0]
    labels = case.labels(1, row["input_ids"].shape[1])
    x = case.embedded(row["input_ids"]).detach().requires_grad_()
    try:
        with torch.enable_grad(), _trained(case.bare):
            torch.autograd.grad(_loss(case, reference(case, x.clone(), row, labels)), [x])
    except Late:
        raise
    except Exception as error:
        return _sentence(error)
    return None


def labels_are_next_tokens(trial: Trial) -> None:
    """The model's own loss holds a label against the verdict of the place before it."""
    case, row = trial.case, trial.case.rows[0]
    labels = case.labels(1, row["input_ids"].shape[1])
    output = case.bare(**row, **labels)
    of_next = nn.functional.cross_entropy(output.logits[0, :-1], labels["labels"][0, 1:])
    try:
        same({"loss": output.loss}, {"loss": of_next})
    except Mismatch:
        raise Mismatch("its own loss is not that of the next token") from None


def training(trial: Trial) -> None:
    """One backward pass in training mode reaches what is trained, and nothing else."""
    case, model = trial.case, trial.model
    batch = case.padded("right")
    if case.kind == SEQ2SEQ:
        del batch["decoder_input_ids"]
    with torch.enable_grad(), _trained(model):
        output = model(**batch, **case.labels(len(LENGTHS), max(LENGTHS), _mask(batch)))
        _loss(case, output).backward()
    for what, parameter in zip(("prompts", "router"), tensors(model, "default"), strict=True):
        gradient, parameter.grad = parameter.grad, None
        if gradient is None or not torch.isfinite(gradient).all() or not gradient.any():
            raise Mismatch(f"gradient of the {what} is none, zero or not finite")
    heads = ("modules_to_save", "smop")
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not any(mark in name for mark in heads):
            raise Mismatch(f"gradient of the backbone's {name}")
        parameter.grad = None


def _loss(case: Case, output: Any) -> Tensor:
    if case.kind == STATES:
        # not their squares: behind a normalisation those hardly change
        states, generator = output.last_hidden_state, torch.Generator().manual_seed(3)
        return (states * torch.randn(states.shape, generator=generator)).mean()
    return output.loss


@contextmanager
def _trained(model: nn.Module) -> Iterator[None]:
    model.train()
    try:
        yield
    finally:
        model.eval()


def gradient(trial: Trial) -> None:
    """The prompts' gradient for one row is the reference's."""
    case, model, row = trial.case, trial.model, dict(trial.case.rows[0])
    labels = case.labels(1, row["input_ids"].shape[1])
    prompts = tensors(model, "default")[0]
    found = []
    for ours in (True, False):
        with torch.enable_grad(), _trained(model if ours else case.bare):
            if ours:
                given = {k: v for k, v in row.items() if not labels or k != "decoder_input_ids"}
                output = model(**given, **labels)
            else:
                scope = CONTEXT if case.kind == CAUSAL else 0
                x = spliced(case, model, row, context=scope)
                output = reference(case, x, row, labels)
            found.append(torch.autograd.grad(_loss(case, output), [prompts])[0])
    scale = found[1].abs().max()
    if not scale > 0:
        raise Mismatch("the reference's gradient is zero")
    same({"gradient": found[0] / scale}, {"gradient": found[1] / scale})


MIXED = ["default", "second", "__base__", "second", "default"]


def _mixed(trial: Trial, side: str) -> None:
    case, model = trial.case, trial.model
    found = trial.answer(case.padded(side), MIXED)
    for name, row, one in zip(MIXED, case.rows, found, strict=True):
        if name == "__base__":
            expected = case.read(case.bare(**row), _mask(row))[0]
        else:
            x = spliced(case, model, row, name)
            expected = case.read(reference(case, x, row), _mask(row))[0]
        same(trial.answer(row, [name])[0], expected)
        same(one, expected)


def mixed_batch(trial: Trial) -> None:
    _mixed(trial, "right")
    if trial.left_padding:
        _mixed(trial, "left")


def mixed_generation(trial: Trial) -> None:
    """Rows of several adapters generate what each generates alone."""
    case, model = trial.case, trial.model
    rows, names = case.rows, MIXED
    if not trial.left_padding:
        places = [i for i, length in enumerate(LENGTHS) if length == max(LENGTHS)]
        rows, names = [rows[i] for i in places], MIXED[: len(places)]
    _, found = generated(model, case, case.padded("left", rows), adapter_names=names)
    for name, row, one in zip(names, rows, found, strict=True):
        alone = generated(model, case, row, adapter_names=[name])[1][0]
        same({"logits": one}, {"logits": alone})


def behind_the_text(trial: Trial) -> None:
    """Prompts between text and answer, in one pass and, in training, with texts read before it."""
    case = trial.case
    model = get_peft_model(
        copy.deepcopy(case.bare),
        options(case.kind, num_prompts=3, num_virtual_tokens=3, position="after"),
    ).eval()
    draw(case, model, "default", 0)
    prompts, router = tensors(model, "default")
    batch = case.padded("right")
    labels = torch.full_like(batch["input_ids"], -100)
    for kept, row, own in zip(_mask(batch).bool(), batch["input_ids"], labels, strict=True):
        places = kept.nonzero()[CONTEXT:, 0]
        own[places] = row[places]

    def by_hand(row: Batch) -> Tensor:
        x = case.embedded(row["input_ids"])
        read = case.bare.get_input_embeddings()(row["input_ids"])[0, :CONTEXT]
        p = (read.float().mean(dim=0) @ router).softmax(dim=0)
        c = p.argmax()
        prompt = (p[c] * prompts[c])[None].to(x.dtype)
        x = torch.cat([x[:, :CONTEXT], prompt, x[:, CONTEXT:]], dim=1)
        logits = case.bare(inputs_embeds=x).logits[0]
        # the verdict on the answer's first token is the prompt's last
        return torch.cat([logits[: CONTEXT - 1], logits[CONTEXT - 1 + prompt.shape[1] :]])

    found = case.read(model(**batch, labels=labels), _mask(batch))
    for row, one in zip(case.rows, found, strict=True):
        same(one, {"logits": by_hand(row)})
    with torch.enable_grad():
        losses = [
            nn.functional.cross_entropy(
                by_hand(row)[CONTEXT - 1 : -1], row["input_ids"][0, CONTEXT:], reduction="sum"
            )
            for row in case.rows
        ]
        counted = sum(row["input_ids"].shape[1] - CONTEXT for row in case.rows)
        expected = torch.autograd.grad(sum(losses) / counted, [prompts])[0]
        model.smop_layer.train()  # ours alone, so that no dropout is drawn
        model.smop_layer["default"].strategy = dataclasses.replace(
            model.smop_layer["default"].strategy, perturbation=False
        )
        loss = model(**batch, labels=labels).loss
        gradient = torch.autograd.grad(loss, [prompts])[0]
    scale = expected.abs().max()
    same({"gradient": gradient / scale}, {"gradient": expected / scale})


def examine(case: Case) -> dict[str, Any]:
    """Run every check that applies to a built case."""
    embeddings_are_the_ids(case)
    trial = Trial(case, adapted(case))
    plain = trial.check("one row alone", alone_equals_the_reference)
    if not plain and "one row alone" in trial.refused:
        return _verdict(trial)
    trial.check("a prompt matters", the_prompt_matters)
    if not trial.check("right padding", right_padding) and bare_is_moved(case, "right"):
        trial.failed.pop("right padding", None)
        trial.notes.append("right padding moves the bare model too")
    trial.left_padding = trial.check("left padding", left_padding)
    if not trial.left_padding and bare_is_moved(case, "left"):
        trial.failed.pop("left padding", None)
        trial.notes.append("left padding moves the bare model too")
    if case.kind in (CAUSAL, SEQ2SEQ):
        examine_generation(trial)
    no_loss = bare_has_no_loss(case)
    if no_loss:
        trial.notes.append(f"the bare model cannot be trained so either ({no_loss})")
    else:
        trial.check("training", training)
        trial.check("gradient", gradient)
        is_next = case.kind == CAUSAL and trial.check("labels", labels_are_next_tokens)
        if is_next and "right padding moves the bare model too" not in trial.notes:
            trial.check("behind the text", behind_the_text)
    if "right padding moves the bare model too" not in trial.notes:
        trial.check("mixed batch", mixed_batch)
    if case.kind in (CAUSAL, SEQ2SEQ) and not {"generate"} & {*trial.failed, *trial.refused}:
        trial.check("mixed generate", mixed_generation)
    return _verdict(trial)


def examine_generation(trial: Trial) -> None:
    """Generation, as far as the bare model itself generates what it answers."""
    case = trial.case
    padded = bare_generates_padded(case)
    if trial.left_padding and padded:
        trial.check("generate", generation_of_a_batch)
    elif trial.check("generate", generation_of_rows) and padded:
        trial.check("generate with left padding", generation_of_a_batch)
    if trial.left_padding and not padded:
        trial.left_padding = False
        trial.notes.append("left padding moves what the bare model generates")
    broken = bare_generates(case) if "generate" in trial.failed else None
    if broken:
        # then only the bare model's own generate can say what would be right
        trial.notes.append(f"the bare model generates other logits than it answers ({broken})")
        if trial.check("bare generate", generation_equals_the_bare_models):
            del trial.failed["generate"]


def _verdict(trial: Trial) -> dict[str, Any]:
    found = trial.failed or trial.refused
    outcome = "wrong" if trial.failed else "refused" if trial.refused else "right"
    names: dict[str, list[str]] = {}
    for name, reason in found.items():
        names.setdefault(reason, []).append(name)
    why = [f"{', '.join(checks)}: {reason}" for reason, checks in names.items()]
    if outcome == "refused" and "one row alone" in trial.refused:
        why = [trial.refused["one row alone"]]
    if trial.failed:
        why += [f"{name} refused: {reason}" for name, reason in trial.refused.items()]
    return {
        "outcome": outcome,
        "why": "; ".join([*why, *trial.notes]),
        "class": trial.case.name,
        "left_padding": trial.left_padding,
    }


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise Late(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def verify(model_type: str, kind: str, name: str) -> dict[str, Any]:
    """One case's outcome, whatever happens in it."""

    def without(outcome: str, why: str) -> dict[str, Any]:
        return {"outcome": outcome, "why": why, "class": name, "left_padding": False}

    try:
        with _at_most(SECONDS), torch.no_grad():
            try:
                bare = build(model_type, kind, name)
            except Late:
                raise
            except Exception as error:
                return without("not built", _sentence(error))
            if kind == SEQ2SEQ and not bare.config.is_encoder_decoder:
                return without("not built", "no encoder-decoder: a decoder behind an audio encoder")
            if kind == CAUSAL and bare.config.is_encoder_decoder:
                return without(
                    "not built", "no decoder alone: an encoder-decoder that reads images"
                )
            case = Case(model_type, kind, name, bare)
            try:
                output = bare(**case.rows[0])
                if not reads_its_neighbours(case):
                    return without("not built", "no token reads another: a kernel is missing")
                if not all(
                    torch.isfinite(x).all()
                    for x in case.read(output, _mask(case.rows[0]))[0].values()
                ):
                    return without("not built", "the bare model's answer is not finite")
            except Late:
                raise
            except Exception as error:
                return without(
                    "not built", f"the bare model takes no text alone: {_sentence(error)}"
                )
            try:
                get_peft_model(copy.deepcopy(bare), options(kind))
            except SMoPError as error:
                return without("refused", _sentence(error, named=False))
            try:
                return examine(case)
            except NoReferenceError as error:
                return _unreferenced(case, str(error))
    except SMoPError as error:
        return without("refused", _sentence(error, named=False))
    except Exception as error:
        return without("wrong", _sentence(error))


def _unreferenced(case: Case, why: str) -> dict[str, Any]:
    """Without a reference a case is wrong, unless the tuner refuses it by itself."""
    outcome = {"class": case.name, "left_padding": False}
    try:
        Trial(case, adapted(case)).answer(case.rows[0])
    except SMoPError as error:
        return {"outcome": "refused", "why": _sentence(error, named=False), **outcome}
    except Late:
        raise
    except Exception as error:
        why = f"{why}; {_sentence(error)}"
    return {"outcome": "wrong", "why": f"no reference: {why}", **outcome}


# ------------------------------------------------------------------------------ data and tables


def versions() -> dict[str, str]:
    return {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}


def load() -> dict[str, Any]:
    return json.loads(DATA.read_text()) if DATA.is_file() else {"made_with": versions()}


def dump(data: dict[str, Any]) -> str:
    """One line for each case."""
    lines = [f'"made_with": {json.dumps(data["made_with"])}']
    for model_type in sorted(data.keys() - {"made_with"}):
        kinds = data[model_type]
        inner = [f"  {json.dumps(k)}: {json.dumps(kinds[k])}" for k in KINDS if k in kinds]
        lines.append(f"{json.dumps(model_type)}: {{\n" + ",\n".join(inner) + "\n}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def counts(data: dict[str, Any]) -> Counter[str]:
    return Counter(
        case["outcome"]
        for name, kinds in data.items()
        if name != "made_with"
        for case in kinds.values()
    )


_HEAD = """# Backbones

For which model types of transformers {transformers} the tuner puts soft prompts rightly, decided by
experiment with torch {torch}:

```bash
{command}
```

Each case is a tiny random model in fp32 with two adapters. It is *right* when a bare copy of the
model, given the embeddings [p_c P_c; X] of one row without padding, answers the same to
{tolerance}: the row alone; rows in a batch with padding on the right and on the left; {tokens}
generated tokens behind a cache; rows of two adapters and of the bare model in one batch, and
generated so; the loss's gradient in the prompts; prompts between text and answer. A causal LM's own
loss must be that of the next token, by which rows are judged. Training gives the prompts and the
router finite gradients and the backbone none.

*Refused*: the tuner says so itself. *Wrong*: it does not, and an answer differs or an error comes
from elsewhere. *Not built*: no tiny model of the type could be made or asked with text alone, so
nothing is known. ← after a kind: padding on the left changes nothing; without it, it moves the bare
model as well.

{summary}

| model type | right | otherwise |
| --- | --- | --- |
"""


def table(data: dict[str, Any]) -> str:
    """`docs/backbones.md`."""
    found = counts(data)
    summary = ", ".join(f"{found[o]} {o}" for o in ("right", "refused", "wrong", "not built"))
    head = _HEAD.format(
        **data["made_with"],
        command=COMMAND,
        tolerance=TOLERANCE,
        tokens=NEW_TOKENS,
        summary=f"Cases: {summary}.",
    )
    lines = []
    for model_type in sorted(data.keys() - {"made_with"}):
        right, other = [], []
        for kind in KINDS:
            case = data[model_type].get(kind)
            if case is None:
                continue
            if case["outcome"] == "right":
                right.append(kind + (" ←" if case["left_padding"] else ""))
            else:
                why = case["why"].replace("|", "\\|").replace("<", "&lt;")
                other.append(f"{kind}: {case['outcome']}, {why}")
        lines.append(f"| {model_type} | {', '.join(right)} | {'<br>'.join(other)} |")
    return head + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=inspect.cleandoc(__doc__ or "").splitlines()[0])
    parser.add_argument("--types", help="model types, separated by commas; all by default")
    parser.add_argument("--kind", choices=KINDS, help="only this kind")
    parser.add_argument("--write", action="store_true", help="into verified.json and the table")
    parser.add_argument("--resume", action="store_true", help="leave what the file already has")
    parser.add_argument("--tables", action="store_true", help="only write the table again")
    options_ = parser.parse_args()
    if options_.tables:
        TABLE.write_text(table(load()))
        return
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    every = candidates()
    wanted = options_.types.split(",") if options_.types else list(every)
    unknown = sorted(set(wanted) - set(every))
    if unknown:
        sys.exit(f"no such model types: {', '.join(unknown)}")
    data, made, begun = load(), {"made_with": versions()}, time.monotonic()
    if not options_.types and not options_.resume and not options_.kind:
        data = {"made_with": versions()}
    for model_type in wanted:
        for kind, name in every[model_type].items():
            if options_.kind not in (None, kind):
                continue
            if options_.resume and kind in data.get(model_type, {}):
                continue
            started = time.monotonic()
            with contextlib.redirect_stdout(io.StringIO()):  # some models print
                case = verify(model_type, kind, name)
            data.setdefault(model_type, {})[kind] = case
            made.setdefault(model_type, {})[kind] = case
            seconds = time.monotonic() - started
            print(f"{model_type:24} {kind:18} {case['outcome']:9} {seconds:5.1f} s  {case['why']}")
            sys.stdout.flush()
        if options_.write:
            data["made_with"] = versions()
            DATA.write_text(dump(data))
    if options_.write:
        TABLE.write_text(table(data))
    found, seconds = counts(made), time.monotonic() - begun
    print(
        f"{sum(found.values())} cases in {seconds:.0f} s: "
        + ", ".join(f"{number} {outcome}" for outcome, number in sorted(found.items()))
    )


if __name__ == "__main__":
    main()
