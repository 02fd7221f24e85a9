"""What a step and an evaluation of a decoder cost: the head at answers alone, prompts behind texts.

"whole head" computes the head, and the model's own loss, at every token, as a plain pass does, with
the attention that transformers takes; "4 rows in a pass" is as plain.
Behind the text (`position="after"`) texts are read without gradient; "kept" were read in an earlier
epoch, or an earlier evaluation. PEFT's prompt tuning stands beside in both forms. In bf16 on a CPU,
where steps take eager attention, what SDPA and fp32 would cost stands beside. A head that is given
the last token's states of many rows stands there as a slice of all states, and in one block.
"""

from __future__ import annotations

import copy
from argparse import Namespace
from collections import Counter
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import bench
from bench import Bar, Call, Line, Result
from peft_smop.methods import fold_head
from peft_smop.scoring import Features, Formulation, evaluate
from peft_smop.training import Rows, attention, forward_backward

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    # of its parameters 63 % are the head's, of SmolLM2's 21 %
    "gemma-3-270m": {
        "model_type": "gemma3_text",
        "vocab_size": 262144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
    },
    "tiny": {
        "model_type": "llama",
        "vocab_size": bench.VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
ONE, MIXTURE = "one prompt", "posterior, k=4"
WHOLE = f"{ONE}, whole head"
PEFT = "PEFT prompt tuning 5"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    PEFT: ("prompt-tuning", {"num_virtual_tokens": 5}),
    ONE: ("single", {}),
    MIXTURE: ("smop", {"routing": "posterior", "num_prompts": 4}),
}


def measure(given: Namespace) -> Result:
    """A step by method, head and place of the prompt; an evaluation by rows in a pass."""
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    config = AutoConfig.for_model(**SHAPES[given.model], tie_word_embeddings=True, **special)
    dtype = getattr(torch, given.dtype or ("bfloat16" if given.device == "cuda" else "float32"))
    bare = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    bare.train().to(given.device, dtype)
    split, formulation = bench.load_rows(given, given.task, bare)
    features = [formulation.encode(example) for example in split.train[: given.rows]]
    plain = copy.deepcopy(bare, {id(p): p for p in bare.parameters()})
    fold_head(bare)
    calls: dict[str, Call] = {}
    for what, (name, options) in METHODS.items():
        whole = bench.adapted(plain, name, kind="CAUSAL_LM", **options)
        before = bench.adapted(bare, name, kind="CAUSAL_LM", **options)
        calls[f"{what}, whole head"] = _with_sdpa(_step(whole, _whole(formulation), features))
        calls[what] = _step(before, formulation, features)
        if name == "prompt-tuning":
            continue
        for kept in (0, 4):
            after: Any = bench.adapted(bare, name, kind="CAUSAL_LM", position="after", **options)
            after.base_model.keep_texts(kept)
            called = f"{what}, behind the text{', kept' if kept else ''}"
            calls[called] = _step(after, formulation, features)
    if given.device == "cpu" and dtype == torch.bfloat16:
        calls[f"{ONE}, SDPA"] = _with_sdpa(calls[ONE])
        exact = bench.adapted(copy.deepcopy(plain).float(), "single", kind="CAUSAL_LM")
        calls[f"{ONE}, fp32"] = _step(exact, formulation, features)
    seconds = bench.interleave(calls, given.repeats)
    step = f"step, {given.task}, {given.rows} rows"
    lines = [
        Line(step, what, taken, {"peak MiB": bench.peak_mib(calls[what])})
        for what, taken in seconds.items()
    ]
    examples = split.test[: given.examples or None]
    scored = f"evaluation, {given.task}, {len(examples)} rows"
    one, many = (bench.adapted(m, "single", kind="CAUSAL_LM").eval() for m in (plain, bare))
    passes = {
        "4 rows in a pass": _evaluation(one, formulation, examples, 4),
        f"{given.rows} rows in a pass": _evaluation(many, formulation, examples, given.rows),
    }
    again = bench.adapted(bare, "single", kind="CAUSAL_LM", position="after").eval()
    again.base_model.keep_texts(4)
    known = f"{given.rows} rows in a pass, behind texts that are known"
    passes[known] = _evaluation(again, formulation, examples, given.rows)
    evaluated = bench.interleave(passes, given.repeats)
    lines += [Line(scored, what, taken) for what, taken in evaluated.items()]
    read = torch.randn(given.rows, 32, bare.config.hidden_size, dtype=dtype, device=given.device)
    heads = {"sliced": _head(plain.lm_head, read), "in one block": _head(bare.lm_head, read)}
    asked = f"head, last token, {given.rows} rows"
    with torch.no_grad():
        headed = bench.interleave(heads, given.repeats)
    lines += [Line(asked, what, taken) for what, taken in headed.items()]
    return Result(
        says=f"{bench.WORDS}; answers as long as the task's; {str(dtype).removeprefix('torch.')}",
        per="step or evaluation",
        over=(WHOLE, ONE, "4 rows in a pass", "in one block"),
        lines=lines,
        bars=(
            Bar(step, ONE, 0.75, over=WHOLE),
            Bar(step, f"{ONE}, behind the text", 0.6, over=ONE),
            Bar(step, f"{ONE}, behind the text, kept", 0.3, over=ONE),
            Bar(scored, f"{given.rows} rows in a pass", 0.6, over="4 rows in a pass"),
            Bar(scored, known, 0.6, over="4 rows in a pass"),
        ),
    )


def _whole(formulation: Formulation) -> Formulation:
    """The same, with a model's whole head and its own loss."""
    whole: Any = copy.copy(formulation)
    whole.answers_only = lambda model, labels: nullcontext()
    return whole


def _step(model: nn.Module, formulation: Formulation, features: list[Features]) -> Call:
    model.train()

    def step() -> None:
        forward_backward(model, formulation, [Rows(features)], max_padding=1.1)
        model.zero_grad()

    return step


def _with_sdpa(step: Call) -> Call:
    """The step with transformers' attention, whatever is fastest."""

    def call() -> None:
        with patch.object(attention, "EAGER_UP_TO", -1):
            step()

    return call


def _head(head: nn.Module, states: Tensor) -> Call:
    """What a head makes of the last tokens' states."""
    return lambda: head(states[:, -1:])


def _evaluation(model: nn.Module, formulation: Formulation, examples: Any, size: int) -> Call:
    majority = Counter(example.label for example in examples).most_common(1)[0][0]

    def call() -> None:
        evaluate(
            model, formulation, examples, majority_label=majority, batch_size=size, resamples=0
        )

    return call


if __name__ == "__main__":
    bench.main(
        "decoder",
        __doc__,
        measure,
        repeats=5,
        example="--data superglue",
        shapes=SHAPES,
        task="copa",
        rows=32,
        examples=100,
        dtype="",
    )
