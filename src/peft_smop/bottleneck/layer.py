"""One wrapped module with a bottleneck behind it for every adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from peft_smop.errors import ConfigError
from peft_smop.rows import Call, by_adapter, current

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """h ← h + U f(D h + b_D) + b_U, where h is the output of the wrapped module.

    D is (d, e) and U (e, d) for a width e and a bottleneck of d. The wrapped module ends an
    attention or a feed-forward sub-layer, so the sub-layer's dropout and its residual connection
    come after (Houlsby et al. 2019, figure 2). U and b_U start at zero: at first the layer is the
    wrapped module.

    Args:
        base_layer: a linear module, one that says its width as `out_features` or, like GPT-2's,
            `nf`.
        owner: whose calls name the rows' adapters; the same for all of a model's bottlenecks.

    Raises:
        ConfigError: the module does not say its width.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("activations",)

    def __init__(self, base_layer: nn.Module, owner: object) -> None:
        super().__init__()
        width = getattr(base_layer, "out_features", getattr(base_layer, "nf", None))
        if width is None:
            raise ConfigError(
                f"target_modules names a {type(base_layer).__name__}, which is no linear module;"
                " name the linear modules that end attention and feed-forward sub-layers"
            )
        self.base_layer = base_layer
        self.owner = owner
        self.width: int = width
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.activations: dict[str, str] = {}

    def add_adapter(
        self, name: str, *, size: int, activation: str, generator: torch.Generator
    ) -> None:
        """Create an adapter's bottleneck on the device and in the dtype of the wrapped module.

        Args:
            name: the adapter's name.
            size: d, the width of the bottleneck.
            activation: f, a name in `ACTIVATIONS`.
            generator: of the CPU, so that a seed means the same start on every device; D and b_D
                are drawn as `nn.Linear` draws them, uniformly from ±1/√e.
        """

        def drawn(*shape: int) -> nn.Parameter:
            uniform = torch.rand(shape, generator=generator, dtype=torch.float32)
            return nn.Parameter((uniform * 2 - 1) / self.width**0.5)

        # on the meta device nn.Linear draws nothing from the global generator
        down = nn.Linear(self.width, size, device="meta")
        down.weight, down.bias = drawn(size, self.width), drawn(size)
        up = nn.Linear(size, self.width, device="meta")
        up.weight = nn.Parameter(torch.zeros(self.width, size))
        up.bias = nn.Parameter(torch.zeros(self.width))
        self.bottleneck_down[name], self.bottleneck_up[name] = down, up
        self.activations[name] = activation
        self._move_adapter_to_device_of_base_layer(name)

    def forward(self, *args: Any, **kwargs: Any) -> Float[Tensor, "*rows e"]:
        """The wrapped module's output, changed by the active adapter or by each row's own."""
        h = self.base_layer(*args, **kwargs)
        if self.disable_adapters:
            return h
        call = current(self.owner, Call)
        if call is not None and call.adapter_names is not None:
            return by_adapter(call.adapter_names, h, self._adapted)
        for name in self.active_adapters:
            h = self._adapted(name, h)
        return h

    def _adapted(self, name: str, h: Float[Tensor, "*rows e"]) -> Float[Tensor, "*rows e"]:
        """Compute in the adapter's dtype, so that a bf16 sum is rounded once."""
        if name not in self.bottleneck_down:  # `__base__`, or an adapter of another placement
            return h
        down, up = self.bottleneck_down[name], self.bottleneck_up[name]
        activation = ACTIVATIONS[self.activations[name]]
        return (h + up(activation(down(h.to(down.weight.dtype))))).to(h.dtype)
