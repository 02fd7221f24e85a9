import json
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_smop.errors import ConfigError, DataError
from peft_smop.tasks import PRESETS, Example
from peft_smop.tasks.holdout import hold_out
from peft_smop.tasks.splits import make_split

LABELS = ("a", "b", "c")


def examples(labels, groups=None):
    return [
        Example(str(i), f"text {i}", label, group=None if groups is None else f"g{groups[i]}")
        for i, label in enumerate(labels)
    ]


def ids(part):
    return [example.id for example in part]


# From 7 rows of 3 labels on, some label is left with two rows after the first holding out.
labelled = st.lists(st.integers(0, 2), min_size=7, max_size=200).map(examples)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def grouped(draw):
    labels = draw(st.lists(st.integers(0, 2), min_size=30, max_size=120))
    groups = draw(st.lists(st.integers(0, 19), min_size=len(labels), max_size=len(labels)))
    # Some rows of every group, so that there is always something to choose from.
    groups[:20] = range(20)
    return examples(labels, groups)


@given(rows=labelled, seed=seeds)
@settings(deadline=None, max_examples=60)
def test_the_parts_are_disjoint_and_complete_and_keep_the_order(rows, seed):
    split = make_split({"data": rows}, LABELS, seed=seed)
    parts = [split.train, split.validation, split.test]
    assert sorted(int(i) for part in parts for i in ids(part)) == list(range(len(rows)))
    for part in parts:
        assert [int(i) for i in ids(part)] == sorted(int(i) for i in ids(part))


@given(rows=labelled, seed=seeds, share=st.integers(2, 10))
@settings(deadline=None, max_examples=60)
def test_every_label_is_held_out_in_proportion_within_one_row(rows, seed, share):
    kept, held = hold_out(rows, -(-len(rows) // share), seed)
    assert kept
    assert held
    total = Counter(example.label for example in rows)
    counted = Counter(example.label for example in held)
    # A label with one row stays in train and has no share in what is held out.
    divisible = {label: count for label, count in total.items() if count > 1}
    assert set(counted) <= set(divisible)
    for label, count in divisible.items():
        proportion = len(held) * count / sum(divisible.values())
        assert abs(counted[label] - proportion) < 1


@given(rows=labelled, seed=seeds)
@settings(deadline=None, max_examples=30)
def test_the_same_seed_gives_the_same_split(rows, seed):
    once = make_split({"data": rows}, LABELS, seed=seed)
    assert once.record() == make_split({"data": rows}, LABELS, seed=seed).record()


@given(rows=grouped(), seed=seeds)
@settings(deadline=None, max_examples=40)
def test_groups_stay_whole_and_no_part_is_empty(rows, seed):
    split = make_split({"data": rows}, LABELS, seed=seed)
    parts = [split.train, split.validation, split.test]
    assert all(parts)
    assert sum(len(part) for part in parts) == len(rows)
    groups = [{example.group for example in part} for part in parts]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]


@pytest.mark.parametrize("groups", [None, [i // 4 for i in range(200)]])
def test_the_seed_changes_the_split(groups):
    rows = examples([i % 3 for i in range(200)], groups)
    held = {tuple(ids(hold_out(rows, 20, seed)[1])) for seed in range(8)}
    assert len(held) >= 6


def test_groups_of_one_size_are_held_out_to_a_tenth():
    rows = examples([i % 2 for i in range(200)], [i // 4 for i in range(200)])
    _, held = hold_out(rows, 20, seed=0)
    assert 16 <= len(held) <= 24
    assert abs(sum(example.label for example in held) - len(held) / 2) <= 2


def test_rows_without_a_group_move_alone_beside_groups():
    rows = [Example(str(i), "x", i % 2, group="big" if i < 10 else None) for i in range(40)]
    split = make_split({"data": rows}, LABELS)
    big = [any(e.group == "big" for e in part) for part in (split.train, split.validation)]
    assert sum(big) <= 1
    assert split.test


def test_the_split_is_the_same_in_another_process():
    code = (
        "from peft_smop.tasks import Example\n"
        "from peft_smop.tasks.splits import make_split\n"
        "rows = [Example(str(i), f'text {i}', i % 3, group=f'g{i // 3}') for i in range(90)]\n"
        "split = make_split({'data': rows}, ('a', 'b', 'c'), seed=5)\n"
        "import json; print(json.dumps(split.record()))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    rows = examples([i % 3 for i in range(90)], [i // 3 for i in range(90)])
    assert json.loads(other) == make_split({"data": rows}, LABELS, seed=5).record()


def test_paper_holds_a_tenth_of_train_out_and_leaves_the_official_validation_alone():
    train, official = examples([0, 1] * 50), examples([0, 1, 1])
    split = make_split({"train": train, "validation": official}, LABELS[:2])
    assert split.preset == "paper"
    assert (len(split.train), len(split.validation)) == (90, 10)
    assert Counter(example.label for example in split.validation) == {0: 5, 1: 5}
    assert split.test == tuple(official)


def test_three_way_over_several_files_keeps_their_ids_and_groups_apart():
    train = examples([0, 1] * 20, [i // 2 for i in range(40)])
    official = examples([0, 1] * 10, [i // 2 for i in range(20)])
    split = make_split(
        {"train": train, "validation": official}, LABELS[:2], preset="three-way", seed=1
    )
    everything = [*split.train, *split.validation, *split.test]
    assert len({example.id for example in everything}) == 60
    assert {example.id for example in everything} >= {"train/0", "validation/0"}
    assert {example.group for example in everything} >= {"train/g0", "validation/g0"}


def test_a_tenth_is_rounded_up_and_exact_multiples_are_exact():
    for size, held in ((30, 3), (31, 4), (250, 25), (5428, 543)):
        split = make_split({"train": examples([0, 1] * size)[:size], "test": examples([0])}, LABELS)
        assert len(split.validation) == held


def test_a_label_with_a_single_row_stays_in_train():
    split = make_split({"data": examples([0] * 20 + [1] * 20 + [2])}, LABELS)
    assert [example.label for example in split.train].count(2) == 1


def test_more_labels_than_a_tenth_has_room_for_are_still_divided():
    split = make_split({"data": examples([0, 1, 2] * 3)}, LABELS)
    assert [len(split.train), len(split.validation), len(split.test)] == [3, 3, 3]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (examples([0]), "1 rows, none of which shares its label"),
        (examples([0, 1, 2]), "3 rows, none of which shares its label"),
        (examples([0, 1, 2] * 2), "3 rows, none of which shares its label"),
        (examples([0, 1, 0, 1], [0, 0, 0, 0]), "4 rows in 1 group(s) cannot be divided"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_its_source(rows, sentence):
    with pytest.raises(DataError) as caught:
        make_split({"data": rows}, LABELS, sources={"data": "few.csv"})
    assert str(caught.value).startswith(f"few.csv: {sentence}")


def test_a_rare_label_in_groups_raises_no_warning():
    rows = examples([0, 1] * 30 + [2], [i // 3 for i in range(61)])
    assert make_split({"data": rows}, LABELS).test


def test_a_preset_that_does_not_fit_is_answered_with_those_that_do():
    with pytest.raises(ConfigError) as caught:
        make_split({"data": examples([0, 1])}, LABELS, preset="paper")
    assert str(caught.value) == (
        "preset='paper' needs train and one other part, but the data have data; use three-way"
    )
    with pytest.raises(ConfigError, match="unknown preset 'papper'; did you mean paper"):
        make_split({"data": examples([0, 1])}, LABELS, preset="papper")


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ConfigError, match=f"seed={seed} is outside"):
        make_split({"data": examples([0, 1] * 9)}, LABELS, seed=seed)


def test_the_record_counts_labels_and_texts_shared_with_train():
    train = (Example("0", "same", 0), Example("1", "other", 1))
    test = (Example("0", "same", 0), Example("1", "same", 0), Example("2", "new", 1))
    split = make_split(
        {"train": train, "validation": train[1:], "test": test},
        ("no", "yes"),
        seed=4,
        sources={"test": "t.jsonl"},
    )
    record = json.loads(json.dumps(split.record()))
    assert (record["preset"], record["seed"], record["sources"]) == (
        "given",
        4,
        {"test": "t.jsonl"},
    )
    assert record["parts"]["train"]["examples"] == 2
    assert "texts_shared_with_train" not in record["parts"]["train"]
    assert record["parts"]["test"]["labels"] == {"no": 2, "yes": 1}
    assert record["parts"]["test"]["texts_shared_with_train"] == 2
    assert record["parts"]["validation"]["texts_shared_with_train"] == 1


def test_the_hash_is_that_of_ids_texts_and_labels_line_by_line():
    train = (Example("0", "é", 0), Example("1", "b", 1))
    record = make_split(dict.fromkeys(("train", "validation", "test"), train), LABELS).record()
    # printf '%s\n' '["0", "\u00e9", 0]' '["1", "b", 1]' | sha256sum
    assert (
        record["parts"]["train"]["sha256"]
        == "00900053e1552ed5cfe3037aea1b8226660db0736f212e40ac54b4de8121b92b"
    )


@pytest.mark.parametrize(
    "changed", [Example("9", "a", 0), Example("0", "b", 0), Example("0", "a", 1)]
)
def test_the_hash_sees_every_id_text_and_label(changed):
    def sha(example):
        parts = dict.fromkeys(("train", "validation", "test"), (example,))
        return make_split(parts, LABELS).record()["parts"]["test"]["sha256"]

    assert sha(changed) != sha(Example("0", "a", 0))


def test_every_preset_is_described():
    assert set(PRESETS) == {"given", "paper", "three-way"}
    assert all(preset.description for preset in PRESETS.values())
