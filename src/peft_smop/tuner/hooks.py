"""The hooks that put soft prompts before a backbone and keep everything around it in step.

    model ─┬─ before_model: labels, for routing on the context
           ├─ after_model:  in training, the routing's own losses join the model's
           └─ backbone ─┬─ before_backbone: ids → embeddings → [padding; prompt; tokens]
                        │                   with mask, positions and token types
                        ├─ before_pooler:   BERT pools inside the backbone: the prompt dropped
                        └─ after_backbone:  the prompt dropped, where no decoder follows
              decoder ──── before_decoder:  the encoder's mask grows with its states
              heads ────── after_head:      every row its own adapter's

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
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from peft_smop.errors import ConfigError, PromptIgnoredError
from peft_smop.tuner.backbone import Backbone, bind, parameter_names
from peft_smop.tuner.layer import SMoPLayer
from peft_smop.tuner.losses import divergence
from peft_smop.tuner.noise import fingerprints
from peft_smop.tuner.rows import BASE, RowAdapters, on_device
from peft_smop.tuner.splice import IGNORED_LABEL, Layout, context_mask, left_padding, mean_embedding

WIDTH_IN_CACHE = "smop_prompt_width"
"""The attribute by which a KV cache says how many positions of a soft prompt it begins with."""


@dataclass
class Call:
    """One forward or generate through PEFT: one routing decision, whatever the passes."""

    adapter_names: Sequence[str] | None = None
    repeats: bool = True
    """Whether rows may come repeated, as beams do."""
    prompts: Tensor | None = None
    """Every row's scaled prompt, once it is decided."""
    seen: bool = False
    """Whether the backbone, or a decoder behind its states, was called."""


class PromptHooks:
    """The hooks of one model, and the little that has to be remembered between them."""

    def __init__(self, layer: SMoPLayer, model: nn.Module, backbone: Backbone) -> None:
        self.layer = layer
        self.call: Call | None = None
        self.context_adapters: set[str] = set()
        self._predicts_next = backbone.decoder is None and model.can_generate()
        """Whether logits belong to the token after, as a causal LM's do."""
        self._names = parameter_names(backbone.module)
        self._model_names = parameter_names(model)
        self._decoder_names = parameter_names(backbone.decoder) if backbone.decoder else ()
        self._takes_positions = backbone.takes_positions
        self._first_position = backbone.first_position
        self._drops = backbone.decoder is None
        self._as_tuple = False
        self._is_second_pass = False
        self._labels: Tensor | None = None
        self._routed: RowAdapters | None = None
        """The rows of this pass through the model, once they have been routed."""
        self._layout: Layout | None = None

    def register(self, model: nn.Module, backbone: Backbone) -> None:
        """Register every hook that this kind of backbone needs."""
        model.register_forward_pre_hook(self.before_model, with_kwargs=True)
        model.register_forward_hook(self.after_model, with_kwargs=True)
        backbone.module.register_forward_pre_hook(self.before_backbone, with_kwargs=True)
        if backbone.decoder is not None:
            backbone.decoder.register_forward_pre_hook(self.before_decoder, with_kwargs=True)
        else:
            backbone.module.register_forward_hook(self.after_backbone)
            if backbone.pooler is not None:
                backbone.pooler.register_forward_pre_hook(self.before_pooler)

    def register_heads(self, model: nn.Module) -> None:
        """Let heads that are trained with the prompts follow the rows' adapters."""
        for module in model.modules():
            if isinstance(module, ModulesToSaveWrapper) and not any(
                getattr(hook, "__self__", None) is self for hook in module._forward_hooks.values()
            ):
                module.register_forward_hook(self.after_head, with_kwargs=True)

    def unregister(self, model: nn.Module) -> None:
        """Remove every hook of this object from the model."""
        for module in model.modules():
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for key in [
                    k for k, hook in hooks.items() if getattr(hook, "__self__", None) is self
                ]:
                    del hooks[key]
                    module._forward_pre_hooks_with_kwargs.pop(key, None)
                    module._forward_hooks_with_kwargs.pop(key, None)

    def _row_adapters(self, rows: int) -> RowAdapters | None:
        """Which adapter each row uses; None when adapters are disabled, absent, or touch no row."""
        if self.layer.disable_adapters:
            return None
        named = self.call.adapter_names if self.call else None
        active = self.layer.active_adapters
        if named is None and len(active) > 1:
            raise ConfigError(
                f"{len(active)} adapters are active ({', '.join(active)}) but a row can follow"
                " only one; set one, or pass adapter_names with one name per row"
            )
        if named is None and not active:
            return None
        if named is not None and self.call and not self.call.repeats and len(named) != rows:
            raise ConfigError(
                f"adapter_names has {len(named)} entries for a batch of {rows} rows; give one"
                " name per row"
            )
        return RowAdapters.of(active[0] if active else BASE, named, rows)

    def _mark_seen(self) -> None:
        if self.call is not None:
            self.call.seen = True

    def before_model(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Keep the labels: they tell a causal LM's context from its answer."""
        self._routed = None
        self._labels = bind(self._model_names, args, kwargs).get("labels")

    def after_model(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Add to a training loss what the routing strategies ask for.

        Every adapter's terms count by its share of the rows, as its rows do in the mean loss. In a
        part of a step the loss is the caller's to compute, and the terms are left in
        `routing_losses`.
        """
        if not self.layer.training or self._is_second_pass or self.layer.disable_adapters:
            return output
        given = bind(self._model_names, args, kwargs)
        labels = given.get("labels")
        rows = self._routed
        if labels is None or rows is None:
            return output
        part = self.layer.part
        total = part.total if part else {name: rows.count(name) for name in rows.names}
        terms = dict(self.layer.penalty_terms)
        weights = self.layer.divergence_weights(rows)
        if weights is not None:
            other = self._routed_again(module, args, kwargs, rows)
            apart = self._apart(_logits(output, labels), _logits(other, labels), labels)
            for place, name in enumerate(rows.names):
                own = [
                    w if a == place else 0.0 for w, a in zip(weights, rows.of_each_row, strict=True)
                ]
                if any(own):
                    term = (on_device(own, apart.device) * apart).sum() / total[name]
                    terms[name] = terms[name] + term if name in terms else term
        self.layer.routing_losses = terms
        if part is not None or not terms:
            return output
        mean = torch.stack([total[name] / rows.rows * term for name, term in terms.items()]).sum()
        extra = mean * self._share_of_step(kwargs, labels)
        if isinstance(output, tuple):
            return (output[0] + extra, *output[1:])
        output["loss"] = output["loss"] + extra
        return output

    def _routed_again(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Any, rows: RowAdapters
    ) -> Any:
        """The same rows through the model once more, with other routes."""
        first = self.layer.remember()
        if self.call is not None:
            self.call.prompts = None
        self._is_second_pass = True
        try:
            with self.layer.second_pass(rows):
                return module(*args, **kwargs)
        finally:
            self._is_second_pass = False
            self.layer.restore(first)

    def _share_of_step(self, kwargs: dict[str, Any], labels: Tensor) -> Tensor | float:
        """This pass's part of a step that is accumulated over several.

        A trainer that says how many labels the whole step counts adds the passes' losses up as they
        are, and means each to be its own labels' share.
        """
        total = kwargs.get("num_items_in_batch")
        if total is None:
            return 1.0
        counted = labels[:, 1:] if self._predicts_next and labels.dim() == 2 else labels
        return (counted != IGNORED_LABEL).sum() / total

    def _apart(self, one: Tensor, other: Tensor, labels: Tensor) -> Float[Tensor, "b"]:
        """Each row's divergence, averaged over the positions that have a label."""
        if one.dim() == 2:
            return divergence(one, other)
        if self._predicts_next:
            one, other, labels = one[:, :-1], other[:, :-1], labels[:, 1:]
        counted = (labels != IGNORED_LABEL).float()
        total = (divergence(one, other) * counted).sum(dim=1)
        return total / counted.sum(dim=1).clamp(min=1)

    def before_backbone(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        """Splice the prompt, or, behind a cache that holds it, count it."""
        self._layout = None
        # taken up here and by no later pass
        labels, self._labels = self._labels, None
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
        cache = given.get("past_key_values")
        if getattr(cache, "is_compileable", False) or (
            mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2)
        ):
            raise ConfigError(
                "soft prompts need the two-dimensional attention mask (rows, tokens); static caches"
                " and ready-made masks have no room for the prompt: use the default dynamic cache"
            )
        past = cache.get_seq_length() if cache is not None else 0
        if past > 0:
            self._check_cache(cache, rows, given, past + tokens.shape[1])
            return (), self._continued(given, rows, tokens, past)
        if x is None:
            x = module.get_input_embeddings()(ids)
        self._as_tuple = given.get("return_dict") is False
        if self._drops and self._as_tuple:
            given["return_dict"] = True  # states are dropped by name, not by place
        return (), self._spliced(given, rows, x, ids, labels)

    def _check_cache(
        self, cache: Any, rows: RowAdapters, given: dict[str, Any], total: int
    ) -> None:
        """Refuse a cache whose content does not go with this batch's prompts.

        Raises:
            PromptIgnoredError: it was filled without a prompt, or with another adapter's.
            ConfigError: the new tokens do not continue it.
        """
        width, held = self.layer.width(rows), getattr(cache, WIDTH_IN_CACHE, 0)
        if held != width:
            filled = f"with a soft prompt of {held}" if held else "without the soft prompt"
            raise PromptIgnoredError(
                f"past_key_values was filled {filled}, but this adapter's has {width} virtual"
                " tokens; start from an empty cache"
            )
        mask, positions = given.get("attention_mask"), given.get("position_ids")
        tokens = total - width
        if mask is not None:
            tokens = mask.shape[1]
        elif positions is not None and self.call is not None and self.call.prompts is None:
            # the cache is older than this call, and only the positions tell what it should hold
            tokens = int(positions[0, -1]) + 1
        if tokens + width != total:
            raise ConfigError(
                f"the cache and the new tokens have {total} positions, the text and its prompt"
                f" {tokens + width}; generate cannot go on from a cache that holds a soft prompt:"
                " leave past_key_values out"
            )

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
        self,
        given: dict[str, Any],
        rows: RowAdapters,
        x: Float[Tensor, "b n e"],
        ids: Tensor | None,
        labels: Tensor | None,
    ) -> dict[str, Any]:
        mask = given.get("attention_mask")
        layout = self._layout_for(rows, mask, x, x.shape[1])
        self._routed = rows
        given["input_ids"] = None
        given["inputs_embeds"] = layout.embeddings(
            self._prompts(x, ids, mask, rows, labels).to(x.dtype), x
        )
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

    def _prompts(
        self,
        x: Tensor,
        ids: Tensor | None,
        mask: Tensor | None,
        rows: RowAdapters,
        labels: Tensor | None,
    ) -> Float[Tensor, "b l e"]:
        """Every row's scaled prompt; decided once for a whole generation."""
        if self.call is not None and self.call.prompts is not None:
            pinned = self.call.prompts
            if len(x) % len(pinned) == 0:
                return pinned.repeat_interleave(len(x) // len(pinned), dim=0)
        with torch.autocast(x.device.type, enabled=False):
            read = self._router_mask(x, mask, rows, labels)
            content = None
            if ids is not None and self.layer.reads_content(rows):
                content = fingerprints(ids, read)
            prompts = self.layer.soft_prompts(mean_embedding(x, read), rows, content)
        if self.call is not None:
            self.call.prompts = prompts
        return prompts

    def _router_mask(
        self, x: Tensor, mask: Tensor | None, rows: RowAdapters, labels: Tensor | None
    ) -> Tensor | None:
        """The tokens that each row's router reads."""
        attended = None if mask is None else mask != 0
        scoped = [name in self.context_adapters for name in rows.names]
        if labels is None or not any(scoped):
            return attended
        if attended is None:
            attended = torch.ones_like(labels, dtype=torch.bool)
        context = context_mask(labels, attended)
        if all(scoped):
            return context
        reads_context = on_device([a >= 0 and scoped[a] for a in rows.of_each_row], x.device)
        return torch.where(reads_context[:, None], context, attended)

    def after_backbone(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Drop the prompt's positions: heads, losses and callers see the tokens they know."""
        cache = output.get("past_key_values") if hasattr(output, "get") else None
        layout, self._layout = self._layout, None
        if layout is None:
            return output
        if cache is not None:
            setattr(cache, WIDTH_IN_CACHE, layout.width)
        if not hasattr(output, "get"):
            return (layout.drop(output[0]), *output[1:])
        output["last_hidden_state"] = layout.drop(output["last_hidden_state"])
        if output.get("hidden_states") is not None:
            output["hidden_states"] = tuple(layout.drop(x) for x in output["hidden_states"])
        return output.to_tuple() if self._as_tuple else output

    def before_pooler(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Pool the first token, not the first virtual token."""
        if self._layout is None:
            return None
        return (self._layout.drop(args[0]), *args[1:])

    def after_head(
        self, wrapper: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        """Give every row its own adapter's head. PEFT's own way to do so refuses to train."""
        names = self.call.adapter_names if self.call else None
        if names is None or self.layer.disable_adapters:
            return output
        repeats = len(output) // len(names)
        of_row = [name for name in names for _ in range(repeats)]
        heads = dict(wrapper.modules_to_save.items())
        for name in dict.fromkeys(names):
            rows = on_device([i for i, n in enumerate(of_row) if n == name], output.device)
            head = heads.get(name, wrapper.original_module)
            output = output.index_copy(0, rows, head(args[0][rows], *args[1:], **kwargs))
        return output

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
            if self.call is not None and self.call.prompts is None:
                raise PromptIgnoredError(
                    "encoder_outputs without an attention_mask do not show whether they hold the"
                    " soft prompt; pass the attention_mask of the tokens"
                )
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


def _logits(output: Any, labels: Tensor) -> Tensor:
    """A labelled output's logits.

    Raises:
        ConfigError: the head has none to compare.
    """
    logits = output[1] if isinstance(output, tuple) else output.get("logits")
    if logits is None or logits.shape[-1] == 1 or logits.dim() not in (2, 3):
        raise ConfigError(
            "consistency compares two distributions over labels, which this head does not give;"
            " set consistency=0"
        )
    return logits
