"""What the frozen encoder's states say without any prompt: a line of reference for every pile.

    python benchmarks/evidence/probe.py all-MiniLM-L6-v2 benchmarks/evidence/tasks/letters

Multinomial logistic regression on the mean of the last layer's states, and on what a classification
head is given, the pooled first token; its penalty is chosen on validation examples.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, AutoTokenizer

WEIGHTS = (0.01, 0.1, 1.0, 10.0, 100.0)
PARTS = ("train", "validation", "test")


def of(folder: Path, part: str) -> Path:
    """A part's file."""
    return folder / f"{part}.jsonl"


def read(folder: Path, part: str) -> list[dict[str, str]]:
    """A part's rows."""
    lines = of(folder, part).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def states(name: str, texts: list[str]) -> dict[str, NDArray[np.float32]]:
    """What the encoder makes of texts, in two ways."""
    model = AutoModel.from_pretrained(name).eval()
    tokenizer = AutoTokenizer.from_pretrained(name)
    found: dict[str, list[torch.Tensor]] = {"mean": [], "pooled": []}
    for start in range(0, len(texts), 64):
        batch = tokenizer(
            texts[start : start + 64], padding=True, truncation=True, return_tensors="pt"
        )
        with torch.inference_mode():
            output = model(**batch)
        mask = batch["attention_mask"][:, :, None]
        found["mean"].append((output.last_hidden_state * mask).sum(1) / mask.sum(1))
        found["pooled"].append(output.pooler_output)
    return {how: torch.cat(parts).numpy() for how, parts in found.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("tasks", nargs="+", type=Path)
    given = parser.parse_args()
    missing = [
        p for folder in given.tasks for part in PARTS if not (p := of(folder, part)).is_file()
    ]
    if missing:
        parser.exit(2, f"error: {missing[0]} does not exist; expected a pile's folder\n")
    print("| pile | states | validation | test |\n| --- | --- | --- | --- |")
    for folder in given.tasks:
        rows = {part: read(folder, part) for part in PARTS}
        labels = {part: [row["label"] for row in own] for part, own in rows.items()}
        x = {part: states(given.model, [row["text"] for row in own]) for part, own in rows.items()}
        for how in ("pooled", "mean"):
            fits = [
                LogisticRegression(C=weight, max_iter=5000).fit(x["train"][how], labels["train"])
                for weight in WEIGHTS
            ]
            best = max(fits, key=lambda fit: fit.score(x["validation"][how], labels["validation"]))
            scores = [100 * best.score(x[part][how], labels[part]) for part in PARTS[1:]]
            print(f"| `{folder.name}` | {how} | {scores[0]:.1f} | {scores[1]:.1f} |")


if __name__ == "__main__":
    main()
