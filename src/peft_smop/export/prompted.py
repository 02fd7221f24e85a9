"""The client's side: texts with their prompts, as embeddings for an engine that knows no adapters.

from openai import OpenAI
from peft_smop.export import PromptedTexts

texts = PromptedTexts.load("exported")
client = OpenAI(base_url="http://localhost:8000/v1", api_key="none")
print(texts.complete(client, "backbone", "my invoice is wrong", max_tokens=8))
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from peft_smop.errors import CheckpointError
from peft_smop.export.embeddings import DESCRIPTION, FORMAT_VERSION, TENSORS
from peft_smop.methods import load_tokenizer
from peft_smop.predictor import Beside, Input, example_of
from peft_smop.results import read_object, sha256_of
from peft_smop.rows import RowAdapters
from peft_smop.scoring import FORMULATIONS, Formulation
from peft_smop.tuner.deciding import mean_embedding, readable, row_state
from peft_smop.tuner.layer import Adapter
from peft_smop.tuner.mixture import soft_prompts
from peft_smop.tuner.noise import content_of
from peft_smop.tuner.strategies import build_strategy

_ROW = RowAdapters(("exported",), None, 1)


@dataclass(frozen=True)
class Prompted:
    """One text with its prompt."""

    embeddings: Float[Tensor, "s e"]
    """Of the prompt and the tokens, in the backbone's precision."""
    prompt: int
    """The prompt that the router chose; -1 where all are mixed alike."""
    weight: float
    """The router's probability of it."""


@dataclass(frozen=True)
class PromptedTexts:
    """An exported adapter: its prompts and router, and the embedding of its backbone."""

    table: Float[Tensor, "v e"]
    adapter: Adapter
    formulation: Formulation

    @classmethod
    def load(cls, directory: str | Path) -> PromptedTexts:
        """Read what `smop export --format vllm` wrote.

        Raises:
            CheckpointError: something is missing, damaged or altered.
        """
        path = Path(directory)
        said = read_object(path / DESCRIPTION, "the description of an exported adapter")
        if said.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(
                f"{path / DESCRIPTION} is of format {said.get('format_version')!r}; expected"
                f" {FORMAT_VERSION}: export the adapter anew"
            )
        beside = Beside.read(path)
        if beside is None or not (path / TENSORS).is_file():
            raise CheckpointError(f"{path} lacks files; expected all that smop export wrote there")
        if sha256_of(path / TENSORS) != said["sha256"][TENSORS]:
            raise CheckpointError(f"{path / TENSORS} is not as it was exported; export it anew")
        try:
            # copied: a file mapped into memory need not be aligned as matrix products want it
            tensors = {key: value.clone() for key, value in load_file(path / TENSORS).items()}
        except SafetensorError as error:
            raise CheckpointError(f"{path / TENSORS} is damaged ({error})") from error
        adapter = Adapter(
            tensors["prompts"],
            tensors.get("router"),
            strategy=build_strategy(said["routing"], said["options"]),
            seed=0,
            scope=said["router_scope"],
            position=said["position"],
        ).eval()
        adapter.steps.copy_(tensors["steps"])
        formulation = FORMULATIONS["CAUSAL_LM"](
            beside.task, load_tokenizer(path), said["max_length"]
        )
        return cls(tensors["embedding"], adapter, formulation)

    def tokens(self, text: Input, *, raw: bool = False) -> list[int]:
        """The tokens of an input, in its task's template with the cue for an answer.

        Args:
            text: a text, or the fields of the template by name.
            raw: whether it is a text that no template is put around.

        Raises:
            DataError: a field is missing, empty or of a wrong type.
        """
        if raw:
            return self.formulation.plain(str(text))
        return self.formulation.encode(example_of(text, self.formulation.task))["input_ids"]

    @torch.no_grad()
    def prompted(self, text: Input, *, raw: bool = False) -> Prompted:
        """Route a text and put its prompt before it, or behind it: as the adapted model does.

        Args:
            text: as for `tokens`.
            raw: as for `tokens`.
        """
        ids = torch.tensor([self.tokens(text, raw=raw)])
        x, own = self.table[ids], [self.adapter]
        attended = torch.ones_like(ids, dtype=torch.bool)
        read = readable(own, _ROW, attended, None, like=x, asks_for_labels=False)
        state = row_state(own, _ROW, partial(content_of, ids, x, read), training=False)
        prompts, (decision,) = soft_prompts(own, _ROW, mean_embedding(x, read), state)
        parts = [prompts.to(x.dtype), x]
        if self.adapter.position == "after":
            parts.reverse()
        weight = float(decision.routing.weights[0, 0])
        return Prompted(torch.cat(parts, dim=1)[0], int(decision.chosen[0]), weight)

    def complete(
        self, client: Any, model: str, text: Input, *, raw: bool = False, **options: Any
    ) -> str:
        """Let a server of the bare backbone write after a text and its prompt.

        Args:
            client: an `openai.OpenAI` at a server that takes `prompt_embeds`, such as
                `vllm serve BACKBONE --enable-prompt-embeds`.
            model: what the server calls the backbone.
            text: as for `tokens`.
            raw: as for `tokens`.
            **options: of the completions endpoint, such as `max_tokens=8`.
        """
        sent = {"prompt_embeds": as_base64(self.prompted(text, raw=raw).embeddings)}
        said = client.completions.create(model=model, prompt="", extra_body=sent, **options)
        return str(said.choices[0].text)


def as_base64(embeddings: Float[Tensor, "s e"]) -> str:
    """Embeddings as vLLM's completions endpoint takes them: a saved tensor in base64."""
    buffer = io.BytesIO()
    torch.save(embeddings.clone(), buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
