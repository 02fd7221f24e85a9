from __future__ import annotations

import re
from random import Random

import pytest

from peft_smop.embedded.language import (
    SKILLS,
    WRITERS,
    Skill,
    follows,
    holds_comparison,
    is_caused,
    is_praise,
    same_sense,
    write_text,
)
from peft_smop.embedded.lexicon import EFFECTS, ENTITIES, REGISTERS, SENSES

NUMBER = {"one": 1, "three": 3, "four": 4, "seven": 7, "nine": 9, "fifteen": 15, "thirty": 30}
AMOUNT = {"a pair": 2, "a handful": 5, "half a dozen": 6, "a dozen": 12, "a score": 20}


@pytest.mark.parametrize(
    ("premise", "conclusion", "expected"),
    [
        ("all", "somebody is", True),
        ("all", "many are", True),
        ("all", "nobody is", False),
        ("all", "not everybody is", False),
        ("most", "somebody is", True),
        ("most", "everybody is", False),
        ("some", "many are", False),
        ("some", "nobody is", False),
        ("no", "nobody is", True),
        ("no", "not everybody is", True),
        ("no", "somebody is", False),
        ("not all", "nobody is", False),
        ("not all", "not everybody is", True),
    ],
)
def test_quantifiers_entail_what_logic_says(premise: str, conclusion: str, expected: bool) -> None:
    assert follows(premise, conclusion) is expected


@pytest.mark.parametrize(
    ("number", "relation", "amount", "expected"),
    [
        ("nine", "more", "a handful", True),
        ("nine", "fewer", "half a dozen", False),
        ("one", "fewer", "a pair", True),
        ("fifteen", "more", "a score", False),
        ("fifteen", "more", "a dozen", True),
    ],
)
def test_numbers_compare_as_they_should(
    number: str, relation: str, amount: str, expected: bool
) -> None:
    assert holds_comparison(number, relation, amount) is expected


@pytest.mark.parametrize(
    ("adverb", "adjective", "expected"),
    [
        ("very", "kind", True),
        ("not", "kind", False),
        ("hardly", "boring", True),
        ("not", "pleasant", False),
        ("quite", "awful", False),
        ("never", "cruel", True),
    ],
)
def test_negation_turns_sentiment(adverb: str, adjective: str, expected: bool) -> None:
    assert is_praise(adverb, adjective) is expected


def test_causes_and_senses_match_common_knowledge() -> None:
    assert is_caused("rain", "puddles")
    assert is_caused("fire", "smoke")
    assert not is_caused("fire", "ice")
    assert not is_caused("jokes", "arrests")
    assert same_sense("bank", "reeds", "pebbles")
    assert not same_sense("bank", "reeds", "cash")
    assert same_sense("seal", "wax", "ribbons")
    assert not same_sense("trunk", "roots", "locks")


def test_no_effect_has_two_causes_and_no_company_two_meanings() -> None:
    effects = [effect for group in EFFECTS.values() for effect in group]
    assert len(set(effects)) == len(effects)
    for first, second in SENSES.values():
        assert not set(first) & set(second)


def parsed_truth(skill: Skill, text: str) -> bool:
    """Read a clause back and decide it anew, with rules written for the tests."""
    if skill == "entailment":
        match = re.fullmatch(r"(not all|all|most|some|no) \w+ of .+ are \w+, so (.+)\.", text)
        assert match is not None
        # Which shares of a group of ten each sentence allows; many are more than one in ten, and
        # most more than half.
        allowed = {
            "all": {10},
            "everybody is": {10},
            "most": set(range(6, 11)),
            "many are": set(range(2, 11)),
            "some": set(range(1, 11)),
            "somebody is": set(range(1, 11)),
            "no": {0},
            "nobody is": {0},
            "not all": set(range(10)),
            "not everybody is": set(range(10)),
        }
        return allowed[match[1]] <= allowed[match[2]]
    if skill == "question":
        match = re.fullmatch(r".+ sent the (\w+) by (\w+), (the|by) (\w+)\?", text)
        assert match is not None
        return match[4] == (match[1] if match[3] == "the" else match[2])
    if skill == "cause":
        match = re.fullmatch(r"(\w+) near .+ brought (\w+)\.", text)
        if match:
            return match[2] in EFFECTS[match[1]]
        match = re.fullmatch(r"(\w+) near .+ came from (\w+)\.", text)
        assert match is not None
        return match[1] in EFFECTS[match[2]]
    if skill == "comparison":
        match = re.fullmatch(r".+ has (\w+) \w+, (more|fewer) than ([a-z ]+)\.", text)
        assert match is not None
        number, amount = NUMBER[match[1]], AMOUNT[match[3]]
        return number > amount if match[2] == "more" else number < amount
    if skill == "sentiment":
        kind = {
            "lovely",
            "kind",
            "charming",
            "brilliant",
            "pleasant",
            "honest",
            "clever",
            "friendly",
        }
        negated = re.search(r"\b(not|never|hardly)\b", text) is not None
        return (text.rstrip(".").split()[-1] in kind) != negated
    match = re.fullmatch(r".+ drew a (\w+) with (\w+), then one with (\w+)\.", text)
    assert match is not None
    return any({match[2], match[3]} <= set(company) for company in SENSES[match[1]])


@pytest.mark.parametrize("register", REGISTERS)
@pytest.mark.parametrize("skill", SKILLS)
@pytest.mark.parametrize("truth", [True, False])
def test_every_clause_has_the_truth_it_was_ordered_with(
    skill: Skill, register: str, truth: bool
) -> None:
    rng = Random(3)
    for _ in range(100):
        text = WRITERS[skill](rng, register, truth)
        assert parsed_truth(skill, text) is truth, text
        assert any(entity in text for entity in ENTITIES[register])


def test_a_second_clause_says_nothing_about_the_answer() -> None:
    rng = Random(5)
    truths = []
    for _ in range(400):
        text = write_text(rng, "towns", "sentiment", True, beside="comparison")
        clause = next(part for part in re.split(r"(?<=\.) ", text) if " has " in part)
        truths.append(parsed_truth("comparison", clause))
    assert 0.4 < sum(truths) / len(truths) < 0.6


def test_the_same_random_state_writes_the_same_text() -> None:
    def write(seed: int) -> list[str]:
        rng = Random(seed)
        return [write_text(rng, "people", skill, True, beside="cause") for skill in SKILLS * 3]

    assert write(1) == write(1)
    assert write(1) != write(2)
