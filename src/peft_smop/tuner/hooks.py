"""The hooks that put soft prompts before a backbone and keep everything around it in step.

    model ─┬─ before_model: a call begins; labels, for routing on the context
           ├─ after_model:  in training, the routing's own losses join the model's
           └─ backbone ─┬─ before_backbone: ids → embeddings → [padding; prompt; tokens]
                        │                   with mask, positions and token types
                        ├─ before_pooler:   BERT pools inside the backbone: the prompt dropped,
                        │                   or the mean in the first token's place
                        └─ after_backbone:  the same, where no decoder follows
              decoder ──── before_decoder:  the encoder's mask grows with its states
              heads ────── by rows:         every row its own adapter's

They stay registered from injection to unloading, so that a model can be copied, pickled and
compiled; what they remember belongs to the call (`PromptCall`). While a KV cache holds the prompt
nothing is spliced; masks and positions still count it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peft_smop.rows import begin, calling, current, end, follow_rows
from peft_smop.tuner import admission
from peft_smop.tuner.backbone import Backbone, bind, cache_of, parameter_names
from peft_smop.tuner.call import PromptCall, ends_if_interrupted
from peft_smop.tuner.doors import Door, GenerateDoor
from peft_smop.tuner.inputs import continued, encoder_mask, spliced
from peft_smop.tuner.judging import posterior_of
from peft_smop.tuner.layer import SMoPLayer
from peft_smop.tuner.objective import with_terms
from peft_smop.tuner.pooling import with_means
from peft_smop.tuner.splice import Layout
from peft_smop.tuner.texts import Halves


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

    @ends_if_interrupted
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
        given = call.given = bind(self._model_names, args, kwargs)
        call.labels = call.labels_given
        states = given.get("encoder_outputs")
        if states is not None:
            admission.check_states(states, call.rows_of)
        call.posterior = posterior_of(self.layer, call, given)

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
        return with_terms(
            self.layer,
            call,
            output,
            partial(self._again, module, call),
            labels_of_step=kwargs.get("num_items_in_batch"),
            predicts_next=self.backbone.predicts_next,
        )

    def _again(
        self,
        module: nn.Module,
        call: PromptCall,
        routes: Tensor | None = None,
    ) -> Any:
        """The same rows through the model again, by another draw or routes; the last ones stay."""
        last = self.layer.last
        further = PromptCall(
            self.layer, call.adapter_names, call.repeats, routes=routes, draw=call.draw + 1
        )
        with calling(further):
            output = module(**call.given)
        self.layer.last = last
        return output

    @ends_if_interrupted
    def before_backbone(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        """Splice the prompt, or, behind a cache that holds it, count it."""
        call = current(self.layer, PromptCall)
        if call is None:  # the backbone itself was called, as a bare `generate` calls encoders
            call = PromptCall(self.layer, opened_by="backbone")
            begin(call)
        call.admitted, call.layout = True, None
        admission.check_no_replica(module)
        if call.reads:
            call.seen = True
            return None
        # taken up here and by no later pass
        labels, call.labels = call.labels, None
        given = bind(self._names, args, kwargs)
        tokens, x = admission.tokens_of(given), given.get("inputs_embeds")
        if tokens is None:
            return None
        rows = call.rows_of(tokens.shape[0])
        cache = cache_of(given)
        call.seen, call.rows = True, rows
        if rows is None or not rows.names:
            admission.check_unfilled(cache)
            self.layer.last = None if rows is None else (rows, ())
            return None
        past = cache.get_seq_length() if cache is not None else 0
        width = self.layer.width(rows)
        b, n = tokens.shape[:2]
        admission.check_input(given, self.backbone, past=past, rows=b, tokens=n, width=width)
        if past > 0:
            is_fresh = call.prompts is None
            filled = admission.check_cache(cache, rows, given, past + n, width, fresh=is_fresh)
            return (), continued(self.layer, self.backbone, given, rows, tokens, past, filled.edges)
        for name in rows.names:
            self.layer[name].check_arrived(name)
        if x is None:
            x = module.get_input_embeddings()(tokens)
        call.as_tuple, call.mask = given.get("return_dict") is False, given.get("attention_mask")
        if self._drops and call.as_tuple:
            given["return_dict"] = True  # states are dropped by name, not by place
        return (), spliced(self.layer, self.backbone, call, given, rows, x, labels)

    def after_backbone(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Drop the prompt's positions: heads, losses and callers see the tokens they know."""
        call = current(self.layer, PromptCall)
        assert call is not None
        layout, call.layout, call.states = call.layout, None, None
        if call.opened_by == "backbone":
            end(call)
        if output is None or layout is None:
            return output
        if isinstance(layout, Halves):
            if layout.whole is not None and call.rows is not None:
                admission.fill(cache_of(output), call.rows, layout.whole)
            return layout.handed_out(output, as_tuple=call.as_tuple)
        if not self._drops:
            if hasattr(output, "get") and call.rows is not None:
                admission.fill(output, call.rows, layout)
            return output
        if not hasattr(output, "get"):
            return (self._handed_out(call, layout, output[0]), *output[1:])
        states = output["last_hidden_state"]
        output["last_hidden_state"] = self._handed_out(call, layout, states)
        cache = cache_of(output)
        if cache is not None and call.rows is not None:
            admission.fill(cache, call.rows, layout)
        if output.get("hidden_states") is not None:
            output["hidden_states"] = tuple(layout.drop(x) for x in output["hidden_states"])
        if output.get("router_logits") is not None:  # of a mixture of experts, token by token
            output["router_logits"] = tuple(layout.drop_flat(x) for x in output["router_logits"])
        return output.to_tuple() if call.as_tuple else output

    def _handed_out(self, call: PromptCall, layout: Layout, states: Tensor) -> Tensor:
        """The tokens' states, as a head is to read them."""
        assert call.rows is not None
        is_mean = self.layer.means(call.rows, states.device)
        return with_means(layout.drop(states), call.mask, is_mean)

    def before_pooler(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Pool the first token, not the first virtual token; or the mean."""
        call = current(self.layer, PromptCall)
        if call is None or not isinstance(call.layout, Layout):
            return None
        if args[0].dim() == 2:  # ALBERT and BigBird hand on what they take for the first token
            assert call.states is not None
            return (self._handed_out(call, call.layout, call.states)[:, 0], *args[1:])
        return (self._handed_out(call, call.layout, args[0]), *args[1:])

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
        rows = call.rows_of(states.shape[0])
        if rows is None or not rows.names:
            return None
        grown = encoder_mask(self.layer, self.backbone, rows, states, mask, is_fresh=is_fresh)
        if grown is None:
            return None
        given["encoder_attention_mask"] = grown
        return (), given
