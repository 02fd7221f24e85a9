"""What went where: the last routing decision, row by row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from peft_smop.rows import RowAdapters
from peft_smop.tuner.mixture import Decision


@dataclass(frozen=True)
class Routes:
    """The last routing decision, row by row, free of any graph.

    Rows of `__base__` have index -1 and NaN elsewhere; so have the places a row does not use when a
    batch mixes adapters with different numbers of prompts.
    """

    adapters: tuple[str, ...]
    indices: Int[Tensor, "b t"]
    probabilities: Float[Tensor, "b t"]
    """The weight of each: the router's probability in equation 4, 1 where prompts are unscaled."""
    logits: Float[Tensor, "b k"]
    """Of the router, as it was routed by; their softmax is its probability of every prompt."""
    chosen: Int[Tensor, "b"]
    """The one prompt that each row's strategy chose, or that was asked for; -1 where it mixes all
    alike."""

    @classmethod
    def of(cls, rows: RowAdapters, decisions: tuple[Decision, ...]) -> Routes:
        """Gather what was decided group by group."""
        names = rows.name_of_each()
        if len(decisions) == 1 and decisions[0].rows is None:
            routing = decisions[0].routing
            return cls(names, routing.indices, routing.weights, routing.logits, decisions[0].chosen)
        if not decisions:
            none, nothing = torch.full((rows.count, 1), -1), torch.full((rows.count, 1), torch.nan)
            return cls(names, none, nothing, nothing, none[:, 0])
        like = decisions[0].routing.weights
        most = max(decision.routing.indices.shape[1] for decision in decisions)
        prompts = max(decision.routing.logits.shape[1] for decision in decisions)
        indices = torch.full((rows.count, most), -1, device=like.device)
        weights = like.new_full((rows.count, most), float("nan"))
        logits = like.new_full((rows.count, prompts), float("nan"))
        chosen = torch.full((rows.count,), -1, device=like.device)
        for decision in decisions:
            own, routing = decision.rows, decision.routing
            indices[own, : routing.indices.shape[1]] = routing.indices
            weights[own, : routing.weights.shape[1]] = routing.weights
            logits[own, : routing.logits.shape[1]] = routing.logits
            chosen[own] = decision.chosen
        return cls(names, indices, weights, logits, chosen)
