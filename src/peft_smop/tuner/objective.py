"""The routing's own losses: where they come from, and how they join a model's.

Every adapter's terms count by its share of the rows, as its rows do in a mean loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from peft_smop.errors import ConfigError
from peft_smop.rows import IGNORED_LABEL, RowAdapters, current, on_device, verdicts
from peft_smop.tuner.call import Apart, PromptCall
from peft_smop.tuner.deciding import routes_asked
from peft_smop.tuner.layer import Adapter, SMoPLayer
from peft_smop.tuner.losses import divergence, first_choices
from peft_smop.tuner.mixture import Decision
from peft_smop.tuner.passes import label_counts, row_losses
from peft_smop.tuner.routing import Routing


def with_terms(
    layer: SMoPLayer,
    call: PromptCall,
    output: Any,
    again: Callable[..., Any],
    *,
    labels_of_step: Any,
    predicts_next: bool,
) -> Any:
    """A pass's output with what its routing asks for in training: in its loss, or handed apart.

    Args:
        layer: the adapters.
        call: the pass.
        output: the model's.
        again: computes it once more, with another draw or the routes that it is given.
        labels_of_step: how many labels the whole step counts, where a trainer says so.
        predicts_next: whether logits belong to the token after.
    """
    labels, caller = call.labels_given, current(layer, Apart)
    if caller is not None:
        caller.terms, caller.excess = {}, None
    if not layer.training or call.draw > 0 or (labels is None and caller is None):
        return output
    terms = all_terms(
        layer.adapters(),
        call.rows,
        call.decisions,
        labels,
        output,
        again,
        predicts_next=predicts_next,
    )
    excess = None
    if labels is not None:
        excess = marginal_excess(layer, call, labels, output, again, predicts_next=predicts_next)
    if caller is not None:
        caller.terms, caller.excess = terms, excess
        return output
    if excess is not None and labels is not None:
        total = labels_of_step
        if total is None:
            total = label_counts(labels, predicts_next=predicts_next).sum()
        output = _with_loss(output, _loss_of(output) + excess.sum() / total)
    if terms and call.rows is not None and labels is not None:
        share = share_of_step(labels_of_step, labels, predicts_next=predicts_next)
        return joined(output, terms, call.rows, share)
    return output


def marginal_excess(
    layer: SMoPLayer,
    call: PromptCall,
    labels: Tensor,
    output: Any,
    again: Callable[[Tensor], Any],
    *,
    predicts_next: bool,
) -> Float[Tensor, "b"] | None:
    """-log Σ_j p_j p(labels | prompt j) of every row less the pass's own loss; 0 for other rows.

    A difference, as a model's loss may hold more than that of the answers.

    Args:
        layer: the adapters.
        call: the pass, whose decisions hold p.
        labels: of the batch.
        output: the model's.
        again: computes it under the prompts that it is given, -1 for a row's own.
        predicts_next: whether logits belong to the token after.

    Returns:
        None where no row's strategy asks for it.
    """
    marginal = [
        (decision.routing.logits, decision.rows)
        for decision in call.decisions
        if layer[decision.names[0]].strategy.is_marginal
    ]
    if not marginal or call.rows is None:
        return None
    asked, every = routes_asked(layer, call, call.rows, labels.device), []
    for j in range(max(logits.shape[1] for logits, _ in marginal)):
        routes = torch.full((len(labels),), -1, device=labels.device)
        for logits, rows in marginal:
            if j < logits.shape[1]:
                routes[slice(None) if rows is None else rows] = j
        with torch.random.fork_rng([labels.device] if labels.is_cuda else []):
            # prompts are compared under the same dropout
            every.append(row_losses(again(routes), labels, predicts_next=predicts_next))
    under = torch.stack(every, dim=1)
    own = row_losses(output, labels, predicts_next=predicts_next)
    excess = torch.zeros_like(own)
    for logits, rows in marginal:
        at = torch.arange(len(labels), device=labels.device) if rows is None else rows
        joint = logits.log_softmax(dim=-1) - under[at, : logits.shape[1]]
        more = -joint.logsumexp(dim=-1) - own[at]
        if asked is not None:  # a row that is asked to take a prompt takes no other
            more = torch.where(asked[at] >= 0, 0.0, more)
        excess = excess.index_copy(0, at, more)
    return excess


def all_terms(
    adapters: Mapping[str, Adapter],
    rows: RowAdapters | None,
    decisions: tuple[Decision, ...],
    labels: Tensor | None,
    output: Any,
    again: Callable[[], Any],
    *,
    predicts_next: bool,
) -> dict[str, Tensor]:
    """What the routing of a training pass asks for, by adapter, each a mean over its rows.

    Args:
        adapters: all of the model's, by name.
        rows: whose they are; None: no row has an adapter.
        decisions: how they were routed.
        labels: of the batch; None: there is nothing to compare two passes by.
        output: the model's.
        again: computes it once more with another draw.
        predicts_next: whether logits belong to the token after.
    """
    terms = routing_terms(adapters, 0 if rows is None else rows.count, decisions)
    for name in rows.names if rows is not None else ():
        routing = routing_of(name, decisions)
        if routing is not None and routing.loss is not None:
            terms[name] = terms.get(name, 0) + routing.loss.mean()
    if rows is None or labels is None:
        return terms
    apart = divergence_terms(adapters, rows, labels, output, again, predicts_next=predicts_next)
    return {name: apart.get(name, 0) + terms.get(name, 0) for name in {**terms, **apart}}


def routing_terms(
    adapters: Mapping[str, Adapter], rows: int, decisions: tuple[Decision, ...]
) -> dict[str, Tensor]:
    """Each adapter's penalties on its own rows.

    Where several processes share a step the load is counted over all of them, so that the mean of
    their gradients is that of one process with all rows.

    Args:
        adapters: all of the model's, the same in every process.
        rows: how many this pass has.
        decisions: how they were routed.
    """
    penalised = sorted(name for name, a in adapters.items() if a.penalties.is_active)
    if not penalised:
        return {}
    own = {name: routing_of(name, decisions) for name in penalised}
    counts = {
        name: first_choices(routing)
        if (routing := own[name]) is not None
        else adapters[name].prompts.new_zeros(adapters[name].prompts.shape[0])
        for name in penalised
    }
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    share: Tensor | float = 1.0
    if processes > 1:
        # one exchange of one shape, whichever adapters this process's rows follow
        like = adapters[penalised[0]].prompts
        together = torch.cat([*(counts[name] for name in penalised), like.new_tensor([rows])])
        dist.all_reduce(together)
        sizes = [len(counts[name]) for name in penalised]
        *parts, total = together.split([*sizes, 1])
        counts = dict(zip(penalised, parts, strict=True))
        share = rows * processes / total[0]  # gradients are averaged over processes
    terms = {}
    for name in penalised:
        routing = own[name]
        if routing is not None:
            load = counts[name] / counts[name].sum()
            terms[name] = share * adapters[name].penalties(routing, load)
    return terms


def routing_of(name: str, decisions: tuple[Decision, ...]) -> Routing | None:
    """The routing of one adapter's rows; None: it has none."""
    for decision in decisions:
        if name not in decision.names:
            continue
        if decision.adapter is None:
            return decision.routing
        mine = decision.adapter == decision.names.index(name)
        return Routing(*(None if part is None else part[mine] for part in decision.routing))
    return None


def divergence_terms(
    adapters: Mapping[str, Adapter],
    rows: RowAdapters,
    labels: Tensor,
    output: Any,
    again: Callable[[], Any],
    *,
    predicts_next: bool,
) -> dict[str, Tensor]:
    """How far each adapter's two passes are apart, where its strategy asks for it.

    Args:
        adapters: by name.
        rows: whose they are.
        labels: of the batch.
        output: the model's.
        again: computes it once more with other routes.
        predicts_next: whether logits belong to the token after.
    """
    weights = {name: adapters[name].strategy.divergence_weight for name in rows.names}
    if not any(weights.values()):
        return {}
    apart = _apart(_logits(output), _logits(again()), labels, predicts_next)
    terms = {}
    for place, name in enumerate(rows.names):
        if not weights[name]:
            continue
        if rows.of_row is None:
            terms[name] = weights[name] * apart.mean()
        else:
            mine = on_device([float(a == place) for a in rows.of_row], apart.device)
            terms[name] = weights[name] * (mine * apart).sum() / rows.rows_of(name)
    return terms


def joined(
    output: Any,
    terms: Mapping[str, Tensor],
    rows: RowAdapters,
    share: Tensor | float,
) -> Any:
    """A model's labelled output with the terms in its loss."""
    mean = torch.stack([rows.rows_of(name) / rows.count * t for name, t in terms.items()]).sum()
    return _with_loss(output, _loss_of(output) + mean * share)


def _loss_of(output: Any) -> Tensor:
    """A labelled output's loss."""
    return output[0] if isinstance(output, tuple) else output["loss"]


def _with_loss(output: Any, loss: Tensor) -> Any:
    """A model's labelled output with another loss."""
    if isinstance(output, tuple):
        return (loss, *output[1:])
    output["loss"] = loss
    return output


def share_of_step(total: Any, labels: Tensor, *, predicts_next: bool) -> Tensor | float:
    """This pass's part of a step that is accumulated over several.

    A trainer that says how many labels the whole step counts adds the passes' losses up as they
    are, and means each to be its own labels' share.
    """
    if total is None:
        return 1.0
    return label_counts(labels, predicts_next=predicts_next).sum() / total


def _apart(one: Tensor, other: Tensor, labels: Tensor, predicts_next: bool) -> Float[Tensor, "b"]:
    """Each row's divergence, averaged over the positions that have a label."""
    if one.dim() == 2:
        return divergence(one, other)
    if predicts_next:
        said, _, rows = verdicts(one, labels)
        apart = divergence(said, verdicts(other, labels)[0])
        sums = apart.new_zeros(2, len(labels))
        total, count = sums.index_add(1, rows, torch.stack([apart, torch.ones_like(apart)]))
        return total / count.clamp(min=1)
    counted = (labels != IGNORED_LABEL).float()
    total = (divergence(one, other) * counted).sum(dim=1)
    return total / counted.sum(dim=1).clamp(min=1)


def _logits(output: Any) -> Tensor:
    """A labelled output's logits.

    Raises:
        ConfigError: the head has none to compare.
    """
    logits = output[1] if isinstance(output, tuple) else output.get("logits")
    if logits is None or logits.shape[-1] == 1 or logits.dim() not in (2, 3):
        raise ConfigError(
            "consistency compares two distributions over labels, which this head does not give;"
            " set consistency=0"
        )
    return logits
