"""Which part of a model sees the input embeddings, and how to talk to it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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


def cache_of(known: Mapping[str, Any]) -> Any:
    """The KV cache among a call's arguments or results, by either of the names it goes by."""
    # the new name first: transformers 5.24 warns when the old one is asked for
    cache = known.get("cache")
    return known.get("past_key_values") if cache is None else cache


_WRAPPERS_NEVER_CALLED = ("opt",)
"""Model types whose head calls what its base model wraps, past the base model itself."""


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
    num_positions: int | None
    """How many positions it has, where it has learned them one by one."""
    slack: Literal["left", "right", "pressed"]
    """Where a shorter prompt of a mixed batch leaves its unused slots, see `Layout.of`."""
    padding_id: int | None
    """The token that is only ever padding."""
    predicts_next: bool
    """Whether logits belong to the token after, as a causal LM's do."""

    @property
    def embedding(self) -> nn.Module:
        """The input embedding."""
        return self.module.get_input_embeddings()

    @classmethod
    def of(cls, model: nn.Module) -> Backbone:
        """Find the encoder of an encoder-decoder, else the base model under the head.

        Raises:
            ConfigError: the model has no input embedding, or nothing in it is a transformers model.
        """
        if not isinstance(model, PreTrainedModel):
            raise ConfigError(
                f"a {type(model).__name__} is not a transformers model; SMoP needs one to put"
                f" prompts before"
            )
        decoder = _decoder(model)
        module = model.get_encoder() if decoder is not None else _reader(model)
        if not isinstance(module, PreTrainedModel) or _embedding(module) is None:
            raise ConfigError(
                f"{type(model).__name__} has no input embedding to put prompts before"
            )
        names = parameter_names(module)
        if "inputs_embeds" not in names:
            raise ConfigError(
                f"{type(module).__name__} takes no inputs_embeds, so no prompt can be put before"
                f" its input"
            )
        for state in ("cache_params", "state"):
            if state in names:
                raise ConfigError(
                    f"{type(model).__name__} carries its past in {state}, not in a key-value cache,"
                    " and would be given the prompt again at every step; use a model with attention"
                )
        name, table = _position_table(module)
        # RoBERTa's positions begin after its padding's; other tables of that kind add to them
        padding = getattr(table, "padding_idx", None) if name == "position_embeddings" else None
        first = 0 if padding is None else padding + 1
        places = getattr(getattr(module, "embeddings", None), "position_ids", None)
        if places is not None and places.numel():
            first = max(first, int(places.flatten()[0]))
        takes_positions = "position_ids" in names
        predicts_next = decoder is None and model.can_generate()
        slack: Literal["left", "right", "pressed"] = "left"
        if table is not None and not takes_positions:
            slack = "right" if predicts_next else "pressed"
        learned = table if isinstance(table, nn.Embedding) else None
        # OPT and BART keep two rows before the first position
        reserved = max(first, getattr(table, "offset", 0) or 0)
        return cls(
            module=module,
            decoder=decoder,
            pooler=getattr(module, "pooler", None),
            takes_positions=takes_positions,
            first_position=first,
            num_positions=None if learned is None else learned.num_embeddings - reserved,
            slack=slack,
            padding_id=_padding_id(model.config.get_text_config()),
            predicts_next=predicts_next,
        )


def _decoder(model: PreTrainedModel) -> nn.Module | None:
    """The decoder of an encoder-decoder; None where only the encoder is there."""
    if not model.config.is_encoder_decoder or "decoder_input_ids" not in parameter_names(model):
        return None
    return model.get_decoder()


def _reader(model: PreTrainedModel) -> nn.Module | None:
    """The outermost part that reads embeddings: inside it nothing has been made of them yet.

    Where the outermost one is never called, the innermost.
    """
    embedding = _embedding(model)
    base = model.base_model
    holders = [
        (name.count(".") + bool(name), part)
        for name, part in model.named_modules()
        if isinstance(part, PreTrainedModel) and _share(_embedding(part), embedding)
    ]
    reads = any(part is base and "inputs_embeds" in parameter_names(part) for _, part in holders)
    has_head = isinstance(base, PreTrainedModel) and base.get_output_embeddings() is not None
    if reads and not has_head and model.config.model_type not in _WRAPPERS_NEVER_CALLED:
        return base
    return max(holders, key=lambda holder: holder[0])[1] if holders else None


def _embedding(part: Any) -> nn.Module | None:
    """A part's input embedding; None where it has none, as a vision tower."""
    try:
        return part.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None


def _position_table(module: nn.Module) -> tuple[str, nn.Module | None]:
    """What positions are looked up in: a table that was learned, or one of sinusoids."""
    for name, part in module.named_modules():
        if (last := name.rsplit(".", 1)[-1]) in ("position_embeddings", "embed_positions", "wpe"):
            return last, part
    return "", None


def _padding_id(config: Any) -> int | None:
    """The padding token, unless it also ends or begins texts."""
    padding = getattr(config, "pad_token_id", None)
    others: list[Any] = []
    for key in ("bos_token_id", "eos_token_id", "sep_token_id"):
        value = getattr(config, key, None)
        others += value if isinstance(value, list) else [value]
    return padding if isinstance(padding, int) and padding not in others else None


def _share(one: nn.Module | None, other: nn.Module | None) -> bool:
    """Whether two embeddings are the same table; tied ones are two modules around one weight."""
    if one is None or other is None:
        return False
    return one is other or getattr(one, "weight", one) is getattr(other, "weight", other)
