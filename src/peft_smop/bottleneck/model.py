"""Bottleneck adapters as a PEFT tuner: what `get_peft_model` and `from_pretrained` build."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from torch import nn
from torch.utils.hooks import RemovableHandle

from peft_smop.bottleneck.config import BottleneckConfig
from peft_smop.bottleneck.layer import BottleneckLayer
from peft_smop.bottleneck.targets import target_pattern
from peft_smop.errors import ConfigError
from peft_smop.rows import Call, RowTuner, current, follow_rows, rows_given


class BottleneckModel(RowTuner):
    """A frozen model with bottlenecks behind its sub-layers.

    Build it with `peft.get_peft_model(model, BottleneckConfig(...))`. Rows of one batch may use
    different adapters, in inference and in training: `model(**batch, adapter_names=["a", "b",
    "__base__", ...])`.
    """

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    config_class = BottleneckConfig
    unmergeable = "a bottleneck cannot be merged into the weights: it is not linear"
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        assert isinstance(peft_config, BottleneckConfig)
        if peft_config.target_modules is None:
            peft_config.target_modules = target_pattern(
                model_config["model_type"], peft_config.placement
            )
        return peft_config

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, BottleneckConfig)
        layer = (
            target if isinstance(target, BottleneckLayer) else BottleneckLayer(target, self._rows)
        )
        # every layer draws for itself, whatever else is adapted and in which order
        seed = zlib.crc32(f"{peft_config.seed} {current_key}".encode())
        layer.add_adapter(
            adapter_name,
            size=peft_config.bottleneck_size,
            activation=peft_config.activation,
            generator=torch.Generator().manual_seed(seed),
        )
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Let one adapter change all rows.

        Raises:
            ConfigError: several are named.
        """
        if not isinstance(adapter_name, str) and len(adapter_name) > 1:
            raise ConfigError(
                f"adapter_name={adapter_name!r} names {len(adapter_name)} adapters but a row can"
                " follow only one; set one, or pass adapter_names with one name per row"
            )
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; if it was active PEFT activates another one and says so."""
        was_active = adapter_name in self.active_adapters
        super().delete_adapter(adapter_name)
        if was_active and self.peft_config:
            # PEFT asks the first layer, where adapters of another placement may be missing
            self.set_adapter(min(self.peft_config))

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Create an adapter's bottlenecks; with the first one also the hooks."""
        known = next((m for m in model.modules() if isinstance(m, BottleneckLayer)), None)
        owner = RowCheck() if known is None else known.owner
        assert isinstance(owner, RowCheck)
        self._rows = owner
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        self._rows.register(model)

    def _new_call(self, adapter_names: Sequence[str] | None, repeats: bool) -> Call:
        if (
            adapter_names is not None
            and self.training
            and any(
                getattr(module, "gradient_checkpointing", False) for module in self.model.modules()
            )
        ):
            raise ConfigError(
                "adapter_names cannot be used in training with gradient checkpointing, which"
                " computes rows again when their names are gone; leave one of the two out"
            )
        return Call(self._rows, adapter_names, repeats)

    def _remove_from(self, model: nn.Module) -> None:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, BottleneckLayer):
                    setattr(parent, name, child.base_layer)
        self._rows.unregister()


class RowCheck:
    """Whose the calls of one model with bottlenecks are, and its hooks."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def register(self, model: nn.Module) -> None:
        """Let the model check its rows, once, and every new head follow them."""
        if not self._handles:
            self._handles.append(model.register_forward_pre_hook(self, with_kwargs=True))
        self._handles += follow_rows(model, self)

    def unregister(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse names that are not one per row; only a generate repeats its rows."""
        call, rows = current(self, Call), rows_given(args, kwargs)
        if call is None or call.adapter_names is None or call.repeats or rows is None:
            return
        if rows != len(call.adapter_names):
            raise ConfigError(
                f"adapter_names has {len(call.adapter_names)} entries for a batch of {rows} rows;"
                " give one name per row"
            )
