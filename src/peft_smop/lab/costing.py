"""What methods cost on a model and a task, measured side by side; nothing is learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Literal

import torch
from peft import TaskType
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.optimization import Adafactor

from peft_smop.costs import (
    Cost,
    FlopsByLength,
    PeakMemory,
    SampleFlops,
    inference_flops,
    measure,
)
from peft_smop.errors import ConfigError
from peft_smop.lab.lengths import SEED, SUBSTITUTE, Lengths, Order, substitute
from peft_smop.lab.operations import training_loss, training_operations
from peft_smop.lab.variants import Variant, check_method, check_methods
from peft_smop.methods import (
    ParameterCount,
    Setting,
    build,
    default_device,
    is_shape_only,
    load_backbone,
    load_tokenizer,
    precision,
    random_backbone,
    virtual_tokens,
)
from peft_smop.scoring import formulate
from peft_smop.tasks import CATALOGUE, Example, Task, load_task
from peft_smop.training import TrainingOptions

WARMUP = 1


@dataclass(frozen=True)
class Costing:
    """What several methods cost on one model and one task, and how that was measured."""

    task: str
    model: str
    weights: str
    """Where the backbone's weights are from."""
    backbone: int
    """Parameters of the bare model."""
    lengths: str
    """How the lengths were found."""
    mean_length: dict[str, float]
    """Tokens of a row: of its text, and with the padding of sorted and of random batches."""
    answer_length: int
    batch_size: int
    timed_order: Order
    timed_length: int
    """Tokens of every row in the batch whose time and memory were measured."""
    steps: int
    device: str
    costs: tuple[Cost, ...]


@dataclass(frozen=True)
class _Source:
    """A backbone on the CPU that stays as it is, and what goes with it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    task_type: str
    weights: str


def costing(
    model: str,
    methods: Sequence[Variant],
    *,
    task: str,
    data: Path | None = None,
    tokenizer: Path | None = None,
    length: int | None = None,
    batch_size: int = 32,
    order: Order = "sorted",
    steps: int = 3,
    dtype: Literal["auto", "fp32", "bf16"] = "auto",
    on_progress: Callable[[str], None] = lambda done: None,
) -> Costing:
    """Measure what methods cost.

    Args:
        model: as for `load_backbone`; or a key of `SHAPES`, which then has random weights.
        methods: the methods.
        task: a task's name or YAML; its training rows say how long inputs are.
        data: the directory of the task's files.
        tokenizer: a directory with the tokenizer to count with, instead of the model's own.
        length: tokens of every input, instead of the task's own; no data are read then.
        batch_size: rows in a batch.
        order: whether time and memory are those of sorted or of random batches.
        steps: training steps to time for each method; with 0 time and memory are left out.
        dtype: the backbone's precision, as for `load_backbone`.
        on_progress: told what was just done, `progress_steps` times.

    Raises:
        SMoPError: anything is not as it should be.
    """
    check_methods(methods)
    for one in methods:
        if one.spec.name == "told":
            raise ConfigError(
                f"{one.name}: how many prompts it has depends on the task's sub-populations; its"
                " parameters are in the result of smop train"
            )
    definition, rows = _task(task, data, length)
    set_seed(SEED)
    source = _source(model, len(definition.labels), drawn=steps > 0)
    if tokenizer is not None:
        source = replace(source, tokenizer=load_tokenizer(tokenizer))
    lengths = _lengths(source, definition, rows, methods)
    if length is not None:
        lengths = replace(lengths, inputs=(length,) * batch_size, source="given")
    device = default_device()
    padded = {name: lengths.padded(name, batch_size) for name in ("sorted", "random")}
    means = {name: mean(n for batch in found for n in batch) for name, found in padded.items()}
    bench = _Bench(source, definition, lengths, batch_size, device, dtype)
    costs = [bench.counted(one, padded, on_progress) for one in methods]
    timed_length = round(means[order])
    if steps:
        costs = bench.run(methods, costs, timed_length, steps, on_progress)
    return Costing(
        task=definition.name,
        model=model,
        weights=source.weights,
        backbone=source.model.num_parameters(),
        lengths=lengths.source,
        mean_length={"text": mean(lengths.inputs), **means},
        answer_length=lengths.answer,
        batch_size=batch_size,
        timed_order=order,
        timed_length=timed_length,
        steps=steps,
        device=device.type,
        costs=tuple(costs),
    )


def progress_steps(methods: int, steps: int) -> int:
    """How often `costing` tells of its progress."""
    return methods * (1 + (1 + WARMUP + steps if steps else 0))


def _task(task: str, data: Path | None, length: int | None) -> tuple[Task, Sequence[Example]]:
    """The task, and its training rows where their lengths are asked for."""
    if length is not None and task in CATALOGUE:
        return CATALOGUE[task].task, ()
    try:
        definition, split = load_task(task, data=data)
    except ConfigError as error:
        if data is None and task in CATALOGUE:
            raise ConfigError(f"{error}; or give --length with the tokens of an input") from error
        raise
    return definition, split.train


def _source(name: str, labels: int, *, drawn: bool) -> _Source:
    if is_shape_only(name):
        kind = "random" if drawn else "none: what is counted needs no values"
        return _Source(random_backbone(name, drawn=drawn), None, "SEQ_2_SEQ_LM", kind)
    found = load_backbone(name, labels=labels, device=torch.device("cpu"), dtype="fp32")
    return _Source(found.model, found.tokenizer, found.task_type, "loaded")


def _lengths(
    source: _Source,
    task: Task,
    rows: Sequence[Example],
    methods: Sequence[Variant],
) -> Lengths:
    limit = TrainingOptions().max_length
    longest = max(task.verbalizers, key=substitute)
    if source.tokenizer is None:
        inputs = [min(limit, substitute(row.text)) for row in rows]
        answer, words = substitute(longest), SUBSTITUTE
    else:
        put = formulate(
            task,
            source.model,
            source.tokenizer,
            task_type=source.task_type,
            max_length=limit,
            prompt_length=max(virtual_tokens(one.spec) for one in methods),
        )
        answer = len(source.tokenizer(text_target=longest)["input_ids"])
        inputs = [
            len(encoded["input_ids"]) + len(encoded.get("answer", ()))
            for encoded in map(put.encode, rows)
        ]
        words = f"the tokenizer of {source.tokenizer.name_or_path}"
    return Lengths(tuple(inputs), answer, words)


@dataclass(frozen=True)
class _Bench:
    """Builds every method on one backbone and puts the meters to it."""

    source: _Source
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
