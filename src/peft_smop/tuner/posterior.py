"""A router that is told which prompt would have done better: routing trained on its posterior.

The published rule lets a router feel its choice only through the scale of the prompt that it chose
anyway; it never hears of the others. Here judged rows are put under several prompts, without
gradient, and the router learns what came out (`judging.py` makes those passes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from peft_smop.errors import ConfigError
from peft_smop.tuner.noise import uniform
from peft_smop.tuner.routing import Routing, RoutingStrategy, RowState, option

ROWS_OF_USE = 256
"""Judged rows over which the use of prompts is averaged: a step has fewer, and need not be a fair
sample of the rows. More of them for more prompts would notice too late which are not used."""
FASTEST_USE = 0.25
"""Most that a step counts in that average; a step that alone decided would overturn the next."""
LEAST_USE = 0.05
"""Share of an equal use below which a prompt is lifted no further."""
PRIOR_SHARPNESS = 4.0
"""By what power of its prior a row is drawn that was not judged. By 1 many prompts get rows that
are others'; by infinity, the argmax, a router that knows nothing sends all of them to one prompt,
which then is the best for all."""
ROUTER_GAIN = 0.1
"""What multiplies W x / σ, σ the spread of the backbone's embeddings. An optimizer moves every
number by its learning rate: a router that has the prompts' would be decided after a few steps."""


@dataclass(frozen=True)
class Posterior(RoutingStrategy):
    """Maximises Σ log Σ_j p_j(x) p(y | [P_j; x]), p = softmax(γ W x / σ): a mixture's likelihood.

    γ is `ROUTER_GAIN`, σ the spread of the backbone's embeddings.

    In training, for every judged row: q_j ∝ p_j exp(-L_j), where L_j = -log p(y | [P_j; x]) without
    gradient, of at most `evidence` tokens: L_j min(1, evidence / n) for an answer of n. The row is
    put under `candidates` prompts, half of them the most probable, the others drawn; over those q
    divides what p gives them, and the rest keep q_j = p_j. Then q is moved toward equal use of the
    prompts: q_j is divided by (k u_j)^`balance`, u the mean of q over the rows of the steps before.
    The row is given P_c, c ~ q, and the router the loss -Σ_j q_j log p_j. Rows that are not judged
    are given P_c, c ~ p⁴ / Σ p⁴: nearly the router's best once it knows one, and before that no
    prompt gets all rows. In evaluation c = argmax p: one pass, unscaled.

    With `exact` the loss is -log Σ_j p_j exp(-L_j) itself, with the gradient of all prompts: k + 1
    passes, nothing judged, balanced or tempered. For study.

    The expectation step and one drawn term of the maximisation step of Jacobs et al. (1991), the
    former over few prompts at a time as in Neal and Hinton (1998); for soft prompts Qin and Eisner
    (2021).
    """

    default_num_prompts: ClassVar[int] = 8
    judges: ClassVar[bool] = True

    judged: float = option(0.33, "share of a step's rows that are put under several prompts")
    candidates: int = option(8, "most prompts that a judged row is put under")
    every: int = option(1, "steps from one in which rows are judged to the next")
    balance: float = option(
        2.0, "how strongly a posterior is moved toward equal use of the prompts"
    )
    evidence: float = option(4.0, "tokens of an answer that a posterior believes at most")
    exact: bool = option(False, "train all prompts on every row by the mixture's likelihood itself")

    def __post_init__(self) -> None:
        if not 0 < self.judged <= 1:
            raise ConfigError(f"judged={self.judged!r} must be above 0 and at most 1")
        if self.candidates < 2:
            raise ConfigError(f"candidates={self.candidates} must be at least 2, to compare them")
        if self.every < 1:
            raise ConfigError(f"every={self.every} must be at least 1 step")
        if not self.balance >= 0:
            raise ConfigError(f"balance={self.balance!r} must be at least 0")
        if not self.evidence > 0:
            raise ConfigError(f"evidence={self.evidence!r} must be above 0")

        for one in fields(self) if self.exact else ():
            value = getattr(self, one.name)
            if one.name != "exact" and value != one.default:
                raise ConfigError(
                    f"{one.name}={value!r} contradicts exact=True, which judges no rows; leave"
                    f" {one.name} out"
                )

    def judging_passes(self, num_prompts: int) -> float:
        """The passes without gradient that a row costs in training, on the mean."""
        return 0.0 if self.exact else self.judged * min(self.candidates, num_prompts) / self.every

    @property
    def is_marginal(self) -> bool:
        """Only in the exact form."""
        return self.exact

    def tried(self, logits: Float[Tensor, "m k"], keys: Int[Tensor, "m"]) -> Int[Tensor, "m c"]:
        """The prompts that rows are put under: first the router's best, then others at random."""
        k = logits.shape[1]
        count = min(k, self.candidates)
        best = logits.topk((count + 1) // 2, dim=-1).indices
        others = uniform(keys, k).scatter(1, best, -1.0)
        return torch.cat([best, others.topk(count // 2, dim=-1).indices], dim=1)

    def posterior(
        self,
        losses: Float[Tensor, "m k"],
        tokens: Float[Tensor, "m"],
        logits: Float[Tensor, "m k"],
        usage: Float[Tensor, "k"],
    ) -> Float[Tensor, "m k"]:
        """Q of rows of one adapter.

        Args:
            losses: -log p(y | [P_j; x]) of every row under its prompts, summed over its tokens;
                NaN for prompts that it was not put under, inf where there is no finite loss.
            tokens: how many those are.
            logits: γ W x / σ.
            usage: how much the steps before used each prompt.

        Returns:
            NaN for rows that have no finite loss.
        """
        tempered = losses * (self.evidence / tokens).clamp(max=1)[:, None]
        prior = logits.log_softmax(dim=-1)
        among = prior.masked_fill(losses.isnan(), -math.inf)
        # what was not tried counts as those that were do on average, so that it keeps its prior
        mean = (among - tempered.nan_to_num()).logsumexp(dim=-1) - among.logsumexp(dim=-1)
        q = prior + torch.where(losses.isnan(), mean[:, None], -tempered)
        q = q - self.balance * (losses.shape[1] * usage).clamp(min=LEAST_USE).log()
        return q.softmax(dim=-1).masked_fill(~losses.isfinite().any(dim=-1)[:, None], math.nan)

    def __call__(self, logits: Float[Tensor, "b k"], state: RowState) -> Routing:
        """Decide for every row by itself; its posterior, where it was judged, is in the state."""
        choice = logits.argmax(dim=-1)
        ones = logits.new_ones(logits.shape[0], 1)
        if state.keys is None:
            return Routing(choice[:, None], ones, logits)
        found = state.posterior
        found = torch.full_like(logits, math.nan) if found is None else found[:, : logits.shape[1]]
        is_judged = ~found.isnan().any(dim=-1)
        prior = (PRIOR_SHARPNESS * logits.detach()).softmax(dim=-1)
        q = torch.where(is_judged[:, None], found, prior)
        chosen = _drawn(q, uniform(state.keys, 1))
        # a gradient of 0 and not none: processes that share a step wait for each other's
        loss = -(q * is_judged[:, None] * logits.log_softmax(dim=-1)).sum(dim=-1)
        return Routing(chosen[:, None], ones, logits, loss / self.judged)


def _drawn(q: Float[Tensor, "b k"], u: Float[Tensor, "b 1"]) -> Int[Tensor, "b"]:
    """A prompt for every row, j with probability q_j."""
    return (u > q.cumsum(dim=-1)).sum(dim=-1).clamp(max=q.shape[1] - 1)
