"""What the prompt itself costs: mean, router, choice and splice, without the backbone.

Against a forward pass and a training step of the bare backbone on the same rows.
"""

from __future__ import annotations

from argparse import Namespace
from functools import partial

import torch
from peft import PeftModel
from torch import Tensor, nn

import bench
from bench import Call, Line, Result
from peft_smop.rows import RowAdapters
from peft_smop.tuner.deciding import mean_embedding, row_state
from peft_smop.tuner.mixture import soft_prompts
from peft_smop.tuner.noise import fingerprints
from peft_smop.tuner.scope import left_padding
from peft_smop.tuner.splice import Layout

FORWARD = "bare forward"
STEP = "bare step"
LOOPS = 20
"""Passes in one reading of the clock: one alone is too short for it."""


def measure(given: Namespace) -> Result:
    """The parts for several k, in evaluation and in training."""
    bare = bench.backbone(given)
    batch = bench.random_batch(given, given.rows, given.tokens)
    x = bare.get_input_embeddings()(batch["input_ids"])

    def forward() -> None:
        with torch.inference_mode():
            bare(**batch)

    lines = []
    for k in (4, 64, 1024):
        model = bench.adapted(bare, "smop", num_prompts=k)
        parts = _parts(model, batch, x)
        calls = {what: _repeated(call) for what, call in parts.items()}
        calls |= {FORWARD: forward, STEP: lambda: bench.bare_step(bare, batch)}
        for what, seconds in bench.interleave(calls, given.repeats).items():
            scale = 1 / LOOPS if what in parts else 1.0
            lines.append(Line(f"k={k}", what, seconds, scale=scale))
    return Result(
        says=f"{bench.RANDOM}; {given.rows} rows of {given.tokens} tokens, l=5",
        per="pass",
        over=(FORWARD, STEP),
        lines=lines,
    )


def _parts(model: PeftModel, batch: dict[str, Tensor], x: Tensor) -> dict[str, Call]:
    """Every part alone, and all of them as the hooks do them."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    layer, rows = model.smop_layer, RowAdapters(("default",), None, len(x))

    def chosen(mean: Tensor) -> Tensor:
        own, read = [layer["default"]], partial(fingerprints, ids, mask != 0)
        state = row_state(own, rows, read, training=layer.training)
        return soft_prompts(own, rows, mean, state)[0]

    mean = mean_embedding(x, mask != 0)

    def splice(prompts: Tensor) -> Tensor:
        layout = Layout.of(
            padding=left_padding(mask),
            lengths=layer.places(rows, x.device).lengths,
            tokens=x.shape[1],
            width=layer.width(rows),
            slack="right",
        )
        layout.mask(mask)
        return layout.embeddings(prompts.to(x.dtype), x)

    def whole() -> Tensor:
        return splice(chosen(mean_embedding(x, mask != 0)))

    def train() -> None:
        layer.train()
        whole().sum().backward()
        model.zero_grad(set_to_none=True)

    prompts = chosen(mean).detach()
    return {
        "mean embedding": _evaluated(layer, lambda: mean_embedding(x, mask != 0)),
        "router and choice": _evaluated(layer, lambda: chosen(mean)),
        "splice": _evaluated(layer, lambda: splice(prompts)),
        "all, evaluation": _evaluated(layer, whole),
        "all, training with backward": train,
    }


def _evaluated(layer: nn.Module, call: Call) -> Call:
    def evaluated() -> None:
        layer.eval()
        with torch.inference_mode():
            call()

    return evaluated


def _repeated(call: Call) -> Call:
    def repeated() -> None:
        for _ in range(LOOPS):
            call()

    return repeated


if __name__ == "__main__":
    bench.main("router", __doc__, measure, repeats=15, rows=32, tokens=96)
