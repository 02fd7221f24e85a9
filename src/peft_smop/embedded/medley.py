"""The generated task `medley`: sub-populations that need different skills, and nobody says which.

The principle, stated before any method was measured on it and not adjusted afterwards:

1. *Different skills.* Every text holds two clauses, each about something that the backbone was
   pretrained to answer when asked, with that skill's own pair of words.
2. *Conflict.* Which of the two clauses counts depends on the register (people, animals, towns):
   the same kind of text wants one skill in one register and the other in another.
3. *No instruction.* The register and the pair of skills are all there is to tell. Both show in the
   words used, so a sub-population can be recovered from the mean input embedding, which is all that
   a router sees.
4. *Few examples.* It is meant for some hundreds of training rows over nine sub-populations.

        texts                      people        animals       towns
        comparison + sentiment     comparison    sentiment     comparison
        question + cause           cause         question      cause
        entailment + sense         entailment    sense         sense

Labels are the twelve words. Always the same label is right on at most 1/9 of the rows; answering
the more frequent clause of each pair, blind to the register, on 2/3; the true rule on all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from peft_smop.embedded.instructions import ANSWERS
from peft_smop.embedded.language import SKILLS, Skill, write_text
from peft_smop.embedded.lexicon import Register
from peft_smop.embedded.partition import Split, split_of
from peft_smop.errors import ConfigError

LABELS: tuple[str, ...] = tuple(word for skill in SKILLS for word in ANSWERS[skill])
"""The words that answer, two for each skill."""


@dataclass(frozen=True)
class Population:
    """One sub-population: what its texts hold, and which clause counts."""

    register: Register
    asked: Skill
    beside: Skill

    @property
    def name(self) -> str:
        """Return a readable name such as `towns-sense`."""
        return f"{self.register}-{self.asked}"


POPULATIONS: tuple[Population, ...] = (
    Population("people", "comparison", "sentiment"),
    Population("animals", "sentiment", "comparison"),
    Population("towns", "comparison", "sentiment"),
    Population("people", "cause", "question"),
    Population("animals", "question", "cause"),
    Population("towns", "cause", "question"),
    Population("people", "entailment", "sense"),
    Population("animals", "sense", "entailment"),
    Population("towns", "sense", "entailment"),
)


def medley_rows(
    split: Split,
    count: int,
    seed: int = 0,
    *,
    populations: Sequence[Population] = POPULATIONS,
) -> list[dict[str, str]]:
    """Write the first `count` rows of a split.

    Populations and truths are balanced: every block of 18 rows holds each of the 9 populations once
    with each of its two words, and a larger `count` only adds rows at the end. The text itself
    decides which split it may be in, so splits never share one, whatever their seeds; pretraining
    has seen no text of validation or test.

    Args:
        split: train, validation or test.
        count: how many rows.
        seed: another seed gives other rows of the same split.
        populations: of which there are rows.

    Returns:
        Rows with `id`, `text`, `label` (a word of `LABELS`) and `population`; no text comes twice.

    Raises:
        ConfigError: an unknown split or a negative count.
    """
    if split not in ("train", "validation", "test"):
        raise ConfigError(f"split={split!r} is unknown; use train, validation or test")
    if count < 0:
        raise ConfigError(f"count={count} is negative; give the number of rows")
    rng = Random(f"medley {split} {seed}")
    seen: set[str] = set()
    rows: list[dict[str, str]] = []
    while len(rows) < count:
        cells = [(population, truth) for population in populations for truth in (True, False)]
        rng.shuffle(cells)
        for population, truth in cells:
            text = next(text for text in _texts(rng, population, truth, split) if text not in seen)
            if_true, if_false = ANSWERS[population.asked]
            label = if_true if truth else if_false
            seen.add(text)
            identifier = f"medley-{split}-{seed}-{len(rows):05d}"
            rows.append(
                {"id": identifier, "text": text, "label": label, "population": population.name}
            )
    return rows[:count]


def _texts(rng: Random, population: Population, truth: bool, split: Split) -> Iterator[str]:
    """Yield texts of one population and truth that fall into `split`, without end."""
    while True:
        text = write_text(
            rng, population.register, population.asked, truth, beside=population.beside
        )
        if split_of(text) == split:
            yield text
