"""Time of an evaluation: label scores against a pass for the loss and free generation.

Ours batches by length, encodes once and decodes all labels together. The usual way takes rows in
the order of the file, pads to the longest, computes the loss, then encodes again and generates. A
model with random weights never stops by itself, a trained one does after its answer, so generation
is measured with 10 new tokens, the usual setting, and with 3, what an answer takes.
"""

from __future__ import annotations

from argparse import Namespace
from collections import Counter

import torch
from torch import nn

import bench
from bench import Bar, Batch, Call, Line, Result
from peft_smop.scoring import evaluate

OURS = "SMoP, labels scored"
USUAL = "SMoP, loss and generate"
LIMIT = "bare forward, unpadded"
SETTINGS = {"up to 10 new tokens": 10, "3 new tokens": 3}


def measure(given: Namespace) -> Result:
    """One evaluation of a task's official validation rows."""
    bare = bench.backbone(given).eval()
    split, formulation = bench.load_rows(given, given.task, bare)
    smop = bench.adapted(bare, "smop")
    hundred = bench.adapted(bare, "prompt-tuning", num_virtual_tokens=100).eval()
    examples = split.test[: given.examples or None]
    features = [formulation.encode(example) for example in examples]
    batches = [features[i : i + given.rows] for i in range(0, len(features), given.rows)]
    groups = bench.unpadded(given, formulation, features, given.rows)
    majority = Counter(example.label for example in examples).most_common(1)[0][0]

    def ours() -> None:
        evaluate(
            smop,
            formulation,
            examples,
            majority_label=majority,
            batch_size=given.rows,
            resamples=0,
        )

    def limit() -> None:
        with torch.inference_mode():
            for batch in groups:
                bare(**batch)

    made: dict[str, list[int]] = {}

    def usual(model: nn.Module, most: int, where: str) -> Call:
        exact = {"min_new_tokens": most} if most < 10 else {}

        def call() -> None:
            made[where] = [
                _loss_and_generate(
                    model,
                    bench.on_device(given, formulation.collate(rows)),
                    max_new_tokens=most,
                    **exact,
                )
                for rows in batches
            ]

        return call

    smop.eval()
    calls: dict[str, Call] = {OURS: ours, LIMIT: limit}
    for setting, most in SETTINGS.items():
        for what, model in ((USUAL, smop), ("PEFT prompt tuning 100, loss and generate", hundred)):
            calls[f"{what}, {setting}"] = usual(model, most, f"{what}, {setting}")
    seconds = bench.interleave(calls, given.repeats)
    case = f"{given.task}, {len(examples)} rows"
    over = tuple(f"{USUAL}, {setting}" for setting in SETTINGS)
    return Result(
        says=f"{bench.WORDS}; batches of {given.rows}",
        per="evaluation",
        over=(*over, LIMIT),
        lines=[
            Line(
                case,
                what,
                taken,
                {"tokens generated a row": sum(made[what]) / len(batches)} if what in made else {},
            )
            for what, taken in seconds.items()
        ],
        bars=(Bar(case, OURS, 0.25, over=over[0]),),
    )


def _loss_and_generate(model: nn.Module, batch: Batch, **options: int) -> int:
    """What is commonly done with a batch; the number of tokens generated."""
    with torch.inference_mode():
        model(**batch).loss.item()
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return model.generate(**inputs, do_sample=False, **options).shape[1] - 1


if __name__ == "__main__":
    bench.main(
        "evaluation",
        __doc__,
        measure,
        repeats=5,
        example="--data superglue",
        task="rte",
        rows=32,
        examples=0,
    )
