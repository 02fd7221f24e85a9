"""The trained tensors of every adapter."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from jaxtyping import Bool, Float, Int
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from peft_smop.errors import CheckpointError, ConfigError
from peft_smop.rows import RowAdapters, on_device
from peft_smop.tuner.losses import Penalties
from peft_smop.tuner.pooling import Pooling
from peft_smop.tuner.posterior import FASTEST_USE, ROWS_OF_USE
from peft_smop.tuner.routing import RoutingStrategy
from peft_smop.tuner.scope import Scope
from peft_smop.tuner.splice import Position
from peft_smop.tuner.texts import KeptTexts

REVIVAL_SPREAD = 0.01
"""How far a revived prompt starts from the one it copies, relative to that one's spread."""

_ADAPTERS: WeakSet[Adapter] = WeakSet()
"""Every adapter of the process, for `_count_step`."""


class Places(NamedTuple):
    """How long the prompts of a pass's rows are, and on which side of their texts they stand."""

    lengths: Int[Tensor, "b"]
    """0 for `__base__`."""
    width: int
    """The longest."""
    is_uneven: bool
    """Whether some row's prompt is shorter than the longest."""
    behind: tuple[str, ...]
    """Adapters whose prompts stand behind their texts."""
    is_behind: Bool[Tensor, "b"] | None
    """Whose rows these are, which `__base__`'s are not; None: nobody's."""
    all_behind: bool
    """Whether no prompt stands before its text."""


class Adapter(nn.Module):
    """One adapter: k soft prompts, a router, the count of its steps, and how they are used.

    The tensors stay in fp32 whatever the backbone's precision: prompts are trained with learning
    rates at which bf16 would round most updates away.

    Args:
        prompts: (k, l, e), or what `network` makes the prompts from.
        router: the linear map (e, k) from mean embeddings to logits; None for strategies without.
        strategy: how logits become routes.
        seed: of the noise.
        scope: which tokens of a row the router reads.
        position: where the prompts stand.
        pooling: what a classification head reads.
        network: the prompts' parameterisation; None: they are stored themselves.
        penalties: losses on the routing.
        awaited: whether the values are still to be loaded.
        gain: multiplies the router's output, for strategies that judge.
        settings: a hash of the options by which the tensors are used, saved with them.
    """

    def __init__(
        self,
        prompts: Float[Tensor, "k l s"],
        router: Float[Tensor, "e k"] | None,
        *,
        strategy: RoutingStrategy,
        seed: int,
        scope: Scope = "input",
        position: Position = "before",
        pooling: Pooling = "own",
        network: nn.Module | None = None,
        penalties: Penalties | None = None,
        awaited: bool = False,
        gain: float = 1.0,
        settings: int = 0,
    ) -> None:
        super().__init__()
        self.prompts = nn.Parameter(prompts)
        self.router = None if router is None else nn.Parameter(router)
        self.network = network
        self.steps: Tensor
        # part of the checkpoint, so that a resumed run draws what the interrupted one would have
        device = "cpu" if prompts.is_meta else prompts.device
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))
        self.settings: Tensor
        self.register_buffer("settings", torch.tensor(settings, device=device))
        self.seed: Tensor
        self.register_buffer("seed", torch.tensor(seed, device=device), persistent=False)
        self.usage: Tensor
        if strategy.judges:  # how much each prompt was used; part of the checkpoint, as the steps
            k = prompts.shape[0]
            self.register_buffer("usage", torch.full((k,), 1 / k, device=device))
            # what the router's output is multiplied by
            self.gain: Tensor
            self.register_buffer("gain", torch.tensor(gain, device=device))
        self._noted: tuple[Tensor, int] | None = None
        """Uses in the passes of this step, and of how many rows."""
        self.strategy = strategy
        self.scope = scope
        self.position: Position = position
        self.pooling: Pooling = pooling
        self.penalties = penalties or Penalties()
        self.awaited = awaited or self.prompts.is_meta
        _ADAPTERS.add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy counts its own steps."""
        super().__setstate__(state)
        _ADAPTERS.add(self)

    @property
    def reads(self) -> bool:
        """Whether its routing depends on what a row says."""
        strategy = self.strategy
        return strategy.has_router or strategy.reads_content

    @property
    def length(self) -> int:
        """The number of virtual tokens of one prompt, l."""
        return self.prompts.shape[1]

    def soft_prompts(self) -> Float[Tensor, "k l e"]:
        """The soft prompts in fp32."""
        # .float(): a caller may have cast the whole model
        stored = self.prompts.float()
        return stored if self.network is None else self.network(stored)

    def router_matrix(self) -> Float[Tensor, "e k"]:
        """W of equation 3, transposed, in fp32."""
        assert self.router is not None
        router = self.router.float()
        return router * self.gain if self.strategy.judges else router

    @property
    def rows_are_independent(self) -> bool:
        """Whether no row, and no training loss on it, sees other rows."""
        return self.strategy.rows_independent and not (self.training and self.penalties.is_active)

    def check_arrived(self, name: str) -> None:
        """Refuse to compute with tensors that were never loaded.

        Raises:
            CheckpointError: the adapter was made from a saved configuration, or without values,
                and something is missing.
        """
        if torch.compiler.is_compiling() or not (self.awaited or self.prompts.is_meta):
            return  # what was not loaded is NaN, and shows
        for part, tensor in self.named_parameters():
            if tensor.is_meta or not torch.isfinite(tensor).all():
                raise CheckpointError(
                    f"the {part} of adapter {name!r} were never loaded, though its configuration"
                    " comes from a saved adapter (or they are offloaded: do that before adapting);"
                    " load it with PeftModel.from_pretrained or"
                    " load_adapter, or start anew with is_initialised=False"
                )
        self.awaited = False

    def note_usage(self, q: Float[Tensor, "m k"]) -> None:
        """Remember how some rows of this step use the prompts; it counts from the next step on."""
        q = q[~q.isnan().any(dim=-1)]
        before, rows = self._noted or (torch.zeros_like(q[0]) if len(q) else 0, 0)
        if len(q):
            self._noted = (before + q.sum(dim=0), rows + len(q))

    def end_step(self) -> None:
        """Count a step of an optimizer."""
        self.steps.add_(1)

    def end_usage(self) -> None:
        """Let the uses that this step's passes noted count."""
        if self._noted is not None:
            used, rows = self._noted
            weight = min(FASTEST_USE, rows / ROWS_OF_USE)
            # a caller may have cast the whole model
            self.usage.copy_(self.usage.float().lerp(used / rows, weight))
            self._noted = None

    def keep(self, prompts: Sequence[int]) -> None:
        """Take away all prompts but these, and their places in the router.

        Raises:
            ConfigError: the prompts are made by a network, which all of them shape.
        """
        if self.network is not None:
            raise ConfigError(
                "prompts that a network makes cannot be taken away one by one; keep all of them, or"
                " train with parameterisation='direct'"
            )
        own = list(prompts)
        self._noted = None
        with torch.no_grad():
            self.prompts = nn.Parameter(self.prompts[own], self.prompts.requires_grad)
            if self.router is not None:
                self.router = nn.Parameter(self.router[:, own], self.router.requires_grad)
            if self.strategy.judges:
                share = self.usage[own].float() + torch.finfo(torch.float32).tiny
                self.usage = (share / share.sum()).to(self.usage.dtype)

    def set_router(self, matrix: Float[Tensor, "e k"]) -> None:
        """Let the router's output be this matrix's; what an optimizer holds of it stays its own."""
        assert self.router is not None
        gain = self.gain if self.strategy.judges else 1.0
        with torch.no_grad():
            self.router.copy_(matrix.to(self.router.device) / gain)

    def revive(self, dead: list[int], source: int, seed: int) -> None:
        """Start dead prompts again as near copies of a busy one, router columns included.

        The router then divides the busy prompt's rows between the copies.

        Args:
            dead: the prompts to replace.
            source: the prompt to copy.
            seed: of the small differences, a hundredth of the copied tensor's spread.
        """
        assert self.router is not None
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in (self.prompts, self.router.T):
                original = tensor[source].clone()
                for j in dead:
                    noise = torch.randn(original.shape, generator=generator).to(original.device)
                    tensor[j] = original + REVIVAL_SPREAD * original.std() * noise


class _Stepping(threading.local):
    """The optimizers whose steps are being taken, one within the other."""

    def __init__(self) -> None:
        self.optimizers: list[Optimizer] = []


_STEPPING = _Stepping()


def _is_stepping(optimizer: Optimizer) -> bool:
    """Whether its step is not over: one that failed said nothing when it ended."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_locals.get("self") is optimizer:
            return True
        frame = frame.f_back
    return False


def _enter_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    around = [o for o in _STEPPING.optimizers if o is not optimizer and _is_stepping(o)]
    _STEPPING.optimizers = [*around, optimizer]


def _count_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Count a step of every adapter that an optimizer has just moved.

    PyTorch calls this after every step of every optimizer, whoever wrote the loop: a step counts
    once, however many passes, parts or processes its gradients came from. Where several optimizers
    move parts of one adapter, the one with its first trained part counts.
    """
    # what failed within it is over, too
    place = next(i for i, other in enumerate(_STEPPING.optimizers) if other is optimizer)
    _STEPPING.optimizers = _STEPPING.optimizers[:place]
    if _STEPPING.optimizers:
        return
    moved = {id(p) for g in optimizer.param_groups for p in g["params"] if p.grad is not None}
    counts: dict[int, Adapter] = {}  # by identity: models that share an adapter's tensors share it
    for adapter in list(_ADAPTERS):
        first = next((p for p in adapter.parameters() if p.requires_grad), None)
        if id(first) in moved:
            counts.setdefault(id(adapter.steps), adapter)
            adapter.end_usage()  # noted by the one through which its rows passed
    for adapter in counts.values():
        adapter.end_step()


register_optimizer_step_pre_hook(_enter_step)
register_optimizer_step_post_hook(_count_step)


class SMoPLayer(nn.Module, BaseTunerLayer):
    """The adapters of one model by name, and the last routes.

    The attribute's name carries PEFT's prefix `smop_`; the module itself must not.
    """

    adapter_layer_names = ("smop_adapters",)
    other_param_names = ()

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.smop_adapters = nn.ModuleDict()
        self.last: Any = None
        """The last pass: its rows and decisions, free of any graph."""
        self.reads_first = True
        """Whether the backbone can read texts before their prompts, as far as is known."""
        self.kept: KeptTexts | None = None
        """Texts that were read for prompts behind them."""
        self.hooks: Any = None
        """The hooks that put these adapters' prompts before a backbone."""

    def __getitem__(self, name: str) -> Adapter:
        """An adapter by name."""
        adapter = self.smop_adapters[name]
        assert isinstance(adapter, Adapter)
        return adapter

    def __iter__(self) -> Iterator[str]:
        """The adapters' names."""
        return iter(self.smop_adapters)

    def __contains__(self, name: object) -> bool:
        """Whether there is an adapter of this name."""
        return name in self.smop_adapters

    def adapters(self) -> dict[str, Adapter]:
        """All of them, by name."""
        return {name: self[name] for name in self}

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Passes within leave what is remembered of the last one as it was."""
        last = self.last
        try:
            yield
        finally:
            self.last = last

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
        if device is None or adapter_name not in self:
            return
        if not any(p.is_meta for p in self[adapter_name].parameters()):
            self[adapter_name].to(device)

    def is_trained_beside(self, module: nn.Module) -> bool:
        """Whether parameters of a module that are no adapter's are trained."""
        own = {id(parameter) for parameter in self.parameters()}
        return any(p.requires_grad and id(p) not in own for p in module.parameters())

    def width(self, rows: RowAdapters) -> int:
        """The longest prompt in the batch; 0 when no row has one."""
        return max([self[name].length for name in rows.names]) if rows.names else 0

    def all_behind(self, names: Iterable[str]) -> bool:
        """Whether no prompt of these adapters stands before its text."""
        return all(self[name].position == "after" for name in names)

    def places(self, rows: RowAdapters, device: torch.device) -> Places:
        """How long every row's prompt is, and on which side of its text it stands."""
        own = [self[name] for name in rows.names]
        lengths, behind = [one.length for one in own], [one.position == "after" for one in own]
        is_bare = rows.of_row is not None and -1 in rows.of_row
        is_uneven = is_bare or len(set(lengths)) > 1

        def by_row(values: list[int] | list[bool], missing: int) -> Tensor:
            if rows.of_row is None or (not is_bare and len(set(values)) == 1):
                return torch.full((rows.count,), values[0] if values else missing, device=device)
            return on_device([values[i] if i >= 0 else missing for i in rows.of_row], device)

        return Places(
            lengths=by_row(lengths, 0),
            width=self.width(rows),
            is_uneven=is_uneven,
            behind=tuple(n for n, is_it in zip(rows.names, behind, strict=True) if is_it),
            is_behind=by_row(behind, False) if any(behind) else None,
            all_behind=self.all_behind(rows.names),
        )

    def means(self, rows: RowAdapters, device: torch.device) -> Bool[Tensor, "b"] | bool:
        """Of which rows a head reads the mean of states; True, False: of all, of none."""
        own = [self[name].pooling == "mean" for name in rows.names]
        if rows.of_row is None or not any(own):
            return any(own)
        return on_device([i >= 0 and own[i] for i in rows.of_row], device)

    def rows_are_independent(self, names: Iterable[str]) -> bool:
        """Whether no row of these adapters, and no training loss on it, sees other rows."""
        return all(self[name].rows_are_independent for name in names)
