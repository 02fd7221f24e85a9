"""The doors by which a model is entered: whichever is taken leads through the hooks.

Some callers call `model.forward` itself, past every hook, and a model's own `generate` is a
sequence of forwards that must share one decision.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from peft_smop.rows import Call, calling, current
from peft_smop.tuner.admission import check_generation
from peft_smop.tuner.call import PromptCall, ends_if_interrupted
from peft_smop.tuner.layer import SMoPLayer


class Door:
    """Stands in a module's place of `forward`; the hooks admit to it.

    Args:
        module: whose.
        layer: the adapters that its calls concern.
    """

    name = "forward"

    def __init__(self, module: nn.Module, layer: SMoPLayer) -> None:
        self.module = module
        self.layer = layer
        self.is_removed = False
        self.own = module.__dict__.get(self.name)
        """What stood in the instance's place before, such as another library's wrapper."""
        module.__dict__[self.name] = self

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.behind)

    @property
    def behind(self) -> Any:
        """The method that is guarded."""
        if self.own is not None:
            return self.own
        return getattr(type(self.module), self.name).__get__(self.module)

    @ends_if_interrupted
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute, if the hooks have run; else go through them."""
        call = current(self.layer, PromptCall)
        if self.is_removed or current(self, Call) is not None:  # somebody has kept it
            return self.behind(*args, **kwargs)
        if call is None or not call.admitted:
            with calling(Call(self)):  # hooks that nobody hears of must not lead here for ever
                return self.module(*args, **kwargs)
        call.admitted = False
        return self.behind(*args, **kwargs)

    @property
    def __code__(self) -> Any:
        return self.behind.__code__

    @property
    def __name__(self) -> str:
        return self.name

    def remove(self) -> None:
        """Give the module its own method back."""
        self.is_removed = True
        if self.module.__dict__.get(self.name) is self:
            del self.module.__dict__[self.name]
            if self.own is not None:
                self.module.__dict__[self.name] = self.own


class GenerateDoor(Door):
    """Stands in the place of `generate`: one decision for all its forwards."""

    name = "generate"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate within one call."""
        if self.is_removed:
            return self.behind(*args, **kwargs)
        if not self.layer.disable_adapters:
            check_generation(self.module, args, kwargs)
        around = current(self.layer, PromptCall)
        names = None if around is None or around.in_model else around.adapter_names
        with calling(PromptCall(self.layer, names, decides_once=True)) as call:
            output = self.behind(*args, **kwargs)
            call.check_seen(self.module)
            return output
