"""Does `torch.compile` pay for a training step of SMoP?

Static shapes want lengths in buckets, so batches are padded up to a multiple of 32; dynamic shapes
take them as they are. Compiling happens before the clock runs and is stated beside.
"""

from __future__ import annotations

import time
from argparse import Namespace

import torch

import bench
from bench import Batch, Line, Result

EAGER = "eager"
BUCKET = 32


def measure(given: Namespace) -> Result:
    """A few batches of several lengths, each once."""
    bare = bench.backbone(given)
    lengths = [int(n) for n in given.tokens.split(",")]
    exact = [bench.random_batch(given, given.rows, n) for n in lengths]
    wide = [_widened(batch) for batch in exact]
    kinds = {
        EAGER: (None, exact),
        f"eager, lengths in buckets of {BUCKET}": (None, wide),
        f"compiled, lengths in buckets of {BUCKET}": (False, wide),
        "compiled, dynamic lengths": (True, exact),
    }
    calls, first = {}, {}
    for what, (dynamic, batches) in kinds.items():
        model = bench.adapted(bare, "smop")
        if dynamic is not None:
            model = torch.compile(model, dynamic=dynamic, backend=given.backend)
        steps = [bench.training_step(model, batch) for batch in batches]
        calls[what] = lambda steps=steps: [step() for step in steps]
        started = time.perf_counter()
        calls[what]()
        first[what] = time.perf_counter() - started
    seconds = bench.interleave(calls, given.repeats)
    return Result(
        says=f"{bench.RANDOM}; {given.rows} rows; {given.backend}",
        per=f"{len(lengths)} training steps",
        over=(EAGER,),
        lines=[
            Line(
                f"{given.tokens} tokens",
                what,
                taken,
                {"first time, with compiling, s": first[what]},
            )
            for what, taken in seconds.items()
        ],
    )


def _widened(batch: Batch) -> Batch:
    """Padded on the right to the next multiple of the bucket."""
    more = -batch["input_ids"].shape[1] % BUCKET
    padded = {
        name: torch.nn.functional.pad(batch[name], (0, more))
        for name in ("input_ids", "attention_mask")
    }
    return {**batch, **padded}


if __name__ == "__main__":
    bench.main(
        "compile",
        __doc__,
        measure,
        repeats=5,
        rows=32,
        tokens="52,60,76,92",
        backend="inductor",
    )
