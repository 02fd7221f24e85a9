"""Which part of a model sees the input embeddings, and how to talk to it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from peft_smop.errors import ConfigError


def parameter_names(module: nn.Module) -> tuple[str, ...]:
    """The names of `forward`'s parameters, in order, without the variadic ones."""
    parameters = inspect.signature(module.forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))


def bind(
    names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """All arguments of a call by name."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


@dataclass(frozen=True)
class Backbone:
    """The module before which the prompt is spliced, and what it needs to be told."""

    module: PreTrainedModel
    decoder: nn.Module | None
    """The decoder that reads the backbone's states, for encoder-decoders."""
    pooler: nn.Module | None
    """A pooler inside the backbone, which reads states before they come out."""
    takes_positions: bool
    """Whether `position_ids` can be given. If not, positions follow the slots."""
    first_position: int
    """What the backbone calls the position of the first token."""

    @property
    def embedding(self) -> nn.Module:
        """The input embedding."""
        return self.module.get_input_embeddings()

    @classmethod
    def of(cls, model: nn.Module) -> Backbone:
        """Find the encoder of an encoder-decoder, else the deepest holder of the input embedding.

        "Deepest" matters: `OPTForCausalLM` never calls the model it wraps, only its decoder.

        Raises:
            ConfigError: the model has no input embedding, or nothing in it is a transformers model.
        """
        if not isinstance(model, PreTrainedModel):
            raise ConfigError(
                f"a {type(model).__name__} is not a transformers model; SMoP needs one to put"
                f" prompts before"
            )
        decoder = None
        if model.config.is_encoder_decoder:
            module, decoder = model.get_encoder(), model.get_decoder()
        else:
            embedding = model.get_input_embeddings()
            holders = [
                (name.count(".") + bool(name), part)
                for name, part in model.named_modules()
                if isinstance(part, PreTrainedModel)
                and _share(part.get_input_embeddings(), embedding)
            ]
            if embedding is None or not holders:
                raise ConfigError(
                    f"{type(model).__name__} has no input embedding to put prompts before"
                )
            module = max(holders, key=lambda holder: holder[0])[1]
        if "inputs_embeds" not in parameter_names(module):
            raise ConfigError(
                f"{type(module).__name__} takes no inputs_embeds, so no prompt can be put before"
                f" its input"
            )
        table = next(
            (part for name, part in module.named_modules() if name.endswith("position_embeddings")),
            None,
        )
        padding_index = getattr(table, "padding_idx", None)
        return cls(
            module=module,
            decoder=decoder,
            pooler=getattr(module, "pooler", None),
            takes_positions="position_ids" in parameter_names(module),
            first_position=0 if padding_index is None else padding_index + 1,
        )


def _share(one: nn.Module | None, other: nn.Module | None) -> bool:
    """Whether two embeddings are the same table; tied ones are two modules around one weight."""
    if one is None or other is None:
        return False
    return one is other or getattr(one, "weight", one) is getattr(other, "weight", other)
