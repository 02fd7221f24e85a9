"""Batches of similar length, in an order decided by seed and epoch."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_smop.training import LengthSampler, padding_ratio


def order(lengths, batch_size, seed=0, epoch=0):
    sampler = LengthSampler(lengths, batch_size, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=300), st.integers(1, 40), st.integers(0, 9)
)
def test_every_row_comes_once_in_an_epoch(lengths, batch_size, seed):
    assert sorted(order(lengths, batch_size, seed)) == list(range(len(lengths)))


def test_the_order_repeats_for_a_seed_and_epoch_and_changes_with_either():
    lengths = np.random.default_rng(0).integers(5, 300, 500).tolist()
    assert order(lengths, 32, 1, 2) == order(lengths, 32, 1, 2)
    assert order(lengths, 32, 1, 2) != order(lengths, 32, 1, 3)
    assert order(lengths, 32, 1, 2) != order(lengths, 32, 2, 2)


def test_batches_hold_rows_of_similar_length_and_stay_random():
    # lengths like those of short passages: log-normal around 60
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(4.1, 0.6, 2500), 10, 500).astype(int).tolist()
    shuffled = generator.permutation(len(lengths)).tolist()
    assert padding_ratio(lengths, shuffled, 32) > 2
    assert padding_ratio(lengths, order(lengths, 32), 32) < 1.15
    batches = [order(lengths, 32)[i : i + 32] for i in range(0, 2496, 32)]
    means = [np.mean([lengths[i] for i in batch]) for batch in batches]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3  # not from long to short
    other = {frozenset(order(lengths, 32, 0, 1)[i : i + 32]) for i in range(0, 2496, 32)}
    assert not other & {frozenset(batch) for batch in batches}


def test_an_incomplete_batch_comes_last():
    rows = order([10] * 10, 4)
    assert len(rows) == 10  # two whole batches and one of two
    assert padding_ratio([1, 1, 5, 5], [0, 1, 2, 3], 2) == 1.0
    assert padding_ratio([1, 5, 1, 5], [0, 1, 2, 3], 2) == 20 / 12
