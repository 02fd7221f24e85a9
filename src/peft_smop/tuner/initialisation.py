"""Where the soft prompts start; Lester et al. (2021) compare several of these."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import align_module_device
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from peft_smop.errors import CheckpointError, ConfigError
from peft_smop.tuner.config import SMoPConfig
from peft_smop.tuner.parameterisation import put_together
from peft_smop.tuner.saved import CONTAINER, newest_key

COMMON_TOKENS = 5000
"""Lester et al. draw from the most common tokens; vocabularies are ordered by frequency,
roughly."""

WEIGHTS_NAME = "adapter_model.safetensors"


class Start:
    """What an initialiser may use: configuration, embedding, tokenizer, a seeded generator.

    Randomness is drawn on the CPU, so that a seed means the same start on every device.
    """

    def __init__(
        self,
        config: SMoPConfig,
        embedding: nn.Module,
        special_ids: set[int],
        tokenizer_name: str | None,
    ) -> None:
        self.config = config
        self.embedding = embedding
        self.special_ids = special_ids
        self.tokenizer_name = config.tokenizer_name_or_path or tokenizer_name
        self.generator = torch.Generator().manual_seed(config.seed)
        self.k, self.l = config.num_prompts or 1, config.num_virtual_tokens

    @property
    def width(self) -> int:
        """The embedding's width, e."""
        return self.embedding.weight.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the backbone computes, wherever its weights are kept meanwhile."""
        hook = getattr(
            self.embedding, "_hf_hook", None
        )  # accelerate's, where weights are offloaded
        execution = getattr(hook, "execution_device", None)
        return self.embedding.weight.device if execution is None else torch.device(execution)

    @property
    def is_meta(self) -> bool:
        """Whether there are shapes but no values."""
        return self.device.type == "meta"

    @property
    def spread(self) -> float:
        """The standard deviation of the backbone's embeddings; 1 where there are no values."""
        return 1.0 if self.is_meta else spread_of(self.embedding, self.device)

    def embed(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape e"]:
        """The backbone's own embeddings, with the scale that some backbones apply."""
        with torch.no_grad():
            return self.embedding(ids.to(self.device)).float().cpu()

    def random_ids(self) -> Int[Tensor, "k l"]:
        """Tokens from the common part of the vocabulary, without the special ones."""
        size = min(self.embedding.weight.shape[0], COMMON_TOKENS)
        with align_module_device(self.embedding):  # offloaded weights come back for a moment
            rows = self.embedding.weight[:size].detach().clone()
        # rows that equal each other were never trained: they fill up the table
        _, place, count = rows.unique(dim=0, return_inverse=True, return_counts=True)
        trained = (count[place] == 1).tolist()
        ids = [i for i in range(size) if i not in self.special_ids]
        allowed = torch.tensor([i for i in ids if trained[i]] or ids)
        return allowed[torch.randint(len(allowed), (self.k, self.l), generator=self.generator)]

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of the texts, without special tokens; remembered in the configuration.

        Raises:
            ConfigError: no tokenizer is known, or a text has no token.
        """
        from transformers import AutoTokenizer

        config = self.config
        if config.init_token_ids is not None and config.init_tokenizer == self.tokenizer_name:
            return config.init_token_ids
        if not self.tokenizer_name:
            raise ConfigError(f"init={config.init!r} needs a tokenizer; set tokenizer_name_or_path")
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            if config.init_token_ids is not None:
                return config.init_token_ids  # loading a saved adapter away from its tokenizer
            raise ConfigError(f"no tokenizer at {self.tokenizer_name}") from error
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        for text, own in zip(texts, ids, strict=True):
            if not own:
                raise ConfigError(f"init={config.init!r}: {text!r} has no token")
        config.init_token_ids, config.init_tokenizer = ids, self.tokenizer_name
        return ids


def spread_of(embedding: nn.Embedding, device: torch.device | None = None) -> float:
    """The standard deviation of the common tokens' embeddings, as the backbone scales them.

    Args:
        embedding: the backbone's.
        device: where it computes, if that is not where its weights are.
    """
    device = device or embedding.weight.device
    ids = torch.arange(min(embedding.weight.shape[0], COMMON_TOKENS), device=device)
    with torch.no_grad():
        return max(float(embedding(ids).float().cpu().std()), 1e-6)


def _vocabulary(start: Start) -> Tensor:
    return start.embed(start.random_ids())


def _normal(start: Start) -> Tensor:
    shape = (start.k, start.l, start.width)
    return torch.randn(shape, generator=start.generator) * start.config.init_std


def _text(start: Start) -> Tensor:
    """One text continues through all prompts, or every prompt has its own; short ones repeat."""
    given = start.config.init_text
    texts = [given] if isinstance(given, str) else given or []
    if len(texts) not in (1, start.k):
        raise ConfigError(f"init_text has {len(texts)} texts; give one, or num_prompts={start.k}")
    ids = start.token_ids(texts)
    if len(ids) == 1:
        total = start.k * start.l
        flat = (ids[0] * (total // len(ids[0]) + 1))[:total]
        return start.embed(torch.tensor(flat).view(start.k, start.l))
    rows = [(own * (start.l // len(own) + 1))[: start.l] for own in ids]
    return start.embed(torch.tensor(rows))


def _labels(start: Start) -> Tensor:
    """Each label's mean embedding in turn; prompt j begins with label j, the rest is vocabulary."""
    ids = start.token_ids(list(start.config.init_labels or []))
    labels = torch.stack([start.embed(torch.tensor(own)).mean(dim=0) for own in ids])
    prompts = _vocabulary(start)
    count = min(len(labels), start.l)
    for j in range(start.k):
        prompts[j, :count] = labels.roll(-j, dims=0)[:count]
    return prompts


def read_prompts(directory: str | Path) -> dict[str, Tensor]:
    """The tensors of a saved SMoP or prompt tuning adapter.

    Returns:
        "prompts" (k, l, e), and "router" (e, k) if the adapter has one.

    Raises:
        CheckpointError: there are no weights as safetensors, they are damaged, or hold no prompt.
    """
    path = Path(directory) / WEIGHTS_NAME
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist; expected the directory of a saved adapter (safetensors only)"
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged and cannot be read ({error}); expected safetensors"
        ) from error
    own = {newest_key(k).rpartition(CONTAINER)[2]: v for k, v in tensors.items() if "smop_" in k}
    if "prompts" in own:
        network = {k.removeprefix("network."): v for k, v in own.items() if "network." in k}
        found = {"prompts": put_together(own["prompts"], network)}
        return found | ({"router": own["router"]} if "router" in own else {})
    if "prompt_embeddings" in tensors:
        # PEFT saves a second half for encoder-decoders, which it never uses
        length = json.loads((path.parent / "adapter_config.json").read_text())["num_virtual_tokens"]
        return {"prompts": tensors["prompt_embeddings"][None, :length]}
    raise CheckpointError(f"{path} holds no soft prompt; it has {', '.join(sorted(tensors)[:3])}")


def _adapter(start: Start) -> Tensor:
    """The source's prompts, repeated or cut to k and l (prompt transfer, Vu et al., 2022)."""
    config = start.config
    assert config.init_adapter is not None
    if config.is_initialised and not (Path(config.init_adapter) / WEIGHTS_NAME).is_file():
        # a saved adapter is being loaded, whose weights follow; its source may be long gone
        return _vocabulary(start)
    prompts = read_prompts(config.init_adapter)["prompts"].float()
    if prompts.shape[2] != start.width:
        raise CheckpointError(
            f"{config.init_adapter} was trained for embeddings of width {prompts.shape[2]};"
            f" this backbone's are {start.width} wide"
        )
    repeats = (-(-start.k // prompts.shape[0]), -(-start.l // prompts.shape[1]), 1)
    return prompts.repeat(*repeats)[: start.k, : start.l].contiguous()


INITIALISERS: dict[str, Callable[[Start], Tensor]] = {
    "vocabulary": _vocabulary,
    "normal": _normal,
    "text": _text,
    "labels": _labels,
    "adapter": _adapter,
}


def initial_prompts(start: Start) -> Float[Tensor, "k l e"]:
    """The prompts' start in fp32, on the embedding's device."""
    device = start.device
    if start.is_meta:
        return torch.empty(start.k, start.l, start.width, device=device)
    return INITIALISERS[start.config.init](start).to(device)


def initial_router(start: Start) -> Float[Tensor, "e k"]:
    """The router's start: uniform in ±1/sqrt(e), as `nn.Linear` has it, or the source adapter's.

    Not zeros: the perturbation multiplies the logits (eq. 5), so equal logits would stay equal and
    one prompt would take every row.
    """
    device = start.device
    shape = (start.width, start.k)
    if start.is_meta:
        return torch.empty(shape, device=device)
    config = start.config
    if config.init == "adapter" and config.init_adapter and Path(config.init_adapter).is_dir():
        router = read_prompts(config.init_adapter).get("router")
        if router is not None and tuple(router.shape) == shape:
            return router.float().to(device)
        if router is not None:
            warnings.warn(
                f"the router of {config.init_adapter} has shape {tuple(router.shape)}, not {shape};"
                " this one starts at random",
                stacklevel=2,
            )
    bound = start.width**-0.5
    return ((torch.rand(shape, generator=start.generator) * 2 - 1) * bound).to(device)
