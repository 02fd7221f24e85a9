"""One epoch of training, on real rows: ours, PEFT's prompt tuning in a plain `Trainer`, the limit.

The plain trainer forms random batches and pads each to its longest row. The limit is the frozen
backbone alone, forward and backward, over rows grouped by exactly equal length. Long epochs are
timed on whole batches drawn evenly from their order, and scaled by the tokens of text in them.
"""

from __future__ import annotations

import tempfile
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from torch.utils.data import Sampler
from transformers import (
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

import bench
from bench import Bar, Line, Result
from peft_smop.scoring import Features, Formulation
from peft_smop.training.trainer import ScoringTrainer

OURS = "SMoP, k=4, l=5"
LIMIT = "bare backbone, unpadded"
PLAIN = {f"PEFT prompt tuning {length}": length for length in (5, 100)}


def measure(given: Namespace) -> Result:
    """Every task: one epoch of each, in turn."""
    bare = bench.backbone(given)
    lines: list[Line] = []
    for name in given.tasks.split(","):
        lines += _task(given, name, bare)
    bars = [
        Bar(name, OURS, 1.1, figure="tokens computed over tokens of text")
        for name in given.tasks.split(",")
    ]
    if "rte" in given.tasks.split(","):
        bars += [
            Bar("rte", OURS, limit, over=f"PEFT prompt tuning {length}")
            for length, limit in ((100, 0.35), (5, 0.5))
        ]
    share = f"{given.batches} batches of each epoch, scaled" if given.batches else "whole epochs"
    return Result(
        says=f"{bench.WORDS}; batches of {given.rows}, Adafactor, no evaluation; {share}",
        per="epoch",
        over=(*PLAIN, LIMIT),
        lines=lines,
        bars=tuple(bars),
    )


def _task(given: Namespace, name: str, bare: nn.Module) -> list[Line]:
    split, formulation = bench.load_rows(given, name, bare)
    features = [formulation.encode(example) for example in split.train]
    with tempfile.TemporaryDirectory() as folder:
        runs = {OURS: _ours(given, formulation, features, bench.adapted(bare, "smop"), folder)}
        for what, length in PLAIN.items():
            model = bench.adapted(bare, "prompt-tuning", num_virtual_tokens=length)
            runs[what] = _plain(given, formulation, features, model, folder)
        orders = {what: _some(given, trainer) for what, trainer in runs.items()}
        counters = {what: Counter(trainer.model) for what, trainer in runs.items()}
        shortest = bench.unpadded(given, formulation, features, given.rows)
        groups = _spread(shortest, given.batches)

        def limit() -> None:
            for batch in groups:
                bench.bare_step(bare, batch)

        calls = {LIMIT: limit, **{what: trainer.train for what, trainer in runs.items()}}
        with warnings.catch_warnings():
            # transformers passes a schedule through an interface that torch has renamed
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
            seconds = bench.interleave(calls, given.repeats, warm_up=False)
    whole = bench.text_tokens(features)
    timed = {LIMIT: sum(batch["input_ids"].numel() for batch in groups)}
    computed = {LIMIT: timed[LIMIT]}
    for what, order in orders.items():
        timed[what] = bench.text_tokens([features[i] for i in order])
        computed[what] = counters[what].tokens // given.repeats
    return [
        Line(
            name,
            what,
            taken,
            {
                "rows": len(features),
                "tokens of text timed": timed[what],
                "tokens computed over tokens of text": computed[what] / timed[what],
            },
            scale=whole / timed[what],
        )
        for what, taken in seconds.items()
    ]


class Counter:
    """Counts the places, padding included, that a model is given."""

    def __init__(self, model: nn.Module) -> None:
        self.tokens = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.tokens += kwargs["input_ids"].numel()


class Chosen(Sampler[int]):
    """Rows in a given order."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)


def _some(given: Namespace, trainer: Trainer) -> Sequence[int]:
    """Let a trainer take whole batches of its own order, evenly drawn; all rows without a limit."""
    order = list(trainer._get_train_sampler(trainer.train_dataset))
    if given.batches:
        batches = [order[i : i + given.rows] for i in range(0, len(order), given.rows)]
        order = [row for batch in _spread(batches, given.batches) for row in batch]
        trainer._get_train_sampler = lambda *_: Chosen(order)
    return order


def _spread(things: list[Any], count: int) -> list[Any]:
    """As many as wanted, at even distances; all of them for 0."""
    if not count or count >= len(things):
        return things
    return [things[(2 * i + 1) * len(things) // (2 * count)] for i in range(count)]


def _ours(
    given: Namespace,
    formulation: Formulation,
    features: list[Features],
    model: nn.Module,
    folder: str,
) -> Trainer:
    def never() -> Any:
        raise AssertionError("evaluation is off")

    return _quiet(
        ScoringTrainer(
            score=never,
            features=features,
            formulation=formulation,
            model=model,
            args=_arguments(given, folder),
        )
    )


def _plain(
    given: Namespace,
    formulation: Formulation,
    features: list[Features],
    model: nn.Module,
    folder: str,
) -> Trainer:
    return _quiet(
        Trainer(
            model=model,
            args=_arguments(given, folder),
            train_dataset=features,
            data_collator=DataCollatorForSeq2Seq(formulation.tokenizer),
        )
    )


def _quiet(trainer: Trainer) -> Trainer:
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(given: Namespace, folder: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=given.rows,
        learning_rate=0.3,
        optim="adafactor",
        weight_decay=1e-5,
        warmup_steps=0.06,
        eval_strategy="no",
        save_strategy="no",
        logging_steps=10,
        remove_unused_columns=False,
        dataloader_pin_memory=given.device == "cuda",
        use_cpu=given.device == "cpu",
        disable_tqdm=True,
        report_to="none",
        seed=given.seed,
    )


if __name__ == "__main__":
    bench.main(
        "epoch",
        __doc__,
        measure,
        repeats=3,
        example="--data superglue --batches 10",
        tasks="rte,cb,copa,wic,multirc",
        rows=32,
        batches=0,
    )
