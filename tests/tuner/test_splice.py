"""Properties of the splice that hold for any mask and any lengths."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from peft_smop.errors import ConfigError
from peft_smop.tuner.deciding import mean_embedding
from peft_smop.tuner.scope import context_mask, left_padding
from peft_smop.tuner.splice import Layout

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def batches(draw):
    """A mask (b, n) of any 0s and 1s, with holes and empty rows too; a prompt length per row."""
    rows, tokens, width = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    bits = st.lists(st.integers(0, 1), min_size=tokens, max_size=tokens)
    mask = draw(st.lists(bits, min_size=rows, max_size=rows))
    lengths = draw(st.lists(st.integers(0, width), min_size=rows, max_size=rows))
    slack = draw(st.sampled_from(["left", "right"]))
    return torch.tensor(mask), torch.tensor(lengths), width, slack


def laid_out(case):
    mask, lengths, width, slack = case
    rows, tokens = mask.shape
    layout = Layout.of(
        padding=left_padding(mask), lengths=lengths, tokens=tokens, width=width, slack=slack
    )
    x = torch.arange(1.0, rows * tokens + 1).view(rows, tokens, 1)
    prompts = -torch.arange(1.0, rows * width + 1).view(rows, width, 1)
    used = torch.arange(width)[None, :] < lengths[:, None]
    prompts = prompts * used[:, :, None]  # zeros fill up shorter prompts
    return layout, x, prompts, layout.embeddings(prompts, x), layout.mask(mask)


@st.composite
def layouts(draw):
    """Any layout of a few rows, with prompts before texts and behind them."""
    rows, tokens, width = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    slack = draw(st.sampled_from(["left", "right", "pressed"]))

    def counts(most):
        return torch.tensor([draw(st.integers(0, most)) for _ in range(rows)])

    padding, edges = counts(tokens), None
    if slack != "pressed":  # encoders, which have no answer for a prompt to stand before
        edges = torch.maximum(padding, counts(tokens))
    lengths = counts(width)
    return padding, Layout.of(
        padding=padding, lengths=lengths, tokens=tokens, width=width, slack=slack, edges=edges
    )


@given(layouts())
@PROPERTY
def test_every_slot_holds_one_virtual_token_or_token_and_each_has_its_slot(case):
    _, layout = case
    places = torch.arange(layout.source.shape[1])
    for source, slots in zip(layout.source, layout.token_slots, strict=True):
        assert source.sort().values.tolist() == places.tolist()
        assert source[slots].tolist() == places[layout.width :].tolist()


@given(layouts())
@PROPERTY
def test_what_is_not_padding_stands_together_with_the_prompt_where_the_text_ends(case):
    padding, layout = case
    width = layout.width
    for i, source in enumerate(layout.source):
        length, edge, pad = int(layout.lengths[i]), int(layout.edges[i]), int(padding[i])
        tokens = list(range(width, layout.source.shape[1]))
        row = [*tokens[pad:edge], *range(length), *tokens[edge:]]
        begin = int(layout.origin[i])
        assert source[begin : begin + len(row)].tolist() == row


@given(batches())
@PROPERTY
def test_dropping_the_prompt_s_places_gives_back_the_tokens(case):
    layout, x, _, spliced, _ = laid_out(case)
    assert torch.equal(layout.drop(spliced), x)


@given(batches())
@PROPERTY
def test_attended_are_the_row_s_prompt_and_the_tokens_that_were_attended_in_their_order(case):
    mask, lengths, _, _ = case
    _, x, prompts, spliced, seen = laid_out(case)
    assert seen.dtype == mask.dtype
    for i in range(len(mask)):
        expected = torch.cat([prompts[i, : lengths[i], 0], x[i, mask[i].bool(), 0]])
        assert torch.equal(spliced[i, seen[i].bool(), 0], expected)


@given(batches())
@PROPERTY
def test_the_prompt_stands_directly_before_the_first_attended_token_where_slack_is_left(case):
    mask, lengths, width, slack = case
    layout, _, prompts, spliced, _ = laid_out(case)
    for i in range(len(mask)):
        start = int(layout.start[i])
        padding = int((mask[i].cumsum(0) == 0).sum())
        shift = width if slack == "left" else int(lengths[i])
        assert start == padding + shift - int(lengths[i])
        own = spliced[i, start : start + int(lengths[i]), 0]
        assert torch.equal(own, prompts[i, : lengths[i], 0])


@given(batches())
@PROPERTY
def test_positions_of_attended_tokens_count_on_from_the_prompt(case):
    mask, lengths, _, _ = case
    layout, _, _, _, _ = laid_out(case)
    tokens = layout.token_slots
    for first in (0, 2):
        positions = layout.positions(None, first=first)
        given_positions = layout.positions(torch.arange(mask.shape[1])[None], first=first)
        for i in range(len(mask)):
            padding = int((mask[i].cumsum(0) == 0).sum())
            slots = tokens[i, padding:]
            own = torch.arange(len(slots)) + lengths[i] + first
            assert torch.equal(positions[i, slots], own)
            # a caller's positions are moved by the row's own prompt
            moved = torch.arange(padding, mask.shape[1]) + lengths[i]
            assert torch.equal(given_positions[i, slots], moved)


@given(batches())
@PROPERTY
def test_the_mean_is_over_attended_tokens_and_an_empty_row_has_mean_0(case):
    mask = case[0]
    x = torch.randn(*mask.shape, 3, generator=torch.Generator().manual_seed(0))
    found = mean_embedding(x, mask.bool())
    for i in range(len(mask)):
        own = x[i, mask[i].bool()]
        assert_close(found[i], own.mean(dim=0) if len(own) else torch.zeros(3))


@given(batches(), st.integers(0, 2**20))
@PROPERTY
def test_the_context_is_what_is_attended_before_the_first_label_and_never_nothing(case, seed):
    mask = case[0].bool()
    generator = torch.Generator().manual_seed(seed)
    labels = torch.where(torch.rand(mask.shape, generator=generator) < 0.6, -100, 5)
    expected = []
    for i in range(len(mask)):
        answer = (labels[i] != -100).nonzero()
        end = int(answer[0]) if len(answer) else mask.shape[1]
        expected.append(mask[i] & (torch.arange(mask.shape[1]) < end))
    if any(own.any() and not before.any() for own, before in zip(mask, expected, strict=True)):
        with pytest.raises(ConfigError, match="no text before the answer"):
            context_mask(labels, mask)
    else:
        assert torch.equal(context_mask(labels, mask), torch.stack(expected))
