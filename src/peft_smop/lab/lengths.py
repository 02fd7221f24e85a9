"""How long a task's inputs are, with padding or without, and with a tokenizer or without."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf
from typing import Literal

import numpy as np

from peft_smop.names import MAX_PADDING
from peft_smop.rows import cut
from peft_smop.training import LengthSampler

TOKENS_PER_WORD = 1.2
"""Tokens for one word or punctuation mark where there is no tokenizer. On the texts of RTE BERT's
WordPiece needs 1.10 and SmolLM's BPE 1.17; T5's vocabulary holds three languages beside English."""
SUBSTITUTE = f"no tokenizer: {TOKENS_PER_WORD} tokens for each word or punctuation mark, and an end"
SEED = 0
Order = Literal["sorted", "random"]


@dataclass(frozen=True)
class Lengths:
    """How long a task's training inputs are, in tokens."""

    inputs: tuple[int, ...]
    """Of every row; for a causal LM with its answer."""
    answer: int
    """Of the longest verbalizer."""
    source: str
    """How they were found, for people."""

    def batches(self, order: Order, size: int) -> list[list[int]]:
        """The lengths of one epoch's batches."""
        rows = (
            list(LengthSampler(self.inputs, size, SEED))
            if order == "sorted"
            else np.random.default_rng(SEED).permutation(len(self.inputs)).tolist()
        )
        found = [self.inputs[i] for i in rows]
        return [found[i : i + size] for i in range(0, len(found), size)]

    def padded(self, order: Order, size: int) -> list[list[int]]:
        """What the rows of each pass are computed at; sorted batches are cut, as in training."""
        limit = MAX_PADDING if order == "sorted" else inf
        return [
            [max(batch[i] for i in part)] * len(part)
            for batch in self.batches(order, size)
            for part in cut(batch, limit)
        ]


def substitute(text: str) -> int:
    """Tokens of a text where there is no tokenizer, its end included."""
    return round(TOKENS_PER_WORD * len(re.findall(r"\w+|[^\w\s]", text))) + 1
