"""How a task is put to a kind of model, and how the model's verdict on each label is read.

    kind               input                answer              a label's score
    encoder-decoder    the text             verbalizer, end     log p(verbalizer, end | text)
    causal LM          text and "answer:"   verbalizer, end     log p(verbalizer, end | text)
    encoder            the text             class of a head     log p(class | text)

Labels are scored, never generated: every answer is one of the task's labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from peft_smop.errors import ConfigError
from peft_smop.rows import IGNORED_LABEL
from peft_smop.tasks import Example, Task
from peft_smop.tuner import SMoPModel

Features = dict[str, Any]


@dataclass(frozen=True)
class LabelScores:
    """What one batch of rows was found to be."""

    log_probabilities: Float[Tensor, "b m"]
    """Of each of the task's m labels; not normalised over the labels for text-to-text models."""
    repeats: int
    """How many neighbouring rows of the last backbone pass belong to one row of the batch."""


def told(model: nn.Module, features: Sequence[Features]) -> AbstractContextManager[None]:
    """The prompts that rows are told, for the passes within; nothing where they are told none."""
    tuner = SMoPModel.of(model)
    if tuner is None or not any("route" in f for f in features):
        return nullcontext()
    return tuner.routed([f.get("route", -1) for f in features])


class Formulation(ABC):
    """One task, put to one kind of model.

    Args:
        task: the task.
        tokenizer: the model's tokenizer.
        max_length: the longest input in tokens; what is longer is cut and counted in `truncated`.
    """

    task_type: ClassVar[str]
    cue: ClassVar[str] = ""
    """What stands between text and answer."""
    prompt_length = 0
    """Virtual tokens that come before every input."""
    populations: tuple[str, ...] = ()
    """Sub-populations whose rows are told their prompt, in the order of the prompts."""
    keeps = True
    """Whether what was tokenised is kept, for examples that are looked at again and again."""
    multiple = 1
    """Inputs and their prompt are padded to a multiple of this, which GPUs compute faster."""

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.task = task
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.truncated = 0
        self._encoded: dict[tuple[str, int | None], tuple[Features, int]] = {}

    @property
    def answers(self) -> Sequence[list[int]]:
        """The tokens of each label's answer; none where a head names the class."""
        return ()

    @property
    def verdicts(self) -> int:
        """How wide the verdict on a row is where rows of several tasks share a pass; 0: any."""
        return 0

    @property
    def overhead(self) -> int:
        """Tokens of an input that are not its text."""
        return 1

    def encode(self, example: Example) -> Features:
        """Token ids of one example's input, and of its answer where it has a label.

        An example is tokenised once, however often it is looked at, unless nothing is kept.
        """
        key = (example.text, example.label)
        if not self.keeps:
            return self._encode(example)
        if key not in self._encoded:
            before = self.truncated
            features = self._encode(example)
            self._encoded[key] = (features, self.truncated - before)
            self.truncated = before
        features, cut = self._encoded[key]
        self.truncated += cut
        if not self.populations:
            return features
        known = example.population in self.populations
        route = self.populations.index(str(example.population)) if known else -1
        return {**features, "route": route}

    def is_cut(self, example: Example) -> bool:
        """Whether an example is longer than the longest input; nothing is counted."""
        before = self.truncated
        self._encode(example)
        cut, self.truncated = self.truncated > before, before
        return cut

    def plain(self, text: str) -> list[int]:
        """The tokens of a text that nothing is put around, cut like any other."""
        return self._cut(self.tokenizer(text, verbose=False)["input_ids"], self.max_length)

    @abstractmethod
    def _encode(self, example: Example) -> Features:
        """Tokenise."""

    def answer_length(self, features: Features) -> int:
        """How many losses an example's answer has."""
        return len(features["labels"])

    def answers_only(
        self, model: nn.Module, labels: Int[Tensor, "b *n"]
    ) -> AbstractContextManager[None]:
        """Within, a model may leave out what `answer_losses` does not read of a batch."""
        return nullcontext()

    def answer_losses(
        self, logits: Tensor, labels: Int[Tensor, "b *n"]
    ) -> tuple[Float[Tensor, "t"], list[int]]:
        """The negative log-likelihood of every token of the answers, and each token's row.

        Args:
            logits: of the model, (b, n, v), or (b, m) of a head.
            labels: of the batch; on the CPU, so that looking at them waits for no device.
        """
        rows, places = torch.nonzero(labels != IGNORED_LABEL, as_tuple=True)
        picked = logits[moved(rows, logits.device), moved(places, logits.device)]
        targets = moved(labels[rows, places], logits.device)
        losses = nn.functional.cross_entropy(picked.float(), targets, reduction="none")
        return losses, rows.tolist()

    @abstractmethod
    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """Pad features of one batch to a common length, on the right."""

    @abstractmethod
    def label_scores(self, model: nn.Module, features: Sequence[Features]) -> LabelScores:
        """Score every label for every row."""

    def kept_by_row(self, model: nn.Module, length: int) -> int:
        """How many numbers scoring keeps for one row's labels; 0: few enough not to count.

        Args:
            model: what is asked.
            length: of the row, in tokens.
        """
        return 0

    def _continued_scores(
        self,
        first: Float[Tensor, "b v"],
        answers: Sequence[Sequence[list[int]]],
        go_on: Callable[[Int[Tensor, "r n"]], Float[Tensor, "r n v"]],
    ) -> LabelScores:
        """Score m answers after each of b inputs whose verdict on the first token is known.

        Args:
            first: logits of the first token.
            answers: of every input the tokens of its own m answers.
            go_on: given the first n tokens of every answer after every input (r = b·m rows, the
                answers of one input together), the logits of the tokens that follow them.
        """
        each = [answer for own in answers for answer in own]
        labels = self._pad(each, IGNORED_LABEL).to(first.device)
        begun = labels[:, 0].view(len(answers), -1)
        scores = first.float().log_softmax(dim=-1).gather(1, begun)
        if labels.shape[1] > 1:
            # behind the end of a shorter answer stands any token: nothing looks at its verdict
            logits = go_on(labels[:, :-1].clamp(min=0))
            scores = scores + sequence_scores(logits, labels[:, 1:]).view_as(scores)
        return LabelScores(scores, repeats=1)

    def _answers_of(self, features: Sequence[Features]) -> list[list[list[int]]]:
        """The answers that each row is scored with, equally many.

        Rows of other tasks bring their own; one with fewer has its first answer again behind them,
        whose score nobody reads.
        """
        given = [f.get("answers", self.answers) for f in features]
        most = max(map(len, given))
        return [[*own, *[own[0]] * (most - len(own))] for own in given]

    def _cut(self, ids: list[int], room: int, *, keep_last: int = 0) -> list[int]:
        """Cut to `room` tokens, keeping the last few, which end the input."""
        if len(ids) <= room:
            return ids
        self.truncated += 1
        return ids[: room - keep_last] + ids[len(ids) - keep_last :]

    def _pad(
        self,
        rows: Sequence[Sequence[int]],
        value: int,
        *,
        side: Literal["left", "right"] = "right",
        length: int | None = None,
    ) -> Int[Tensor, "b n"]:
        length = length or max(len(row) for row in rows)
        slack = [[value] * (length - len(row)) for row in rows]
        if side == "left":
            return torch.tensor([[*pad, *row] for pad, row in zip(slack, rows, strict=True)])
        return torch.tensor([[*row, *pad] for pad, row in zip(slack, rows, strict=True)])

    def _inputs(
        self, features: Sequence[Features], *, side: Literal["left", "right"] = "right"
    ) -> dict[str, Tensor]:
        rows = [f["input_ids"] for f in features]
        longest = max(map(len, rows))
        length = longest + -(longest + self.prompt_length) % self.multiple
        padding = self.tokenizer.pad_token_id or 0
        ones = [[1] * len(row) for row in rows]
        return {
            "input_ids": self._pad(rows, padding, side=side, length=length),
            "attention_mask": self._pad(ones, 0, side=side, length=length),
        }


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copy a batch without the host waiting for the device."""
    return {name: moved(tensor, device) for name, tensor in batch.items()}


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor without the host waiting for the device."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # only from pinned memory does a copy not wait
    return tensor.to(device, non_blocking=True)


def sequence_scores(
    logits: Float[Tensor, "r n v"], labels: Int[Tensor, "r n"]
) -> Float[Tensor, "r"]:
    """The summed log-probability of the labels that count, in fp32."""
    losses = nn.functional.cross_entropy(
        logits.float().flatten(0, 1),  # with the vocabulary last, where it lies in memory
        labels.flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="none",
    )
    return -losses.view_as(labels).sum(dim=1)


def cache_of(output: Any) -> dict[str, Any]:
    """A model's cache by the name that its transformers gives it, in outputs and arguments."""
    name = "past_key_values" if output.get("past_key_values") is not None else "cache"
    return {name: output[name]}


def check_distinct(answers: Sequence[Sequence[int]], task: Task) -> None:
    """Refuse answers of which one begins with another whole one: it could never lose to it."""
    for i, one in enumerate(answers):
        for j, other in enumerate(answers):
            if i != j and list(other[: len(one)]) == list(one):
                raise ConfigError(
                    f"to this tokenizer the verbalizer {task.verbalizers[j]!r} begins with all of"
                    f" {task.verbalizers[i]!r}; choose verbalizers that differ"
                )
