"""The step from mean embeddings to soft prompts: equations 3 and 4 of the paper, for mixed batches.

    mean embeddings (b, e) ─ router ─ logits (b, k) ─ strategy ─ p_c P_c (b, l, e)

Adapters of one strategy and shape are computed together, so that a batch over many adapters costs
about as much as a batch over one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from peft_smop.errors import ConfigError
from peft_smop.rows import RowAdapters, on_device
from peft_smop.tuner.layer import Adapter, groups_of
from peft_smop.tuner.noise import row_keys
from peft_smop.tuner.routing import Routing, RowState


@dataclass(frozen=True)
class Asked:
    """What a pass asks of its rows beyond their adapters."""

    routes: Int[Tensor, "b"] | None = None
    """The prompt that each row is to be given; -1, or None for all: its strategy's own choice."""
    draw: int = 0
    """Which of several draws of randomness for the same rows."""
    posterior: Float[Tensor, "b k"] | None = None
    """Every row's, where its strategy judges."""


class Decision(NamedTuple):
    """What was decided for the rows of adapters of one strategy and shape."""

    names: tuple[str, ...]
    rows: Int[Tensor, "g"] | None
    """Their places in the pass; None: all of it."""
    adapter: Int[Tensor, "g"] | None
    """Each row's place in `names`; None where there is one name."""
    routing: Routing
    chosen: Int[Tensor, "g"]
    """The prompt that was chosen or asked for; -1 where all are mixed alike."""

    def detached(self) -> Decision:
        """Without the graph."""
        indices, weights, logits, _ = self.routing
        return self._replace(routing=Routing(indices, weights.detach(), logits.detach()))


def soft_prompts(
    adapters: Mapping[str, Adapter],
    rows: RowAdapters,
    mean: Float[Tensor, "b e"],
    content: Int[Tensor, "b"] | None,
    *,
    asked: Asked,
    training: bool,
) -> tuple[Float[Tensor, "b l e"], tuple[Decision, ...]]:
    """Each row's prompt p_c P_c in fp32 (paper, eq. 4); zeros fill up shorter ones.

    Args:
        adapters: by name.
        rows: which adapter each row follows.
        mean: the router's input.
        content: a hash of each row, where a strategy needs it.
        asked: routes that are asked for, and the draw.
        training: whether there is noise.

    Raises:
        ConfigError: rows of several adapters, one of which lets rows see their neighbours.
    """
    decisions = []
    for names, members in groups_of(adapters, rows):
        strategy = adapters[names[0]].strategy
        if not strategy.rows_independent and rows.of_row is not None:
            raise ConfigError(
                f"adapter {names[0]!r} gives a row its neighbours' prompts"
                f" (routing={type(strategy).__name__.lower()!r}), so it cannot share a batch with"
                " other adapters; give it batches of its own"
            )
        chosen = places = None
        if members is not None:
            of_row = rows.of_row or ()
            place = [names.index(rows.names[of_row[i]]) for i in members]
            places = on_device(members, mean.device)
            chosen = on_device(place, mean.device) if len(names) > 1 else None
        decisions.append(
            _decide(
                [adapters[name] for name in names],
                names,
                places,
                chosen,
                _at(mean, places),
                _at(content, places),
                Asked(_at(asked.routes, places), asked.draw, _at(asked.posterior, places)),
                training=training,
            )
        )
    if len(decisions) == 1 and decisions[0].rows is None:
        return _prompts(adapters, decisions[0]), tuple(decisions)
    width = max(adapters[name].length for name in rows.names)
    out = mean.new_zeros(len(mean), width, mean.shape[1])
    for decision in decisions:
        prompts = _prompts(adapters, decision)
        prompts = nn.functional.pad(prompts, (0, 0, 0, width - prompts.shape[1]))
        assert decision.rows is not None
        out = out.index_copy(0, decision.rows, prompts)
    return out, tuple(decisions)


def _at(tensor: Tensor | None, rows: Int[Tensor, "g"] | None) -> Tensor | None:
    return tensor if tensor is None or rows is None else tensor[rows]


def _decide(
    own: list[Adapter],
    names: tuple[str, ...],
    rows: Int[Tensor, "g"] | None,
    adapter: Int[Tensor, "g"] | None,
    mean: Float[Tensor, "g e"],
    content: Int[Tensor, "g"] | None,
    asked: Asked,
    *,
    training: bool,
) -> Decision:
    """Route rows of adapters that share one strategy and shape (paper, eqs. 3 and 5)."""
    strategy = own[0].strategy

    def of_row(values: list[Tensor]) -> Tensor:
        return torch.stack(values) if adapter is None else torch.stack(values)[adapter]

    if not strategy.has_router:
        logits = mean.new_zeros(len(mean), own[0].prompts.shape[0])
    elif adapter is None:
        logits = mean @ own[0].router_matrix()
    else:
        routers = torch.stack([one.router_matrix() for one in own])
        logits = torch.bmm(mean[:, None, :], routers[adapter])[:, 0, :]
    keys = steps = None
    if strategy.is_annealed:
        steps = of_row([one.steps for one in own])
    if training and strategy.is_random:
        assert content is not None
        seeds, counts = of_row([one.seed for one in own]), of_row([one.steps for one in own])
        keys = row_keys(seeds, counts, content, asked.draw)
    posterior = None
    if strategy.judges and asked.posterior is not None:
        posterior = asked.posterior[:, : logits.shape[1]]
    routing = strategy(logits, RowState(keys, steps, content, posterior))
    chosen = (
        routing.indices[:, 0] if strategy.chooses else torch.full_like(routing.indices[:, 0], -1)
    )
    if asked.routes is not None:
        routing = _overruled(routing, asked.routes, chooses=strategy.chooses)
        chosen = torch.where(asked.routes >= 0, asked.routes, chosen)
    return Decision(names, rows, adapter, routing, chosen)


def _overruled(routing: Routing, routes: Int[Tensor, "g"], *, chooses: bool) -> Routing:
    """Give rows the prompt that is asked for, at the weight of their own choice; 1 without one."""
    asked = (routes >= 0)[:, None]
    weights = torch.zeros_like(routing.weights)
    weights[:, 0] = routing.weights[:, 0] if chooses else 1.0
    return Routing(
        torch.where(asked, routes[:, None], routing.indices),
        torch.where(asked, weights, routing.weights),
        routing.logits,
    )


def _prompts(adapters: Mapping[str, Adapter], decision: Decision) -> Float[Tensor, "g l e"]:
    """Σ w_j P_j over the prompts decided for each row."""
    routing = decision.routing
    if decision.adapter is None:
        prompts = adapters[decision.names[0]].soft_prompts()
        if routing.indices.shape[1] > 1:
            # a prompt of every row and route at once would not fit for many of them
            weights = torch.zeros_like(routing.logits)
            weights = weights.scatter_add(1, routing.indices, routing.weights)
            return (weights @ prompts.flatten(1)).unflatten(1, tuple(prompts.shape[1:]))
        chosen = prompts[routing.indices]
    else:
        every = torch.stack([adapters[name].soft_prompts() for name in decision.names])
        chosen = every[decision.adapter[:, None], routing.indices]
    # not an einsum: a product by 1.0 is exact, a matrix product may run in a shorter format on GPUs
    return (routing.weights[:, :, None, None] * chosen).sum(dim=1)
