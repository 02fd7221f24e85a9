"""What a training step costs as the number of prompts, k, and their length, l, grow.

Everything shares one backbone's weights; `single` is one prompt without a router.
"""

from __future__ import annotations

from argparse import Namespace

import bench
from bench import Bar, Line, Result

SINGLE = "single, l=5"
BARE = "bare backbone"


def measure(given: Namespace) -> Result:
    """One training step for every k at l = 5 and every l at k = 4."""
    bare = bench.backbone(given)
    batch = bench.random_batch(given, given.rows, given.tokens)
    calls = {
        BARE: lambda: bench.bare_step(bare, batch),
        SINGLE: bench.training_step(bench.adapted(bare, "single"), batch),
    }
    for k, length in [(4, 5), (16, 5), (64, 5), (256, 5), (1024, 5), (4, 20), (4, 50), (4, 100)]:
        model = bench.adapted(bare, "smop", num_prompts=k, num_virtual_tokens=length)
        calls[f"SMoP, k={k}, l={length}"] = bench.training_step(model, batch)
    seconds = bench.interleave(calls, given.repeats)
    case = f"{given.rows} rows of {given.tokens} tokens"
    return Result(
        says=bench.RANDOM,
        per="training step",
        over=(SINGLE, BARE),
        lines=[Line(case, name, taken) for name, taken in seconds.items()],
        bars=(
            Bar(case, "SMoP, k=4, l=5", 1.02, over=SINGLE),
            Bar(case, "SMoP, k=1024, l=5", 1.05, over=SINGLE),
        ),
    )


if __name__ == "__main__":
    bench.main("scaling", __doc__, measure, repeats=15, rows=32, tokens=96)
