"""The words of the generated language, and what is true of them.

Every table is a constant, so the language has one home and a test can check it by hand.
"""

from __future__ import annotations

from typing import Literal, get_args

Register = Literal["people", "animals", "towns"]
"""What a text is about. It shows in the entities only; every skill works in every register."""

REGISTERS: tuple[Register, ...] = get_args(Register)

ENTITIES: dict[Register, tuple[str, ...]] = {
    "people": ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry"),
    "animals": (
        *("the fox", "the crow", "the bear", "the otter"),
        *("the goat", "the wolf", "the hare", "the owl"),
    ),
    "towns": ("Oslo", "Rome", "Delhi", "Lima", "Paris", "Cairo", "Quito", "Tokyo"),
}

NUMBERS: dict[str, int] = {
    "one": 1,
    "three": 3,
    "four": 4,
    "seven": 7,
    "nine": 9,
    "fifteen": 15,
    "thirty": 30,
}
AMOUNTS: dict[str, int] = {
    "a pair": 2,
    "a handful": 5,
    "half a dozen": 6,
    "a dozen": 12,
    "a score": 20,
}
"""What a number is compared with; no amount equals a number."""

POSSESSIONS = ("coins", "bells", "lamps", "flags", "maps", "boats")

OBJECTS = ("rope", "letter", "basket", "drum")

CARRIERS = ("cart", "train", "mule")

GROUPS = ("friends", "guests", "helpers", "rivals")

TRAITS = ("tall", "early", "awake", "hungry", "rich", "tired")

ENTAILED: dict[str, frozenset[str]] = {
    "all": frozenset({"everybody is", "many are", "somebody is"}),
    "most": frozenset({"many are", "somebody is"}),
    "some": frozenset({"somebody is"}),
    "no": frozenset({"nobody is", "not everybody is"}),
    "not all": frozenset({"not everybody is"}),
}
"""Quantifier of a premise -> the conclusions that follow (groups are large and never empty)."""

CONCLUSIONS = ("everybody is", "many are", "somebody is", "nobody is", "not everybody is")

EFFECTS: dict[str, tuple[str, ...]] = {
    "rain": ("puddles", "mud"),
    "fire": ("smoke", "ashes"),
    "frost": ("ice", "icicles"),
    "jokes": ("laughter", "smiles"),
    "theft": ("arrests", "alarm"),
}
"""A cause -> what it brings about; no effect has two causes."""

PRAISE = ("lovely", "kind", "charming", "brilliant", "pleasant", "honest", "clever", "friendly")
BLAME = ("awful", "cruel", "boring", "dreadful", "nasty", "clumsy", "stupid", "hostile")
KEEPING = ("very", "truly", "quite")
"""Adverbs that leave praise praise and blame blame."""
TURNING = ("not", "never", "hardly")
"""Adverbs that turn praise into blame and blame into praise."""

SENSES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "bank": (("reeds", "pebbles"), ("loans", "cash")),
    "bat": (("wings", "claws"), ("handles", "varnish")),
    "seal": (("flippers", "whiskers"), ("wax", "ribbons")),
    "trunk": (("roots", "branches"), ("locks", "hinges")),
}
"""A word -> the company that its first meaning keeps, and its second."""
