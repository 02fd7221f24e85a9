"""Batches whose rows follow 1, 8 or 64 adapters, against the same rows with one adapter."""

from __future__ import annotations

from argparse import Namespace

import torch
from peft import PeftModel

import bench
from bench import Bar, Line, Result
from peft_smop import SMoPConfig

BARE = "bare backbone"
ONE = "1 adapter"
COUNTS = (1, 8, 64)


def measure(given: Namespace) -> Result:
    """Forward passes in evaluation, forward and backward in training."""
    bare = bench.backbone(given)
    model: PeftModel = bench.adapted(bare, "smop", num_prompts=4)
    for i in range(1, max(COUNTS)):
        config = SMoPConfig(task_type="SEQ_2_SEQ_LM", num_prompts=4, num_virtual_tokens=5, seed=i)
        model.add_adapter(f"a{i}", config)
    names = ["default", *(f"a{i}" for i in range(1, max(COUNTS)))]
    model.set_requires_grad(names)
    batch = bench.random_batch(given, given.rows, given.tokens)
    mixes = {
        ONE if count == 1 else f"{count} adapters": [names[i % count] for i in range(given.rows)]
        for count in COUNTS
    }

    def infer(adapter_names: list[str]) -> None:
        with torch.inference_mode():
            model(**batch, adapter_names=adapter_names)

    def infer_bare() -> None:
        with torch.inference_mode():
            bare(**batch)

    def train(adapter_names: list[str]) -> None:
        model(**batch, adapter_names=adapter_names).loss.backward()
        model.zero_grad(set_to_none=True)

    lines, case = [], f"{given.rows} rows of {given.tokens} tokens"
    for mode, own, limit in (
        ("inference", infer, infer_bare),
        ("training", train, lambda: bench.bare_step(bare, batch)),
    ):
        for module in (model, bare):
            module.train(mode == "training")
        calls = {BARE: limit}
        calls |= {what: lambda n=n, own=own: own(n) for what, n in mixes.items()}
        seconds = bench.interleave(calls, given.repeats)
        lines += [Line(f"{mode}, {case}", what, taken) for what, taken in seconds.items()]
    return Result(
        says=f"{bench.RANDOM}; every adapter k=4, l=5; training is forward and backward",
        per="pass",
        over=(ONE, BARE),
        lines=lines,
        bars=tuple(
            Bar(f"{mode}, {case}", "64 adapters", 1.10, over=ONE)
            for mode in ("inference", "training")
        ),
    )


if __name__ == "__main__":
    bench.main("mixed", __doc__, measure, repeats=15, rows=64, tokens=64)
