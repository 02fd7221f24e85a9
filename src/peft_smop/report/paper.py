"""The paper's figures, and by which of our runs each could be met."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from peft_smop.errors import ConfigError

FILE = Path(__file__).with_name("paper_tables.csv")
"""Tables 1 to 5 and 7 to 11 in long form; its first line says whose figures they are."""

Key = tuple[tuple[str, Any], ...]
"""What a method is, however it is called: its name and every option that tells it from others."""

SCORES = ("mean score", "accuracy", "F1a")
TRAINED, SECONDS = "trainable parameters", "training time"
MEMORY, OPERATIONS = "peak training memory", "inference FLOPs"
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "smop": {"num_prompts": 4, "num_virtual_tokens": 5},
    "single": {"num_virtual_tokens": 5},
    "prompt-tuning": {"num_virtual_tokens": 5},
    "p-tuning": {"num_virtual_tokens": 20},
    "lora": {"rank": 8},
    "houlsby": {"bottleneck_size": 48},
    "pfeiffer": {"bottleneck_size": 48},
}
"""What a method's options are where a run does not say."""
PROMPTS = {"posterior": 8}
"""How many prompts a mixture has by default whose routing has others than `DEFAULTS`."""
SHORT = {"num_prompts": "k", "num_virtual_tokens": "l", "rank": "r", "bottleneck_size": "d"}


@dataclass(frozen=True)
class PaperFigure:
    """One figure of the paper."""

    table: str
    model: str
    method: str
    """As it is called there."""
    key: Key
    task: str
    """In lower case; "average" over its tasks; "" where it belongs to none."""
    metric: str
    unit: str
    mean: float
    deviation: float | None
    total_length: int | None


def key_of(method: Mapping[str, Any]) -> Key:
    """What a run's method is."""
    said = {key: value for key, value in method.items() if value is not None}
    defaults = dict(DEFAULTS.get(str(said["name"]), {}))
    if said["name"] == "smop" and said.get("routing") in PROMPTS:
        defaults["num_prompts"] = PROMPTS[said["routing"]]
    whole = {**defaults, **said}
    if whole.get("routing") in ("linear", "single") and whole["name"] == "smop":
        linear = whole.pop("routing") == "linear"
        if not linear:
            whole = {k: v for k, v in whole.items() if k != "num_prompts"} | {"name": "single"}
    if whole.get("perturbation") is True:
        whole.pop("perturbation")
    return tuple(sorted(whole.items()))


def label_of(key: Key) -> str:
    """What a method is called in tables."""
    options = dict(key)
    name = str(options.pop("name"))
    order = sorted(options, key=lambda option: (option not in SHORT, option))
    said = [f"{SHORT.get(option, option)}={_word(options[option])}" for option in order]
    return " ".join([name, *said])


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"


@cache
def figures() -> tuple[PaperFigure, ...]:
    """Every figure, in the order of the tables."""
    with FILE.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    return tuple(
        PaperFigure(
            table=row["table"],
            model=row["model"],
            method=row["method"],
            key=_key(row),
            task=row["task"].lower(),
            metric=row["metric"],
            unit=row["unit"],
            mean=float(row["mean"]),
            deviation=float(row["std"]) if row["std"] else None,
            total_length=int(row["total_prompt_length"]) if row["total_prompt_length"] else None,
        )
        for row in rows
    )


def check_tables(numbers: Sequence[str]) -> None:
    """Refuse what is no table of the paper's with figures.

    Raises:
        ConfigError: with those that there are.
    """
    known = list(dict.fromkeys(figure.table for figure in figures()))
    for number in numbers:
        if number not in known:
            raise ConfigError(
                f"--paper {number}: the paper has figures in its tables {', '.join(known)}"
            )


ROUTED: Mapping[str, Mapping[str, Any]] = {
    "linear + perturbation": {},
    "w/o perturbation": {"perturbation": False},
    "Top-2": {"top_k": 2},
    "Gumbel-Softmax": {"routing": "gumbel"},
    "Stochastic": {"routing": "stochastic"},
    "Single": {"name": "single"},
}
NAMES = {
    "full": "full",
    "full fine-tuning": "full",
    "prompt tuning": "prompt-tuning",
    "p-tuning": "p-tuning",
    "smop": "smop",
    "smop (ours)": "smop",
    "lora": "lora",
    "adapter": "houlsby",
    # by its number of parameters: one bottleneck a layer, and no fusion
    "adapterfusion": "pfeiffer",
}


def _key(row: Mapping[str, str]) -> Key:
    text, options = row["method"], {}
    if ": " in text:  # SMoP routing: Top-2
        options = {"name": "smop", **ROUTED[text.partition(": ")[2]]}
        if options["name"] == "smop":
            return key_of(options)
        return key_of({"name": "single", "num_virtual_tokens": 5})
    letters = {"k": "num_prompts", "l": "num_virtual_tokens", "r": "rank", "d": "bottleneck_size"}
    for letter, number in re.findall(r"\b([klrd])=(\d+)", text):
        options[letters[letter]] = int(number)
    name = NAMES[re.sub(r"( \([klrd]=.*\)| k=.*)$", "", text).lower()]
    total, used = row["total_prompt_length"], row["utilized_prompt_length"]
    if used and name in ("smop", "prompt-tuning", "p-tuning"):
        options["num_virtual_tokens"] = int(used)
        if name == "smop" and int(total) > int(used):
            options["num_prompts"] = int(total) // int(used)
    return key_of({"name": name, **options})
