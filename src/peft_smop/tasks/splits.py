"""Three disjoint parts: stratified by label, whole groups, by seed, written down with hashes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from peft_smop.errors import ConfigError, DataError, unknown
from peft_smop.tasks.holdout import Examples, hold_out
from peft_smop.tasks.task import Example

PARTS = ("train", "validation", "test")
_HELD_OUT_PERCENT = 10


@dataclass(frozen=True)
class Split:
    """What is trained on, what is looked at while training, and what is scored once.

    Attributes:
        train: training examples, in the order of their file; so are the others.
        validation: for choosing steps, learning rates and the like.
        test: for the score that is reported.
        labels: the task's labels, for the counts in the record.
        preset: the preset that made it.
        seed: the seed that made it.
        sources: part of the source data -> where it came from.
    """

    train: Examples
    validation: Examples
    test: Examples
    labels: tuple[str, ...]
    preset: str
    seed: int
    sources: Mapping[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return what `split.json` holds: enough to tell whether two runs saw the same rows.

        `texts_shared_with_train` counts the examples of a part whose rendered text stands in train
        too. The parts are disjoint as rows, but data may hold one text in several rows, and then a
        score on such rows is partly a score on training data.
        """
        train_texts = {example.text for example in self.train}
        parts: dict[str, dict[str, object]] = {}
        for name in PARTS:
            examples: Examples = getattr(self, name)
            counts = Counter(example.label for example in examples)
            parts[name] = {
                "examples": len(examples),
                "labels": {label: counts[index] for index, label in enumerate(self.labels)},
                "sha256": _fingerprint(examples),
            }
            if name != "train":
                shared = sum(example.text in train_texts for example in examples)
                parts[name]["texts_shared_with_train"] = shared
        return {
            "preset": self.preset,
            "seed": self.seed,
            "sources": dict(self.sources),
            "parts": parts,
        }


def _fingerprint(examples: Examples) -> str:
    digest = sha256()
    for example in examples:
        row = [example.id, example.text, example.label]
        digest.update(json.dumps(row, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()


def make_split(
    parts: Mapping[str, Sequence[Example]],
    labels: tuple[str, ...],
    *,
    preset: str | None = None,
    seed: int = 0,
    sources: Mapping[str, str] | None = None,
) -> Split:
    """Divide what a source has into train, validation and test.

    Args:
        parts: all three parts; or "train" and one of the others; or one part alone.
        labels: the task's labels.
        preset: a name of `PRESETS`; None takes the first that fits the parts.
        seed: the same seed gives the same split, in any process.
        sources: part -> where it came from, for the record.

    Raises:
        ConfigError: where the preset is unknown or does not fit the parts, or the seed is not one.
        DataError: where there are too few rows, or too few groups, to hold any out.
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed} is outside 0 to 2**32 - 1; choose one within")
    if preset is None:
        preset = next(name for name, known in PRESETS.items() if known.fits(parts))
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    chosen = PRESETS[preset]
    if not chosen.fits(parts):
        fitting = ", ".join(name for name, known in PRESETS.items() if known.fits(parts))
        raise ConfigError(
            f"preset={preset!r} needs {chosen.needs}, but the data have {', '.join(parts)}; "
            f"use {fitting}"
        )
    sources = sources or {}
    try:
        train, validation, test = chosen.divide(parts, seed)
    except DataError as error:
        raise DataError.at(", ".join(sources.values()) or "rows", None, str(error)) from error
    return Split(train, validation, test, labels, preset, seed, sources)


def _tenth(examples: Sequence[Example]) -> int:
    """Round up, as scikit-learn and `datasets` do; in integers, so that 0.1 * 30 is 3."""
    return -(-len(examples) * _HELD_OUT_PERCENT // 100)


def _given(parts: Mapping[str, Sequence[Example]], seed: int) -> tuple[Examples, ...]:
    return tuple(tuple(parts[name]) for name in PARTS)


def _paper(parts: Mapping[str, Sequence[Example]], seed: int) -> tuple[Examples, ...]:
    (official,) = (rows for name, rows in parts.items() if name != "train")
    train, validation = hold_out(parts["train"], _tenth(parts["train"]), seed)
    return train, validation, tuple(official)


def _three_way(parts: Mapping[str, Sequence[Example]], seed: int) -> tuple[Examples, ...]:
    if len(parts) == 1:
        (pool,) = (tuple(rows) for rows in parts.values())
    else:  # ids and groups are each file's own
        pool = tuple(
            replace(
                example,
                id=f"{name}/{example.id}",
                group=f"{name}/{example.group}" if example.group is not None else None,
            )
            for name, rows in parts.items()
            for example in rows
        )
    size = _tenth(pool)
    rest, test = hold_out(pool, size, seed)
    train, validation = hold_out(rest, size, seed)
    return train, validation, test


@dataclass(frozen=True)
class Preset:
    """A way to come to three parts."""

    description: str
    needs: str
    fits: Callable[[Mapping[str, Sequence[Example]]], bool]
    divide: Callable[[Mapping[str, Sequence[Example]], int], tuple[Examples, ...]]


PRESETS: dict[str, Preset] = {
    "given": Preset(
        "the three parts as they come; the seed moves no row",
        "train, validation and test",
        lambda parts: set(parts) == set(PARTS),
        _given,
    ),
    "paper": Preset(
        "10 % of train held out as validation, the official validation set as test",
        "train and one other part",
        lambda parts: len(parts) == 2 and "train" in parts,
        _paper,
    ),
    "three-way": Preset(
        "all labelled rows together, 80 / 10 / 10", "any rows", lambda parts: True, _three_way
    ),
}
"""In the order of preference; the first that fits is the default.

On `paper`: the paper gives the sizes and nothing else. That the held-out tenth is stratified by
label and that MultiRC's passages stay whole (questions on one passage would otherwise stand in
train and in validation) are decisions made here.
"""
