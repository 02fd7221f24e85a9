"""The hooks that put soft prompts before a backbone and keep everything around it in step.

    model ─┬─ before_model: a call begins; labels, for routing on the context
           ├─ after_model:  in training, the routing's own losses join the model's
           └─ backbone ─┬─ before_backbone: ids → embeddings → [padding; prompt; tokens]
                        │                   with mask, positions and token types
                        ├─ before_pooler:   BERT pools inside the backbone: the prompt dropped
                        └─ after_backbone:  the prompt dropped, where no decoder follows
              decoder ──── before_decoder:  the encoder's mask grows with its states
              heads ────── by rows:         every row its own adapter's

They stay registered from injection to unloading, so that a model can be copied, pickled and
compiled; what they remember belongs to the call (`PromptCall`). While a KV cache holds the prompt
nothing is spliced; masks and positions still count it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peft_smop.errors import ConfigError, PromptIgnoredError
from peft_smop.rows import BASE, RowAdapters, begin, calling, current, end, follow_rows
from peft_smop.tuner.admission import check_cache, check_input, fill
from peft_smop.tuner.backbone import Backbone, bind, parameter_names
from peft_smop.tuner.call import Apart, PromptCall, Routed
from peft_smop.tuner.doors import Door, GenerateDoor
from peft_smop.tuner.layer import SMoPLayer
from peft_smop.tuner.mixture import Asked, soft_prompts
from peft_smop.tuner.objective import divergence_terms, joined, routing_terms, share_of_step
from peft_smop.tuner.scope import content_of, readable
from peft_smop.tuner.splice import Layout, left_padding, mean_embedding


class PromptHooks:
    """The hooks of one model."""

    def __init__(self, layer: SMoPLayer, model: nn.Module, backbone: Backbone) -> None:
        self.layer = layer
        self.model = model
        self.backbone = backbone
        self._names = parameter_names(backbone.module)
        self._model_names = parameter_names(model)
        self._decoder_names = parameter_names(backbone.decoder) if backbone.decoder else ()
        self._drops = backbone.decoder is None
        self._handles: list[RemovableHandle] = []
        self._doors: list[Door] = []

    def register(self) -> None:
        """Register every hook that this kind of backbone needs."""
        model, backbone = self.model, self.backbone
        self._handles += [  # in this order, as the model may be the backbone
            model.register_forward_pre_hook(self.before_model, with_kwargs=True),
            backbone.module.register_forward_pre_hook(self.before_backbone, with_kwargs=True),
            backbone.module.register_forward_hook(self.after_backbone, always_call=True),
            model.register_forward_hook(self.after_model, with_kwargs=True, always_call=True),
        ]
        if backbone.decoder is not None:
            hook = backbone.decoder.register_forward_pre_hook(self.before_decoder, with_kwargs=True)
            self._handles.append(hook)
        elif backbone.pooler is not None:
            self._handles.append(backbone.pooler.register_forward_pre_hook(self.before_pooler))
            if isinstance(backbone.pooler, nn.Linear):
                encoder = backbone.module.encoder
                self._handles.append(encoder.register_forward_hook(self.after_encoder))
        modules = [model] if model is backbone.module else [model, backbone.module]
        self._doors = [Door(module, self.layer) for module in modules]
        if hasattr(model, "generate"):
            self._doors.append(GenerateDoor(model, self.layer))

    def register_heads(self) -> None:
        """Let heads that are trained with the prompts follow the rows' adapters."""
        self._handles += follow_rows(self.model, self.layer)

    def unregister(self) -> None:
        """Leave the model as it was."""
        for mark in (*self._handles, *self._doors):
            mark.remove()

    def before_model(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Begin a call, unless one is open; keep the labels: they end a causal LM's context."""
        call = current(self.layer, PromptCall)
        if call is None or call.in_model:
            call = PromptCall(self.layer, opened_by="model")
            begin(call)
        call.in_model = call.admitted = True
        call.seen, call.rows, call.decisions, call.layout = False, None, (), None
        call.labels = bind(self._model_names, args, kwargs).get("labels")

    def after_model(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """End the call; add to a training loss what the routing asks for.

        Raises:
            PromptIgnoredError: the backbone never saw the prompt.
        """
        call = current(self.layer, PromptCall)
        assert call is not None
        call.in_model = False
        if call.opened_by == "model":
            end(call)
        if output is None or self.layer.disable_adapters:  # None: the forward has failed
            return output
        call.check_seen(module)
        labels = bind(self._model_names, args, kwargs).get("labels")
        caller = current(self.layer, Apart)
        if not self.layer.training or call.draw > 0 or (labels is None and caller is None):
            return output
        rows, terms = call.rows, routing_terms(self.layer.adapters(), call.decisions)
        if rows is not None and labels is not None:
            again = partial(self._again, module, args, kwargs, call)
            apart = divergence_terms(
                self.layer.adapters(),
                rows,
                labels,
                output,
                again,
                predicts_next=self.backbone.predicts_next,
            )
            terms = {name: apart.get(name, 0) + terms.get(name, 0) for name in {**terms, **apart}}
        if caller is not None:
            caller.terms = terms
        elif terms and rows is not None and labels is not None:
            total = kwargs.get("num_items_in_batch")
            share = share_of_step(total, labels, predicts_next=self.backbone.predicts_next)
            return joined(output, terms, rows, share)
        return output

    def _again(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], call: PromptCall
    ) -> Any:
        """The same rows through the model once more, with another draw; the last routes stay."""
        last = self.layer.last
        further = PromptCall(self.layer, call.adapter_names, call.repeats, draw=call.draw + 1)
        with calling(further):
            output = module(*args, **kwargs)
        self.layer.last = last
        return output

    def before_backbone(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        """Splice the prompt, or, behind a cache that holds it, count it."""
        call = current(self.layer, PromptCall)
        if call is None:  # the backbone itself was called, as a bare `generate` calls encoders
            call = PromptCall(self.layer, opened_by="backbone")
            begin(call)
        call.admitted, call.layout = True, None
        # taken up here and by no later pass
        labels, call.labels = call.labels, None
        given = bind(self._names, args, kwargs)
        ids, x = given.get("input_ids"), given.get("inputs_embeds")
        tokens = x if x is not None else ids
        if tokens is None:
            return None
        rows = self._row_adapters(call, tokens.shape[0])
        call.seen = True
        if rows is None or not rows.names:
            return None
        cache = given.get("past_key_values", given.get("cache"))
        past = cache.get_seq_length() if cache is not None else 0
        width = self.layer.width(rows)
        check_input(given, self.backbone, past=past, tokens=tokens.shape[1], width=width)
        if past > 0:
            check_cache(
                cache, rows, given, past + tokens.shape[1], width, fresh=call.prompts is None
            )
            return (), self._continued(given, rows, tokens, past)
        for name in rows.names:
            self.layer[name].check_arrived(name)
        if x is None:
            x = module.get_input_embeddings()(ids)
        call.as_tuple = given.get("return_dict") is False
        if self._drops and call.as_tuple:
            given["return_dict"] = True  # states are dropped by name, not by place
        return (), self._spliced(call, given, rows, x, ids, labels)

    def _row_adapters(self, call: PromptCall, count: int) -> RowAdapters | None:
        """Which adapter each row follows; None when adapters are disabled or absent.

        Raises:
            ConfigError: rows and names differ, or several adapters are active and none is named.
        """
        if self.layer.disable_adapters:
            return None
        named, active = call.adapter_names, self.layer.active_adapters
        if named is None and len(active) > 1:
            raise ConfigError(
                f"{len(active)} adapters are active ({', '.join(active)}) but a row can follow"
                " only one; set one, or pass adapter_names with one name per row"
            )
        if named is None and not active:
            return None
        if named is not None and not call.repeats and len(named) != count:
            raise ConfigError(
                f"adapter_names has {len(named)} entries for a batch of {count} rows; give one"
                " name per row"
            )
        return RowAdapters.of(active[0] if active else BASE, named, count)

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
            slack=self.backbone.slack,
        )

    def _spliced(
        self,
        call: PromptCall,
        given: dict[str, Any],
        rows: RowAdapters,
        x: Float[Tensor, "b n e"],
        ids: Tensor | None,
        labels: Tensor | None,
    ) -> dict[str, Any]:
        mask = given.get("attention_mask")
        if given.get("inputs_embeds") is not None and mask is not None:
            # what stands under padding may be anything; a product by 0 would keep it
            x = x.masked_fill((mask == 0)[:, :, None] & ~x.isfinite(), 0)
        layout, call.rows = self._layout_for(rows, mask, x, x.shape[1]), rows
        prompts = self._prompts(call, x, ids, mask, rows, labels).to(x.dtype)
        given["input_ids"], given["inputs_embeds"] = None, layout.embeddings(prompts, x)
        if mask is not None or self.layer.is_uneven(rows):
            given["attention_mask"] = layout.mask(mask)
        if self.backbone.takes_positions and (
            given.get("position_ids") is not None or given.get("attention_mask") is not None
        ):
            # a caller's positions are kept; without any, counting from the prompt makes left
            # padding harmless
            given["position_ids"] = layout.positions(
                given.get("position_ids"), first=self.backbone.first_position
            )
        for name in ("token_type_ids", "global_attention_mask"):
            if given.get(name) is not None:
                given[name] = layout.with_zeros(given[name])
        call.layout = layout
        return given

    def _continued(
        self, given: dict[str, Any], rows: RowAdapters, tokens: Tensor, past: int
    ) -> dict[str, Any]:
        mask, positions = given.get("attention_mask"), given.get("position_ids")
        if mask is None and not self.layer.is_uneven(rows) and positions is None:
            return given  # the cache is longer by the prompt, and positions follow its length
        if self.backbone.slack == "right" and self.layer.is_uneven(rows):
            raise ConfigError(
                "this model counts positions by slots, so prompts of different lengths (or"
                " __base__) cannot go on from one cache; generate for each adapter by itself"
            )
        width = self.layer.width(rows)
        total = mask.shape[1] if mask is not None else past - width + tokens.shape[1]
        layout = self._layout_for(rows, mask, tokens, total)
        if mask is not None or self.layer.is_uneven(rows):
            given["attention_mask"] = layout.mask(mask)
        if not self.backbone.takes_positions:
            return given
        if positions is not None:
            given["position_ids"] = positions + layout.lengths[:, None]
        else:
            every = layout.positions(None, first=self.backbone.first_position)
            given["position_ids"] = every[:, past:]
        return given

    def _prompts(
        self,
        call: PromptCall,
        x: Tensor,
        ids: Tensor | None,
        mask: Tensor | None,
        rows: RowAdapters,
        labels: Tensor | None,
    ) -> Float[Tensor, "b l e"]:
        """Every row's scaled prompt; decided once for a whole generation."""
        if call.prompts is not None:
            return call.prompts.repeat_interleave(len(x) // len(call.prompts), dim=0)
        adapters = self.layer.adapters()
        routes = call.routes
        asked = current(self.layer, Routed)
        if routes is None and asked is not None:
            routes = asked.routes(rows, x.device)
        with torch.autocast(x.device.type, enabled=False):
            read = readable(
                [adapters[name] for name in rows.names],
                rows,
                None if mask is None else mask != 0,
                labels if self.backbone.predicts_next else None,
                like=x,
                asks_for_labels=self.backbone.predicts_next and not call.decides_once,
            )
            prompts, call.decisions = soft_prompts(
                adapters,
                rows,
                mean_embedding(x, read),
                content_of(adapters, rows, x, ids, read, training=self.layer.training),
                asked=Asked(routes, call.draw),
                training=self.layer.training,
            )
        self.layer.last = (rows, tuple(decision.detached() for decision in call.decisions))
        if call.decides_once:
            call.prompts = prompts
        return prompts

    def after_backbone(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Drop the prompt's positions: heads, losses and callers see the tokens they know."""
        call = current(self.layer, PromptCall)
        assert call is not None
        layout, call.layout, call.states = call.layout, None, None
        if call.opened_by == "backbone":
            end(call)
        if output is None or layout is None or not self._drops:
            return output
        if not hasattr(output, "get"):
            return (layout.drop(output[0]), *output[1:])
        cache = output.get("past_key_values", output.get("cache"))
        if cache is not None and call.rows is not None:
            fill(cache, call.rows, layout.width)
        output["last_hidden_state"] = layout.drop(output["last_hidden_state"])
        if output.get("hidden_states") is not None:
            output["hidden_states"] = tuple(layout.drop(x) for x in output["hidden_states"])
        if output.get("router_logits") is not None:  # of a mixture of experts, token by token
            output["router_logits"] = tuple(layout.drop_flat(x) for x in output["router_logits"])
        return output.to_tuple() if call.as_tuple else output

    def before_pooler(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Pool the first token, not the first virtual token."""
        call = current(self.layer, PromptCall)
        if call is None or call.layout is None:
            return None
        if args[0].dim() == 2:  # ALBERT and BigBird hand on what they take for the first token
            assert call.states is not None
            return (call.layout.drop(call.states)[:, 0], *args[1:])
        return (call.layout.drop(args[0]), *args[1:])

    def after_encoder(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Keep the states that a pooler is handed only a part of."""
        call = current(self.layer, PromptCall)
        if call is not None and call.layout is not None:
            call.states = output if isinstance(output, Tensor) else output[0]

    def before_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        """Extend the encoder's mask to the encoder's states, wherever those came from.

        Raises:
            PromptIgnoredError: the states were computed without the prompt and have no room for it.
        """
        call = current(self.layer, PromptCall)
        given = bind(self._decoder_names, args, kwargs)
        states, mask = given.get("encoder_hidden_states"), given.get("encoder_attention_mask")
        if call is None or states is None:
            return None
        is_fresh, call.seen = not call.seen and call.prompts is None, True
        rows = self._row_adapters(call, states.shape[0])
        if rows is None or not rows.names:
            return None
        width = self.layer.width(rows)
        if mask is None:
            if is_fresh:
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
