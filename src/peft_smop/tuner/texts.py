"""Texts that were read: for a step, or kept over steps and epochs within a stated memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from peft_smop.errors import ConfigError
from peft_smop.tuner.splice import Layout


def may_be_continued(cache: Any) -> bool:
    """Whether a cache holds keys and values alone, which grow by copies.

    Other states are changed where they are, and are not those of a text that ends in padding.
    """
    layers: Sequence[object] = getattr(cache, "layers", None) or ()
    return len(layers) > 0 and all(isinstance(layer, DynamicLayer) for layer in layers)


@dataclass(frozen=True)
class Texts:
    """What a backbone made of the texts of some rows, each ending in the last of t slots."""

    cache: Any
    """Keys and values, (b, heads, t, d) of every layer."""
    states: Float[Tensor, "b t e"]
    """What came out of the last layer."""
    mask: Int[Tensor, "b t"]
    lengths: Int[Tensor, "b"]
    """Tokens of every text, without its padding."""
    edges: Int[Tensor, "b"]
    """How many of each row's tokens stand before its prompt, padding included."""

    def rows(self, own: Int[Tensor, "r"] | None) -> Texts:
        """Some of the rows, repeated as wanted; None: all, with a cache that may be continued."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        if own is None:
            return Texts(cache, self.states, self.mask, self.lengths, self.edges)
        cache.batch_select_indices(own)
        rest = (self.states, self.mask, self.lengths, self.edges)
        return Texts(cache, *(part[own] for part in rest))


@dataclass(frozen=True)
class Halves:
    """How the states of a text and of what continues it make up those of its tokens."""

    text: Float[Tensor, "b t e"]
    source: Int[Tensor, "b n"]
    """For every token its place in [text (t), prompt and answer]; the prompt's last for the text's
    last, whose verdict it gives."""
    whole: Layout | None = None
    """Of the one pass whose cache is handed out; None: the cache is of two passes, and is not."""

    def drop(self, states: Float[Tensor, "b s e"]) -> Float[Tensor, "b n e"]:
        """The states of the tokens alone."""
        joined = torch.cat([self.text, states], dim=1)
        return joined.gather(1, self.source[:, :, None].expand(-1, -1, joined.shape[-1]))

    def handed_out(self, output: Any, *, as_tuple: bool) -> Any:
        """The backbone's output with those; without a cache that no caller's mask fits."""
        left_out = () if self.whole is not None else ("past_key_values", "cache")
        kept = {k: v for k, v in output.items() if k not in left_out}
        kept["last_hidden_state"] = self.drop(kept["last_hidden_state"])
        return tuple(kept.values()) if as_tuple else type(output)(**kept)


def joined(
    parts: Sequence[tuple[Sequence[int], Any, Float[Tensor, "_ _ e"]]], length: int
) -> tuple[Any, Float[Tensor, "b t e"]]:
    """One cache, and the last states, of texts that were read in parts.

    Args:
        parts: of each the places of its rows, its cache and its states; each text ends in the last
            slot.
        length: t, of the longest.
    """
    if len(parts) == 1:
        return parts[0][1:]
    order = torch.tensor([row for rows, _, _ in parts for row in rows]).argsort()

    def together(tensors: Sequence[Float[Tensor, "_ *h _ d"]]) -> Float[Tensor, "b *h w d"]:
        most = max(tensor.shape[-2] for tensor in tensors)  # less than t where a window slides
        even = [nn.functional.pad(t, (0, 0, most - t.shape[-2], 0)) for t in tensors]
        return torch.cat(even)[order.to(even[0].device)]

    cache = copy.copy(parts[0][1])
    cache.layers = [copy.copy(layer) for layer in cache.layers]
    for layer, *own in zip(cache.layers, *(part.layers for _, part, _ in parts), strict=True):
        layer.keys = together([one.keys for one in own])
        layer.values = together([one.values for one in own])
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = length
    return cache, together([states for _, _, states in parts])


@dataclass(frozen=True)
class KeptText:
    """One text's keys, values and last states."""

    keys_and_values: Float[Tensor, "layers two h t d"]
    states: Float[Tensor, "t e"]

    @property
    def size(self) -> int:
        """In bytes."""
        return self.keys_and_values.nbytes + self.states.nbytes


class KeptTexts:
    """What was read of texts, by what they say, until the memory is full.

    Every text is read alone. So what is known of it does not depend on the batch in which it came
    first, and a run that is resumed with nothing kept goes on as if it had never stopped.

    Args:
        most_bytes: beyond which no more is kept; what is read then is read again.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._texts: dict[Hashable, KeptText] = {}
        self.is_full = False
        """Whether a text was read that was not kept."""
        self._like: Any = None
        """A cache of the backbone's kind."""
        self._weights: Hashable = None

    @classmethod
    def within(cls, gibibytes: Any) -> KeptTexts | None:
        """An empty one of so much memory; None for 0.

        Raises:
            ConfigError: it is no such number.
        """
        is_number = isinstance(gibibytes, int | float) and not isinstance(gibibytes, bool)
        if not is_number or not 0 <= gibibytes < math.inf:
            raise ConfigError(f"keep_texts({gibibytes!r}) must be given a number of GiB, 0 or more")
        return cls(int(gibibytes * 2**30)) if gibibytes else None

    def __deepcopy__(self, memo: dict[int, Any]) -> KeptTexts:
        """A copy of a model has its own, and may get other weights."""
        return KeptTexts(self.most_bytes)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing that is kept is saved."""
        return vars(KeptTexts(self.most_bytes))

    def __len__(self) -> int:
        """How many texts are kept."""
        return len(self._texts)

    def __contains__(self, key: Hashable) -> bool:
        """Whether a text is kept."""
        return key in self._texts

    def follow(self, weights: Hashable) -> None:
        """Forget everything, if it was read with other weights.

        Args:
            weights: a mark of the backbone's, which changes with them.
        """
        if weights != self._weights:
            self._texts.clear()
            self.bytes, self.is_full, self._weights = 0, False, weights

    def text(self, key: Hashable, read: Callable[[], tuple[Any, Float[Tensor, "t e"]]]) -> KeptText:
        """What is known of a text.

        Args:
            key: what it says, and to whom.
            read: reads it: its cache, and its last states.

        Raises:
            ConfigError: the backbone does not keep all keys and values of a text of this length.
        """
        if key in self._texts:
            return self._texts[key]
        cache, states = read()
        if not may_be_continued(cache):
            raise ConfigError(
                "the backbone keeps more of a text than keys and values, so texts cannot be kept;"
                " use keep_texts(0)"
            )
        pairs = [(layer.keys, layer.values) for layer in cache.layers]
        shapes = {tensor.shape for pair in pairs for tensor in pair}
        if len(shapes) != 1 or next(iter(shapes))[2] != len(states):
            raise ConfigError(
                f"the backbone's layers do not all keep the {len(states)} tokens of a text alike"
                " (sliding windows, or layers of several shapes), so texts cannot be kept; use"
                " keep_texts(0)"
            )
        self._like = cache
        found = KeptText(torch.stack([torch.cat(pair) for pair in pairs]), states)
        if self.bytes + found.size > self.most_bytes:
            self.is_full = True
        elif self._texts.setdefault(key, found) is found:  # and no other thread was faster
            self.bytes += found.size
        return found

    def cache_of(self, texts: list[KeptText], length: int) -> Any:
        """A cache of some texts, each ending in the last of `length` slots."""
        first = texts[0].keys_and_values
        layers, _, heads, _, width = first.shape
        joined = first.new_zeros(layers, 2, len(texts), heads, length, width)
        for row, text in enumerate(texts):
            own = text.keys_and_values
            joined[:, :, row, :, length - own.shape[3] :] = own
        cache = copy.copy(self._like)
        cache.layers = [copy.copy(layer) for layer in self._like.layers]
        for layer, (keys, values) in zip(cache.layers, joined, strict=True):
            layer.keys, layer.values = keys, values
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length = length
        return cache
