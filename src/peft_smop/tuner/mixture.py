"""The step from mean embeddings to soft prompts: equations 3 and 4 of the paper, for mixed batches.

    mean embeddings (b, e) ─ router ─ logits (b, k) ─ strategy ─ p_c P_c (b, l, e)

Adapters of one strategy and shape are computed together, so that a batch over many adapters costs
about as much as a batch over one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from peft_smop.errors import ConfigError
from peft_smop.rows import RowAdapters, on_device
from peft_smop.tuner.layer import Adapter
from peft_smop.tuner.routing import Routing, RoutingStrategy, RowState


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
    adapters: Sequence[Adapter],
    rows: RowAdapters,
    mean: Float[Tensor, "b e"],
    state: RowState,
) -> tuple[Float[Tensor, "b l e"], tuple[Decision, ...]]:
    """Each row's prompt p_c P_c in fp32 (paper, eq. 4); zeros fill up shorter ones.

    Args:
        adapters: those of `rows.names`.
        rows: which adapter each row follows.
        mean: the router's input.
        state: what is known of each row besides.

    Raises:
        ConfigError: rows of several adapters, one of which lets rows see their neighbours.
    """
    if rows.of_row is None:
        routing, chosen = _routed(adapters, None, mean, state)
        decision = Decision(rows.names, None, None, routing, chosen)
        return _mixed(adapters, None, routing), (decision,)
    width, decisions = max(adapter.length for adapter in adapters), []
    out = mean.new_zeros(mean.shape[0], width, mean.shape[1])
    for kind, at, whose in _kinds(adapters, rows.of_row, mean.device):
        own, names = [adapters[a] for a in kind], tuple(rows.names[a] for a in kind)
        if not own[0].strategy.rows_independent:
            raise ConfigError(
                f"adapter {names[0]!r} gives a row its neighbours' prompts"
                f" (routing={type(own[0].strategy).__name__.lower()!r}), so it cannot share a batch"
                " with other adapters; give it batches of its own"
            )
        of_kind = RowState(*(None if part is None else part[at] for part in state))
        routing, chosen = _routed(own, whose, mean[at], of_kind)
        prompts = _mixed(own, whose, routing)
        prompts = nn.functional.pad(prompts, (0, 0, 0, width - prompts.shape[1]))
        out = out.index_copy(0, at, prompts)
        decisions.append(Decision(names, at, whose, routing, chosen))
    return out, tuple(decisions)


def _kinds(
    adapters: Sequence[Adapter], of_row: Sequence[int], device: torch.device
) -> Iterator[tuple[list[int], Int[Tensor, "g"], Int[Tensor, "g"] | None]]:
    """Adapters of one strategy and shape; rows' places; which each follows (None: the one)."""
    kinds: dict[tuple[RoutingStrategy, torch.Size], list[int]] = {}
    for a, adapter in enumerate(adapters):
        kinds.setdefault((adapter.strategy, adapter.prompts.shape), []).append(a)
    for kind in kinds.values():
        place = {a: j for j, a in enumerate(kind)}
        at = on_device([i for i, a in enumerate(of_row) if a in place], device)
        whose = [place[a] for a in of_row if a in place]
        yield kind, at, on_device(whose, device) if len(kind) > 1 else None


def _routed(
    own: Sequence[Adapter],
    whose: Int[Tensor, "g"] | None,
    mean: Float[Tensor, "g e"],
    state: RowState,
) -> tuple[Routing, Int[Tensor, "g"]]:
    """Route rows of adapters of one strategy and shape (paper, eqs. 3 and 5); what was chosen."""
    strategy, k = own[0].strategy, own[0].prompts.shape[0]
    if not strategy.has_router:
        logits = mean.new_zeros(mean.shape[0], k)
    elif whose is None:
        logits = mean @ own[0].router_matrix()
    else:
        routers = torch.stack([adapter.router_matrix() for adapter in own])
        logits = torch.bmm(mean[:, None, :], routers[whose])[:, 0, :]
    routing = strategy(logits, state)
    first = routing.indices[:, 0]
    chosen = first if strategy.chooses else torch.full_like(first, -1)
    if state.asked is None:
        return routing, chosen
    # a row is given the prompt that is asked for at the weight of its own choice; 1 without one
    is_asked = state.asked >= 0
    weights = torch.zeros_like(routing.weights)
    weights[:, 0] = routing.weights[:, 0] if strategy.chooses else 1.0
    indices = torch.where(is_asked[:, None], state.asked[:, None], routing.indices)
    weights = torch.where(is_asked[:, None], weights, routing.weights)
    return Routing(indices, weights, routing.logits), torch.where(is_asked, state.asked, chosen)


def _mixed(
    own: Sequence[Adapter], whose: Int[Tensor, "g"] | None, routing: Routing
) -> Float[Tensor, "g l e"]:
    """Σ w_j P_j over the prompts decided for each row."""
    if whose is None:
        prompts = own[0].soft_prompts()
        if routing.indices.shape[1] > 1:
            # a prompt of every row and route at once would not fit for many of them
            weights = torch.zeros_like(routing.logits)
            weights = weights.scatter_add(1, routing.indices, routing.weights)
            return (weights @ prompts.flatten(1)).unflatten(1, tuple(prompts.shape[1:]))
        chosen = prompts[routing.indices]
    else:
        every = torch.stack([adapter.soft_prompts() for adapter in own])
        chosen = every[whose[:, None], routing.indices]
    # not an einsum: a product by 1.0 is exact, a matrix product may run in a shorter format on GPUs
    return (routing.weights[:, :, None, None] * chosen).sum(dim=1)
