"""Why a run does not learn, and what to do: one rule for every cause, over what the run shows.

A rule speaks where its figure is far from what runs that learned show; which those are stands in
`docs/runs.md`. Runs that learned well are told nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from peft_smop.lab.signs import Signs
from peft_smop.names import PROMPT_SPREADS
from peft_smop.training import absolute_rate

WIDEST, NARROWEST = 8.0, 0.2
"""Spread of prompts at their start, over that of the embeddings."""
FARTHEST = 20.0
"""How far prompts may go, in spreads of the embeddings, unless the run learned from it."""
STEEPEST = 12.0
"""Rate in spreads of the embeddings, above which far is too far for runs that learned, too."""
NEAREST = 0.15
"""Prompts that went less than this are still where they started."""
AT_REST = 0.015
"""Prompts that went less than this did nothing, whatever a head beside them learned."""
LEARNED = 0.9
"""A loss that fell to less than this part of its start has been learned from."""
DROPPED, SEEN = 1.2, 0.1
"""How much dropout may raise the loss: so many times, or so little that it is not seen, in nats."""
STILL_FALLING = 0.3
"""Part of all that the loss fell, in the last quarter of the steps."""
FEWEST_STEPS = 50
"""Steps in which a prompt at a rate that suits it gets somewhere."""
COLLAPSED = 0.9
"""Share of the rows that one prompt may get."""
CUT = 0.05
"""Share of the training inputs that may be cut."""


@dataclass(frozen=True)
class Finding:
    """What is wrong with a run."""

    cause: str
    seen: str
    """By which one sees it, with its figures."""
    remedy: str


def diagnose(signs: Signs) -> tuple[Finding, ...]:
    """All that the rules find, the likeliest cause first; empty where nothing is wrong."""
    found = [finding for rule in RULES if (finding := rule(signs)) is not None]
    if found or signs.test_low > signs.majority:
        return tuple(found)
    label, share = next(iter(signs.answers.items()), ("", 0.0))
    seen = (
        f"the test score's interval begins at {signs.test_low:.1f}, always the commonest label"
        f" scores {signs.majority:.1f}; {share:.0%} of the answers are {label!r}"
    )
    if signs.scale is not None and signs.loss_dropping != signs.loss_after:
        return (
            Finding(
                "the task was not learned, and the backbone's dropout was on",
                f"{seen}; with dropout the loss is {signs.loss_dropping:.2f}, without it"
                f" {signs.loss_after:.2f}",
                "train prompts without it: --no-dropout",
            ),
        )
    return (
        Finding(
            "the task was not learned, and none of the known causes is seen",
            seen,
            f"compare with others (smop compare {signs.asked} --methods single,lora-8,full): where"
            " those fail too, look at the labels, the template and the"
            " verbalizers",
        ),
    )


def _start_out_of_scale(signs: Signs) -> Finding | None:
    scale = signs.scale
    if scale is None or NARROWEST <= scale.at_start <= WIDEST:
        return None
    wide = "wide" if scale.at_start > 1 else "narrow"
    return Finding(
        f"prompts started too {wide}",
        f"their spread was {_times(scale.at_start)} that of the backbone's embeddings"
        f" ({signs.spread:.3g})",
        f"start from the vocabulary (--init vocabulary), or give --init-std {signs.spread:.2g}",
    )


def _rate(signs: Signs) -> Finding | None:
    """Too high: far away, or a loss that rises; too low: nowhere, after steps enough."""
    learned = _learned(signs)
    moved = None if signs.scale is None else signs.scale.moved
    # behind a normalisation of embeddings, prompts of many steps go far, and do well there
    steep = signs.learning_rate > STEEPEST * signs.spread
    far = moved is not None and moved > FARTHEST and (steep or not learned)
    if far or (not learned and _rise(signs.curve)):
        too, direction, instead = "high", "lower", signs.learning_rate / 10
    elif signs.steps < FEWEST_STEPS or _got_somewhere(learned, moved):
        return None
    else:
        too, direction, instead = "low", "raise", signs.learning_rate * 10
    went, how = "", f"{direction} it tenfold"
    if moved is not None:
        went = (
            f"({figure(signs.learning_rate / signs.spread)} spreads of the embeddings) prompts went"
            f" {figure(moved)} of those spreads far, and "
        )
        usual = absolute_rate(PROMPT_SPREADS[0], signs.spread)
        if usual < signs.learning_rate if too == "high" else usual > signs.learning_rate:
            instead = usual
            how = f"{direction} it, to the default of {PROMPT_SPREADS[0][:-1]} spreads"
    return Finding(
        f"the learning rate is too {too}",
        f"in {signs.steps} steps at {signs.learning_rate:g} {went}the loss went from"
        f" {signs.loss_before:.2f} to {signs.loss_after:.2f}",
        f"{how}: --lr {instead:g}",
    )


def _learned(signs: Signs) -> bool:
    return signs.loss_after < LEARNED * signs.loss_before


def _got_somewhere(learned: bool, moved: float | None) -> bool:
    if moved is None:
        return learned
    return moved > (AT_REST if learned else NEAREST)


def _dropout(signs: Signs) -> Finding | None:
    """Noise in all that a prompt says; weights that learned under it have overcome it."""
    # what was trained under much dropout may even be worse without it
    less, more = sorted((signs.loss_dropping, signs.loss_after))
    overcome = signs.scale is None and _learned(signs)
    if overcome or more - less < SEEN or more < DROPPED * less:
        return None
    return Finding(
        "the backbone's dropout hides what is trained",
        f"with it, as in training, the loss is {signs.loss_dropping:.2f}, without it"
        f" {signs.loss_after:.2f}",
        "train without: --no-dropout",
    )


def _too_few_steps(signs: Signs) -> Finding | None:
    if signs.stopped_early or _rate(signs) is not None:
        return None
    late = _late_fall(signs)
    if signs.steps >= FEWEST_STEPS and late < STILL_FALLING:
        return None
    if signs.steps >= FEWEST_STEPS:
        seen = f"{late:.0%} of all that the loss fell, it fell in the last quarter of the steps"
    else:
        seen = f"it was trained for {signs.steps} steps, {signs.epochs:.1f} times every example"
    more = max(4 * signs.steps, 4 * FEWEST_STEPS)
    return Finding("too few steps", seen, f"train longer: --max-steps {more}")


def _inputs_cut(signs: Signs) -> Finding | None:
    if signs.cut <= CUT:
        return None
    return Finding(
        "inputs are cut",
        f"{signs.cut:.0%} of the training inputs are longer than {signs.max_length} tokens",
        "raise --max-length as far as the backbone reads",
    )


def _collapse(signs: Signs) -> Finding | None:
    """All rows on one prompt, unless the certificate says that one is enough."""
    if signs.routing is None or not signs.load or max(signs.load) < COLLAPSED:
        return None
    busiest = max(range(len(signs.load)), key=signs.load.__getitem__)
    seen = f"prompt {busiest} gets {signs.load[busiest]:.0%} of the test examples"
    if signs.routing != "posterior":
        remedy = "train the router on its posterior: --routing posterior"
    elif signs.regret is not None and signs.regret < 2:
        return None
    else:
        remedy = (
            "give the router longer, or balance=4 (--set); where smop routes says that one prompt"
            " is enough: --method single"
        )
    return Finding("the router collapsed", seen, remedy)


def _misread(signs: Signs) -> Finding | None:
    """A first token that a frozen backbone gathers nothing in."""
    if not signs.is_misread:
        return None
    return Finding(
        "the head reads the wrong state",
        "it reads the first token's, and the backbone says that it was trained to be read by the"
        " mean of all",
        "let it read the mean: --pooling mean",
    )


RULES: tuple[Callable[[Signs], Finding | None], ...] = (
    _inputs_cut,
    _start_out_of_scale,
    _rate,
    _misread,
    _dropout,
    _too_few_steps,
    _collapse,
)


def figure(value: float) -> str:
    """A figure as people read it: two digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 1 else f"{ratio:.2g} of"


def _rise(curve: tuple[float, ...]) -> bool:
    """Whether a loss ended well above where it had been."""
    if len(curve) < 4:
        return False
    quarter = max(1, len(curve) // 4)
    end = sum(curve[-quarter:]) / quarter
    return end > 1.1 * min(
        sum(curve[i : i + quarter]) / quarter for i in range(len(curve) - quarter)
    )


def _late_fall(signs: Signs) -> float:
    """The part of the loss's whole fall that lies in the last quarter of the logged steps."""
    curve = signs.curve
    if len(curve) < 4:
        return 0.0
    quarter = max(1, len(curve) // 4)
    parts = [sum(curve[i : i + quarter]) / quarter for i in range(0, 4 * quarter, quarter)]
    whole = parts[0] - parts[3]
    return max(0.0, parts[2] - parts[3]) / whole if whole > 0 else 0.0
