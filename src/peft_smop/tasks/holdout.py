"""Holding examples out of a pool: labels in proportion, groups whole, by seed."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from peft_smop.errors import DataError
from peft_smop.tasks.task import Example

if TYPE_CHECKING:
    import numpy as np

Examples = tuple[Example, ...]

_UNLABELLED = -1


def hold_out(examples: Sequence[Example], count: int, seed: int) -> tuple[Examples, Examples]:
    """Hold about `count` examples out, with the labels in proportion.

    Without groups, each label's share is within one row of its proportion. A label with a single
    row cannot be in both parts and stays in train; where `count` is below the number of other
    labels, as many rows as there are labels are held out. With groups, whole groups move, so size
    and shares are as near as the groups allow.

    Returns:
        What is kept and what is held out, each in the order given.

    Raises:
        DataError: where there are too few rows, or too few groups, to hold any out.
    """
    if any(example.group is not None for example in examples):
        held = _held_groups(examples, count, seed)
    else:
        held = _held_rows(examples, count, seed)
    chosen = set(held)
    return (
        tuple(example for index, example in enumerate(examples) if index not in chosen),
        tuple(example for index, example in enumerate(examples) if index in chosen),
    )


def _held_rows(examples: Sequence[Example], count: int, seed: int) -> list[int]:
    import numpy as np
    from sklearn.model_selection import StratifiedShuffleSplit

    labels = _labels(examples)
    sizes = Counter(labels.tolist())
    divisible = np.flatnonzero([sizes[label] > 1 for label in labels])
    kinds = sum(size > 1 for size in sizes.values())
    if kinds == 0:
        raise DataError(
            f"{len(examples)} rows, none of which shares its label with another, cannot be "
            "divided; expected at least two rows of a label"
        )
    # scikit-learn wants room for every label on either side.
    test_size = min(max(count, kinds), len(divisible) - kinds)
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=test_size, random_state=seed)
    _, held = next(splitter.split(divisible, labels[divisible]))
    return [int(index) for index in divisible[held]]


def _held_groups(examples: Sequence[Example], count: int, seed: int) -> list[int]:
    import numpy as np
    from sklearn.model_selection import StratifiedGroupKFold

    labels = _labels(examples)
    # A row without a group is a group of its own.
    keys = [(0, e.group) if e.group is not None else (1, str(i)) for i, e in enumerate(examples)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    groups = np.array([numbers[key] for key in keys])
    largest_class = max(Counter(labels.tolist()).values())
    wanted = round(len(examples) / count)
    folds = min(max(wanted, 2), len(numbers), largest_class)
    if folds < 2:
        raise DataError(
            f"{len(examples)} rows in {len(numbers)} group(s) cannot be divided; expected at least "
            "two groups and two rows of a label"
        )
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A label rarer than the folds is nothing a user could change.
        warnings.filterwarnings("ignore", message="The least populated class")
        held = [fold for _, fold in splitter.split(groups, labels, groups)]
    held = [fold for fold in held if 0 < len(fold) < len(examples)]
    # The splitter deals groups of mixed labels in nearly the same order whatever the seed, so the
    # seed also chooses the fold, among the half of them nearest to the size asked for.
    held.sort(key=lambda fold: abs(len(fold) - count))
    nearest = held[: max(1, len(held) // 2)]
    return [int(i) for i in nearest[np.random.default_rng(seed).integers(len(nearest))]]


def _labels(examples: Sequence[Example]) -> np.ndarray:
    import numpy as np

    return np.array([_UNLABELLED if e.label is None else e.label for e in examples], dtype=int)
