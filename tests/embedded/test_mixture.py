from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from peft_smop.embedded.instructions import ANSWERS, PLAIN
from peft_smop.embedded.language import SKILLS
from peft_smop.embedded.mixture import Difficulty, corrupt, write_example, write_instructed
from peft_smop.embedded.tokenizer import train_tokenizer


def test_corrupted_spans_put_back_give_the_text() -> None:
    rng = Random(0)
    text = "rain near the fox brought mud. Oslo has nine coins, fewer than half a dozen."
    for _ in range(200):
        source, target = corrupt(rng, text)
        rebuilt = source
        for piece in target.split("<extra_id_")[1:]:
            number, span = piece.split("> ", 1)
            rebuilt = rebuilt.replace(f"<extra_id_{number}>", span.strip())
        assert rebuilt == text


def test_difficulty_rises_from_nothing_to_all() -> None:
    values = [Difficulty.at(step / 100) for step in range(101)]
    assert values[0].words == 0
    assert values[-1] == Difficulty()
    for kind in ("words", "clauses"):
        series = [getattr(value, kind) for value in values]
        assert series == sorted(series)


def test_an_opinion_is_answered_as_a_reader_would() -> None:
    rng = Random(4)
    praise = ("kind", "lovely", "charming", "brilliant", "pleasant", "honest", "clever", "friendly")
    negation = (" not ", " never ", " hardly ")
    for _ in range(200):
        row = write_instructed(rng, "train", "sentiment", Difficulty(words=0, clauses=0))
        praised = row.source.rstrip(".").split()[-1] in praise
        negated = any(word in row.source for word in negation)
        assert (row.target in ("good", "yes")) is (praised != negated)


def test_an_instruction_names_both_words_and_the_answer_is_one_of_them() -> None:
    rng = Random(1)
    seen = Counter()
    for _ in range(600):
        row = write_instructed(rng, "train")
        pair = next(pair for pair in (*ANSWERS.values(), PLAIN) if row.target in pair)
        assert all(word in row.source for word in pair)
        assert pair in (ANSWERS[row.kind], PLAIN)
        assert pair != PLAIN or not row.doubled
        seen[pair] += 1
    assert len(seen) == len(ANSWERS) + 1


@pytest.mark.parametrize("skill", SKILLS)
def test_answers_are_balanced_within_a_skill(skill: str) -> None:
    rng = Random(2)
    targets = Counter(
        write_instructed(rng, "train", skill, Difficulty(0, 0)).target for _ in range(400)
    )
    if_true, if_false = ANSWERS[skill]
    assert set(targets) == {if_true, if_false, *PLAIN}
    assert 150 < targets[if_true] + targets["yes"] < 250


def test_every_word_is_one_token_alone_and_in_context() -> None:
    tokenizer = train_tokenizer(Random(0), rows=5000)
    for pair in (*ANSWERS.values(), PLAIN):
        for word in pair:
            (alone,) = tokenizer(word, add_special_tokens=False)["input_ids"]
            assert alone in tokenizer(f"say {word}, please")["input_ids"]
    rng = Random(9)
    words = " ".join(write_example(rng).source for _ in range(300)).split()
    plain = {word.strip(".,:?()") for word in words if not word.startswith("<")}
    assert all(len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1 for word in plain)


def test_the_vocabulary_begins_as_t5_expects() -> None:
    tokenizer = train_tokenizer(Random(0), rows=500)
    names = ["<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_31>"]
    assert tokenizer.convert_tokens_to_ids(names) == [0, 1, 2, 3, 34]
    assert tokenizer("yes")["input_ids"][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("text", ["Grüße aus Köln!", "漢字 ☃", "x = {'a': [1, 2]}", "é\u0301 🦊"])
def test_any_text_is_read_without_unknown_tokens_and_comes_back(text: str) -> None:
    tokenizer = train_tokenizer(Random(0), rows=500)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
