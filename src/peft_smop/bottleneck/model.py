"""Bottleneck adapters as a PEFT tuner: what `get_peft_model` and `from_pretrained` build."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from peft_smop.bottleneck.config import BottleneckConfig
from peft_smop.bottleneck.layer import BottleneckLayer, by_adapter
from peft_smop.bottleneck.targets import target_pattern
from peft_smop.errors import ConfigError

BASE = "__base__"
"""PEFT's name for a row that no adapter touches."""


class BottleneckModel(BaseTuner):
    """A frozen model with bottlenecks behind its sub-layers.

    Build it with `peft.get_peft_model(model, BottleneckConfig(...))`. Rows of one batch may use
    different adapters, in inference and in training: `model(**batch, adapter_names=["a", "b",
    "__base__", ...])`.
    """

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
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
        layer = target if isinstance(target, BottleneckLayer) else BottleneckLayer(target)
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

    def _check_merge_allowed(self) -> None:
        raise ConfigError(
            "a bottleneck cannot be merged into the weights: it is not linear; use unload() for the"
            " bare model"
        )

    def _unload_and_optionally_merge(
        self, merge: bool = True, *args: Any, **kwargs: Any
    ) -> nn.Module:
        """Restore the bare model with its own heads; PEFT would leave the trained ones in it."""
        if merge:
            self._check_merge_allowed()
        for parent in list(self.model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, BottleneckLayer):
                    setattr(parent, name, child.base_layer)
                elif isinstance(child, ModulesToSaveWrapper):
                    setattr(parent, name, child.original_module)
        self.model.__dict__.pop("peft_config", None)
        return self.model

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Let every row follow its own adapter during one forward or generate.

        Raises:
            ConfigError: an adapter is unknown, the names are not one per row, or gradient
                checkpointing would compute the rows again without their names.
        """
        names: Sequence[str] | None = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        self._check_adapter_names(names)
        with ExitStack() as hooks:
            if _rows_given(args, kwargs) is None:
                # a forward shows its rows to the model, a generate here, before it repeats them
                handle = self.model.register_forward_pre_hook(
                    partial(_check_rows, names), with_kwargs=True
                )
                hooks.callback(handle.remove)
            else:
                _check_rows(names, self.model, args, kwargs)
            for module in self.model.modules():
                if isinstance(module, BottleneckLayer):
                    handle = module.register_forward_pre_hook(
                        partial(_name_rows, names), with_kwargs=True
                    )
                    hooks.callback(handle.remove)
                elif isinstance(module, ModulesToSaveWrapper):
                    handle = module.register_forward_hook(
                        partial(_own_heads, names), with_kwargs=True
                    )
                    hooks.callback(handle.remove)
            yield

    def _check_adapter_names(self, names: Sequence[str]) -> None:
        missing = sorted(set(names) - set(self.peft_config) - {BASE})
        if missing:
            raise ConfigError(
                f"adapter_names has unknown adapters {', '.join(missing)}; known:"
                f" {', '.join(sorted(self.peft_config))}, {BASE}"
            )
        if self.training and any(
            getattr(module, "gradient_checkpointing", False) for module in self.model.modules()
        ):
            raise ConfigError(
                "adapter_names cannot be used in training with gradient checkpointing, which"
                " computes rows again when their names are gone; leave one of the two out"
            )


def _name_rows(
    names: Sequence[str], layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "adapter_names": names}


def _own_heads(
    names: Sequence[str],
    wrapper: ModulesToSaveWrapper,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Tensor,
) -> Tensor:
    """Compute each row's output by its own adapter's copy of a trained module."""
    x, *others = args

    def apply(name: str, rows: Tensor) -> Tensor:
        head = dict(wrapper.modules_to_save).get(name, wrapper.original_module)
        return head(rows, *others, **kwargs)

    return by_adapter(names, x, apply)


def _check_rows(
    names: Sequence[str], model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    rows = _rows_given(args, kwargs)
    if rows is not None and rows != len(names):
        raise ConfigError(
            f"adapter_names has {len(names)} entries for a batch of {rows} rows; give one name per"
            " row"
        )


def _rows_given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """The rows of the input, where a call shows them."""
    inputs = (*args[:1], *(kwargs.get(n) for n in ("input_ids", "inputs", "inputs_embeds")))
    return next((len(x) for x in inputs if isinstance(x, Tensor)), None)
