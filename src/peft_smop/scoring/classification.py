"""Encoders: a trained head names the class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from peft_smop.scoring.formulation import Features, Formulation, LabelScores, moved, to_device
from peft_smop.tasks import Example


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
