"""The kinds of models, and how each is put a task; which of them a model is."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftModel, PeftType, PromptLearningConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from peft_smop.errors import ConfigError
from peft_smop.rows import IGNORED_LABEL, answers_only, on_device, verdicts
from peft_smop.scoring.formulation import (
    Features,
    Formulation,
    LabelScores,
    moved,
    to_device,
)
from peft_smop.tasks import Example, Task

TENSOR_CORE_MULTIPLE = 8
"""Rows of 16-bit numbers that are this long are multiplied and masked without a detour."""
LEAST_TEXT = 4
"""Tokens of text below which an input says nothing."""


class TextToText(Formulation):
    """Encoder-decoders: the answer is decoded from the text."""

    task_type = "SEQ_2_SEQ_LM"

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        super().__init__(task, tokenizer, max_length)
        # as the tokenizer writes a target, BART's start token included
        self._answers = [tokenizer(text_target=text)["input_ids"] for text in task.verbalizers]
        _check_distinct(self._answers, task)

    @property
    def answers(self) -> Sequence[list[int]]:
        """The tokens of each label's answer."""
        return self._answers

    def _encode(self, example: Example) -> Features:
        """The text and its verbalizer, both with their end token."""
        ids = self.tokenizer(example.text, verbose=False)["input_ids"]
        features: Features = {"input_ids": self._cut(ids, self.max_length, keep_last=1)}
        if example.label is not None:
            features["labels"] = self._answers[example.label]
        return features

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """Inputs padded with the padding token, answers with -100."""
        batch = self._inputs(features)
        if "labels" in features[0]:
            batch["labels"] = self._pad([f["labels"] for f in features], IGNORED_LABEL)
        return batch

    def label_scores(self, model: nn.Module, features: Sequence[Features]) -> LabelScores:
        """Encode once and decode the first token once, then go on with each label: b·m short rows.

        The decoder's keys and values of the text are computed once for all labels.
        """
        device = next(model.parameters()).device
        inputs = to_device(self._inputs(features), device)
        answers = self._answers_of(features)
        count, start = len(answers[0]), model.config.decoder_start_token_id
        first = torch.full((len(features), 1), start, device=device)
        cached = not _fills_cache(model)
        read = model(**inputs, decoder_input_ids=first, use_cache=cached)
        states = read.encoder_last_hidden_state

        def go_on(tokens: Int[Tensor, "r n"]) -> Float[Tensor, "r n v"]:
            known: dict[str, Any] = {}
            if cached:
                known = _cache_of(read)
                next(iter(known.values())).batch_repeat_interleave(count)
            else:
                tokens = torch.cat([first.repeat_interleave(count, dim=0), tokens], dim=1)
            logits = model(
                **{name: values.repeat_interleave(count, dim=0) for name, values in inputs.items()},
                encoder_outputs=BaseModelOutput(states.repeat_interleave(count, dim=0)),
                decoder_input_ids=tokens,
                use_cache=cached,
                **known,
            ).logits
            return logits if cached else logits[:, 1:]

        return self._continued_scores(read.logits[:, -1], answers, go_on)


class Continuation(Formulation):
    """Causal LMs: the answer continues the text after a line that asks for it."""

    task_type = "CAUSAL_LM"
    cue = "\nanswer:"

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        super().__init__(task, tokenizer, max_length)
        self._cue = tokenizer(self.cue, add_special_tokens=False)["input_ids"]
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self._answers = [
            tokenizer(" " + text, add_special_tokens=False)["input_ids"] + end
            for text in task.verbalizers
        ]
        _check_distinct(self._answers, task)

    @property
    def answers(self) -> Sequence[list[int]]:
        """The tokens of each label's answer."""
        return self._answers

    @property
    def overhead(self) -> int:
        """The cue, and the longest answer."""
        return len(self._cue) + max(map(len, self._answers))

    def _encode(self, example: Example) -> Features:
        """The context alone as `input_ids`, the answer's tokens as `answer`."""
        ids = self.tokenizer(example.text, verbose=False)["input_ids"]
        if ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]  # the text goes on
        ids = self._cut(ids, self.max_length - self.overhead)
        features: Features = {"input_ids": ids + self._cue}
        if example.label is not None:
            features["answer"] = self._answers[example.label]
        return features

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """Context and answer in one row; labels count on the answer only."""
        return self._joined([(f["input_ids"], f["answer"]) for f in features])

    def answer_length(self, features: Features) -> int:
        """The answer's tokens; its context has no loss."""
        return len(features["answer"])

    def answers_only(
        self, model: nn.Module, labels: Int[Tensor, "b n"]
    ) -> AbstractContextManager[None]:
        """The head is computed where the next token is an answer's."""
        return answers_only(model, labels)

    def answer_losses(
        self, logits: Tensor, labels: Int[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "t"], list[int]]:
        """As for every text; a logit is the verdict on the token after it."""
        said, targets, rows = verdicts(logits, labels)
        return nn.functional.cross_entropy(said, targets, reduction="none"), rows.tolist()

    def _joined(self, pairs: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        batch = self._inputs([{"input_ids": context + answer} for context, answer in pairs])
        labels = [[IGNORED_LABEL] * len(context) + answer for context, answer in pairs]
        length = batch["input_ids"].shape[1]
        return {**batch, "labels": self._pad(labels, IGNORED_LABEL, length=length)}

    def kept_by_row(self, model: nn.Module, length: int) -> int:
        """Of every label its logits, twice, and the keys and values of the text and itself."""
        config = model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None)
        width = config.hidden_size
        if heads:  # fewer than it has for queries
            width = heads * (
                getattr(config, "head_dim", None) or width // config.num_attention_heads
            )
        token = 2 * config.num_hidden_layers * width
        answer = max(map(len, self._answers))
        logits = 2 * answer * config.vocab_size
        return len(self._answers) * (logits + (self.prompt_length + length + answer) * token)

    def label_scores(self, model: nn.Module, features: Sequence[Features]) -> LabelScores:
        """Read every text once, then continue its cache with each label: b·m short rows."""
        if _splices_anew(model):
            return self._whole_rows(model, features)
        device = next(model.parameters()).device
        answers = self._answers_of(features)
        count = len(answers[0])
        contexts = to_device(self._inputs(features, side="left"), device)
        # counted from the first token, wherever padding puts it
        positions = (contexts["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        # the head is large, and of a text only its last token's verdict is looked at
        last_only = {"logits_to_keep": 1} if _takes(model, "logits_to_keep") else {}
        read = model(**contexts, position_ids=positions, use_cache=True, **last_only)
        mask = contexts["attention_mask"].repeat_interleave(count, dim=0)
        last = positions[:, -1:].repeat_interleave(count, dim=0)

        def go_on(tokens: Int[Tensor, "r n"]) -> Float[Tensor, "r n v"]:
            known = _cache_of(read)
            next(iter(known.values())).batch_repeat_interleave(count)
            length = tokens.shape[1]
            return model(
                input_ids=tokens,
                attention_mask=torch.cat([mask, mask.new_ones(len(mask), length)], dim=1),
                position_ids=last + torch.arange(1, length + 1, device=device),
                use_cache=True,
                **known,
            ).logits

        return self._continued_scores(read.logits[:, -1], answers, go_on)

    def _whole_rows(self, model: nn.Module, features: Sequence[Features]) -> LabelScores:
        """One row for every text and label; labels are passed so that routes follow the text."""
        device = next(model.parameters()).device
        pairs = [(f["input_ids"], answer) for f in features for answer in self._answers]
        batch = self._joined(pairs)
        with self.answers_only(model, batch["labels"]):
            logits = model(**to_device(batch, device)).logits
        losses, rows = self.answer_losses(logits, batch["labels"])
        scores = -losses.new_zeros(len(pairs)).index_add(0, on_device(rows, device), losses)
        count = len(self._answers)
        return LabelScores(scores.view(len(features), count), repeats=count)


def _cache_of(output: Any) -> dict[str, Any]:
    """A model's cache by the name that its transformers gives it, in outputs and arguments."""
    name = "past_key_values" if output.get("past_key_values") is not None else "cache"
    return {name: output[name]}


def _takes(model: nn.Module, argument: str) -> bool:
    """Whether the bare model's forward has a parameter of this name."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return argument in inspect.signature(base.forward).parameters


def _fills_cache(model: nn.Module) -> bool:
    """Whether PEFT puts a prompt of its own into the decoder, and so cannot go on from a cache."""
    configs = getattr(model, "peft_config", {}).values()
    only_encoder = (PeftType.PROMPT_TUNING, PeftType.P_TUNING)
    return any(
        isinstance(config, PromptLearningConfig) and config.peft_type not in only_encoder
        for config in configs
    )


def _splices_anew(model: nn.Module) -> bool:
    """Whether PEFT puts its virtual tokens before every input, also before one that goes on."""
    configs = getattr(model, "peft_config", {}).values()
    return any(isinstance(config, PromptLearningConfig) for config in configs)


class Classification(Formulation):
    """Encoders: a trained head names the class."""

    task_type = "SEQ_CLS"

    @property
    def verdicts(self) -> int:
        """As wide as the head."""
        return len(self.task.labels)

    def _encode(self, example: Example) -> Features:
        """The text with the tokenizer's special tokens, and the label's index."""
        ids = self.tokenizer(example.text, verbose=False)["input_ids"]
        features: Features = {"input_ids": self._cut(ids, self.max_length, keep_last=1)}
        if example.label is not None:
            features["labels"] = example.label
        return features

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """Padded inputs and a vector of class indices."""
        batch = self._inputs(features)
        if "labels" in features[0]:
            batch["labels"] = torch.tensor([f["labels"] for f in features])
        return batch

    def answer_length(self, features: Features) -> int:
        """One class."""
        return 1

    def answer_losses(
        self, logits: Tensor, labels: Int[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b"], list[int]]:
        """One class a row."""
        targets = moved(labels, logits.device)
        losses = nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        return losses, list(range(len(labels)))

    def label_scores(self, model: nn.Module, features: Sequence[Features]) -> LabelScores:
        """One pass; the head's log-probabilities."""
        device = next(model.parameters()).device
        logits = model(**to_device(self._inputs(features), device)).logits
        return LabelScores(logits.float().log_softmax(dim=-1), repeats=1)


FORMULATIONS: dict[str, type[Formulation]] = {
    kind.task_type: kind for kind in (TextToText, Continuation, Classification)
}


def formulate(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    task_type: str,
    max_length: int,
    prompt_length: int = 0,
) -> Formulation:
    """Choose the formulation for a model.

    Args:
        task: the task.
        model: the backbone, for the number of positions it has.
        tokenizer: its tokenizer.
        task_type: PEFT's name for the kind of model.
        max_length: the longest input in tokens.
        prompt_length: positions that a soft prompt takes from a backbone which has a fixed number.

    Raises:
        ConfigError: there is no room for a text, or the verbalizers cannot be told apart.
    """
    if task_type == "SEQ_2_SEQ_LM" and model.config.decoder_start_token_id is None:
        raise ConfigError(
            f"{type(model).__name__} says no decoder_start_token_id; set it in its config.json"
        )
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = max_length if positions is None else min(max_length, positions - prompt_length - 2)
    formulation = FORMULATIONS[task_type](task, tokenizer, room)
    formulation.prompt_length = prompt_length
    if model.device.type == "cuda" and model.dtype in (torch.bfloat16, torch.float16):
        formulation.multiple = TENSOR_CORE_MULTIPLE
    if room - formulation.overhead < LEAST_TEXT:
        if room < max_length:
            raise ConfigError(
                f"a prompt of {prompt_length} virtual tokens leaves {max(room, 0)} of the model's"
                f" {positions} positions; lower num_virtual_tokens"
            )
        raise ConfigError(
            f"max_length={max_length} leaves no room for a text beside {formulation.overhead}"
            " tokens that every input needs; raise it"
        )
    return formulation


def _check_distinct(answers: Sequence[Sequence[int]], task: Task) -> None:
    """Refuse answers of which one begins with another whole one: it could never lose to it."""
    for i, one in enumerate(answers):
        for j, other in enumerate(answers):
            if i != j and list(other[: len(one)]) == list(one):
                raise ConfigError(
                    f"to this tokenizer the verbalizer {task.verbalizers[j]!r} begins with all of"
                    f" {task.verbalizers[i]!r}; choose verbalizers that differ"
                )


__all__ = ["FORMULATIONS", "Features", "Formulation", "LabelScores", "formulate"]
