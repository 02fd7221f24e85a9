"""Causal LMs: the answer continues the text."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float, Int
from peft import PeftModel, PromptLearningConfig
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from peft_smop.rows import IGNORED_LABEL, answers_only, on_device, verdicts
from peft_smop.scoring.formulation import (
    Features,
    Formulation,
    LabelScores,
    cache_of,
    check_distinct,
    to_device,
)
from peft_smop.tasks import Example, Task


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
        check_distinct(self._answers, task)

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
            known = cache_of(read)
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


def _takes(model: nn.Module, argument: str) -> bool:
    """Whether the bare model's forward has a parameter of this name."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return argument in inspect.signature(base.forward).parameters


def _splices_anew(model: nn.Module) -> bool:
    """Whether PEFT puts its virtual tokens before every input, also before one that goes on."""
    configs = getattr(model, "peft_config", {}).values()
    return any(isinstance(config, PromptLearningConfig) for config in configs)
