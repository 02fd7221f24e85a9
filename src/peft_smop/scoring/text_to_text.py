"""Encoder-decoders: the answer is decoded from the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftType, PromptLearningConfig
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from peft_smop.rows import IGNORED_LABEL
from peft_smop.scoring.formulation import (
    Features,
    Formulation,
    LabelScores,
    cache_of,
    check_distinct,
    to_device,
)
from peft_smop.tasks import Example, Task


class TextToText(Formulation):
    """Encoder-decoders: the answer is decoded from the text."""

    task_type = "SEQ_2_SEQ_LM"

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        super().__init__(task, tokenizer, max_length)
        # as the tokenizer writes a target, BART's start token included
        self._answers = [tokenizer(text_target=text)["input_ids"] for text in task.verbalizers]
        check_distinct(self._answers, task)

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
                known = cache_of(read)
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


def _fills_cache(model: nn.Module) -> bool:
    """Whether PEFT puts a prompt of its own into the decoder, and so cannot go on from a cache."""
    configs = getattr(model, "peft_config", {}).values()
    only_encoder = (PeftType.PROMPT_TUNING, PeftType.P_TUNING)
    return any(
        isinstance(config, PromptLearningConfig) and config.peft_type not in only_encoder
        for config in configs
    )
