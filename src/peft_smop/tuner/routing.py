"""Which prompts a row gets, and how much of each: the routing strategies.

Every strategy turns the router's logits into a `Routing`. Adding one is a class here, whose fields
are its options, and a line in `STRATEGIES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from peft_smop.errors import ConfigError, unknown
from peft_smop.tuner.noise import choice, gumbel, normal, uniform


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
    """How many training batches the row's adapter has routed, for strategies that are annealed."""
    content: Int[Tensor, "b"] | None = None
    """A hash of the row's tokens, for strategies that read it."""


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
    def is_annealed(self) -> bool:
        """Whether it depends on the number of training batches."""
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
class _Tempered(RoutingStrategy):
    """A router whose softmax has a temperature τ, which may move while it trains.

    τ goes geometrically from `temperature` to `final_temperature` over `annealing_steps` training
    batches and stays there, also in evaluation.
    """

    temperature: float = 1.0
    final_temperature: float | None = None
    annealing_steps: int | None = None

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
class Linear(_Tempered):
    """p = softmax(W x ∘ (1 + δ) / τ), δ ~ N(0, 1) in training only; the row gets Σ p_c P_c.

    The sum is over the `top_k` most probable prompts; by default one, and τ = 1. Paper, equations 3
    to 5 and Table 3. `router_dropout` zeroes logits in training, as the released code does where
    the paper says "without perturbation".
    """

    perturbation: bool = True
    top_k: int = 1
    router_dropout: float = 0.0

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

    def __call__(self, logits: Float[Tensor, "b k"], state: RowState) -> Routing:
        """Decide for every row by itself."""
        if self.perturbation and state.keys is not None:
            logits = logits * (1 + normal(state.keys, logits.shape[-1]))
        if self.router_dropout and state.keys is not None:
            kept = uniform(state.keys, logits.shape[-1]) >= self.router_dropout
            logits = logits * kept / (1 - self.router_dropout)
        logits = self._tempered(logits, state)
        probabilities, indices = _largest(logits.softmax(dim=-1), self.top_k)
        return Routing(indices, probabilities, logits)


@dataclass(frozen=True)
class Gumbel(_Tempered):
    """y = softmax((W x + g) / τ), g ~ Gumbel(0, 1) in training only; the row gets P_c, c = argmax.

    Straight-through: forward the choice has weight 1 and the others 0, backward all have the
    gradient of y (Jang et al., 2017; paper, Table 3).
    """

    def __call__(self, logits: Float[Tensor, "b k"], state: RowState) -> Routing:
        """Decide for every row by itself."""
        if state.keys is None:
            logits = self._tempered(logits, state)
            indices = logits.argmax(dim=-1, keepdim=True)
            return Routing(indices, logits.new_ones(len(logits), 1), logits)
        logits = self._tempered(logits + gumbel(state.keys, logits.shape[-1]), state)
        soft, indices = _largest(logits.softmax(dim=-1), logits.shape[-1])
        hard = torch.zeros_like(soft)
        hard[:, 0] = 1
        # parenthesised so that the forward value is 1 or 0 to the last bit
        return Routing(indices, hard + (soft - soft.detach()), logits)


@dataclass(frozen=True)
class Stochastic(RoutingStrategy):
    """A uniformly random prompt for every row in training, the mean of all in evaluation.

    With `consistency` a second pass is routed anew, and half the symmetric divergence between both
    answers joins the loss (AdaMix, Wang et al., 2022, eq. 6; paper, Table 3).
    """

    consistency: float = 1.0

    has_router: ClassVar[bool] = False
    chooses: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.consistency >= 0:
            raise ConfigError(f"consistency={self.consistency} must be at least 0")

    @property
    def divergence_weight(self) -> float:
        """Weight of the divergence between two passes."""
        return self.consistency

    def __call__(self, logits: Float[Tensor, "b k"], state: RowState) -> Routing:
        """Decide for every row by itself."""
        if state.keys is None:
            return _alike(logits)
        indices = choice(state.keys, logits.shape[-1])[:, None]
        return Routing(indices, logits.new_ones(len(logits), 1), logits)


@dataclass(frozen=True)
class Single(RoutingStrategy):
    """One prompt and no router: prompt tuning of length l (paper, Table 3, "Single")."""

    default_num_prompts: ClassVar[int] = 1
    has_router: ClassVar[bool] = False

    def check(self, num_prompts: int) -> None:
        """Refuse any number of prompts but one."""
        if num_prompts != 1:
            raise ConfigError(
                f"num_prompts={num_prompts} contradicts routing='single', which has one prompt;"
                " leave num_prompts out or choose another routing"
            )

    def __call__(self, logits: Float[Tensor, "b k"], state: RowState) -> Routing:
        """Decide for every row by itself."""
        return Routing(logits.argmax(dim=-1, keepdim=True), logits.new_ones(len(logits), 1), logits)


@dataclass(frozen=True)
class Uniform(RoutingStrategy):
    """(1/k) Σ P_j for every row: as many prompts as the mixture, and no choice (a control)."""

    has_router: ClassVar[bool] = False
    chooses: ClassVar[bool] = False

    def __call__(self, logits: Float[Tensor, "b k"], state: RowState) -> Routing:
        """Decide for every row by itself."""
        return _alike(logits)


@dataclass(frozen=True)
class Hashed(RoutingStrategy):
    """P_c with c a hash of the row's tokens: a fixed assignment that means nothing (a control)."""

    has_router: ClassVar[bool] = False
    reads_content: ClassVar[bool] = True

    def __call__(self, logits: Float[Tensor, "b k"], state: RowState) -> Routing:
        """Decide for every row by itself.

        Raises:
            ConfigError: the model was given embeddings, which have no tokens to hash.
        """
        if state.content is None:
            raise ConfigError(
                "routing='hashed' hashes token ids; give input_ids, not inputs_embeds"
            )
        indices = choice(state.content, logits.shape[-1])[:, None]
        return Routing(indices, logits.new_ones(len(logits), 1), logits)


@dataclass(frozen=True)
class Fixed(RoutingStrategy):
    """p_c P_j with j forced and c = argmax p: each row's own scale, another prompt (a control)."""

    fixed_prompt: int = 0

    def check(self, num_prompts: int) -> None:
        """Refuse a prompt that is not there."""
        if not 0 <= self.fixed_prompt < num_prompts:
            raise ConfigError(
                f"fixed_prompt={self.fixed_prompt} is not one of num_prompts={num_prompts};"
                f" choose 0 to {num_prompts - 1}"
            )

    def __call__(self, logits: Float[Tensor, "b k"], state: RowState) -> Routing:
        """Decide for every row by itself."""
        probabilities, indices = _largest(logits.softmax(dim=-1), 1)
        return Routing(torch.full_like(indices, self.fixed_prompt), probabilities, logits)


@dataclass(frozen=True)
class Released(RoutingStrategy):
    """p_i Σ_m P_c(m): every row gets the SUM of the whole batch's choices, times its own p.

    What the paper's published code computes: probabilities shaped (b, 1, 1, 1) times prompts shaped
    (b, l, e), summed over the batch. Its noise is detached. For study only: a prediction depends on
    the neighbours.
    """

    perturbation: bool = True

    rows_independent: ClassVar[bool] = False

    def __call__(self, logits: Float[Tensor, "b k"], state: RowState) -> Routing:
        """Decide with the whole batch."""
        if self.perturbation and state.keys is not None:
            logits = logits + (logits * normal(state.keys, logits.shape[-1])).detach()
        probabilities, chosen = _largest(logits.softmax(dim=-1), 1)
        b = len(logits)
        # the row's own choice first, then its neighbours' from there on
        rows = torch.arange(b, device=logits.device)
        indices = chosen[:, 0][(rows[:, None] + rows[None, :]) % b]
        return Routing(indices, probabilities.expand(b, b), logits)


@dataclass(frozen=True)
class Forced(RoutingStrategy):
    """w_c P_j with j forced and w_c the weight that the row's own strategy gives its choice c.

    No strategy to train by: `SMoPModel.forced_prompt` puts it over an adapter's own for a while.
    """

    own: RoutingStrategy
    prompt: int

    @property
    def is_annealed(self) -> bool:
        """Whether the own strategy is."""
        return self.own.is_annealed

    def __call__(self, logits: Float[Tensor, "b k"], state: RowState) -> Routing:
        """Decide for every row by itself."""
        routing = self.own(logits, state)
        indices = torch.full_like(routing.indices[:, :1], self.prompt)
        return Routing(indices, routing.weights[:, :1], routing.logits)


STRATEGIES: dict[str, type[RoutingStrategy]] = {
    "linear": Linear,
    "gumbel": Gumbel,
    "stochastic": Stochastic,
    "single": Single,
    "uniform": Uniform,
    "hashed": Hashed,
    "fixed": Fixed,
    "released": Released,
}


def _largest(
    probabilities: Float[Tensor, "b k"], count: int
) -> tuple[Float[Tensor, "b t"], Int[Tensor, "b t"]]:
    """The largest probabilities of every row, in falling order, and their places."""
    if count == 1:
        values, indices = probabilities.max(dim=-1, keepdim=True)
        return values, indices
    values, indices = probabilities.topk(count, dim=-1)
    return values, indices


def _alike(logits: Float[Tensor, "b k"]) -> Routing:
    """All prompts for every row, each with weight 1/k."""
    b, k = logits.shape
    indices = torch.arange(k, device=logits.device).expand(b, k)
    return Routing(indices, logits.new_full((b, k), 1 / k), logits)


def build_strategy(name: str, options: Mapping[str, Any]) -> RoutingStrategy:
    """Look a strategy up by name and build it.

    Args:
        name: a key of `STRATEGIES`.
        options: by name; None where nothing was said.

    Raises:
        ConfigError: the name is unknown, or an option contradicts it.
    """
    accepted = option_names(name)
    given = {option: value for option, value in options.items() if value is not None}
    for option, value in given.items():
        if option not in accepted:
            takers = [other for other in STRATEGIES if option in option_names(other)]
            raise ConfigError(
                f"{option}={value!r} contradicts routing={name!r}: it is an option of"
                f" {', '.join(takers)}; leave {option} out"
            )
    return STRATEGIES[name](**given)


def option_names(name: str) -> tuple[str, ...]:
    """The options of a strategy.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in STRATEGIES:
        raise unknown("routing", name, STRATEGIES)
    return tuple(f.name for f in fields(STRATEGIES[name]))
