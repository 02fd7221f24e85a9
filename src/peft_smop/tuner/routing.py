"""How a row is given its prompt: what every routing strategy is, and the paper's.

A strategy turns the router's logits into a `Routing`. Its options are its fields. The others, and
the table of all, are in `peft_smop.tuner.strategies`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from peft_smop.errors import ConfigError
from peft_smop.tuner.noise import normal, uniform


class Routing(NamedTuple):
    """The decision for every row: t of the k prompts, and the weight of each.

    Where a strategy chooses, its choice comes first. The softmax of the logits is the router's
    probability.
    """

    indices: Int[Tensor, "b t"]
    weights: Float[Tensor, "b t"]
    logits: Float[Tensor, "b k"]


class RowState(NamedTuple):
    """What a strategy may use of each row besides its logits."""

    keys: Int[Tensor, "b"] | None = None
    """One key of randomness per row in training; None in evaluation."""
    steps: Int[Tensor, "b"] | None = None
    """How many steps the row's adapter was trained for, for strategies that are annealed."""
    content: Int[Tensor, "b"] | None = None
    """A hash of the row's tokens, for strategies that read it."""


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

    @property
    def is_random(self) -> bool:
        """Whether it draws in training."""
        return True

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
            state: keys of randomness and whatever else the strategy has asked for.
        """


@dataclass(frozen=True)
class Tempered(RoutingStrategy):
    """A router whose softmax has a temperature τ, which may move while it trains.

    τ goes geometrically from `temperature` to `final_temperature` over `annealing_steps` training
    steps and stays there, also in evaluation.
    """

    temperature: float = option(1.0, "of the router's softmax")
    final_temperature: float | None = option(None, "where the temperature ends, if it moves")
    annealing_steps: int | None = option(None, "over how many steps the temperature moves")

    def __post_init__(self) -> None:
        for name in ("temperature", "final_temperature", "annealing_steps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}={value!r} must be above 0")
        if (self.final_temperature is None) != (self.annealing_steps is None):
            raise ConfigError(
                f"final_temperature={self.final_temperature!r} and"
                f" annealing_steps={self.annealing_steps!r} belong together; give both or neither"
            )

    @property
    def is_annealed(self) -> bool:
        """Whether the temperature moves."""
        return self.final_temperature is not None

    def _tempered(self, logits: Float[Tensor, "b k"], state: RowState) -> Float[Tensor, "b k"]:
        """The logits divided by the temperature of each row's adapter."""
        if self.final_temperature is None or self.annealing_steps is None or state.steps is None:
            return logits / self.temperature
        done = (state.steps.float() / self.annealing_steps).clamp(max=1)[:, None]
        ratio = torch.as_tensor(self.final_temperature / self.temperature, device=logits.device)
        return logits / (self.temperature * ratio**done)


@dataclass(frozen=True)
class Linear(Tempered):
    """p = softmax(W x ∘ (1 + δ) / τ), δ ~ N(0, 1) in training only; the row gets Σ p_c P_c.

    The sum is over the `top_k` most probable prompts; by default one, and τ = 1. Paper, equations 3
    to 5 and Table 3. `router_dropout` zeroes logits in training, as the released code does where
    the paper says "without perturbation".
    """

    perturbation: bool = option(True, "noise on the router's logits in training (eq. 5)")
    top_k: int = option(1, "prompts summed for a row, by their probabilities")
    router_dropout: float = option(0.0, "share of the logits that are zeroed in training")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k} must be at least 1")
        if not 0 <= self.router_dropout < 1:
            raise ConfigError(f"router_dropout={self.router_dropout} must be in [0, 1)")
        if self.router_dropout and self.perturbation:
            raise ConfigError(
                f"router_dropout={self.router_dropout} stands in for the perturbation; set"
                " perturbation=False with it"
            )

    def check(self, num_prompts: int) -> None:
        """Refuse to choose more prompts than there are."""
        if self.top_k > num_prompts:
            raise ConfigError(f"top_k={self.top_k} exceeds num_prompts={num_prompts}; lower top_k")

    @property
    def is_random(self) -> bool:
        """Whether there is noise or dropout."""
        return self.perturbation or self.router_dropout > 0

    def __call__(self, logits: Float[Tensor, "b k"], state: RowState) -> Routing:
        """Decide for every row by itself."""
        if self.perturbation and state.keys is not None:
            logits = logits * (1 + normal(state.keys, logits.shape[-1]))
        if self.router_dropout and state.keys is not None:
            kept = uniform(state.keys, logits.shape[-1]) >= self.router_dropout
            logits = logits * kept / (1 - self.router_dropout)
        logits = self._tempered(logits, state)
        probabilities, indices = largest(logits.softmax(dim=-1), self.top_k)
        return Routing(indices, probabilities, logits)


def largest(
    probabilities: Float[Tensor, "b k"], count: int
) -> tuple[Float[Tensor, "b t"], Int[Tensor, "b t"]]:
    """The largest probabilities of every row, in falling order, and their places."""
    if count == 1:
        values, indices = probabilities.max(dim=-1, keepdim=True)
        return values, indices
    values, indices = probabilities.topk(count, dim=-1)
    return values, indices
