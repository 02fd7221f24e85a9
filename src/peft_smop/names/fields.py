"""The options of a method and of its training: what each takes, its default, and what it is.

They stand here as plain annotations, so that commands have an option for each before torch or
pydantic is imported; `MethodSpec` and `TrainingOptions` are made from them, and check values.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Lt
from typing_extensions import Doc

from peft_smop.errors import ConfigError
from peft_smop.names.methods import RATE, Rate, is_rate

MAX_PADDING = 1.1
"""Most tokens that a batch may compute for every token of text."""


class MethodFields:
    """A method and the options that are no routing strategy's own; None: the method's default."""

    name: str = "smop"
    num_prompts: Annotated[
        int | None, Doc("k, the number of soft prompts; 4 by default, 8 for posterior")
    ] = None
    num_virtual_tokens: Annotated[int | None, Doc("l, length of one prompt; 5 by default")] = None
    routing: Annotated[str | None, Doc("routing strategy; `smop methods smop` lists them")] = None
    parameterisation: Annotated[
        str | None, Doc("what prompts are made from: direct, residual, low-rank")
    ] = None
    position: Annotated[
        Literal["before", "after"] | None,
        Doc("where a prompt stands: before the text, the default, or after it (causal LMs)"),
    ] = None
    pooling: Annotated[
        Literal["own", "mean"] | None,
        Doc("what an encoder's head reads: the first token, or the mean; by default the model's"),
    ] = None
    hidden_size: Annotated[int | None, Doc("width of a network before prompts")] = None
    rank: Annotated[int | None, Doc("of LoRA, or of low-rank prompts")] = None
    bottleneck_size: Annotated[int | None, Doc("d, width of the bottlenecks")] = None
    init: Annotated[
        Literal["vocabulary", "normal", "labels", "text", "adapter"] | None,
        Doc("what prompts start from; vocabulary by default"),
    ] = None
    init_std: Annotated[float | None, Gt(0), Doc("spread, for init=normal")] = None
    init_text: Annotated[str | None, Doc("the text, for init=text")] = None
    init_adapter: Annotated[str | None, Doc("a saved adapter's directory, for init=adapter")] = None


class TrainingFields:
    """Optimisation, stopping and batching; most defaults are the paper's (appendix C)."""

    epochs: Annotated[float, Gt(0), Doc("most passes over the training examples")] = 50
    max_steps: Annotated[int | None, Gt(0), Doc("most steps; overrides epochs")] = None
    batch_size: Annotated[int, Gt(0), Doc("examples in a step")] = 32
    recipe: Annotated[
        Literal["default", "paper"],
        Doc("rates and dropout where not given: as prompts learn best, or the paper's"),
    ] = "default"
    learning_rate: Annotated[
        Rate | None,
        Doc("a number, or spreads of the backbone's embeddings, as 0.4x; default: the recipe's"),
    ] = None
    router_learning_rate: Annotated[
        float | None, Gt(0), Doc("rate of the router; default: the same")
    ] = None
    network_learning_rate: Annotated[
        float | None, Gt(0), Doc("rate of what prompts are made from; default: the same")
    ] = None
    head_learning_rate: Annotated[
        float, Gt(0), Doc("rate of a new classification head beside an adapter")
    ] = 1e-2
    optimizer: Annotated[Literal["adafactor", "adamw_torch"], Doc("what takes the steps")] = (
        "adafactor"
    )
    weight_decay: Annotated[float, Ge(0), Doc("decay of the weights in a step")] = 1e-5
    warmup_ratio: Annotated[float, Ge(0), Lt(1), Doc("share of the steps to warm up")] = 0.06
    schedule: Annotated[
        Literal["linear", "constant_with_warmup", "cosine"], Doc("course of the learning rate")
    ] = "linear"
    dropout: Annotated[
        bool | None,
        Doc("the backbone's own dropout in training; default: the recipe's, off for prompts"),
    ] = None
    revive_dead_prompts: Annotated[bool, Doc("start prompts that get no rows anew")] = False
    refit_router: Annotated[
        bool,
        Doc("a last fit of the router, to the finished prompts (posterior)"),
    ] = True
    prune_prompts: Annotated[
        bool,
        Doc("the removal, at the end, of prompts that validation does not miss (posterior)"),
    ] = True
    patience: Annotated[int, Gt(0), Doc("evaluations without improvement, then the end")] = 10
    eval_steps: Annotated[
        int | None, Gt(0), Doc("steps between evaluations; default: one epoch's")
    ] = None
    max_length: Annotated[int, Gt(0), Doc("longest input in tokens")] = 512
    precision: Annotated[Literal["auto", "fp32", "bf16"], Doc("precision of the backbone")] = "auto"
    gradient_checkpointing: Annotated[bool, Doc("less memory, more time")] = False
    keep_texts: Annotated[
        float, Ge(0), Doc("GiB for texts before prompts of position=after; 0: none kept")
    ] = 0
    max_padding: Annotated[float, Ge(1), Doc("tokens computed over tokens of text, at most")] = (
        MAX_PADDING
    )


_BOUNDS = {
    Gt: ("gt", operator.gt, "above"),
    Ge: ("ge", operator.ge, "at least"),
    Lt: ("lt", operator.lt, "below"),
}
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True)
class OptionField:
    """One option."""

    name: str
    kind: Any
    """What it takes, None included where it may be unsaid."""
    default: Any
    help: str
    bounds: tuple[Any, ...] = ()
    """Of `annotated_types`: Gt, Ge, Lt."""

    @property
    def choices(self) -> tuple[str, ...]:
        """The words of which it takes one; none where it takes others."""
        kinds = (self.kind, *get_args(self.kind))
        return tuple(w for kind in kinds if get_origin(kind) is Literal for w in get_args(kind))

    def check(self, value: Any) -> None:
        """Refuse what it does not take.

        Raises:
            ConfigError: with what was expected.
        """
        expected = None if value is None else self._unmet(value)
        if expected is not None:
            raise ConfigError(f"{self.name}={value!r} must be {expected}")

    def _unmet(self, value: Any) -> str | None:
        """What a value should be, and is not."""
        if self.kind == Rate | None:
            return None if is_rate(value) else RATE
        if self.choices:
            choices = ", ".join(map(repr, self.choices))
            return None if value in self.choices else f"one of {choices}"
        kinds = (self.kind, *get_args(self.kind))
        kind = next(kind for kind in _WORDS if kind in kinds)
        if kind is str or kind is bool:
            return None if isinstance(value, kind) else _WORDS[kind]
        is_number = isinstance(value, int if kind is int else int | float)
        if not is_number or isinstance(value, bool):
            return _WORDS[kind]
        if isinstance(value, float) and not math.isfinite(value):
            return "a finite number"
        if isinstance(value, int) and abs(value) > sys.maxsize:
            return f"{_WORDS[kind]} up to {sys.maxsize}"
        for bound in self.bounds:
            attribute, holds, said = _BOUNDS[type(bound)]
            limit = getattr(bound, attribute)
            if not holds(value, limit):
                return f"{said} {limit}"
        return None


def fields_of(kind: type) -> Iterator[OptionField]:
    """The options that a class annotates."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        marked = get_origin(hint) is Annotated
        takes, *marks = get_args(hint) if marked else (hint,)
        said = "".join(mark.documentation for mark in marks if isinstance(mark, Doc))
        bounds = tuple(mark for mark in marks if type(mark) in _BOUNDS)
        yield OptionField(name, takes, getattr(kind, name), said, bounds)


def check_values(given: Mapping[str, Any]) -> None:
    """Refuse values that options of a method or its training do not take.

    Args:
        given: by the options' names; those of routing strategies are not looked at.

    Raises:
        ConfigError: with what was expected.
    """
    for field in (*fields_of(MethodFields), *fields_of(TrainingFields)):
        field.check(given.get(field.name))
