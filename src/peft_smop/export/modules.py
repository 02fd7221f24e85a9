"""An adapted model as modules of tensors alone, each of which becomes one ONNX graph.

    kind              graph        reads                              says
    encoder           classifier   tokens                             logits of the classes
    encoder-decoder   encoder      tokens                             states
                      decoder      states, what was written so far    logits of what follows
    decoder           decoder      tokens, which of them are text     logits of what follows

All but the second's decoder also say which prompt was chosen, and its weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from peft_smop.rows import IGNORED_LABEL
from peft_smop.tuner import SMoPModel

BATCH, LENGTH, WRITTEN, SLOTS = "batch", "length", "written", "slots"
"""The names of axes: rows; tokens of a row; tokens written so far; tokens and prompt."""
_TOKENS = {"input_ids": (BATCH, LENGTH), "attention_mask": (BATCH, LENGTH)}
_CHOICE = ("prompt", "prompt_probability")


class Graph(nn.Module):
    """One graph's computation; its arguments and results have the names of its axes' tables."""

    inputs: ClassVar[Mapping[str, tuple[str, str]]] = _TOKENS
    outputs: ClassVar[tuple[str, ...]]

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.model = model

    def _choice(self) -> tuple[Int[Tensor, "b"], Float[Tensor, "b"]]:
        """The prompt of every row in the pass before, -1 where all are mixed, and its weight."""
        tuner = SMoPModel.of(self.model)
        assert tuner is not None
        _, (decision,) = tuner.smop_layer.last
        return decision.chosen, decision.routing.weights[:, 0]


class Classifier(Graph):
    """An encoder with its head."""

    outputs = ("logits", *_CHOICE)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Logits (b, m) of the task's labels."""
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits, *self._choice()


class Encoder(Graph):
    """The encoder of an encoder-decoder."""

    outputs = ("encoder_hidden_states", *_CHOICE)

    def __init__(self, model: PeftModel) -> None:
        super().__init__(model)
        self.encoder = model.get_base_model().get_encoder()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """States (b, l + n, e), the prompt's among them."""
        said = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        return said.last_hidden_state, *self._choice()


class Step(Graph):
    """The decoder of an encoder-decoder; without a cache, so that all that was written is read."""

    inputs: ClassVar[Mapping[str, tuple[str, str]]] = {
        "decoder_input_ids": (BATCH, WRITTEN),
        "encoder_hidden_states": (BATCH, SLOTS),
        "attention_mask": (BATCH, LENGTH),
    }
    outputs = ("logits",)

    def forward(
        self, decoder_input_ids: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor
    ) -> Tensor:
        """Logits (b, d, v) of the tokens after those written; the mask is that of the tokens."""
        said: Any = self.model(
            encoder_outputs=BaseModelOutput(encoder_hidden_states),
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            use_cache=False,
        )
        return said.logits


class Decoder(Graph):
    """A decoder, without a cache; what follows the text does not move its prompt."""

    inputs: ClassVar[Mapping[str, tuple[str, str]]] = {**_TOKENS, "text_mask": (BATCH, LENGTH)}
    outputs = ("logits", *_CHOICE)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, ...]:
        """Logits (b, n, v) of the tokens after each; the text is 1 in its mask, an answer 0."""
        # labels are what tells the model where its text ends
        is_text = (text_mask != 0) | (attention_mask == 0)
        labels = torch.where(is_text, torch.full_like(input_ids, IGNORED_LABEL), input_ids)
        said: Any = self.model(
            input_ids=input_ids, attention_mask=attention_mask, labels=labels, use_cache=False
        )
        return said.logits, *self._choice()


GRAPHS: Mapping[str, Mapping[str, type[Graph]]] = {
    "SEQ_CLS": {"classifier": Classifier},
    "SEQ_2_SEQ_LM": {"encoder": Encoder, "decoder": Step},
    "CAUSAL_LM": {"decoder": Decoder},
}
"""By PEFT's name for the kind of model, in the order in which they follow each other."""
