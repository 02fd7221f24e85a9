"""Where the soft prompt goes: between a row's left padding and its tokens.

    tokens                      [pad pad  t0  t1  t2 ]
    with a prompt of 2          [pad pad  P0  P1  t0  t1  t2 ]
    in a batch whose longest    [pad pad   .  P0  P1  t0  t1  t2 ]   slack ('.') is never attended

The prompt stands after left padding because sliding-window attention and absolute positions count
from there. Everything is a gather with indices computed from the attention mask: no branch on data,
no row sees another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


def left_padding(mask: Shaped[Tensor, "b n"]) -> Int[Tensor, "b"]:
    """How many slots precede each row's first attended token."""
    return (mask.cumsum(dim=1) == 0).sum(dim=1)


@dataclass(frozen=True)
class Layout:
    """Which slot of the spliced rows holds what; s = n + l slots, l the batch's longest prompt."""

    source: Int[Tensor, "b s"]
    """For every slot its place in [prompt (l), tokens (n)]; slack points at an unused place of the
    prompt."""
    token_slots: Int[Tensor, "b n"]
    """For every token its slot."""
    start: Int[Tensor, "b"]
    """The slot where each row's prompt begins."""
    lengths: Int[Tensor, "b"]
    """The length of each row's own prompt."""

    @classmethod
    def of(
        cls,
        *,
        padding: Int[Tensor, "b"],
        lengths: Int[Tensor, "b"],
        tokens: int,
        width: int,
        slack: Literal["left", "right", "pressed"] = "left",
    ) -> Layout:
        """Lay out rows of `tokens` tokens.

        Args:
            padding: left padding of each row, in tokens.
            lengths: length of each row's prompt, at most `width`.
            tokens: n.
            width: l, the longest prompt in the batch.
            slack: where a shorter prompt leaves its unused slots: "left" of the prompt; "right", at
                the row's end, for backbones that count positions by slot and take no
                `position_ids`; "pressed": at the row's end, and left padding with them, for
                encoders of that kind.
        """
        slots = torch.arange(tokens + width, device=padding.device)[None, :]
        columns = slots[:, :tokens]
        padding_, lengths_ = padding[:, None], lengths[:, None]
        unused = torch.full_like(slots, width - 1)  # read only where a prompt is shorter than width
        if slack == "pressed":
            start, shift = torch.zeros_like(padding_), lengths_ - padding_
        else:
            shift = torch.full_like(lengths_, width) if slack == "left" else lengths_
            start = padding_ + shift - lengths_
        end = start + lengths_
        source = torch.where(slots < start, unused, slots - start)
        source = torch.where(slots >= end, slots - shift + width, source)
        source = torch.where(slots >= tokens + shift, unused, source)
        if slack == "pressed":  # padding goes behind everything
            behind = tokens + width - padding_
            source = torch.where(slots >= behind, slots - behind + width, source)
            token_slots = torch.where(columns < padding_, columns + behind, columns + shift)
        else:
            source = torch.where(slots < padding_, slots + width, source)
            token_slots = torch.where(columns < padding_, columns, columns + shift)
        return cls(source=source, token_slots=token_slots, start=start[:, 0], lengths=lengths)

    @property
    def width(self) -> int:
        """The longest prompt of the batch, l."""
        return self.source.shape[1] - self.token_slots.shape[1]

    def _prompt_slots(self) -> Bool[Tensor, "b l"]:
        columns = torch.arange(self.width, device=self.source.device)
        return columns[None, :] < self.lengths[:, None]

    def embeddings(
        self, prompts: Float[Tensor, "b l e"], x: Float[Tensor, "b n e"]
    ) -> Float[Tensor, "b s e"]:
        """[left padding; prompt; tokens] (paper, eq. 4)."""
        joined = torch.cat([prompts, x], dim=1)
        return joined.gather(1, self.source[:, :, None].expand(-1, -1, x.shape[-1]))

    def mask(self, mask: Shaped[Tensor, "b n"] | None) -> Shaped[Tensor, "b s"]:
        """The attention mask with the prompt attended and slack left out."""
        if mask is None:
            mask = torch.ones_like(self.token_slots)
        return torch.cat([self._prompt_slots().to(mask.dtype), mask], dim=1).gather(1, self.source)

    def with_zeros(self, marks: Int[Tensor, "b n"]) -> Int[Tensor, "b s"]:
        """Token types, or other marks of tokens, 0 for the prompt."""
        prompt = marks.new_zeros(len(marks), self.width)
        return torch.cat([prompt, marks], dim=1).gather(1, self.source)

    def positions(
        self, given: Int[Tensor, "*axes #b n"] | None, *, first: int = 0
    ) -> Int[Tensor, "*axes b s"]:
        """Positions that count on from the prompt's first.

        Args:
            given: the caller's positions of the tokens, perhaps along several axes: the prompt
                takes the row's first and moves the others on; None: by slot.
            first: the position of the first slot, where none are given (RoBERTa starts after its
                padding index).
        """
        slots = torch.arange(self.source.shape[1], device=self.source.device)
        if given is None:
            return (slots[None, :] - self.start[:, None]).clamp(min=0) + first
        b, n = self.token_slots.shape
        tokens = given.expand(*given.shape[:-2], b, n)
        # a row's first token stands right behind its prompt
        end = self.start + self.lengths
        at = (self.token_slots == end[:, None]).long().argmax(dim=1)
        begin = tokens.gather(-1, at[:, None].expand(*tokens.shape[:-1], 1))
        prompt = begin + slots[: self.width]
        joined = torch.cat([prompt, tokens + self.lengths[:, None]], dim=-1)
        return joined.gather(-1, self.source.expand(*joined.shape[:-1], -1))

    def drop(self, states: Float[Tensor, "b s d"]) -> Float[Tensor, "b n d"]:
        """The states of the tokens alone."""
        return states.gather(1, self.token_slots[:, :, None].expand(-1, -1, states.shape[-1]))

    def drop_flat(self, values: Float[Tensor, "bs d"]) -> Float[Tensor, "bn d"]:
        """The same where a backbone lays all rows' positions one below the other."""
        b, s = self.source.shape
        return self.drop(values.view(b, s, -1)).flatten(0, 1)
