"""Heads that are trained with an adapter follow the rows' adapters."""

from __future__ import annotations

from typing import Any

from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peft_smop.rows.adapters import by_adapter
from peft_smop.rows.calls import Call, current


class RowHeads:
    """The hook of every trained head of one model; PEFT's own way to do so refuses to train.

    Args:
        owner: whose calls name the rows' adapters.
    """

    def __init__(self, owner: object) -> None:
        self.owner = owner

    def __call__(
        self, wrapper: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        """Compute each row by its own adapter's head."""
        assert isinstance(wrapper, ModulesToSaveWrapper)
        call = current(self.owner, Call)
        if call is None or call.adapter_names is None or wrapper.disable_adapters:
            return output
        heads = dict(wrapper.modules_to_save.items())

        def apply(name: str, rows: Tensor) -> Tensor:
            return heads.get(name, wrapper.original_module)(rows, *args[1:], **kwargs)

        return by_adapter(call.adapter_names, args[0], apply)


def follow_rows(model: nn.Module, owner: object) -> list[RemovableHandle]:
    """Let every trained head that does not yet do so follow the rows' adapters.

    Args:
        model: with heads in PEFT's wrappers.
        owner: whose calls name the rows' adapters.

    Returns:
        The new hooks' handles.
    """
    return [
        module.register_forward_hook(RowHeads(owner), with_kwargs=True)
        for module in model.modules()
        if isinstance(module, ModulesToSaveWrapper)
        and not any(isinstance(hook, RowHeads) for hook in module._forward_hooks.values())
    ]
