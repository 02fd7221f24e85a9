"""How a row is given its prompt: what a routing strategy is.

A strategy turns the router's logits into a `Routing`. Its options are its fields. They all, the
paper's first, are in `peft_smop.tuner.strategies`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class Routing(NamedTuple):
    """The decision for every row: t of the k prompts, and the weight of each.

    Where a strategy chooses, its choice comes first. The softmax of the logits is the router's
    probability.
    """

    indices: Int[Tensor, "b t"]
    weights: Float[Tensor, "b t"]
    logits: Float[Tensor, "b k"]
    loss: Float[Tensor, "b"] | None = None
    """What the strategy asks of the router itself in training, row by row; None: nothing."""


class RowState(NamedTuple):
    """What is known of each row besides its logits."""

    keys: Int[Tensor, "b"] | None = None
    """One key of randomness per row in training; None in evaluation."""
    steps: Int[Tensor, "b"] | None = None
    """How many steps the row's adapter was trained for, for strategies that are annealed."""
    content: Int[Tensor, "b"] | None = None
    """A hash of the row's tokens, for strategies that read it."""
    posterior: Float[Tensor, "b k"] | None = None
    """In training, which prompts would have done how well on each row, for strategies that judge;
    NaN for rows that were not judged, and for prompts that an adapter does not have."""
    asked: Int[Tensor, "b"] | None = None
    """The prompt that each row is to be given; -1, or None for all: its strategy's choice."""


def option(default: Any, help: str) -> Any:
    """A strategy's option: a field with its default and what it is."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class RoutingStrategy(ABC):
    """What a strategy must offer; a frozen dataclass, so that equal ones may share a batch."""

    default_num_prompts: ClassVar[int] = 4
    has_router: ClassVar[bool] = True
    chooses: ClassVar[bool] = True
    """Whether it names one prompt for a row, rather than mixing all alike."""
    rows_independent: ClassVar[bool] = True
    reads_content: ClassVar[bool] = False
    judges: ClassVar[bool] = False
    """Whether rows may be put under several prompts before they are trained on."""

    @property
    def is_random(self) -> bool:
        """Whether it draws in training."""
        return True

    def judging_passes(self, num_prompts: int) -> float:
        """The passes without gradient that a row costs in training, on the mean."""
        return 0.0

    @property
    def is_marginal(self) -> bool:
        """Whether all prompts are trained on every row, by the likelihood of their mixture."""
        return False

    @property
    def is_annealed(self) -> bool:
        """Whether it depends on the number of training steps."""
        return False

    @property
    def divergence_weight(self) -> float:
        """Weight of the divergence between two differently routed passes; 0: one pass."""
        return 0.0

    def check(self, num_prompts: int) -> None:
        """Refuse options that do not go with the number of prompts.

        Raises:
            ConfigError: with the option and the remedy.
        """
        return

    @abstractmethod
    def __call__(self, logits: Float[Tensor, "b k"], state: RowState) -> Routing:
        """Decide for every row by itself.

        Args:
            logits: the router's output W x, in fp32; zeros where there is no router.
            state: keys of randomness and whatever else is known of the rows.
        """
