"""Which prompts a row gets, and how much of each: the routing strategies.

Every strategy turns the router's logits into a `Routing`. Adding one is a class here and a line in `STRATEGIES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from jaxtyping import Float, Int
from torch import Tensor

from peft_smop.errors import ConfigError, unknown
from peft_smop.tuner.noise import normal

if TYPE_CHECKING:
    from peft_smop.tuner.config import SMoPConfig


class Routing(NamedTuple):
    """The decision for every row: t of the k prompts, and the weight of each."""

    indices: Int[Tensor, "b t"]
    weights: Float[Tensor, "b t"]
    logits: Float[Tensor, "b k"]


class RoutingStrategy(Protocol):
    """What a strategy must offer. Instances are frozen: equal ones may share a batch."""

    default_num_prompts: ClassVar[int]
    has_router: ClassVar[bool]

    @classmethod
    def from_config(cls, config: SMoPConfig) -> RoutingStrategy:
        """Build the strategy, refusing options that contradict it."""
        ...

    def __call__(
        self, logits: Float[Tensor, "b k"], keys: Int[Tensor, "b"] | None
    ) -> Routing:
        """Decide for every row by itself.

        Args:
            logits: the router's output W x, in fp32.
            keys: one key of randomness per row in training, None in evaluation.
        """
        ...


@dataclass(frozen=True)
class Linear:
    """p = softmax(W x ∘ (1 + δ)), δ ~ N(0, 1) in training only; the row gets p_c P_c, c = argmax p.

    Paper, equations 3 to 5.
    """

    perturbation: bool = True

    default_num_prompts: ClassVar[int] = 4
    has_router: ClassVar[bool] = True

    @classmethod
    def from_config(cls, config: SMoPConfig) -> Linear:
        return cls(perturbation=config.perturbation is not False)

    def __call__(
        self, logits: Float[Tensor, "b k"], keys: Int[Tensor, "b"] | None
    ) -> Routing:
        if self.perturbation and keys is not None:
            logits = logits * (1 + normal(keys, logits.shape[-1]))
        probabilities, indices = logits.softmax(dim=-1).max(dim=-1, keepdim=True)
        return Routing(indices, probabilities, logits)


@dataclass(frozen=True)
class Single:
    """One prompt and no router: prompt tuning of length l (paper, Table 3, "Single")."""

    default_num_prompts: ClassVar[int] = 1
    has_router: ClassVar[bool] = False

    @classmethod
    def from_config(cls, config: SMoPConfig) -> Single:
        if config.num_prompts not in (None, 1):
            raise ConfigError(
                f"num_prompts={config.num_prompts} contradicts routing='single', which has one prompt;"
                " leave num_prompts out or choose another routing"
            )
        if config.perturbation:
            raise ConfigError(
                "perturbation=True contradicts routing='single', which has no router to perturb;"
                " leave perturbation out"
            )
        return cls()

    def __call__(
        self, logits: Float[Tensor, "b k"], keys: Int[Tensor, "b"] | None
    ) -> Routing:
        return Routing(logits.argmax(dim=-1, keepdim=True), logits.new_ones(len(logits), 1), logits)


STRATEGIES: dict[str, type[RoutingStrategy]] = {"linear": Linear, "single": Single}


def build_strategy(config: SMoPConfig) -> RoutingStrategy:
    """Look the strategy up by `config.routing` and build it.

    Raises:
        ConfigError: the name is unknown, or another option contradicts it.
    """
    if config.routing not in STRATEGIES:
        raise unknown("routing", config.routing, STRATEGIES)
    return STRATEGIES[config.routing].from_config(config)
