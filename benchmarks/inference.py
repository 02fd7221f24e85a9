"""Inference of SMoP against the bare backbone: a forward pass for the answer's first token.

On the same batches of similar length, and against the backbone on unpadded rows, the limit. The
arithmetic is counted for one row of median length and held against the bare backbone's for text
that is longer by one prompt: nothing else is computed for a prompt.
"""

from __future__ import annotations

from argparse import Namespace

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import bench
from bench import Bar, Batch, Line, Result

OURS = "SMoP, k=4, l=5"
BARE = "bare backbone"
LIMIT = "bare backbone, unpadded"
ARITHMETIC = "FLOPs over those of text + l"


def measure(given: Namespace) -> Result:
    """One pass over a task's official validation rows."""
    bare = bench.backbone(given).eval()
    split, formulation = bench.load_rows(given, given.task, bare)
    smop = bench.adapted(bare, "smop").eval()
    hundred = bench.adapted(bare, "prompt-tuning", num_virtual_tokens=100).eval()
    features = [formulation.encode(example) for example in split.test[: given.examples or None]]
    features.sort(key=lambda f: len(f["input_ids"]))
    batches = [
        bench.on_device(given, formulation.collate(features[i : i + given.rows]))
        for i in range(0, len(features), given.rows)
    ]
    groups = bench.unpadded(given, formulation, features, given.rows)

    def over(model: nn.Module, rows: list[Batch]) -> None:
        with torch.inference_mode():
            for batch in rows:
                first = torch.zeros_like(batch["input_ids"][:, :1])
                inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
                model(**inputs, decoder_input_ids=first)

    calls = {
        BARE: lambda: over(bare, batches),
        OURS: lambda: over(smop, batches),
        "PEFT prompt tuning 100": lambda: over(hundred, batches),
        LIMIT: lambda: over(bare, groups),
    }
    seconds = bench.interleave(calls, given.repeats)
    tokens = len(features[len(features) // 2]["input_ids"])
    case = f"{given.task}, {len(features)} rows, {bench.text_tokens(features)} tokens"
    figures = {OURS: {ARITHMETIC: _flops(given, smop, tokens) / _flops(given, bare, tokens + 5)}}
    return Result(
        says=f"{bench.WORDS}; batches of {given.rows} sorted by length; equal precision",
        per="pass over the rows",
        over=(BARE, LIMIT),
        lines=[Line(case, what, taken, figures.get(what, {})) for what, taken in seconds.items()],
        bars=(
            Bar(case, OURS, 1.10, over=BARE),
            Bar(case, OURS, 1.01, figure=ARITHMETIC),
            Bar(case, OURS, 0.99, figure=ARITHMETIC, at_least=True),
        ),
    )


def _flops(given: Namespace, model: nn.Module, tokens: int) -> int:
    """Of a forward pass over one row; fused attention has no formula on the CPU."""
    batch = bench.random_batch(given, 1, tokens)
    first = torch.zeros_like(batch["input_ids"][:, :1])
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=first,
        )
    return counter.get_total_flops()


if __name__ == "__main__":
    bench.main(
        "inference",
        __doc__,
        measure,
        repeats=9,
        example="--data superglue",
        task="rte",
        rows=32,
        examples=0,
    )
