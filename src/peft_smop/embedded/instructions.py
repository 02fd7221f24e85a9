"""How a skill is asked for in pretraining, and the words for its two answers."""

from __future__ import annotations

from random import Random

from peft_smop.embedded.language import Skill

NAMES: dict[Skill, tuple[str, ...]] = {
    "entailment": ("entailment", "logic"),
    "question": ("question", "request"),
    "cause": ("cause", "reason"),
    "comparison": ("comparison", "count"),
    "sentiment": ("sentiment", "opinion"),
    "sense": ("sense", "meaning"),
}

ANSWERS: dict[Skill, tuple[str, str]] = {
    "entailment": ("valid", "invalid"),
    "question": ("right", "wrong"),
    "cause": ("linked", "apart"),
    "comparison": ("true", "false"),
    "sentiment": ("good", "bad"),
    "sense": ("same", "other"),
}
"""Each skill's word for a true answer and for a false one."""

PLAIN: tuple[str, str] = ("yes", "no")
"""The words that answer any skill, where no other clause could be meant."""

PATTERNS: tuple[str, ...] = (
    "{name}, {if_true} or {if_false}:",
    "{name}: {if_true} or {if_false}?",
)


def instruct(rng: Random, skill: Skill, *, if_true: str, if_false: str, varied: bool = True) -> str:
    """Write the instruction to answer `skill` in one of two words.

    Args:
        rng: where every choice comes from.
        skill: what is asked for.
        if_true: the word for a true answer.
        if_false: the word for a false one.
        varied: whether to use any paraphrase, or always the first.
    """

    def choose(paraphrases: tuple[str, ...]) -> str:
        return rng.choice(paraphrases) if varied else paraphrases[0]

    return choose(PATTERNS).format(name=choose(NAMES[skill]), if_true=if_true, if_false=if_false)
