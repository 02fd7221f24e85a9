"""Six skills: each writes one English-like clause that is true, or false, in its own sense.

A clause is about entities of one register and is made to order: `write(rng, register, truth)`
returns text whose answer is `truth`. The functions that decide the answers (`follows`, `is_praise`
and so on) stand beside the writers, so that the meaning of a skill is one readable rule.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Literal, get_args

from peft_smop.embedded.lexicon import (
    AMOUNTS,
    BLAME,
    CARRIERS,
    CONCLUSIONS,
    EFFECTS,
    ENTAILED,
    ENTITIES,
    GROUPS,
    KEEPING,
    NUMBERS,
    OBJECTS,
    POSSESSIONS,
    PRAISE,
    SENSES,
    TRAITS,
    TURNING,
    Register,
)

Skill = Literal["entailment", "question", "cause", "comparison", "sentiment", "sense"]
SKILLS: tuple[Skill, ...] = get_args(Skill)

# The marked forms are the rarer ones, as in English. It also makes the skills learnable: were they
# as frequent, no single word would say anything about an answer, and a small model finds no start.
_TURNED_OPINIONS = 0.3
_FEWER = 0.3


def follows(premise: str, conclusion: str) -> bool:
    """Whether "`premise` of them are so" entails "`conclusion` so"."""
    return conclusion in ENTAILED[premise]


def holds_comparison(number: str, relation: str, amount: str) -> bool:
    """Whether `number` is "more" (or "fewer") than `amount`."""
    is_more = NUMBERS[number] > AMOUNTS[amount]
    return is_more if relation == "more" else not is_more


def is_caused(cause: str, effect: str) -> bool:
    """Whether `effect` is one of the things that `cause` brings about."""
    return effect in EFFECTS[cause]


def is_praise(adverb: str, adjective: str) -> bool:
    """Whether the two words together speak well of somebody."""
    return (adjective in PRAISE) != (adverb in TURNING)


def same_sense(word: str, first: str, second: str) -> bool:
    """Whether `word` means the same in the company of `first` and of `second`."""
    return any(first in company and second in company for company in SENSES[word])


def write_entailment(rng: Random, register: Register, truth: bool) -> str:
    """Write a premise and a conclusion with quantifiers and negation: does it follow?"""
    pairs = [(p, c) for p in ENTAILED for c in CONCLUSIONS if follows(p, c) is truth]
    premise, conclusion = rng.choice(pairs)
    entity = rng.choice(ENTITIES[register])
    group, trait = rng.choice(GROUPS), rng.choice(TRAITS)
    return f"{premise} {group} of {entity} are {trait}, so {conclusion}."


def write_question(rng: Random, register: Register, truth: bool) -> str:
    """Write a one-sentence passage and a question on it: is the answer yes?"""
    sender = rng.choice(ENTITIES[register])
    thing, other_thing = rng.sample(OBJECTS, 2)
    carrier, other_carrier = rng.sample(CARRIERS, 2)
    if rng.random() < 0.5:
        question = f"the {thing if truth else other_thing}?"
    else:
        question = f"by {carrier if truth else other_carrier}?"
    return f"{sender} sent the {thing} by {carrier}, {question}"


def write_cause(rng: Random, register: Register, truth: bool) -> str:
    """Write a cause and an effect, in either order: is the one the reason of the other?"""
    cause = rng.choice(list(EFFECTS))
    origin = cause if truth else rng.choice([other for other in EFFECTS if other != cause])
    effect = rng.choice(EFFECTS[origin])
    entity = rng.choice(ENTITIES[register])
    if rng.random() < 0.5:
        return f"{cause} near {entity} brought {effect}."
    return f"{effect} near {entity} came from {cause}."


def write_comparison(rng: Random, register: Register, truth: bool) -> str:
    """Write a claim that a number is more, or fewer, than an amount: is it right?"""
    relation = "fewer" if rng.random() < _FEWER else "more"
    pairs = [(n, a) for n in NUMBERS for a in AMOUNTS if holds_comparison(n, relation, a) is truth]
    number, amount = rng.choice(pairs)
    owner = rng.choice(ENTITIES[register])
    things = rng.choice(POSSESSIONS)
    return f"{owner} has {number} {things}, {relation} than {amount}."


def write_sentiment(rng: Random, register: Register, truth: bool) -> str:
    """Write an opinion, negated or not: does it speak well of its subject?"""
    turned = rng.random() < _TURNED_OPINIONS
    adjective = rng.choice(PRAISE if truth is not turned else BLAME)
    adverb = rng.choice(TURNING if turned else KEEPING)
    entity = rng.choice(ENTITIES[register])
    if rng.random() < 0.5:
        return f"{entity} was {adverb} {adjective}."
    return f"all called {entity} {adverb} {adjective}."


def write_sense(rng: Random, register: Register, truth: bool) -> str:
    """Write a word of two meanings twice: does it mean the same both times?"""
    word = rng.choice(list(SENSES))
    one, two = rng.sample(SENSES[word], 2)
    first, second = rng.sample(one, 2) if truth else (rng.choice(one), rng.choice(two))
    entity = rng.choice(ENTITIES[register])
    return f"{entity} drew a {word} with {first}, then one with {second}."


WRITERS: dict[Skill, Callable[[Random, Register, bool], str]] = {
    "entailment": write_entailment,
    "question": write_question,
    "cause": write_cause,
    "comparison": write_comparison,
    "sentiment": write_sentiment,
    "sense": write_sense,
}


def write_text(
    rng: Random, register: Register, asked: Skill, truth: bool, beside: Skill | None = None
) -> str:
    """Write the clause that is asked about, with or without another clause beside it.

    Args:
        rng: where every choice comes from.
        register: what both clauses are about.
        asked: the skill whose answer is `truth`.
        truth: the answer.
        beside: the skill of a second clause, whose own answer is a coin toss; the two clauses come
            in either order.
    """
    clauses = [WRITERS[asked](rng, register, truth)]
    if beside is not None:
        clauses.append(WRITERS[beside](rng, register, rng.random() < 0.5))
        rng.shuffle(clauses)
    return " ".join(clauses)
