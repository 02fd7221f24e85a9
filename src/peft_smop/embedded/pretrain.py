"""The recipe of the offline default: `python -m peft_smop.embedded.pretrain --output DIR`.

Seeded from end to end: the same arguments and versions give the same files on the same kind of
machine. The packaged model was made by this very command with its defaults.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import tokenizers
import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from peft_smop.embedded.language import SKILLS
from peft_smop.embedded.mixture import (
    Difficulty,
    Example,
    write_example,
    write_instructed,
)
from peft_smop.embedded.tokenizer import train_tokenizer
from peft_smop.errors import ConfigError, RunError

IGNORED_LABEL = -100


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the result."""

    seed: int = 0
    steps: int = 5000
    batch_size: int = 48
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_share: float = 0.5
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    tokenizer_rows: int = 20_000
    held_out_rows_per_skill: int = 500
    threads: int = 1
    """One, since sums over several threads differ in the last bits, and so small a model hardly
    gains from more."""

    def __post_init__(self) -> None:
        """Refuse what cannot train.

        Raises:
            ConfigError: a count below one.
        """
        for field in (
            "steps",
            "batch_size",
            "tokenizer_rows",
            "held_out_rows_per_skill",
            "threads",
        ):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}={getattr(self, field)} is too small; give at least 1")


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> T5ForConditionalGeneration:
    """Build the untrained T5: 3 encoder and 2 decoder layers, width 128, no dropout."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        num_heads=4,
        d_ff=256,
        num_layers=3,
        num_decoder_layers=2,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=64,
        dropout_rate=0.0,  # every batch is new: there is nothing to overfit
        # Products of features are what negation and turned labels need; with plain relu layers the
        # skills did not get off the ground.
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    # T5 draws its initial weights from the global generator; the caller's state is given back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T5ForConditionalGeneration(config)


def encode(tokenizer: PreTrainedTokenizerFast, examples: list[Example]) -> dict[str, Tensor]:
    """Turn rows into padded inputs and labels."""
    batch = tokenizer([row.source for row in examples], padding=True, return_tensors="pt")
    targets = tokenizer([row.target for row in examples], padding=True, return_tensors="pt")
    labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, IGNORED_LABEL)
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "labels": labels,
    }


def train(
    model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, recipe: Recipe
) -> None:
    """Train in place on fresh rows, with warmup and linear decay, and print the progress."""
    rng = Random(f"rows {recipe.seed}")
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
    )
    decay_steps = int(recipe.steps * recipe.decay_share)

    def rate(step: int) -> float:
        return min(
            1.0,
            (step + 1) / recipe.warmup_steps,
            (recipe.steps - step) / max(decay_steps, 1),
        )

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    start = time.perf_counter()
    outcomes: dict[str, list[bool]] = {}
    for step in range(1, recipe.steps + 1):
        difficulty = Difficulty.at((step - 1) / recipe.steps)
        rows = [write_example(rng, difficulty=difficulty) for _ in range(recipe.batch_size)]
        batch = encode(tokenizer, rows)
        logits = model(**batch).logits
        loss = mean_row_loss(logits, batch["labels"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_gradient_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        right = (logits[:, 0].argmax(dim=-1) == batch["labels"][:, 0]).tolist()
        for row, is_right in zip(rows, right, strict=True):
            if row.kind in SKILLS:
                manner = "two clauses" if row.doubled else "one clause"
                outcomes.setdefault(row.kind, []).append(is_right)
                outcomes.setdefault(manner, []).append(is_right)
        if step % 200 == 0 or step == recipe.steps:
            shares = " ".join(f"{k} {sum(v) / len(v):.2f}" for k, v in sorted(outcomes.items()))
            seconds = time.perf_counter() - start
            print(f"step {step}/{recipe.steps} {seconds:.0f} s; right: {shares}", flush=True)
            outcomes.clear()
    model.eval()


def mean_row_loss(logits: Float[Tensor, "b m v"], labels: Int[Tensor, "b m"]) -> Float[Tensor, ""]:
    """Average over the m tokens of a row, then over rows: long spans must not drown answers."""
    counted = labels != IGNORED_LABEL
    by_token = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return (by_token.sum(dim=1) / counted.sum(dim=1)).mean()


@torch.no_grad()
def measure(
    model: T5ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    *,
    rows_per_skill: int,
    seed: int,
) -> dict[str, float]:
    """Measure instructed skills on texts that pretraining cannot have met.

    A row is right when the word of its answer is the likeliest first token of all the vocabulary.

    Returns:
        Skill -> accuracy, and their mean under "mean".
    """
    rng = Random(f"held out {seed}")
    accuracy: dict[str, float] = {}
    for skill in SKILLS:
        rows = [write_instructed(rng, "test", skill) for _ in range(rows_per_skill)]
        right = 0
        for start in range(0, len(rows), 250):
            batch = encode(tokenizer, rows[start : start + 250])
            first = model(**batch).logits[:, 0].argmax(dim=-1)
            right += int((first == batch["labels"][:, 0]).sum())
        accuracy[skill] = right / len(rows)
    return {**accuracy, "mean": sum(accuracy.values()) / len(accuracy)}


def pretrain(output: Path, recipe: Recipe) -> dict[str, float]:
    """Make tokenizer and model and write both, with `recipe.json`, into `output`.

    Returns:
        The held-out accuracy of each instructed skill.

    Raises:
        RunError: `output` already holds something.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunError(f"{output} is not an empty directory; give another --output or empty it")
    tokenizer = train_tokenizer(Random(f"tokenizer {recipe.seed}"), rows=recipe.tokenizer_rows)
    model = new_model(tokenizer, recipe.seed)
    train(model, tokenizer, recipe)
    accuracy = measure(
        model, tokenizer, rows_per_skill=recipe.held_out_rows_per_skill, seed=recipe.seed
    )
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    record = {
        "what": "demonstration model of peft-smop, trained on generated text only",
        "command": "python -m peft_smop.embedded.pretrain --output DIR",
        "recipe": asdict(recipe),
        "pretraining_rows": recipe.steps * recipe.batch_size,
        "held_out_rows": recipe.held_out_rows_per_skill * len(SKILLS),
        "held_out_accuracy": accuracy,
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    (output / "recipe.json").write_text(json.dumps(record, indent=2) + "\n")
    return accuracy


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, run the recipe, print what was measured."""
    parser = argparse.ArgumentParser(prog="python -m peft_smop.embedded.pretrain")
    parser.add_argument("--output", type=Path, required=True, help="an empty or new directory")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    accuracy = pretrain(options.output, Recipe(seed=options.seed, steps=options.steps))
    for skill, value in accuracy.items():
        print(f"{skill:12} {value:.3f}")
    print(f"wrote {options.output} in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
