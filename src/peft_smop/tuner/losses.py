"""Losses on the routing itself: off by default, added to the model's loss in training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from peft_smop.errors import ConfigError
from peft_smop.tuner.routing import Routing, option


def first_choices(routing: Routing) -> Float[Tensor, "k"]:
    """How many rows the router itself would send to each prompt, whatever a strategy overrules."""
    k = routing.logits.shape[1]
    return torch.nn.functional.one_hot(routing.logits.argmax(dim=-1), k).float().sum(dim=0)


def load_balancing_loss(
    routing: Routing, load: Float[Tensor, "k"] | None = None
) -> Float[Tensor, ""]:
    """Compute k Σ_j f_j m_j from the shares f_j of rows and the mean probabilities m_j of prompt j.

    1 when both are uniform, k when one prompt takes everything (Fedus et al., 2022, eq. 4).

    Args:
        routing: of one adapter's rows.
        load: f, where it is counted over more rows than these; None: over these.
    """
    if load is None:
        load = first_choices(routing) / len(routing.logits)
    importance = routing.logits.softmax(dim=-1).mean(dim=0)
    return len(load) * (load * importance).sum()


def router_z_loss(routing: Routing) -> Float[Tensor, ""]:
    """The mean over rows of (log Σ_j exp logit_j)² (Zoph et al., 2022, eq. 5).

    Of the logits that were routed by: after the noise and the temperature.
    """
    return routing.logits.logsumexp(dim=-1).square().mean()


@dataclass(frozen=True)
class Penalties:
    """The weights of both."""

    load_balancing: float = option(
        0.0, "weight of the loss that spreads rows over prompts (Fedus et al., 2022, eq. 4)"
    )
    z_loss: float = option(
        0.0, "weight of the loss that keeps the router's logits small (Zoph et al., 2022, eq. 5)"
    )

    def __post_init__(self) -> None:
        for name in ("load_balancing", "z_loss"):
            value = getattr(self, name)
            if not value >= 0:
                raise ConfigError(f"{name}={value!r} must be at least 0")

    @property
    def is_active(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self.load_balancing or self.z_loss)

    def __call__(
        self, routing: Routing, load: Float[Tensor, "k"] | None = None
    ) -> Float[Tensor, ""]:
        """The weighted sum over one adapter's rows; `load` as in `load_balancing_loss`."""
        total = routing.logits.new_zeros(())
        if self.load_balancing:
            total = total + self.load_balancing * load_balancing_loss(routing, load)
        if self.z_loss:
            total = total + self.z_loss * router_z_loss(routing)
        return total


def divergence(
    one: Float[Tensor, "*shape c"], other: Float[Tensor, "*shape c"]
) -> Float[Tensor, "*shape"]:
    """½ (KL(p ∥ q) + KL(q ∥ p)) of two rows of logits (Wang et al., 2022, eq. 6)."""
    p, q = one.float().log_softmax(dim=-1), other.float().log_softmax(dim=-1)
    return ((p.exp() - q.exp()) * (p - q)).sum(dim=-1) / 2
