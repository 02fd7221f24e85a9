from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from peft_smop.embedded.medley import POPULATIONS, medley_rows
from peft_smop.embedded.mixture import Difficulty, write_instructed
from peft_smop.embedded.partition import split_of
from peft_smop.errors import ConfigError


def test_rows_are_the_same_every_time_and_other_with_another_seed() -> None:
    assert medley_rows("train", 64) == medley_rows("train", 64)
    assert medley_rows("train", 64) != medley_rows("train", 64, seed=1)


def test_more_rows_begin_with_the_fewer() -> None:
    assert medley_rows("test", 160)[:48] == medley_rows("test", 48)


def test_no_text_is_in_two_splits_or_twice_in_one() -> None:
    texts = {
        split: [row["text"] for seed in (0, 1) for row in medley_rows(split, 800, seed=seed)]
        for split in ("train", "validation", "test")
    }
    assert not set(texts["train"]) & set(texts["validation"])
    assert not set(texts["train"]) & set(texts["test"])
    assert not set(texts["validation"]) & set(texts["test"])
    one_seed = [row["text"] for row in medley_rows("train", 800)]
    assert len(set(one_seed)) == 800
    for split, held in texts.items():
        assert {split_of(text) for text in held} == {split}


def test_labels_and_populations_are_balanced() -> None:
    rows = medley_rows("train", 18 * 30)
    cells = Counter((row["population"], row["label"]) for row in rows)
    assert len(cells) == 18
    assert set(cells.values()) == {30}
    assert len({row["label"] for row in rows}) == 12


def test_identifiers_are_unique_across_splits() -> None:
    rows = [row for split in ("train", "validation", "test") for row in medley_rows(split, 100)]
    assert len({row["id"] for row in rows}) == 300
    assert set(rows[0]) == {"id", "text", "label", "population"}


def test_no_text_carries_an_instruction() -> None:
    assert all(" or " not in row["text"] for row in medley_rows("validation", 256))


def test_the_same_kind_of_text_is_labelled_by_conflicting_skills() -> None:
    rules: dict[frozenset[str], set[str]] = {}
    for population in POPULATIONS:
        kind = frozenset((population.asked, population.beside))
        rules.setdefault(kind, set()).add(population.asked)
    assert len(rules) == 3
    assert all(len(found) == 2 for found in rules.values())


def test_constant_and_register_blind_rules_reach_what_the_docstring_says() -> None:
    labels = Counter(row["label"] for row in medley_rows("test", 18 * 20))
    assert max(labels.values()) / labels.total() == pytest.approx(1 / 9)
    best = 0
    for kind in {frozenset((p.asked, p.beside)) for p in POPULATIONS}:
        asked = Counter(p.asked for p in POPULATIONS if {p.asked, p.beside} == kind)
        best += max(asked.values())
    assert best / len(POPULATIONS) == pytest.approx(2 / 3)


@pytest.mark.parametrize("label", ["good", "bad"])
def test_a_known_row_has_the_label_that_a_reader_gives_it(label: str) -> None:
    rows = [
        row
        for row in medley_rows("train", 360)
        if row["population"] == "animals-sentiment" and row["label"] == label
    ]
    assert rows
    praise = ("kind", "lovely", "charming", "brilliant", "pleasant", "honest", "clever", "friendly")
    negation = (" not ", " never ", " hardly ")
    for row in rows:
        words = row["text"].replace(".", "").split()
        praised = any(word in words for word in praise) != any(n in row["text"] for n in negation)
        assert praised is (label == "good"), row["text"]


def test_pretraining_reads_train_texts_only() -> None:
    example = write_instructed(Random(0), "train", "cause", Difficulty(0, 0))
    text = example.source.split(": ", 1)[1]
    assert split_of(text) == "train"


def test_wrong_arguments_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="split='dev'"):
        medley_rows("dev", 10)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="count=-1"):
        medley_rows("train", -1)
