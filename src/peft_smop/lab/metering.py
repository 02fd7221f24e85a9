"""Methods built on one backbone, with the meters put to each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from peft import TaskType
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.optimization import Adafactor

from peft_smop.costs import (
    Cost,
    FlopsByLength,
    PeakMemory,
    SampleFlops,
    inference_flops,
    measure,
)
from peft_smop.lab.lengths import SEED, Lengths
from peft_smop.lab.operations import training_loss, training_operations
from peft_smop.lab.variants import Variant, check_method
from peft_smop.methods import ParameterCount, Setting, build, precision
from peft_smop.tasks import Task
from peft_smop.training import TrainingOptions, fastest_attention

WARMUP = 1


@dataclass(frozen=True)
class Source:
    """A backbone on the CPU that stays as it is, and what goes with it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    task_type: str
    weights: str


@dataclass(frozen=True)
class Bench:
    """Builds every method on one backbone and puts the meters to it."""

    source: Source
    task: Task
    lengths: Lengths
    batch_size: int
    device: torch.device
    dtype: Literal["auto", "fp32", "bf16"]

    def counted(
        self,
        one: Variant,
        padded: dict[str, list[list[int]]],
        on_progress: Callable[[str], None],
    ) -> Cost:
        """Parameters and operations, on the CPU."""
        model = self._adapted(_around_the_same_weights(self.source.model), one)
        parameters = ParameterCount.of(model)

        def per_sample(count: Callable[[nn.Module, dict[str, Tensor]], int]) -> SampleFlops:
            fitted = FlopsByLength.fit(lambda rows, n: count(model, self._batch(rows, n)))
            return self._per_sample(fitted, padded)

        inference, training = per_sample(inference_flops), per_sample(training_operations)
        # full fine-tuning had the shared weights trained
        self.source.model.requires_grad_(False)
        on_progress(one.name)
        return Cost(
            method=one.name,
            trainable=parameters.trainable,
            allocated=parameters.allocated,
            percentage=parameters.percentage,
            inference=inference,
            training=training,
        )

    def run(
        self,
        methods: Sequence[Variant],
        found: Sequence[Cost],
        length: int,
        steps: int,
        on_progress: Callable[[str], None],
    ) -> list[Cost]:
        """Memory of each method alone on the device, then the time of all in turn."""
        batch = self._batch(self.batch_size, length, self.device)
        small = self._batch(1, 8, self.device)
        memories = []
        for one in methods:
            memories.append(_memory_of(_Step(self._on_device(one), batch), small))
            on_progress(one.name)
        dtype = precision(self.dtype, self.device, self.source.model.num_parameters())
        frozen = self.source.model.to(self.device, dtype)  # the CPU's is needed no longer
        times = measure(
            {one.name: _Step(self._beside(frozen, one), batch) for one in methods},
            repeats=steps,
            warmup=WARMUP,
            on_step=on_progress,
        )
        return [
            replace(cost, step=times[cost.method], memory=m.bytes, reserved=m.reserved)
            for cost, m in zip(found, memories, strict=True)
        ]

    def _on_device(self, one: Variant) -> nn.Module:
        """A method on a copy of the backbone."""
        name = "fp32" if _trains_all(one) and self.dtype == "auto" else self.dtype
        dtype = precision(name, self.device, self.source.model.num_parameters())
        backbone = deepcopy(self.source.model).to(self.device, dtype)
        return self._adapted(backbone, one)

    def _beside(self, frozen: PreTrainedModel, one: Variant) -> nn.Module:
        """A method on weights that all share, but for those who change them."""
        if _trains_all(one):
            return self._on_device(one)
        return self._adapted(_around_the_same_weights(frozen), one)

    def _adapted(self, backbone: PreTrainedModel, one: Variant) -> nn.Module:
        tokenizer = self.source.tokenizer
        setting = Setting(
            TaskType(self.source.task_type),
            self.task.verbalizers,
            tokenizer.name_or_path if tokenizer is not None else "",
            SEED,
            steps=1,
        )
        return build(backbone, one.spec, setting)

    def _batch(
        self, rows: int, length: int, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Random tokens, none of them padding: what a batch costs is decided by its shape."""
        generator = torch.Generator().manual_seed(SEED)
        vocabulary = self.source.model.get_input_embeddings().num_embeddings
        ids = torch.randint(5, vocabulary, (rows, length), generator=generator).to(device)
        made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.source.task_type == "SEQ_CLS":
            return {**made, "labels": ids[:, 0] % len(self.task.labels)}
        if self.source.task_type == "SEQ_2_SEQ_LM":
            return {**made, "labels": ids[:, :1].repeat(1, self.lengths.answer)}
        labels = ids.clone()
        labels[:, : max(1, length - self.lengths.answer)] = -100
        return {**made, "labels": labels}

    def _per_sample(self, flops: FlopsByLength, padded: dict[str, list[list[int]]]) -> SampleFlops:
        text = self.lengths.batches("sorted", self.batch_size)
        rows = len(self.lengths.inputs)
        sums = (sum(map(flops.of, batches)) for batches in (text, *padded.values()))
        return SampleFlops(*(total / rows / 1e9 for total in sums))


class _Step:
    """One training step that changes nothing: its learning rate is zero.

    Args:
        model: adapted.
        batch: on its device.
    """

    def __init__(self, model: nn.Module, batch: dict[str, Tensor]) -> None:
        self.model = model.train()
        self.batch = batch
        self.optimizer = Adafactor(
            [p for p in model.parameters() if p.requires_grad],
            lr=0.0,
            weight_decay=TrainingOptions().weight_decay,
            scale_parameter=False,
            relative_step=False,
        )

    def __call__(self) -> None:
        """Take the step on its own batch."""
        self.on(self.batch)

    def on(self, batch: dict[str, Tensor]) -> None:
        """Forward, backward, update."""
        with fastest_attention(self.model, batch["input_ids"].shape[1]):
            training_loss(self.model, batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def _memory_of(step: _Step, small: dict[str, Tensor]) -> PeakMemory:
    """The peak of a step after one on a small batch, so that the optimiser's state is there."""
    step.on(small)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    memory = PeakMemory()
    memory.start()
    step()
    memory.stop()
    return memory


def _around_the_same_weights(backbone: PreTrainedModel) -> PreTrainedModel:
    """Modules of their own, to be adapted, that hold the very same parameters and buffers."""
    return deepcopy(backbone, {id(tensor): tensor for tensor in _tensors(backbone)})


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _trains_all(one: Variant) -> bool:
    return check_method(one) is None
