"""The hooks that put soft prompts before a backbone and keep everything around it in step.

    model ─┬─ before_model: labels, for routing on the context
           └─ backbone ─┬─ before_backbone: ids → embeddings → [padding; prompt; tokens], mask,
           positions, types
                        ├─ before_pooler: prompt positions dropped (BERT pools inside the backbone)
                        └─ after_backbone: prompt positions dropped, for everything without a
                        decoder
              decoder ──── before_decoder: the encoder's mask grows with the encoder's states

They are bound methods of one object and stay registered from injection to unloading, so that a
model can be copied, pickled and compiled. While a KV cache holds the prompt nothing is spliced;
masks and positions still count it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from peft_smop.errors import ConfigError, PromptIgnoredError
from peft_smop.tuner.backbone import Backbone, bind, parameter_names
from peft_smop.tuner.layer import SMoPLayer
from peft_smop.tuner.rows import BASE, RowAdapters
from peft_smop.tuner.splice import Layout, context_mask, left_padding, mean_embedding


@dataclass
class Call:
    """One forward or generate through PEFT: one routing decision, whatever the passes."""

    adapter_names: Sequence[str] | None = None
    prompts: Tensor | None = None
    seen: bool = False


class PromptHooks:
    """The hooks of one model, and the little that has to be remembered between them."""

    def __init__(self, layer: SMoPLayer, model: nn.Module, backbone: Backbone) -> None:
        self.layer = layer
        self.call: Call | None = None
        self.context_adapters: set[str] = set()
        self._names = parameter_names(backbone.module)
        self._model_names = parameter_names(model)
        self._decoder_names = parameter_names(backbone.decoder) if backbone.decoder else ()
        self._takes_positions = backbone.takes_positions
        self._first_position = backbone.first_position
        self._drops = backbone.decoder is None
        self._labels: Tensor | None = None
        self._layout: Layout | None = None

    def register(self, model: nn.Module, backbone: Backbone) -> None:
        """Register every hook that this kind of backbone needs."""
        model.register_forward_pre_hook(self.before_model, with_kwargs=True)
        backbone.module.register_forward_pre_hook(self.before_backbone, with_kwargs=True)
        if backbone.decoder is not None:
            backbone.decoder.register_forward_pre_hook(self.before_decoder, with_kwargs=True)
        else:
            backbone.module.register_forward_hook(self.after_backbone)
            if backbone.pooler is not None:
                backbone.pooler.register_forward_pre_hook(self.before_pooler)

    def unregister(self, model: nn.Module) -> None:
        """Remove every hook of this object from the model."""
        for module in model.modules():
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for key in [
                    k for k, hook in hooks.items() if getattr(hook, "__self__", None) is self
                ]:
                    del hooks[key]
                    module._forward_pre_hooks_with_kwargs.pop(key, None)

    def _row_adapters(self, rows: int) -> RowAdapters | None:
        """Which adapter each row uses; None when adapters are disabled, absent, or touch no row."""
        if self.layer.disable_adapters:
            return None
        named = self.call.adapter_names if self.call else None
        active = self.layer.active_adapters
        if named is None and len(active) > 1:
            raise ConfigError(
                f"{len(active)} adapters are active ({', '.join(active)}) but a row can follow"
                f" only one;"
                " set one, or pass adapter_names with one name per row"
            )
        if named is None and not active:
            return None
        return RowAdapters.of(active[0] if active else BASE, named, rows)

    def _mark_seen(self) -> None:
        if self.call is not None:
            self.call.seen = True

    def before_model(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Keep the labels: they tell a causal LM's context from its answer."""
        self._labels = bind(self._model_names, args, kwargs).get("labels")

    def before_backbone(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        """Splice the prompt, or, behind a cache that holds it, count it."""
        self._layout = None
        given = bind(self._names, args, kwargs)
        ids, x = given.get("input_ids"), given.get("inputs_embeds")
        tokens = x if x is not None else ids
        if tokens is None:
            return None
        rows = self._row_adapters(tokens.shape[0])
        self._mark_seen()
        if rows is None or not rows.names:
            return None
        mask = given.get("attention_mask")
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            raise ConfigError(
                "soft prompts need the two-dimensional attention mask (rows, tokens); static"
                " caches and"
                " ready-made attention masks have no room for the prompt: use the default dynamic"
                " cache"
            )
        cache = given.get("past_key_values")
        past = cache.get_seq_length() if cache is not None else 0
        if past > 0:
            if not getattr(cache, "smop_holds_prompt", False):
                raise PromptIgnoredError(
                    "past_key_values was filled without the soft prompt, which would be ignored;"
                    " start from an empty cache"
                )
            return (), self._continued(given, rows, tokens, past)
        if x is None:
            x = module.get_input_embeddings()(ids)
        return (), self._spliced(given, rows, x)

    def _layout_for(
        self, rows: RowAdapters, mask: Tensor | None, like: Tensor, tokens: int
    ) -> Layout:
        lengths = self.layer.lengths(rows, like.device)
        padding = torch.zeros_like(lengths) if mask is None else left_padding(mask)
        return Layout.of(
            padding=padding,
            lengths=lengths,
            tokens=tokens,
            width=self.layer.width(rows),
            slack="left" if self._takes_positions else "right",
        )

    def _spliced(
        self, given: dict[str, Any], rows: RowAdapters, x: Float[Tensor, "b n e"]
    ) -> dict[str, Any]:
        mask = given.get("attention_mask")
        layout = self._layout_for(rows, mask, x, x.shape[1])
        given["input_ids"] = None
        given["inputs_embeds"] = layout.embeddings(self._prompts(x, mask, rows).to(x.dtype), x)
        if mask is not None or self.layer.is_uneven(rows):
            given["attention_mask"] = layout.mask(mask)
        if self._takes_positions and (
            given.get("position_ids") is not None or given.get("attention_mask") is not None
        ):
            # a caller's positions are kept; without any, counting from the prompt makes left
            # padding harmless
            given["position_ids"] = layout.positions(
                given.get("position_ids"), first=self._first_position
            )
        if given.get("token_type_ids") is not None:
            given["token_type_ids"] = layout.token_types(given["token_type_ids"])
        if self._drops:
            self._layout = layout
        return given

    def _continued(
        self, given: dict[str, Any], rows: RowAdapters, tokens: Tensor, past: int
    ) -> dict[str, Any]:
        mask, positions = given.get("attention_mask"), given.get("position_ids")
        if mask is None and not self.layer.is_uneven(rows) and positions is None:
            return given  # the cache is longer by the prompt, and positions follow its length
        width = self.layer.width(rows)
        total = mask.shape[1] if mask is not None else past - width + tokens.shape[1]
        layout = self._layout_for(rows, mask, tokens, total)
        if mask is not None or self.layer.is_uneven(rows):
            given["attention_mask"] = layout.mask(mask)
        if not self._takes_positions:
            return given
        if positions is not None:
            given["position_ids"] = positions + layout.lengths[:, None]
        else:
            given["position_ids"] = layout.positions(None, first=self._first_position)[:, past:]
        return given

    def _prompts(self, x: Tensor, mask: Tensor | None, rows: RowAdapters) -> Float[Tensor, "b l e"]:
        """Every row's scaled prompt; decided once for a whole generation."""
        if self.call is not None and self.call.prompts is not None:
            pinned = self.call.prompts
            if len(x) % len(pinned) == 0:
                return pinned.repeat_interleave(len(x) // len(pinned), dim=0)
        with torch.autocast(x.device.type, enabled=False):
            mean = mean_embedding(x, self._router_mask(x, mask, rows))
            prompts = self.layer.soft_prompts(mean, rows)
        if self.call is not None:
            self.call.prompts = prompts
        return prompts

    def _router_mask(self, x: Tensor, mask: Tensor | None, rows: RowAdapters) -> Tensor | None:
        """The tokens that each row's router reads."""
        attended = None if mask is None else mask != 0
        labels = self._labels
        scoped = [name in self.context_adapters for name in rows.names]
        if labels is None or not any(scoped) or labels.shape != x.shape[:2]:
            return attended
        if attended is None:
            attended = torch.ones_like(labels, dtype=torch.bool)
        context = context_mask(labels, attended)
        if all(scoped):
            return context
        reads_context = torch.tensor(
            [a >= 0 and scoped[a] for a in rows.of_each_row], device=x.device
        )
        return torch.where(reads_context[:, None], context, attended)

    def after_backbone(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Drop the prompt's positions: heads, losses and callers see the tokens they know."""
        cache = output.get("past_key_values") if hasattr(output, "get") else None
        if cache is not None:
            cache.smop_holds_prompt = self._layout is not None or getattr(
                cache, "smop_holds_prompt", False
            )
        layout, self._layout = self._layout, None
        if layout is None:
            return output
        if isinstance(output, Tensor):
            return layout.drop(output)
        if isinstance(output, tuple):
            # transformers puts the last states first and tuples of all states behind; a pooled
            # output has two axes
            return tuple(
                _drop_states(layout, part) if i != 1 else part for i, part in enumerate(output)
            )
        for name in ("last_hidden_state", "hidden_states"):
            if output.get(name) is not None:
                output[name] = _drop_states(layout, output[name])
        return output

    def before_pooler(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Pool the first token, not the first virtual token."""
        if self._layout is None:
            return None
        return (self._layout.drop(args[0]), *args[1:])

    def before_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        """Extend the encoder's mask to the encoder's states, wherever those came from.

        Raises:
            PromptIgnoredError: the states were computed without the prompt and have no room for it.
        """
        given = bind(self._decoder_names, args, kwargs)
        states, mask = given.get("encoder_hidden_states"), given.get("encoder_attention_mask")
        self._mark_seen()
        rows = None if states is None else self._row_adapters(states.shape[0])
        if states is None or rows is None or not rows.names:
            return None
        width = self.layer.width(rows)
        if mask is None:
            if not self.layer.is_uneven(rows):
                return None
        elif mask.shape[1] + width != states.shape[1]:
            raise PromptIgnoredError(
                f"encoder_outputs have {states.shape[1]} positions for {mask.shape[1]} tokens and"
                f" a prompt of"
                f" {width}: they were computed without this adapter's soft prompt; compute them"
                f" through the model"
            )
        layout = self._layout_for(rows, mask, states, states.shape[1] - width)
        given["encoder_attention_mask"] = layout.mask(mask)
        return (), given


def _drop_states(layout: Layout, states: Any) -> Any:
    """Drop the prompt's positions from states (b, s, d) or a tuple of such."""
    if isinstance(states, tuple):
        return tuple(_drop_states(layout, part) for part in states)
    return layout.drop(states) if isinstance(states, Tensor) else states
