"""Time and memory of a training step by method, total prompt length and length of the text.

The time axis of the paper's Table 10, the memory axis of its Figure 1: prompt tuning pays for every
virtual token, SMoP for those of one prompt.
"""

from __future__ import annotations

from argparse import Namespace
from statistics import median
from typing import Any

import bench
from bench import Line, Result
from peft_smop.costs import training_flops

LIMIT = "bare backbone"
HUNDRED = "PEFT prompt tuning 100"
METHODS: dict[str, tuple[str, dict[str, Any], int]] = {
    "single, l=5": ("single", {}, 5),
    **{
        f"SMoP, k={total // 5}, l=5": ("smop", {"num_prompts": total // 5}, total)
        for total in (20, 50, 100)
    },
    **{
        f"PEFT prompt tuning {length}": ("prompt-tuning", {"num_virtual_tokens": length}, length)
        for length in (5, 20, 50, 100)
    },
    "PEFT P-tuning 20": ("p-tuning", {}, 20),
    "PEFT LoRA 8": ("lora", {}, 0),
    "full fine-tuning": ("full", {}, 0),
}
"""Name, options and total prompt length."""


def measure(given: Namespace) -> Result:
    """Every method at every length."""
    bare = bench.backbone(given)
    rate = bench.matrix_rate(given)
    models = {
        what: bench.adapted(bare, name, **options) for what, (name, options, _) in METHODS.items()
    }
    lines = []
    for tokens in map(int, given.tokens.split(",")):
        batch = bench.random_batch(given, given.rows, tokens)
        calls = {LIMIT: lambda batch=batch: bench.bare_step(bare, batch)}
        calls |= {what: bench.training_step(model, batch) for what, model in models.items()}
        seconds = bench.interleave(calls, given.repeats)
        for what, call in calls.items():
            figures = {"peak MiB": bench.peak_mib(call)}
            if what in models:
                used = training_flops(models[what], batch) / median(seconds[what])
                figures = {
                    "total prompt length": METHODS[what][2],
                    **figures,
                    "share of matrix rate": used / rate,
                }
            lines.append(Line(f"{tokens} tokens", what, seconds[what], figures))
    return Result(
        says=f"{bench.RANDOM}; batches of {given.rows}; one large matrix product reaches"
        f" {rate / 1e12:.3g} TFLOP/s; memory beyond the weights on the CPU, with them on CUDA",
        per="training step",
        over=(HUNDRED, LIMIT),
        lines=lines,
    )


if __name__ == "__main__":
    bench.main("step", __doc__, measure, repeats=5, rows=32, tokens="32,96,256")
