"""Which row follows which adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from peft_smop.errors import ConfigError

BASE = "__base__"
"""PEFT's name for a row that no adapter touches."""


@dataclass(frozen=True)
class RowAdapters:
    """Which adapter each row of a pass follows."""

    names: tuple[str, ...]
    """The adapters in the pass, each once; without `__base__`."""
    of_row: tuple[int, ...] | None
    """For every row its place in `names`, -1 for `__base__`; None: all rows follow the only one.

    Then nothing has an entry per row, so that a compiled graph serves any number of them."""
    count: int
    """How many rows there are, b."""

    @classmethod
    def of(
        cls,
        active: Sequence[str],
        adapter_names: Sequence[str] | None,
        count: int,
        *,
        repeated: bool = True,
    ) -> RowAdapters | None:
        """Spread a caller's `adapter_names` over the rows that a backbone sees.

        Args:
            active: the active adapters.
            adapter_names: one for each row; None: all follow the active one.
            count: the rows.
            repeated: whether rows may stand there several times, next to each other, as beams do.

        Returns:
            None where no adapter is active or named.

        Raises:
            ConfigError: the names do not fit the rows, or several adapters are active and none is
                named.
        """
        if adapter_names is None:
            if len(active) > 1:
                raise ConfigError(
                    f"{len(active)} adapters are active ({', '.join(active)}) but a row can follow"
                    " only one; set one, or pass adapter_names with one name per row"
                )
            return cls((active[0],), None, count) if active else None
        repeats = repeats_of(adapter_names, count)
        if repeats > 1 and not repeated:
            raise ConfigError(
                f"adapter_names has {len(adapter_names)} entries for a batch of {count} rows; give"
                " one name per row"
            )
        names = tuple(dict.fromkeys(name for name in adapter_names if name != BASE))
        if len(names) == 1 and BASE not in adapter_names:
            return cls(names, None, count)
        place = {name: i for i, name in enumerate(names)}
        return cls(
            names, tuple(place.get(n, -1) for n in adapter_names for _ in range(repeats)), count
        )

    def rows_of(self, name: str) -> int:
        """How many rows follow an adapter."""
        return self.count if self.of_row is None else self.of_row.count(self.names.index(name))

    def name_of_each(self) -> tuple[str, ...]:
        """Every row's adapter."""
        if self.of_row is None:
            return self.names * self.count
        return tuple(self.names[a] if a >= 0 else BASE for a in self.of_row)

    def continues(self, other: RowAdapters) -> bool:
        """Whether these rows are the other ones, each repeated as often as the others."""
        if self.names != other.names or other.count == 0 or self.count % other.count:
            return False
        if self.of_row is None or other.of_row is None:
            return self.of_row is other.of_row
        repeats = self.count // other.count
        return self.of_row == tuple(a for a in other.of_row for _ in range(repeats))


def check_adapter_names(adapter_names: Any, known: Iterable[str]) -> None:
    """Refuse names that a batch cannot follow.

    Raises:
        ConfigError: they are no list of texts, or one is unknown.
    """
    if isinstance(adapter_names, str) or not isinstance(adapter_names, Sequence):
        raise ConfigError(
            f"adapter_names={adapter_names!r} must be a list with one adapter's name for each row"
        )
    for name in adapter_names:
        if not isinstance(name, str):
            raise ConfigError(
                f"adapter_names has {name!r}, which is no text; give one adapter's name for each"
                " row"
            )
    missing = sorted(set(adapter_names) - set(known) - {BASE})
    if missing:
        raise ConfigError(
            f"adapter_names has unknown adapters {', '.join(missing)}; known:"
            f" {', '.join([*sorted(known), BASE])}"
        )


def check_new_name(name: Any, parts: Iterable[str] = ()) -> None:
    """Refuse a name by which an adapter could not be saved, loaded or asked for.

    Args:
        name: the new adapter's.
        parts: names of an adapter's own tensors and modules, which keys would confuse it with.

    Raises:
        ConfigError: with the reason.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"adapter_name={name!r} must be a text")
    if name == BASE:
        raise ConfigError(f"adapter_name={name!r} means rows without an adapter; choose another")
    if "." in name:
        raise ConfigError(
            f"adapter_name={name!r} has a dot, which separates parts of names; leave it out"
        )
    if name in set(parts) or hasattr(nn.ModuleDict(), name):
        raise ConfigError(
            f"adapter_name={name!r} is the name of a part of adapters; choose another"
        )


def repeats_of(adapter_names: Sequence[str], count: int) -> int:
    """How often each named row stands in `count` rows.

    Raises:
        ConfigError: the names do not divide the rows.
    """
    if len(adapter_names) == 0 or count % len(adapter_names):
        raise ConfigError(
            f"adapter_names has {len(adapter_names)} entries for a batch of {count} rows; give one"
            " name per row"
        )
    return count // len(adapter_names)


def by_adapter(
    adapter_names: Sequence[str],
    x: Float[Tensor, "rows ..."],
    apply: Callable[[str, Tensor], Tensor],
) -> Float[Tensor, "rows ..."]:
    """Apply to each row what its adapter makes of it.

    Beams and returned sequences repeat every row of the batch the same number of times, next to
    each other; so do backbones that lay a row's tokens one below the other (OPT).

    Args:
        adapter_names: one name for each row of the batch.
        x: the rows, each as often as the others.
        apply: what an adapter, by name, makes of its rows.

    Raises:
        ConfigError: the names do not divide the rows.
    """
    repeats = repeats_of(adapter_names, len(x))
    rows: dict[str, list[int]] = {}
    for i in range(len(x)):
        rows.setdefault(adapter_names[i // repeats], []).append(i)
    parts = torch.cat([apply(name, x[own]) for name, own in rows.items()])
    order = torch.tensor([i for own in rows.values() for i in own], device=x.device)
    return parts[order.argsort()]


def on_device(values: Sequence[int | float], device: torch.device) -> Tensor:
    """A tensor of known numbers, copied without the host waiting for the device."""
    if device.type != "cuda":
        return torch.tensor(values, device=device)
    return torch.tensor(values, pin_memory=True).to(device, non_blocking=True)
