"""The trained tensors of every adapter, and the step from mean embeddings to soft prompts."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from peft_smop.tuner.noise import row_keys
from peft_smop.tuner.routing import Routing, RoutingStrategy
from peft_smop.tuner.rows import BASE, Routes, RowAdapters


class SMoPLayer(nn.Module, BaseTunerLayer):
    """k soft prompts (k, l, e), one router (e, k) and a step count for every adapter.

    The tensors stay in fp32 whatever the backbone's precision: prompts are trained with learning
    rates at which bf16 would round most updates away. The attribute names carry PEFT's prefix
    `smop_`; the module itself must not.
    """

    adapter_layer_names = ("smop_prompts", "smop_routers")
    other_param_names = ("smop_steps",)

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.smop_prompts = nn.ParameterDict()
        self.smop_routers = nn.ParameterDict()
        # how many training batches each adapter has routed; part of the checkpoint, so that a
        # resumed run draws the noise that the interrupted one would have drawn
        self.smop_steps = BufferDict(persistent=True)
        self.strategies: dict[str, RoutingStrategy] = {}
        self.seeds: dict[str, int] = {}
        self._last: list[tuple[Tensor | None, Routing]] = []
        self._last_rows: RowAdapters | None = None

    @property
    def weight(self) -> Tensor:
        """There is no base layer: raise, as PEFT and transformers probe for it."""
        raise AttributeError("a SMoP layer wraps no weight")

    @property
    def bias(self) -> Tensor:
        """There is no base layer: raise, as PEFT and transformers probe for it."""
        raise AttributeError("a SMoP layer wraps no bias")

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # PEFT would look at the wrapped layer; an adapter is created on its backbone's device, so
        # only an explicit target is left to follow
        if device is None:
            return
        for container in (self.smop_prompts, self.smop_routers, self.smop_steps):
            if adapter_name in container and container[adapter_name].device.type != "meta":
                container[adapter_name] = container[adapter_name].to(device)

    def add_adapter(
        self,
        name: str,
        *,
        prompts: Float[Tensor, "k l e"],
        router: Float[Tensor, "e k"] | None,
        strategy: RoutingStrategy,
        seed: int,
    ) -> None:
        """Take up a new adapter; the tensors become its parameters.

        Args:
            name: the adapter's name.
            prompts: the k soft prompts in fp32.
            router: the linear map from mean embeddings to logits; None for strategies without a
                router.
            strategy: how logits become routes.
            seed: of the perturbation.
        """
        self.smop_prompts[name] = nn.Parameter(prompts)
        if router is not None:
            self.smop_routers[name] = nn.Parameter(router)
        self.smop_steps[name] = torch.zeros((), dtype=torch.int64, device=prompts.device)
        self.strategies[name] = strategy
        self.seeds[name] = seed

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter (PEFT chooses the next active one)."""
        super().delete_adapter(adapter_name)
        self.strategies.pop(adapter_name, None)
        self.seeds.pop(adapter_name, None)

    def length(self, name: str) -> int:
        """The number of virtual tokens of one prompt of the adapter, l."""
        return self.smop_prompts[name].shape[1]

    def width(self, rows: RowAdapters) -> int:
        """The longest prompt in the batch; 0 when no row has one."""
        return max([self.length(name) for name in rows.names]) if rows.names else 0

    def is_uneven(self, rows: RowAdapters) -> bool:
        """Whether some row's prompt is shorter than the longest of the batch."""
        return (rows.of_row is not None and -1 in rows.of_row) or len(
            {self.length(name) for name in rows.names}
        ) > 1

    def lengths(self, rows: RowAdapters, device: torch.device) -> Int[Tensor, "b"]:
        """The length of every row's prompt, 0 for `__base__`."""
        if not self.is_uneven(rows):
            return torch.full((rows.rows,), self.width(rows), device=device)
        by_name = [self.length(name) for name in rows.names]
        return torch.tensor([by_name[i] if i >= 0 else 0 for i in rows.of_each_row], device=device)

    def soft_prompts(self, mean: Float[Tensor, "b e"], rows: RowAdapters) -> Float[Tensor, "b l e"]:
        """Each row's prompt p_c P_c in fp32 (paper, eq. 4); zeros fill up shorter ones.

        Adapters of one shape and strategy are computed together, so that a batch over many adapters
        costs about as much as a batch over one.
        """
        self._last, self._last_rows = [], rows
        groups: dict[tuple[RoutingStrategy, torch.Size], list[str]] = {}
        for name in rows.names:
            groups.setdefault((self.strategies[name], self.smop_prompts[name].shape), []).append(
                name
            )
        if len(groups) == 1 and (rows.of_row is None or -1 not in rows.of_row):
            return self._group_prompts(mean, rows, rows.names, None)
        width = self.width(rows)
        out = mean.new_zeros(len(mean), width, mean.shape[1])
        for names in groups.values():
            wanted = {rows.names.index(name) for name in names}
            members = [i for i, a in enumerate(rows.of_each_row) if a in wanted]
            selected = torch.tensor(members, device=mean.device)
            prompts = self._group_prompts(mean[selected], rows, tuple(names), selected)
            prompts = nn.functional.pad(prompts, (0, 0, 0, width - prompts.shape[1]))
            out = out.index_copy(0, selected, prompts)
        return out

    def _group_prompts(
        self,
        mean: Float[Tensor, "g e"],
        rows: RowAdapters,
        names: tuple[str, ...],
        selected: Int[Tensor, "g"] | None,
    ) -> Float[Tensor, "g l e"]:
        """Route and scale the rows of adapters that share one shape and strategy."""
        strategy = self.strategies[names[0]]
        own = [rows.names[a] for a in rows.of_each_row if a >= 0 and rows.names[a] in names]
        adapter = torch.tensor([names.index(n) for n in own], device=mean.device)
        # .float(): a caller may have cast the whole model
        prompts = _stacked([self.smop_prompts[name].float() for name in names])
        if not strategy.has_router:
            logits = mean.new_zeros(len(mean), prompts.shape[1])
        elif len(names) == 1:
            logits = mean @ self.smop_routers[names[0]].float()
        else:
            routers = _stacked([self.smop_routers[name].float() for name in names])
            logits = torch.bmm(mean[:, None, :], routers[adapter])[:, 0, :]
        routing = strategy(logits, self._keys(own, names, adapter) if self.training else None)
        chosen = prompts[adapter[:, None], routing.indices]
        self._last.append((selected, Routing(*(part.detach() for part in routing))))
        # not an einsum: a product by 1.0 is exact, a matrix product may run in a shorter format on
        # GPUs
        return (routing.weights[:, :, None, None] * chosen).sum(dim=1)

    def _keys(
        self, own: list[str], names: tuple[str, ...], adapter: Int[Tensor, "g"]
    ) -> Int[Tensor, "g"]:
        """Keys of randomness for this training batch; counts the batch for every adapter in it."""
        seen: dict[str, int] = {}
        ranks = []
        for name in own:
            ranks.append(seen.get(name, 0))
            seen[name] = ranks[-1] + 1
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        stride, offset = (
            (torch.distributed.get_world_size(), torch.distributed.get_rank())
            if distributed
            else (1, 0)
        )
        device = adapter.device
        seeds = torch.tensor([self.seeds[name] for name in names], device=device)
        steps = torch.stack([self.smop_steps[name] for name in names])
        for name in names:
            self.smop_steps[name].add_(1)
        rank = torch.tensor(ranks, device=device) * stride + offset
        return row_keys(seeds[adapter], steps[adapter], rank)

    def last_routes(self) -> Routes | None:
        """The last decision; None before the first."""
        rows, parts = self._last_rows, self._last
        if rows is None or not parts:
            return None
        names = tuple(rows.names[a] if a >= 0 else BASE for a in rows.of_each_row)
        if len(parts) == 1 and parts[0][0] is None:
            routing = parts[0][1]
            return Routes(names, routing.indices, routing.weights, routing.logits)
        chosen = max(p.indices.shape[1] for _, p in parts)
        prompts = max(p.logits.shape[1] for _, p in parts)
        like = parts[0][1].weights
        indices = torch.full((rows.rows, chosen), -1, device=like.device)
        weights = like.new_full((rows.rows, chosen), float("nan"))
        logits = like.new_full((rows.rows, prompts), float("nan"))
        for selected, part in parts:
            indices[selected, : part.indices.shape[1]] = part.indices
            weights[selected, : part.weights.shape[1]] = part.weights
            logits[selected, : part.logits.shape[1]] = part.logits
        return Routes(names, indices, weights, logits)


def _stacked(tensors: list[Tensor]) -> Tensor:
    """Stack along a new first axis; a single tensor is viewed, not copied, as it may be large."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)
