"""Saved tensors: their keys, which name no adapter, and what is refused when they are loaded.

in the model   …smop.smop_adapters.<adapter>.prompts   .router   .steps   .network.…
saved          …smop.smop_adapters.prompts             .router   .steps   .network.…
version 1      …smop.smop_prompts   .smop_routers   .smop_steps   .smop_networks.…
"""

from __future__ import annotations

import zlib
from dataclasses import fields

import torch
from torch import Tensor, nn

from peft_smop.errors import CheckpointError
from peft_smop.tuner.routing import RoutingStrategy

CONTAINER = "smop.smop_adapters."
_VERSION_1 = {
    "smop.smop_prompts": CONTAINER + "prompts",
    "smop.smop_routers": CONTAINER + "router",
    "smop.smop_steps": CONTAINER + "steps",
    "smop.smop_networks.": CONTAINER + "network.",
}


def saved_key(key: str, adapter_name: str) -> str:
    """A tensor's key without its adapter's name."""
    return key.replace(f"{CONTAINER}{adapter_name}.", CONTAINER, 1)


def newest_key(key: str) -> str:
    """A saved key as this version writes it."""
    for old, new in _VERSION_1.items():
        before, found, after = key.partition(old)
        if found and (old.endswith(".") or not after):
            return before + new + after
    return key


def settings_of(routing: str, strategy: RoutingStrategy, parameterisation: str) -> int:
    """A hash of the options without which an adapter's tensors mean something else."""
    said = {
        one.name: getattr(strategy, one.name)
        for one in fields(strategy)
        if getattr(strategy, one.name) != one.default  # a later version may have more of them
    }
    return zlib.crc32(repr((routing, sorted(said.items()), parameterisation)).encode())


def loaded_keys(
    model: nn.Module, adapter_name: str, tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """A saved adapter's tensors by the model's keys; others stay as they are.

    The values get memory of their own: a file mapped into memory need not be aligned as matrix
    products want it, and then answers with other last digits.

    Raises:
        CheckpointError: a tensor is missing, is not expected, is not of floating point, or has
            another shape.
    """
    part = f"{CONTAINER}{adapter_name}."
    wanted = {
        key.rpartition(part)[2]: (key, value)
        for key, value in model.state_dict().items()
        if part in key
    }
    found: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for key, value in tensors.items():
        _, ours, name = newest_key(key).rpartition(CONTAINER)
        if ours:
            found[name] = value
        else:
            others[key] = value
    own, said = wanted["settings"][1], found.get("settings")
    if said is None:
        found["settings"] = own  # version 1 did not say
    elif int(said) != int(own):
        raise CheckpointError(
            f"the saved adapter was trained with other options than those of {adapter_name!r} here"
            " (routing or parameterisation): its configuration was changed, or it is loaded over"
            " another adapter; load it as it was saved, under a name of its own"
        )
    for problem, names in (
        ("has no", wanted.keys() - found.keys()),
        ("has an unexpected", found.keys() - wanted.keys()),
    ):
        if names:
            raise CheckpointError(
                f"the saved adapter loaded as {adapter_name!r} {problem}"
                f" {', '.join(sorted(names))};"
                f" expected {', '.join(sorted(wanted))}, as its configuration says"
            )
    loaded = {}
    for part_name, value in found.items():
        key, own = wanted[part_name]
        kind = torch.is_floating_point(own)
        if torch.is_floating_point(value) != kind or value.shape != own.shape:
            raise CheckpointError(
                f"the saved adapter loaded as {adapter_name!r} has {part_name} of {value.dtype} and"
                f" shape {tuple(value.shape)}; expected {own.dtype} and shape {tuple(own.shape)}"
            )
        loaded[key] = value.to(own.dtype, copy=True)
    return {**others, **loaded}
