"""Rows and adapters: which row follows which adapter, and what it was given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from peft_smop.errors import ConfigError

BASE = "__base__"
"""PEFT's name for a row that no adapter touches."""


@dataclass(frozen=True)
class RowAdapters:
    """Which adapter each row of a batch uses."""

    names: tuple[str, ...]
    """The adapters in the batch, each once; without `__base__`."""
    of_row: tuple[int, ...] | None
    """For every row its place in `names`, -1 for `__base__`; None: all rows use the only name."""
    rows: int

    @classmethod
    def of(cls, active: str, adapter_names: Sequence[str] | None, rows: int) -> RowAdapters:
        """Spread a caller's `adapter_names` over the rows the backbone sees.

        Beams and returned sequences repeat every row the same number of times, next to each other.

        Raises:
            ConfigError: the names do not divide the rows.
        """
        if adapter_names is None:
            return cls((active,), None, rows)
        if len(adapter_names) == 0 or rows % len(adapter_names):
            raise ConfigError(
                f"adapter_names has {len(adapter_names)} entries for a batch of {rows} rows; give"
                f" one name per row"
            )
        repeats = rows // len(adapter_names)
        names = tuple(dict.fromkeys(name for name in adapter_names if name != BASE))
        if len(names) == 1 and BASE not in adapter_names:
            return cls(names, None, rows)
        place = {name: i for i, name in enumerate(names)}
        return cls(
            names, tuple(place.get(n, -1) for n in adapter_names for _ in range(repeats)), rows
        )

    @property
    def of_each_row(self) -> tuple[int, ...]:
        """`of_row`, written out."""
        return (0,) * self.rows if self.of_row is None else self.of_row

    def count(self, name: str) -> int:
        """How many rows follow an adapter."""
        return self.of_each_row.count(self.names.index(name))


@dataclass(frozen=True)
class Part:
    """Some rows of a training step that is computed in several passes."""

    ranks: Int[Tensor, "b"]
    """Each row's place among the step's rows of its adapter; randomness hangs on it."""
    total: Mapping[str, int]
    """How many rows of the step follow each adapter."""


@dataclass(frozen=True)
class Routes:
    """The last routing decision, row by row, free of any graph.

    Rows of `__base__` have index -1 and NaN elsewhere; so have the places a row does not use when a
    batch mixes adapters with different numbers of prompts.
    """

    adapters: tuple[str, ...]
    indices: Int[Tensor, "b t"]
    probabilities: Float[Tensor, "b t"]
    logits: Float[Tensor, "b k"]
    chosen: Int[Tensor, "b"]
    """The one prompt that each row's strategy chose; -1 where it mixes all alike."""


def ranks_of(names: Sequence[str]) -> list[int]:
    """Each row's place among the rows of its adapter."""
    seen: Counter[str] = Counter()
    ranks = []
    for name in names:
        ranks.append(seen[name])
        seen[name] += 1
    return ranks


def on_device(values: Sequence[int | float], device: torch.device) -> Tensor:
    """A tensor of known numbers, copied without the host waiting for the device."""
    if device.type != "cuda":
        return torch.tensor(values, device=device)
    return torch.tensor(values, pin_memory=True).to(device, non_blocking=True)
