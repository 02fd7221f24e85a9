"""What training the router on its posterior costs, over the published mixture.

In training some rows are first put under several prompts without gradient; in inference a row has
one prompt in one pass, as with any router.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch

import bench
from bench import Bar, Call, Line, Result

PUBLISHED, POSTERIOR = "published", "posterior"
ONE = "one prompt"
OPTIONS: dict[str, dict[str, Any]] = {
    "judged=0.25": {"judged": 0.25},
    "judged=0.5": {"judged": 0.5},
    "judged=1": {"judged": 1.0},
    "candidates=2": {"candidates": 2},
    "candidates=3": {"candidates": 3},
    "judged=1, every=3": {"judged": 1.0, "every": 3},
    "exact": {"exact": True},
}


def measure(given: Namespace) -> Result:
    """A training step for every k, of k = 4 with every option; a pass of inference."""
    bare = bench.backbone(given)
    batch = bench.random_batch(given, given.rows, given.tokens)
    lines: list[Line] = []
    for k in (2, 4, 8, 16, 32):
        calls = {
            PUBLISHED: _step(bare, batch, num_prompts=k),
            POSTERIOR: _step(bare, batch, num_prompts=k, routing="posterior"),
        }
        if k == 4:
            for name, options in OPTIONS.items():
                calls[name] = _step(bare, batch, num_prompts=k, routing="posterior", **options)
        for name, taken in bench.interleave(calls, given.repeats).items():
            lines.append(Line(f"training step, k={k}", name, taken, scale=1 / _steps(name)))
    passes = {
        ONE: _pass(bench.adapted(bare, "single"), batch),
        POSTERIOR: _pass(bench.adapted(bare, "smop", routing="posterior", num_prompts=4), batch),
    }
    for name, taken in bench.interleave(passes, given.repeats).items():
        lines.append(Line("inference, k=4", name, taken))
    return Result(
        says=f"{bench.RANDOM}, {given.rows} rows of {given.tokens} tokens",
        per="pass",
        over=(PUBLISHED, ONE),
        lines=lines,
        bars=(
            Bar("training step, k=4", POSTERIOR, 1.5, over=PUBLISHED),
            Bar("training step, k=16", POSTERIOR, 2.0, over=PUBLISHED),
            Bar("inference, k=4", POSTERIOR, 1.02, over=ONE),
        ),
    )


def _steps(name: str) -> int:
    """How many steps are timed at once: as many as it takes until rows are judged again."""
    return OPTIONS.get(name, {}).get("every", 1)


def _step(bare: torch.nn.Module, batch: bench.Batch, **options: Any) -> Call:
    step = bench.training_step(bench.adapted(bare, "smop", **options), batch)

    def steps() -> None:
        for _ in range(options.get("every", 1)):
            step()

    return steps


def _pass(model: torch.nn.Module, batch: bench.Batch) -> Call:
    model.eval()

    def forward() -> None:
        with torch.inference_mode():
            model(**batch)

    return forward


if __name__ == "__main__":
    bench.main("posterior", __doc__, measure, repeats=9, rows=32, tokens=96)
