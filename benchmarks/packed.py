"""Packed runs: R trainings in one pass, against the same R one after the other.

Several seeds of SMoP over one frozen backbone. It is meant for devices that one small run leaves
idle; on a busy one, such as a CPU, there is little to win.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from pathlib import Path
from statistics import median

from torch import nn

import bench
from bench import Bar, Line, Result
from peft_smop.costs import training_flops
from peft_smop.training import Training, TrainingOptions, fit, fit_packed

APART = "one after the other"
PACKED = "packed"


def measure(given: Namespace) -> Result:
    """Short trainings on every task, with a validation of two rows at their end."""
    bare = bench.backbone(given)
    rate = bench.matrix_rate(given)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        for task in given.tasks.split(","):
            lines += _task(given, task, bare, Path(folder), rate)
    cases = [line.case for line in lines if line.what == PACKED]
    on_gpu = given.device == "cuda"
    return Result(
        says=f"{bench.WORDS}; {given.steps} steps of {given.rows} rows; one large matrix product"
        f" reaches {rate / 1e12:.3g} TFLOP/s",
        per="R trainings",
        over=(APART,),
        lines=lines,
        bars=tuple(
            Bar(case, PACKED, 3, figure="times the throughput", at_least=True)
            for case in cases
            if on_gpu and case.endswith("R=8")
        ),
    )


def _task(given: Namespace, task: str, bare: nn.Module, folder: Path, rate: float) -> list[Line]:
    split, formulation = bench.load_rows(given, task, bare)
    options = TrainingOptions(
        max_steps=given.steps, eval_steps=given.steps, batch_size=given.rows, learning_rate=0.3
    )
    counts = [int(count) for count in given.runs.split(",")]
    models = [bench.adapted(bare, "smop") for _ in range(max(counts))]
    trainings = [
        Training(
            model=model,
            formulation=formulation,
            train=split.train,
            validation=split.validation[:2],
            options=options,
            seed=seed,
            output=folder / str(seed),
        )
        for seed, model in enumerate(models)
    ]
    features = [formulation.encode(example) for example in split.train]
    tokens = round(bench.text_tokens(features) / len(features))
    batch = bench.random_batch(given, given.rows, tokens)
    operations = given.steps * training_flops(models[0], batch)
    lines = []
    for count in counts:
        own = trainings[:count]
        calls = {
            APART: lambda own=own: [fit(training) for training in own],
            PACKED: lambda own=own: fit_packed(own),
        }
        seconds = bench.interleave(calls, given.repeats)
        gain = median(a / b for a, b in zip(seconds[APART], seconds[PACKED], strict=True))
        for what, taken in seconds.items():
            share = count * operations / median(taken) / rate
            figures = {"share of matrix rate": share}
            figures |= {"times the throughput": gain} if what == PACKED else {}
            lines.append(Line(f"{task}, R={count}", what, taken, figures))
    return lines


if __name__ == "__main__":
    bench.main(
        "packed",
        __doc__,
        measure,
        repeats=3,
        example="--data superglue --model t5-base --steps 100",
        tasks="copa,cb",
        runs="1,2,4,8",
        rows=32,
        steps=10,
    )
