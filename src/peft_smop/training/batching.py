"""Batches of rows of similar length, in an order that only the seed and the epoch decide."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from peft_smop.rows import cut

WINDOW = 50
"""Batches sorted together: enough to make padding rare, few enough to keep batches random."""
JITTER = 0.05
"""How much lengths are blurred before sorting, so that small data do not repeat their batches."""


class LengthSampler(Sampler[int]):
    """Row indices such that consecutive batches hold rows of similar length.

    Rows are shuffled, sorted by blurred length within windows, cut into batches, and the batches
    shuffled; an incomplete batch comes last. The order is a function of seed and epoch, so that a
    resumed run continues in the order of the interrupted one.

    Args:
        lengths: of every row, in tokens.
        batch_size: rows in a batch.
        seed: of the order.
        window: batches that are sorted together; 1: every batch is a fair sample of the rows, as
            training needs it that compares the rows of a step with each other.
        processes: among which a batch is divided. The last, incomplete one is divided evenly too:
            the places that it leaves free have the index behind the last row's, of no row.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        *,
        window: int = WINDOW,
        processes: int = 1,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.window = window
        self.processes = processes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.processes == 1:
            return len(self.lengths)
        return -(-len(self.lengths) // self.batch_size) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(len(self.lengths))
        blurred = self.lengths * generator.uniform(1 - JITTER, 1 + JITTER, len(self.lengths))
        span = self.window * self.batch_size
        windows = [order[i : i + span] for i in range(0, len(order), span)]
        rows = np.concatenate([w[np.argsort(blurred[w], kind="stable")] for w in windows])
        whole = len(rows) // self.batch_size * self.batch_size
        batches = rows[:whole].reshape(-1, self.batch_size)
        yield from batches[generator.permutation(len(batches))].ravel().tolist()
        rest = rows[whole:].tolist()
        if self.processes > 1 and rest:
            places = self.batch_size // self.processes
            for own in np.array_split(rest, self.processes):
                yield from own.tolist()
                yield from [len(self.lengths)] * (places - len(own))
            return
        yield from rest


def padding_ratio(
    lengths: Sequence[int], order: Sequence[int], batch_size: int, max_padding: float = math.inf
) -> float:
    """Tokens computed over tokens of text, for rows batched in the given order and cut."""
    ordered = [lengths[i] for i in order]
    batches = [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
    parts = [[batch[i] for i in part] for batch in batches for part in cut(batch, max_padding)]
    return sum(max(part) * len(part) for part in parts) / sum(ordered)
