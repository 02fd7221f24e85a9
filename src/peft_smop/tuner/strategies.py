"""The routing strategies: the paper's, its variants, controls, and the table of all.

Adding one is a class here, whose fields are its options, its name in `RoutingName` and its line in
`STRATEGIES`; the configuration, the commands and the files know it by that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from peft_smop.errors import ConfigError, unknown
from peft_smop.tuner.noise import choice, gumbel, normal, uniform
from peft_smop.tuner.posterior import Posterior
from peft_smop.tuner.routing import Routing, RoutingStrategy, RowState, option

RoutingName = Literal[
    "linear",
    "posterior",
    "gumbel",
    "stochastic",
    "single",
    "uniform",
    "hashed",
    "fixed",
    "released",
]
"""What `SMoPConfig(routing=...)` takes."""


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
        probabilities, indices = _largest(logits.softmax(dim=-1), self.top_k)
        return Routing(indices, probabilities, logits)


@dataclass(frozen=True)
class Deterministic(RoutingStrategy):
    """Draws nothing, in training either."""

    @property
    def is_random(self) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class Gumbel(Tempered):
    """y = softmax((W x + g) / τ), g ~ Gumbel(0, 1) in training only; the row gets P_c, c = argmax.

    Straight-through: forward the choice has weight 1 and the others 0, backward all have the
    gradient of y (Jang et al., 2017; paper, Table 3).
    """

    def __call__(self, logits: Float[Tensor, "b k"], state: RowState) -> Routing:
        """Decide for every row by itself."""
        if state.keys is None:
            logits = self._tempered(logits, state)
            indices = logits.argmax(dim=-1, keepdim=True)
            return Routing(indices, logits.new_ones(logits.shape[0], 1), logits)
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

    consistency: float = option(1.0, "weight of the divergence between two passes")

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
        return Routing(indices, logits.new_ones(logits.shape[0], 1), logits)


@dataclass(frozen=True)
class Single(Deterministic):
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
        return Routing(
            logits.argmax(dim=-1, keepdim=True), logits.new_ones(logits.shape[0], 1), logits
        )


@dataclass(frozen=True)
class Uniform(Deterministic):
    """(1/k) Σ P_j for every row: as many prompts as the mixture, and no choice (a control)."""

    has_router: ClassVar[bool] = False
    chooses: ClassVar[bool] = False

    def __call__(self, logits: Float[Tensor, "b k"], state: RowState) -> Routing:
        """Decide for every row by itself."""
        return _alike(logits)


@dataclass(frozen=True)
class Hashed(Deterministic):
    """P_c with c a hash of the row's tokens: a fixed assignment that means nothing (a control)."""

    has_router: ClassVar[bool] = False
    reads_content: ClassVar[bool] = True

    def __call__(self, logits: Float[Tensor, "b k"], state: RowState) -> Routing:
        """Decide for every row by itself."""
        assert state.content is not None
        indices = choice(state.content, logits.shape[-1])[:, None]
        return Routing(indices, logits.new_ones(logits.shape[0], 1), logits)


@dataclass(frozen=True)
class Fixed(Deterministic):
    """p_c P_j with j forced and c = argmax p: each row's own scale, another prompt (a control)."""

    fixed_prompt: int = option(0, "the prompt that every row gets")

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

    perturbation: bool = option(True, "noise on the router's logits in training (eq. 5)")

    rows_independent: ClassVar[bool] = False

    @property
    def is_random(self) -> bool:
        """Whether there is noise."""
        return self.perturbation

    def __call__(self, logits: Float[Tensor, "b k"], state: RowState) -> Routing:
        """Decide with the whole batch."""
        if self.perturbation and state.keys is not None:
            logits = logits + (logits * normal(state.keys, logits.shape[-1])).detach()
        probabilities, chosen = _largest(logits.softmax(dim=-1), 1)
        b = logits.shape[0]
        # the row's own choice first, then its neighbours' from there on
        rows = torch.arange(b, device=logits.device)
        indices = chosen[:, 0][(rows[:, None] + rows[None, :]) % b]
        return Routing(indices, probabilities.expand(b, b), logits)


STRATEGIES: dict[RoutingName, type[RoutingStrategy]] = {
    "linear": Linear,
    "posterior": Posterior,
    "gumbel": Gumbel,
    "stochastic": Stochastic,
    "single": Single,
    "uniform": Uniform,
    "hashed": Hashed,
    "fixed": Fixed,
    "released": Released,
}


def build_strategy(name: str, options: Mapping[str, Any]) -> RoutingStrategy:
    """Look a strategy up by name and build it.

    Args:
        name: a key of `STRATEGIES`.
        options: by name; None where nothing was said.

    Raises:
        ConfigError: the name is unknown, or an option contradicts it.
    """
    if name not in STRATEGIES:
        raise unknown("routing", name, STRATEGIES)
    given = {option: value for option, value in options.items() if value is not None}
    for option_name, value in given.items():
        takers = [other for other, kind in STRATEGIES.items() if option_name in _options(kind)]
        if name not in takers:
            raise ConfigError(
                f"{option_name}={value!r} contradicts routing={name!r}: it is an option of"
                f" {', '.join(takers)}; leave {option_name} out"
            )
    return STRATEGIES[name](**given)


def _options(kind: type[RoutingStrategy]) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind))


def _alike(logits: Float[Tensor, "b k"]) -> Routing:
    """All prompts for every row, each with weight 1/k."""
    b, k = logits.shape
    indices = torch.arange(k, device=logits.device).expand(b, k)
    return Routing(indices, logits.new_full((b, k), 1 / k), logits)


def _largest(
    probabilities: Float[Tensor, "b k"], count: int
) -> tuple[Float[Tensor, "b t"], Int[Tensor, "b t"]]:
    """The largest probabilities of every row, in falling order, and their places."""
    if count == 1:
        values, indices = probabilities.max(dim=-1, keepdim=True)
        return values, indices
    values, indices = probabilities.topk(count, dim=-1)
    return values, indices
