"""The trained tensors of every adapter, and the step from mean embeddings to soft prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from peft_smop.errors import ConfigError
from peft_smop.tuner.losses import Penalties
from peft_smop.tuner.noise import row_keys
from peft_smop.tuner.routing import Routing, RoutingStrategy, RowState
from peft_smop.tuner.rows import BASE, Part, Routes, RowAdapters, on_device, ranks_of

REVIVAL_SPREAD = 0.01
"""How far a revived prompt starts from the one it copies, relative to that one's spread."""


class SMoPLayer(nn.Module, BaseTunerLayer):
    """k soft prompts (k, l, e), one router (e, k) and a step count for every adapter.

    An adapter whose prompts are parameterised stores coefficients and a module instead.

    The tensors stay in fp32 whatever the backbone's precision: prompts are trained with learning
    rates at which bf16 would round most updates away. The attribute names carry PEFT's prefix
    `smop_`; the module itself must not.
    """

    adapter_layer_names = ("smop_prompts", "smop_routers", "smop_networks")
    other_param_names = ("smop_steps",)

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.smop_prompts = nn.ParameterDict()
        self.smop_routers = nn.ParameterDict()
        # how many training batches each adapter has routed; part of the checkpoint, so that a
        # resumed run draws the noise that the interrupted one would have drawn
        self.smop_steps = BufferDict(persistent=True)
        self.smop_networks = nn.ModuleDict()
        self.strategies: dict[str, RoutingStrategy] = {}
        self.penalties: dict[str, Penalties] = {}
        self.seeds: dict[str, int] = {}
        self._last: list[tuple[Tensor | None, Routing]] = []
        self.last_rows: RowAdapters | None = None
        """Which adapters the last batch's rows followed."""
        self.penalty_terms: dict[str, Tensor] = {}
        """What the last training batch adds to the loss, by adapter, each a scalar with a graph."""
        self.routing_losses: dict[str, Tensor] = {}
        """Those terms and the divergence of two passes, by adapter, over its rows of the step."""
        self.part: Part | None = None
        """Which rows of a step are computed now, where a step is computed in several passes."""

    def __getstate__(self) -> dict[str, object]:
        """Without the last batch's graph, which cannot be copied."""
        return {**self.__dict__, "penalty_terms": {}, "routing_losses": {}}

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
        if adapter_name in self.smop_networks:
            network = self.smop_networks[adapter_name]
            if not any(p.is_meta for p in network.parameters()):
                network.to(device)

    def add_adapter(
        self,
        name: str,
        *,
        prompts: Float[Tensor, "k l s"],
        router: Float[Tensor, "e k"] | None,
        strategy: RoutingStrategy,
        seed: int,
        network: nn.Module | None = None,
        penalties: Penalties = Penalties(),  # noqa: B008
    ) -> None:
        """Take up a new adapter; the tensors become its parameters.

        Args:
            name: the adapter's name.
            prompts: the k soft prompts in fp32, or what `network` makes them from.
            router: the linear map from mean embeddings to logits; None for strategies without a
                router.
            strategy: how logits become routes.
            seed: of the perturbation.
            network: the prompts' parameterisation; None: they are stored themselves.
            penalties: losses on the routing.
        """
        self.smop_prompts[name] = nn.Parameter(prompts)
        if network is not None:
            self.smop_networks[name] = network
        self.penalties[name] = penalties
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
        self.penalties.pop(adapter_name, None)

    def prompts(self, name: str) -> Float[Tensor, "k l e"]:
        """An adapter's soft prompts in fp32."""
        # .float(): a caller may have cast the whole model
        stored = self.smop_prompts[name].float()
        return self.smop_networks[name](stored) if name in self.smop_networks else stored

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
        return on_device([by_name[i] if i >= 0 else 0 for i in rows.of_each_row], device)

    def soft_prompts(
        self,
        mean: Float[Tensor, "b e"],
        rows: RowAdapters,
        content: Int[Tensor, "b"] | None = None,
    ) -> Float[Tensor, "b l e"]:
        """Each row's prompt p_c P_c in fp32 (paper, eq. 4); zeros fill up shorter ones.

        Adapters of one shape and strategy are computed together, so that a batch over many adapters
        costs about as much as a batch over one.

        Args:
            mean: the router's input.
            rows: which adapter each row follows.
            content: a hash of each row's tokens, where a strategy reads it.

        Raises:
            ConfigError: rows of several adapters, one of which lets rows see their neighbours.
        """
        self._last, self.last_rows, self.penalty_terms, self.routing_losses = [], rows, {}, {}
        groups: dict[tuple[RoutingStrategy, torch.Size], list[str]] = {}
        for name in rows.names:
            shape = self.smop_prompts[name].shape
            groups.setdefault((self.strategies[name], shape), []).append(name)
        if len(groups) == 1 and (rows.of_row is None or -1 not in rows.of_row):
            return self._group_prompts(mean, rows, rows.names, None, content)
        width = self.width(rows)
        out = mean.new_zeros(len(mean), width, mean.shape[1])
        for names in groups.values():
            wanted = {rows.names.index(name) for name in names}
            members = [i for i, a in enumerate(rows.of_each_row) if a in wanted]
            selected = on_device(members, mean.device)
            own = None if content is None else content[selected]
            prompts = self._group_prompts(mean[selected], rows, tuple(names), selected, own)
            prompts = nn.functional.pad(prompts, (0, 0, 0, width - prompts.shape[1]))
            out = out.index_copy(0, selected, prompts)
        return out

    def divergence_weights(self, rows: RowAdapters) -> list[float] | None:
        """For every row the weight of the divergence between two passes; None if all are 0."""
        by_name = [self.strategies[name].divergence_weight for name in rows.names]
        if not any(by_name):
            return None
        return [by_name[a] if a >= 0 else 0.0 for a in rows.of_each_row]

    @contextmanager
    def second_pass(self, rows: RowAdapters) -> Iterator[None]:
        """Draw as in the next step, which adapters that did not ask for it do not count."""
        if self.part is not None:
            self.count_step(rows.names)
        try:
            yield
        finally:
            uncounted = [
                name
                for name in rows.names
                if self.part is not None or not self.strategies[name].divergence_weight
            ]
            for name in uncounted:
                self.smop_steps[name].sub_(1)

    def remember(self) -> tuple[Any, ...]:
        """What is known of the last batch, for `restore` after another pass over it."""
        return self._last, self.last_rows, self.penalty_terms

    def restore(self, known: tuple[Any, ...]) -> None:
        """Put back what `remember` gave."""
        self._last, self.last_rows, self.penalty_terms = known

    def reads_content(self, rows: RowAdapters) -> bool:
        """Whether some strategy in the batch wants a hash of the rows' tokens."""
        return any(self.strategies[name].reads_content for name in rows.names)

    def _group_prompts(
        self,
        mean: Float[Tensor, "g e"],
        rows: RowAdapters,
        names: tuple[str, ...],
        selected: Int[Tensor, "g"] | None,
        content: Int[Tensor, "g"] | None,
    ) -> Float[Tensor, "g l e"]:
        """Route and scale the rows of adapters that share one shape and strategy."""
        strategy = self.strategies[names[0]]
        if not strategy.rows_independent and rows.of_row is not None:
            raise ConfigError(
                f"adapter {names[0]!r} gives a row its neighbours' prompts"
                f" (routing={type(strategy).__name__.lower()!r}), so it cannot share a batch with"
                " other adapters; give it batches of its own"
            )
        own = [rows.names[a] for a in rows.of_each_row if a >= 0 and rows.names[a] in names]
        if len(names) == 1:
            adapter = torch.zeros(len(own), dtype=torch.int64, device=mean.device)
        else:
            adapter = on_device([names.index(n) for n in own], mean.device)
        prompts = _stacked([self.prompts(name) for name in names])
        if not strategy.has_router:
            logits = mean.new_zeros(len(mean), prompts.shape[1])
        elif len(names) == 1:
            logits = mean @ self.smop_routers[names[0]].float()
        else:
            routers = _stacked([self.smop_routers[name].float() for name in names])
            logits = torch.bmm(mean[:, None, :], routers[adapter])[:, 0, :]
        routing = strategy(logits, self._state(strategy, own, names, adapter, selected, content))
        self._last.append((selected, Routing(*(part.detach() for part in routing))))
        if self.training:
            self._add_penalties(own, names, routing)
        if len(names) == 1 and routing.indices.shape[1] > 1:
            # a prompt of every row and route at once would not fit for many of them
            weights = torch.zeros_like(logits).scatter_add(1, routing.indices, routing.weights)
            return (weights @ prompts[0].flatten(1)).unflatten(1, tuple(prompts.shape[2:]))
        chosen = prompts[adapter[:, None], routing.indices]
        # not an einsum: a product by 1.0 is exact, a matrix product may run in a shorter format on
        # GPUs
        return (routing.weights[:, :, None, None] * chosen).sum(dim=1)

    def _add_penalties(self, own: list[str], names: tuple[str, ...], routing: Routing) -> None:
        """Compute each adapter's losses on its own rows."""
        for name in names:
            if not self.penalties[name].is_active:
                continue
            part = routing
            if len(names) > 1:
                members = [i for i, n in enumerate(own) if n == name]
                place = on_device(members, routing.logits.device)
                part = Routing(*(tensor[place] for tensor in routing))
            self.penalty_terms[name] = self.penalties[name](part)

    def _state(
        self,
        strategy: RoutingStrategy,
        own: list[str],
        names: tuple[str, ...],
        adapter: Int[Tensor, "g"],
        selected: Int[Tensor, "g"] | None,
        content: Int[Tensor, "g"] | None,
    ) -> RowState:
        """What the strategy may use; in training the batch is counted."""
        steps = None
        if strategy.is_annealed:
            steps = torch.stack([self.smop_steps[name] for name in names])[adapter]
        keys = self._keys(own, names, adapter, selected) if self.training else None
        return RowState(keys, steps, content)

    def _keys(
        self,
        own: list[str],
        names: tuple[str, ...],
        adapter: Int[Tensor, "g"],
        selected: Int[Tensor, "g"] | None,
    ) -> Int[Tensor, "g"]:
        """Keys of randomness for these rows; outside a `Part` counts the batch as a step."""
        device = adapter.device
        if self.part is not None:
            ranks = self.part.ranks if selected is None else self.part.ranks[selected]
        elif len(names) == 1:
            ranks = torch.arange(len(own), device=device)
        else:
            ranks = on_device(ranks_of(own), device)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed:
            size, process = torch.distributed.get_world_size(), torch.distributed.get_rank()
            ranks = ranks * size + process
        seeds = on_device([self.seeds[name] for name in names], device)
        steps = torch.stack([self.smop_steps[name] for name in names])
        if self.part is None:
            self.count_step(names)
        return row_keys(seeds[adapter], steps[adapter], ranks)

    def count_step(self, names: Iterable[str]) -> None:
        """Count a training step of these adapters."""
        for name in names:
            self.smop_steps[name].add_(1)

    def end_step(self, names: Iterable[str]) -> None:
        """Count a step whose parts have all been computed, its second pass included."""
        for name in names:
            self.smop_steps[name].add_(2 if self.strategies[name].divergence_weight else 1)

    def rows_are_independent(self, names: Iterable[str]) -> bool:
        """Whether no row of these adapters, and no training loss on them, sees other rows."""
        return all(
            self.strategies[name].rows_independent
            and not (self.training and self.penalties[name].is_active)
            for name in names
        )

    def adopt(self, name: str, other: SMoPLayer, other_name: str) -> None:
        """Take up another layer's adapter; its tensors are shared, not copied."""
        pairs: tuple[tuple[Any, Any], ...] = (
            (self.smop_prompts, other.smop_prompts),
            (self.smop_networks, other.smop_networks),
            (self.smop_routers, other.smop_routers),
            (self.smop_steps, other.smop_steps),
            (self.strategies, other.strategies),
            (self.seeds, other.seeds),
            (self.penalties, other.penalties),
        )
        for own, theirs in pairs:
            if other_name in theirs:
                own[name] = theirs[other_name]

    def last_routes(self) -> Routes | None:
        """The last decision; None before the first."""
        rows, parts = self.last_rows, self._last
        if rows is None or not parts:
            return None
        names = tuple(rows.names[a] if a >= 0 else BASE for a in rows.of_each_row)
        if len(parts) == 1 and parts[0][0] is None:
            routing = parts[0][1]
            return Routes(
                names, routing.indices, routing.weights, routing.logits, self._choice(rows, routing)
            )
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
        every = Routing(indices, weights, logits)
        return Routes(names, indices, weights, logits, self._choice(rows, every))

    def _choice(self, rows: RowAdapters, routing: Routing) -> Int[Tensor, "b"]:
        """Each row's first index where its strategy chooses, -1 elsewhere."""
        if rows.of_row is None and self.strategies[rows.names[0]].chooses:
            return routing.indices[:, 0]
        chooses = [a >= 0 and self.strategies[rows.names[a]].chooses for a in rows.of_each_row]
        mask = on_device(chooses, routing.indices.device)
        return torch.where(mask, routing.indices[:, 0], -1)

    def revive(self, name: str, dead: list[int], source: int, seed: int) -> None:
        """Start dead prompts again as near copies of a busy one, router columns included.

        The router then divides the busy prompt's rows between the copies.

        Args:
            name: the adapter.
            dead: the prompts to replace.
            source: the prompt to copy.
            seed: of the small differences, a hundredth of the copied tensor's spread.
        """
        generator = torch.Generator().manual_seed(seed)
        prompts, router = self.smop_prompts[name], self.smop_routers[name]
        with torch.no_grad():
            for tensor in (prompts, router.T):
                original = tensor[source].clone()
                for j in dead:
                    noise = torch.randn(original.shape, generator=generator).to(original.device)
                    tensor[j] = original + REVIVAL_SPREAD * original.std() * noise


def _stacked(tensors: list[Tensor]) -> Tensor:
    """Stack along a new first axis; a single tensor is viewed, not copied, as it may be large."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)
