"""What the tuners of this package have in common as PEFT sees them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from peft import PeftConfig, PeftModel, PromptLearningConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn

from peft_smop.errors import ConfigError
from peft_smop.rows.adapters import check_adapter_names, check_new_name
from peft_smop.rows.calls import Call, calling


class RowTuner(BaseTuner):
    """A frozen model with adapters that rows follow one by one and that no weight can take in.

    Args:
        model: a transformers model, or a PEFT model around one, which is then frozen as well.
        peft_config: one configuration, or one by adapter name.
        adapter_name: the adapter to create.
        low_cpu_mem_usage: create its tensors without values, to be loaded.
        kwargs: as PEFT passes them on.

    Raises:
        ConfigError: the model has adapters that would be lost, or the name cannot be used.
    """

    config_class: ClassVar[type[PeftConfig]]
    part_names: ClassVar[tuple[str, ...]] = ()
    """Names within an adapter that none may be called by."""
    unmergeable: ClassVar[str]
    """Why the weights cannot take an adapter in."""

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig | dict[str, PeftConfig],
        adapter_name: str,
        low_cpu_mem_usage: bool = False,
        **kwargs: Any,
    ) -> None:
        check_new_name(adapter_name, self.part_names)
        if isinstance(model, PeftModel):
            _check_inner(model)
            model = model.get_base_model()
        known = model.__dict__.pop("peft_config", {})
        present = [type(module) for module in model.modules() if _is_row_layer(module)]
        if present and (isinstance(peft_config, Mapping) or set(present) != {self.tuner_layer_cls}):
            model.peft_config = known
            raise ConfigError(
                f"the model already has adapters of this package ({', '.join(known)}); give it"
                " another one of their kind with model.add_adapter, or unload them first"
            )
        if present and isinstance(peft_config, PeftConfig):
            # the model's own `add_adapter` makes a tuner for every adapter
            peft_config = {**known, adapter_name: peft_config}
        super().__init__(model, peft_config, adapter_name, low_cpu_mem_usage, **kwargs)

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Create an adapter; the model, inner adapters included, is frozen before the first one."""
        check_new_name(adapter_name, self.part_names)
        if not any(isinstance(module, self.tuner_layer_cls) for module in model.modules()):
            # before PEFT looks: it restores the trainability it finds once a tuner layer exists
            model.requires_grad_(False)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        """Nothing to mark: the model was frozen at injection, adapters manage themselves."""

    def _check_new_adapter_config(self, config: PeftConfig) -> None:
        if not isinstance(config, self.config_class):
            raise ConfigError(
                f"a {type(self).__name__} takes a {self.config_class.__name__}, not a"
                f" {type(config).__name__}"
            )

    def set_requires_grad(
        self, adapter_names: str | Sequence[str], requires_grad: bool = True
    ) -> None:
        """Train some adapters, or stop to.

        Raises:
            ConfigError: there is no adapter of such a name.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        for name in names:
            if name not in self.peft_config:
                known = ", ".join(sorted(self.peft_config))
                raise ConfigError(f"there is no adapter {name!r} to train; known: {known}")
        for module in self._own_modules():
            module.set_requires_grad(names, requires_grad)

    def _own_modules(self) -> Iterator[Any]:
        """This tuner's layers and the trained heads; an inner adapter belongs to the model."""
        for module in self.model.modules():
            if isinstance(module, (self.tuner_layer_cls, AuxiliaryTrainingWrapper)):
                yield module

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        for module in self._own_modules():
            module.enable_adapters(enabled)

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: see `merge_and_unload`."""
        self._check_merge_allowed()

    def _check_merge_allowed(self) -> None:
        raise ConfigError(f"{self.unmergeable}; use unload() for the bare model")

    def _unload_and_optionally_merge(
        self, merge: bool = True, *args: Any, **kwargs: Any
    ) -> nn.Module:
        """Restore the bare model with its own heads; PEFT would leave the trained ones in it."""
        if merge:
            self._check_merge_allowed()
        self._remove_from(self.model)
        self.model.__dict__.pop("peft_config", None)
        for parent in list(self.model.modules()):
            for name, child in list(parent.named_children()):
                # a head that an inner adapter (LoRA) also trains stays as it is
                if isinstance(child, ModulesToSaveWrapper) and set(child.modules_to_save) <= set(
                    self.peft_config
                ):
                    setattr(parent, name, child.original_module)
        return self.model

    @abstractmethod
    def _remove_from(self, model: nn.Module) -> None:
        """Take the tuner's modules and hooks off the model."""

    @abstractmethod
    def _new_call(self, adapter_names: Sequence[str] | None, repeats: bool) -> Call:
        """What is remembered of a forward or generate through PEFT."""

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Surround one forward or generate, whose rows may name their adapters.

        Raises:
            ConfigError: an adapter is unknown, or the names are not one per row.
        """
        names: Sequence[str] | None = kwargs.get("adapter_names")
        given = rows_given(args, kwargs)
        if names is not None:
            check_adapter_names(names, self.peft_config)
            if given is not None and given != len(names):
                raise ConfigError(
                    f"adapter_names has {len(names)} entries for a batch of {given} rows; give one"
                    " name per row"
                )
        # a forward does not show its rows here; only generate does, and only it repeats them
        with calling(self._new_call(names, repeats=given is not None)):
            yield


def rows_given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """The rows of the input, where a call shows them."""
    inputs = (*args[:1], *(kwargs.get(n) for n in ("input_ids", "inputs", "inputs_embeds")))
    return next((len(x) for x in inputs if isinstance(x, Tensor)), None)


def _check_inner(inner: PeftModel) -> None:
    """Refuse an adapter that PEFT computes outside the model."""
    for name, config in inner.peft_config.items():
        if isinstance(config, PromptLearningConfig):
            raise ConfigError(
                f"the model's adapter {name!r} ({config.peft_type.value}) puts prompts before the"
                " model from outside, and would be lost; start from the model without it:"
                " model.get_base_model()"
            )


def _is_row_layer(module: nn.Module) -> bool:
    return isinstance(module, BaseTunerLayer) and type(module).__module__.startswith("peft_smop.")
