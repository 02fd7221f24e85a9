"""Noise as a pure function of (seed, step, row, draw): no generator, no global state.

A router's perturbation must be the same when a run is resumed, when its rows share a batch with
other runs, are divided between passes or processes or computed again, on the CPU and on a GPU, and
inside a compiled graph. A counter-based generator gives all of that: the draw for a row depends on
nothing but the adapter's seed, the number of its training steps, and what the row says. Its place
in a batch does not enter, so two equal rows of one step draw the same.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_LOW_32 = 0xFFFFFFFF


def _mix(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Scramble 32-bit words held in int64, after the lowbias32 family of integer hashes.

    Both multipliers are below 2**31, so a product of two words never overflows int64.
    """
    x = x & _LOW_32
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _LOW_32
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _LOW_32
    return x ^ (x >> 15)


def row_keys(
    seeds: Int[Tensor, "#b"],
    steps: Int[Tensor, "#b"],
    content: Int[Tensor, "b"],
    draw: int = 0,
) -> Int[Tensor, "b"]:
    """One 32-bit key per row.

    Args:
        seeds: the seed of each row's adapter.
        steps: how many steps that adapter was trained for so far.
        content: a hash of each row, from `fingerprints` or `embedding_fingerprints`.
        draw: which of several draws for the same row.
    """
    return _mix(_mix(_mix(_mix(seeds) + steps) + content) + draw)


def fingerprints(ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None) -> Int[Tensor, "b"]:
    """One 32-bit hash of each row's tokens and their order; padding does not enter it.

    Args:
        ids: token ids.
        mask: the tokens that count; None: all.
    """
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    place = mask.cumsum(dim=1)
    return _mix((_mix(_mix(ids) + place) * mask).sum(dim=1))


def embedding_fingerprints(
    x: Float[Tensor, "b n e"], mask: Bool[Tensor, "b n"] | None
) -> Int[Tensor, "b"]:
    """The same of rows that are given as embeddings: a hash of their bits.

    Args:
        x: embeddings of 16, 32 or 64 bits.
        mask: the tokens that count; None: all.
    """
    bits = x.detach().view(torch.int16 if x.element_size() == 2 else torch.int32)
    columns = torch.arange(bits.shape[-1], device=x.device)
    factors = (_mix(columns + 1) >> 1).to(torch.int32) | 1  # odd: no bit of a factor's is lost
    return fingerprints((bits.to(torch.int32) * factors).sum(dim=-1), mask)


def content_of(
    ids: Int[Tensor, "b n"] | None, x: Float[Tensor, "b n e"], mask: Bool[Tensor, "b n"] | None
) -> Int[Tensor, "b"]:
    """A hash of each row: of its token ids, or, where there are none, of its embeddings."""
    return embedding_fingerprints(x, mask) if ids is None else fingerprints(ids, mask)


def choice(keys: Int[Tensor, "b"], count: int) -> Int[Tensor, "b"]:
    """A whole number below `count` for each key, all equally likely."""
    return (_mix(keys) * count) >> 32


def uniform(keys: Int[Tensor, "b"], count: int) -> Float[Tensor, "b count"]:
    """Independent draws from the open interval (0, 1) in fp32, `count` for each row."""
    columns = torch.arange(count, device=keys.device)
    words = _mix(keys[:, None] + _mix(2 * columns + 1))
    # 23 bits and a half are exact in fp32: with one bit more the largest would round to 1
    return ((words >> 9).float() + 0.5) / 2**23


def normal(keys: Int[Tensor, "b"], count: int) -> Float[Tensor, "b count"]:
    """Independent N(0, 1) draws in fp32, `count` for each row (Box and Muller's transform).

    Args:
        keys: one key per row, from `row_keys`.
        count: draws per row.
    """
    columns = torch.arange(count, device=keys.device)
    first = _mix(keys[:, None] + _mix(2 * columns + 1))
    second = _mix(first + 0x1234567)
    # 24 bits are what fp32 holds; the half keeps the logarithm's argument above zero
    radius = torch.sqrt(-2 * torch.log(((first >> 8).float() + 0.5) / 2**24))
    return radius * torch.cos(2 * math.pi * ((second >> 8).float() / 2**24))


def gumbel(keys: Int[Tensor, "b"], count: int) -> Float[Tensor, "b count"]:
    """Independent standard Gumbel draws, -log(-log u), in fp32, `count` for each row."""
    return -torch.log(-torch.log(uniform(keys, count)))
