"""Where the soft prompt goes: between a row's left padding and its tokens, or behind its text.

    tokens                      [pad pad  t0  t1  a0 ]
    with a prompt of 2          [pad pad  P0  P1  t0  t1  a0 ]
    in a batch whose longest    [pad pad   .  P0  P1  t0  t1  a0 ]   slack ('.') is never attended
    behind the text             [pad pad  t0  t1  P0  P1  a0 ]
    in that batch                [ . pad pad  t0  t1  P0  P1  a0 ]

The prompt stands after left padding because sliding-window attention and absolute positions count
from there. Behind the text the verdict on what follows is the prompt's last, and is handed out in
the place of the text's last. Everything is a gather with indices computed from the attention mask:
no branch on data, no row sees another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

Position = Literal["before", "after"]
"""Where a prompt stands: before the text, or between the text and its answer."""


@dataclass(frozen=True)
class Layout:
    """Which slot of the spliced rows holds what; s = n + l slots, l the batch's longest prompt."""

    source: Int[Tensor, "b s"]
    """For every slot its place in [prompt (l), tokens (n)]."""
    token_slots: Int[Tensor, "b n"]
    """For every token its slot."""
    read_slots: Int[Tensor, "b n"]
    """For every token the slot whose state is handed out for it."""
    start: Int[Tensor, "b"]
    """The slot where each row's prompt begins."""
    origin: Int[Tensor, "b"]
    """The slot where positions begin."""
    lengths: Int[Tensor, "b"]
    """The length of each row's own prompt."""
    edges: Int[Tensor, "b"]
    """How many of each row's tokens, padding included, stand before its prompt."""

    @classmethod
    def of(
        cls,
        *,
        padding: Int[Tensor, "b"],
        lengths: Int[Tensor, "b"],
        tokens: int,
        width: int,
        slack: Literal["left", "right", "pressed"] = "left",
        edges: Int[Tensor, "b"] | None = None,
    ) -> Layout:
        """Lay out rows of `tokens` tokens.

        Args:
            padding: left padding of each row, in tokens.
            edges: tokens before each row's prompt, padding included; None: padding alone.
            lengths: length of each row's prompt, at most `width`.
            tokens: n.
            width: l, the longest prompt in the batch.
            slack: where a shorter prompt leaves its unused slots: "left" of the prompt, or of what
                stands before it; "right": at the row's end, for backbones that count positions by
                slot and take no `position_ids`; "pressed": behind the row, and left padding before
                them, for encoders of that kind.
        """
        edges = padding if edges is None else edges
        is_behind = edges > padding
        gap = width - lengths
        # slots: of the prompt's first, its first unused; by how many tokens before and after move
        start, hole, head, tail = {
            "left": (edges + gap, edges * ~is_behind, gap * is_behind, gap + lengths),
            "right": (edges, tokens + lengths, torch.zeros_like(gap), lengths),
            "pressed": (edges * 0, tokens + lengths, tokens + lengths - edges, lengths - edges),
        }[slack]
        every = torch.arange(width + tokens, device=padding.device).expand(padding.shape[0], -1)
        virtual, columns = every[:, :width], every[:, :tokens]
        edge, end = edges[:, None], (start + lengths)[:, None]
        unused = virtual + (hole - lengths)[:, None]
        prompt_slots = torch.where(virtual < lengths[:, None], virtual + start[:, None], unused)
        token_slots = columns + torch.where(columns < edge, head[:, None], tail[:, None])
        slots = torch.cat([prompt_slots, token_slots], dim=1)
        is_read_for = (is_behind & (lengths > 0))[:, None] & (columns == edge - 1)
        return cls(
            source=torch.empty_like(slots).scatter(1, slots, every),
            token_slots=token_slots,
            read_slots=torch.where(is_read_for, end - 1, token_slots),
            start=start,
            origin=torch.where(is_behind, padding + head, start),
            lengths=lengths,
            edges=edges,
        )

    @property
    def width(self) -> int:
        """The longest prompt of the batch, l."""
        return self.source.shape[1] - self.token_slots.shape[1]

    def embeddings(
        self, prompts: Float[Tensor, "b l e"], x: Float[Tensor, "b n e"]
    ) -> Float[Tensor, "b s e"]:
        """[left padding; prompt; tokens] (paper, eq. 4)."""
        joined = torch.cat([prompts, x], dim=1)
        return joined.gather(1, self.source[:, :, None].expand(-1, -1, x.shape[-1]))

    def mask(self, mask: Shaped[Tensor, "b n"] | None) -> Shaped[Tensor, "b s"]:
        """The attention mask with the prompt attended and slack left out."""
        virtual = torch.arange(self.width, device=self.source.device)
        is_prompt = virtual < self.lengths[:, None]
        mask = torch.ones_like(self.token_slots) if mask is None else mask
        return torch.cat([is_prompt.to(mask.dtype), mask], dim=1).gather(1, self.source)

    def with_zeros(self, marks: Int[Tensor, "b n"]) -> Int[Tensor, "b s"]:
        """Token types, or other marks of tokens, 0 for the prompt."""
        return nn.functional.pad(marks, (self.width, 0)).gather(1, self.source)

    def positions(
        self, given: Int[Tensor, "*axes #b n"] | None, *, first: int = 0
    ) -> Int[Tensor, "*axes b s"]:
        """Positions that count on from the prompt's first.

        Args:
            given: the caller's positions of the tokens, perhaps along several axes: the prompt
                takes the first that follow it and moves the others on; None: by slot.
            first: the position of the first slot, where none are given (RoBERTa starts after its
                padding index).
        """
        slots = torch.arange(self.source.shape[1], device=self.source.device)
        if given is None:
            return (slots[None, :] - self.origin[:, None]).clamp(min=0) + first
        b, n = self.token_slots.shape
        tokens = given.expand(*given.shape[:-2], b, n)
        # a row's first token stands right behind its prompt
        end = self.start + self.lengths
        at = (self.token_slots == end[:, None]).long().argmax(dim=1)
        is_behind = (self.origin < self.start)[:, None]
        at = torch.where(is_behind, self.edges[:, None] - 1, at[:, None])
        begin = tokens.gather(-1, at.expand(*tokens.shape[:-1], 1)) + is_behind.long()
        prompt = begin + slots[: self.width]
        moves = (slots[:n] >= self.edges[:, None]) | ~is_behind
        joined = torch.cat([prompt, tokens + self.lengths[:, None] * moves], dim=-1)
        return joined.gather(-1, self.source.expand(*joined.shape[:-1], -1))

    def drop(self, states: Float[Tensor, "b s d"]) -> Float[Tensor, "b n d"]:
        """The states of the tokens alone, a prompt's last for the last before it."""
        return states.gather(1, self.read_slots[:, :, None].expand(-1, -1, states.shape[-1]))

    def drop_flat(self, values: Float[Tensor, "bs d"]) -> Float[Tensor, "bn d"]:
        """The same where a backbone lays all rows' positions one below the other."""
        return self.drop(values.view(*self.source.shape, -1)).flatten(0, 1)
