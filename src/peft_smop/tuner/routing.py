"""Which prompts a row gets, and how much of each: the routing strategies.

Every strategy turns the router's logits into a `Routing`. Adding one is a class here and a line in
`STRATEGIES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from peft_smop.errors import ConfigError, unknown
from peft_smop.tuner.noise import normal


class Routing(NamedTuple):
    """The decision for every row: t of the k prompts, and the weight of each."""

    indices: Int[Tensor, "b t"]
    weights: Float[Tensor, "b t"]
    logits: Float[Tensor, "b k"]


@dataclass(frozen=True)
class RoutingOptions:
    """What a configuration says about routing; None where it says nothing."""

    num_prompts: int | None = None
    perturbation: bool | None = None


class RoutingStrategy(ABC):
    """What a strategy must offer; a frozen dataclass, so that equal ones may share a batch."""

    default_num_prompts: ClassVar[int]
    has_router: ClassVar[bool]

    @classmethod
    @abstractmethod
    def of(cls, options: RoutingOptions) -> RoutingStrategy:
        """Build the strategy.

        Raises:
            ConfigError: an option contradicts it.
        """

    @abstractmethod
    def __call__(self, logits: Float[Tensor, "b k"], keys: Int[Tensor, "b"] | None) -> Routing:
        """Decide for every row by itself.

        Args:
            logits: the router's output W x, in fp32.
            keys: one key of randomness per row in training, None in evaluation.
        """


@dataclass(frozen=True)
class Linear(RoutingStrategy):
    """p = softmax(W x ∘ (1 + δ)), δ ~ N(0, 1) in training only; the row gets p_c P_c, c = argmax p.

    Paper, equations 3 to 5.
    """

    perturbation: bool = True

    default_num_prompts: ClassVar[int] = 4
    has_router: ClassVar[bool] = True

    @classmethod
    def of(cls, options: RoutingOptions) -> Linear:
        """Build the strategy from a configuration's options."""
        return cls(perturbation=options.perturbation is not False)

    def __call__(self, logits: Float[Tensor, "b k"], keys: Int[Tensor, "b"] | None) -> Routing:
        """Decide for every row by itself."""
        if self.perturbation and keys is not None:
            logits = logits * (1 + normal(keys, logits.shape[-1]))
        probabilities, indices = logits.softmax(dim=-1).max(dim=-1, keepdim=True)
        return Routing(indices, probabilities, logits)


@dataclass(frozen=True)
class Single(RoutingStrategy):
    """One prompt and no router: prompt tuning of length l (paper, Table 3, "Single")."""

    default_num_prompts: ClassVar[int] = 1
    has_router: ClassVar[bool] = False

    @classmethod
    def of(cls, options: RoutingOptions) -> Single:
        """Build the strategy from a configuration's options."""
        if options.num_prompts not in (None, 1):
            raise ConfigError(
                f"num_prompts={options.num_prompts} contradicts routing='single', which has one"
                f" prompt;"
                " leave num_prompts out or choose another routing"
            )
        if options.perturbation:
            raise ConfigError(
                "perturbation=True contradicts routing='single', which has no router to perturb;"
                " leave perturbation out"
            )
        return cls()

    def __call__(self, logits: Float[Tensor, "b k"], keys: Int[Tensor, "b"] | None) -> Routing:
        """Decide for every row by itself."""
        return Routing(logits.argmax(dim=-1, keepdim=True), logits.new_ones(len(logits), 1), logits)


STRATEGIES: dict[str, type[RoutingStrategy]] = {"linear": Linear, "single": Single}


def build_strategy(name: str, options: RoutingOptions) -> RoutingStrategy:
    """Look a strategy up by name and build it.

    Raises:
        ConfigError: the name is unknown, or an option contradicts it.
    """
    if name not in STRATEGIES:
        raise unknown("routing", name, STRATEGIES)
    return STRATEGIES[name].of(options)
