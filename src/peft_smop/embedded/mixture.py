"""What pretraining reads: instructed skills, a few bare ones, and T5's span corruption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from peft_smop.embedded.instructions import ANSWERS, PLAIN, instruct
from peft_smop.embedded.language import SKILLS, Skill, write_text
from peft_smop.embedded.lexicon import (
    CARRIERS,
    GROUPS,
    KEEPING,
    OBJECTS,
    POSSESSIONS,
    PRAISE,
    REGISTERS,
    TRAITS,
    Register,
)
from peft_smop.embedded.partition import Split, split_of

SENTINELS: tuple[str, ...] = tuple(f"<extra_id_{index}>" for index in range(32))

_BARE_SHARE = 0.05  # so that the backbone does something sensible with no instruction at all
_CORRUPTED_SHARE = 0.10
_SECOND_CLAUSE_SHARE = 0.60
_PLAIN_SHARE = 0.15  # of the rows with one clause: asked for with "yes or no"
_LITTER_SHARE = 0.10  # words of no use in front, where trained prompts will stand later
_MAX_LITTER = 4
_LITTER = (*CARRIERS, *GROUPS, *KEEPING, *OBJECTS, *POSSESSIONS, *PRAISE, *TRAITS)


@dataclass(frozen=True)
class Difficulty:
    """How far two complications have been let in, as shares of as often as they get.

    Paraphrases and words of no use, and a second clause, wait until there are skills to answer
    with: a small model that is shown several unsolved problems at once learns none of them.
    """

    words: float = 1.0
    clauses: float = 1.0

    @classmethod
    def at(cls, progress: float) -> Difficulty:
        """Return the difficulty when a share of `progress` of training is over."""
        return cls(words=_ramp(progress, 0.35, 0.5), clauses=_ramp(progress, 0.1, 0.3))


FULL = Difficulty()


@dataclass(frozen=True)
class Example:
    """One row of pretraining.

    Attributes:
        source: the text to read.
        target: the text to write.
        kind: the skill that was asked for, or "bare", or "corrupted".
        doubled: whether a second clause stands beside the one that counts.
    """

    source: str
    target: str
    kind: str
    doubled: bool = False


def write_instructed(
    rng: Random, split: Split, skill: Skill | None = None, difficulty: Difficulty = FULL
) -> Example:
    """Write an instruction and a text of `split`, and the word that answers it."""
    asked = rng.choice(SKILLS) if skill is None else skill
    others = [other for other in SKILLS if other != asked]
    doubled = rng.random() < _SECOND_CLAUSE_SHARE * difficulty.clauses
    beside = rng.choice(others) if doubled else None
    truth = rng.random() < 0.5
    text = _within(split, lambda: write_text(rng, _register(rng), asked, truth, beside))
    plain = not doubled and rng.random() < _PLAIN_SHARE
    if_true, if_false = PLAIN if plain else ANSWERS[asked]
    varied = rng.random() < difficulty.words
    source = f"{instruct(rng, asked, if_true=if_true, if_false=if_false, varied=varied)} {text}"
    if rng.random() < _LITTER_SHARE * difficulty.words:
        litter = rng.choices(_LITTER, k=rng.randint(1, _MAX_LITTER))
        source = " ".join((*litter, source))
    return Example(source, if_true if truth else if_false, asked, doubled=doubled)


def write_bare(rng: Random, split: Split) -> Example:
    """Write one clause without an instruction; the answer is yes or no."""
    asked, truth = rng.choice(SKILLS), rng.random() < 0.5
    text = _within(split, lambda: write_text(rng, _register(rng), asked, truth))
    return Example(text, "yes" if truth else "no", "bare")


def write_corrupted(rng: Random, split: Split) -> Example:
    """Write a text of one or two clauses with spans cut out; the target holds the spans."""
    asked, beside = rng.sample(SKILLS, 2)
    second = beside if rng.random() < 0.5 else None
    # What is written down is mostly true; so the spans teach what goes with what.
    text = _within(split, lambda: write_text(rng, _register(rng), asked, True, second))
    return Example(*corrupt(rng, text), kind="corrupted")


def corrupt(rng: Random, text: str) -> tuple[str, str]:
    """Replace one or two spans of one or two words by sentinels, as T5 does.

    Returns:
        The text with `<extra_id_0>`, `<extra_id_1>`, ... in the places of the spans, and each
        sentinel followed by its span.
    """
    words = text.split()
    spans = 1 if len(words) < 9 else rng.randint(1, 2)
    # One span per equal slice of the text keeps the spans apart without any retrying.
    slice_length = len(words) // spans
    source: list[str] = []
    target: list[str] = []
    end = 0
    for index in range(spans):
        length = rng.randint(1, min(2, slice_length - 1))
        start = index * slice_length + rng.randint(0, slice_length - 1 - length)
        source += [*words[end:start], SENTINELS[index]]
        end = start + length
        target += [SENTINELS[index], *words[start:end]]
    return " ".join(source + words[end:]), " ".join(target)


def write_example(rng: Random, split: Split = "train", difficulty: Difficulty = FULL) -> Example:
    """Draw one row of the mixture."""
    draw = rng.random()
    if draw < _CORRUPTED_SHARE:
        return write_corrupted(rng, split)
    if draw < _CORRUPTED_SHARE + _BARE_SHARE:
        return write_bare(rng, split)
    return write_instructed(rng, split, difficulty=difficulty)


def _ramp(progress: float, begin: float, end: float) -> float:
    return min(1.0, max(0.0, (progress - begin) / (end - begin)))


def _register(rng: Random) -> Register:
    return rng.choice(REGISTERS)


def _within(split: Split, write: Callable[[], str]) -> str:
    """Write until the text falls into `split`."""
    while split_of(text := write()) != split:
        pass
    return text
