"""Saved tensors: their keys, which name no adapter, and what is refused when they are loaded.

in the model   …smop.smop_adapters.<adapter>.prompts   .router   .steps   .network.…
saved          …smop.smop_adapters.prompts             .router   .steps   .network.…
version 1      …smop.smop_prompts   .smop_routers   .smop_steps   .smop_networks.…
"""

from __future__ import annotations

import zlib
from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from peft_smop.errors import CheckpointError
from peft_smop.tuner.routing import RoutingStrategy

if TYPE_CHECKING:
    from peft_smop.tuner.config import SMoPConfig

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


def settings_of(config: SMoPConfig, strategy: RoutingStrategy) -> int:
    """A hash of the options without which an adapter's tensors mean something else."""
    said = {
        one.name: float(getattr(strategy, one.name))  # 2 and 2.0 are the same
        for one in fields(strategy)
        if getattr(strategy, one.name) != one.default  # a later version may have more of them
    }
    rest: tuple[object, ...] = (config.parameterisation, config.router_scope)
    if config.position != "before":
        rest = (*rest, config.position)
    if config.pooling != "own":
        rest = (*rest, config.pooling)
    return zlib.crc32(repr((config.routing, sorted(said.items()), *rest)).encode())


def loaded_keys(
    model: nn.Module, adapter_name: str, tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """A saved adapter's tensors by the model's keys; those of its heads stay as they are.

    The values get memory of their own: a file mapped into memory need not be aligned as matrix
    products want it, and then answers with other last digits.

    Raises:
        CheckpointError: a tensor is missing, is not expected, or is of another kind or shape; or it
            was trained with other options; or it would replace weights of the model.
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
        if ours and name in found:
            raise CheckpointError(
                f"the saved adapter loaded as {adapter_name!r} has {name} twice, in two formats;"
                " expected it once"
            )
        if ours:
            found[name] = value
        else:
            others[key] = value
    own, said = wanted["settings"][1], found.get("settings")
    is_version_1 = any(newest_key(key) != key for key in tensors)
    if said is None and is_version_1:
        found["settings"] = own  # it did not say
    elif said is not None and said.shape == own.shape and int(said) != int(own):
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
    present = model.state_dict()
    strangers = [key for key in others if f".modules_to_save.{adapter_name}." not in key]
    for key in list(strangers):
        # PEFT saves embeddings of its own accord after a vocabulary was resized
        if ".original_module." in key or (key in present and _equal(others[key], present[key])):
            strangers.remove(key)
            del others[key]
    if strangers:
        raise CheckpointError(
            f"the saved adapter loaded as {adapter_name!r} has {', '.join(sorted(strangers))},"
            " which would replace weights of the model itself: its configuration does not list them"
            " in modules_to_save; take them out, or list their module there (after resizing a"
            " vocabulary, save the resized model as the base, and the adapter with"
            " save_embedding_layers=False)"
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
        if part_name == "steps" and int(value) < 0:
            raise CheckpointError(
                f"the saved adapter loaded as {adapter_name!r} was trained for {int(value)} steps;"
                " expected 0 or more"
            )
        loaded[key] = value.to(own.dtype, copy=True)
    return {**others, **loaded}


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values, wherever they are."""
    return one.shape == other.shape and torch.equal(one.to(other.device, other.dtype), other)
