"""What is trained in place of the prompts themselves.

A parameterisation takes the prompts' start apart into a stored tensor and a module, and puts them
together again at every pass. Adding one is a class and a line in `PARAMETERISATIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Direct:
    """The prompts themselves."""

    option: ClassVar[str | None] = None
    """The configuration's field for its size."""

    @classmethod
    def of(
        cls, prompts: Float[Tensor, "k l e"], size: int | None, generator: torch.Generator
    ) -> tuple[Tensor, nn.Module | None]:
        """The prompts, and no module."""
        return prompts, None


class Residual(nn.Module):
    """P + γ ∘ norm(ReLU(P D + b) U + c) with one network for all prompts.

    Residual prompt tuning (Razdaibiedina et al., 2023). The scale γ of the layer norm starts at
    zero here, so that training begins where it begins without the network.
    """

    option: ClassVar[str | None] = "hidden_size"
    default_size: ClassVar[int] = 64

    def __init__(
        self, width: int, hidden: int, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__()
        self.down = _seeded_linear(width, hidden, generator, device)
        self.up = _seeded_linear(hidden, width, generator, device)
        self.norm = nn.LayerNorm(width, device=device)
        nn.init.zeros_(self.norm.weight)

    def forward(self, stored: Float[Tensor, "k l e"]) -> Float[Tensor, "k l e"]:
        """The prompts."""
        hidden = torch.relu(_linear(self.down, stored))
        return stored + _normalised(self.norm, _linear(self.up, hidden))

    @classmethod
    def of(
        cls, prompts: Float[Tensor, "k l e"], size: int | None, generator: torch.Generator
    ) -> tuple[Tensor, nn.Module | None]:
        """The prompts and a network that adds nothing yet."""
        hidden = size or cls.default_size
        return prompts, cls(prompts.shape[2], hidden, generator, prompts.device)


class LowRank(nn.Module):
    """P = A B: coefficients A (k, l, r) of each prompt over a basis B (r, e) that all share.

    Decomposed prompt tuning (Xiao et al., 2023), with the basis shared between prompts as in PT-MoE
    (Li et al., 2025). A B starts as the best approximation of the given start in rank r.
    """

    option: ClassVar[str | None] = "rank"
    default_size: ClassVar[int] = 8

    def __init__(self, basis: Float[Tensor, "r e"]) -> None:
        super().__init__()
        self.basis = nn.Parameter(basis)

    def forward(self, stored: Float[Tensor, "k l r"]) -> Float[Tensor, "k l e"]:
        """The prompts."""
        return stored @ self.basis.float()

    @classmethod
    def of(
        cls, prompts: Float[Tensor, "k l e"], size: int | None, generator: torch.Generator
    ) -> tuple[Tensor, nn.Module | None]:
        """Coefficients and basis, the singular values shared out between both."""
        k, l, e = prompts.shape  # noqa: E741
        rank = min(size or cls.default_size, k * l, e)
        if prompts.device.type == "meta":
            return prompts.new_empty(k, l, rank), cls(prompts.new_empty(rank, e))
        left, values, right = torch.linalg.svd(prompts.reshape(k * l, e), full_matrices=False)
        roots = values[:rank].sqrt()
        coefficients = (left[:, :rank] * roots).reshape(k, l, rank)
        return coefficients.contiguous(), cls((roots[:, None] * right[:rank]).contiguous())


ParameterisationName = Literal["direct", "residual", "low-rank"]
PARAMETERISATIONS: dict[ParameterisationName, type[Direct] | type[Residual] | type[LowRank]] = {
    "direct": Direct,
    "residual": Residual,
    "low-rank": LowRank,
}


def put_together(
    stored: Float[Tensor, "k l s"], network: Mapping[str, Tensor]
) -> Float[Tensor, "k l e"]:
    """The prompts of a saved adapter.

    Args:
        stored: what stands in place of the prompts.
        network: the tensors of the module that makes the prompts, by name; none for "direct".
    """
    if not network:
        return stored
    if "basis" in network:
        return stored.float() @ network["basis"].float()
    hidden, width = network["down.weight"].shape
    residual = Residual(width, hidden, torch.Generator(), torch.device("cpu"))
    residual.load_state_dict(dict(network))
    with torch.no_grad():
        return residual(stored.float())


# in fp32 though a caller may have cast the whole model, as the layer does with stored prompts
def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return nn.functional.linear(x, layer.weight.float(), layer.bias.float())


def _normalised(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    shape = norm.normalized_shape
    return nn.functional.layer_norm(x, shape, norm.weight.float(), norm.bias.float(), norm.eps)


def _seeded_linear(
    inputs: int, outputs: int, generator: torch.Generator, device: torch.device
) -> nn.Linear:
    """A linear layer with PyTorch's usual start, drawn on the CPU from a generator."""
    layer = nn.Linear(inputs, outputs, device="meta")
    bound = inputs**-0.5
    for name, parameter in list(layer.named_parameters()):
        if device.type == "meta":
            continue
        drawn = (torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound
        setattr(layer, name, nn.Parameter(drawn.to(device)))
    return layer
