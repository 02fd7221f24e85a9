"""Rows of similar length share a pass, so that little of it is padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def cut(lengths: Sequence[int], max_padding: float) -> list[list[int]]:
    """Divide rows into groups of similar length, as few as keep padding below a limit.

    Args:
        lengths: of every row, in tokens.
        max_padding: most tokens computed over tokens of text, at least 1.

    Returns:
        The rows' indices, longest first; one group in the order given where that is enough.
    """
    text = sum(lengths)
    if max(lengths) * len(lengths) <= max_padding * text:
        return [list(range(len(lengths)))]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    ordered = np.asarray(lengths)[order]
    edges = [0, len(order)]
    padded = int(ordered[0]) * len(order)
    while padded > max_padding * text:
        # in every group the place where a second pass saves most
        saved, place = max(
            ((int(ordered[begin]) - int(ordered[at])) * (end - at), at)
            for begin, end in pairwise(edges)
            for at in range(begin, end)
        )
        edges = sorted([*edges, place])
        padded -= saved
    return [order[begin:end] for begin, end in pairwise(edges)]
