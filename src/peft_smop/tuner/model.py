"""SMoP as a PEFT tuner: what `get_peft_model` and `PeftModel.from_pretrained` build."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

from accelerate import init_empty_weights
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn

from peft_smop.errors import ConfigError, PromptIgnoredError
from peft_smop.tuner.backbone import Backbone
from peft_smop.tuner.config import SMoPConfig
from peft_smop.tuner.hooks import Call, PromptHooks
from peft_smop.tuner.initialisation import Start, initial_prompts, initial_router
from peft_smop.tuner.layer import SMoPLayer
from peft_smop.tuner.losses import Penalties
from peft_smop.tuner.parameterisation import PARAMETERISATIONS
from peft_smop.tuner.routing import Fixed, Forced
from peft_smop.tuner.rows import BASE, Part, Routes

CHILD = "smop"
"""The one module added to a model. PEFT skips modules whose name contains the method's prefix,
`smop_`."""


class SMoPModel(BaseTuner):
    """A frozen model with soft prompts before its backbone.

    Build it with `peft.get_peft_model(model, SMoPConfig(...))`. Rows of one batch may use different
    adapters, in inference and in training: `model(**batch, adapter_names=["a", "b", "__base__",
    ...])`.

    Args:
        model: a transformers model, or a PEFT model around one, which is then frozen as well.
        peft_config: one configuration, or one by adapter name.
        adapter_name: the adapter to create.
        low_cpu_mem_usage: create its tensors without values, to be loaded.
    """

    prefix = "smop_"
    tuner_layer_cls = SMoPLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig | dict[str, PeftConfig],
        adapter_name: str,
        low_cpu_mem_usage: bool = False,
        **kwargs: Any,
    ) -> None:
        if isinstance(model, PeftModel):
            model = model.get_base_model()
        # the configuration that an inner adapter (LoRA) left on the model is not ours to extend
        model.__dict__.pop("peft_config", None)
        super().__init__(model, peft_config, adapter_name, low_cpu_mem_usage, **kwargs)

    @property
    def smop_layer(self) -> SMoPLayer:
        """The module that holds every adapter's prompts and router."""
        return getattr(self.model, CHILD)

    @property
    def last_routes(self) -> Routes | None:
        """The last routing decision, row by row; None before the first."""
        return self.smop_layer.last_routes()

    @contextmanager
    def forced_prompt(self, index: int, adapter_name: str | None = None) -> Iterator[None]:
        """Send an adapter's rows to one prompt for a while, at the scale of each row's own choice.

        Args:
            index: the prompt, counted from 0.
            adapter_name: the adapter; the active one by default.

        Raises:
            ConfigError: there is no such adapter or prompt, the adapter has no router, or none is
                named and not one is active.
        """
        active = self.active_adapters
        if adapter_name is None and len(active) != 1:
            raise ConfigError(
                f"{len(active)} adapters are active ({', '.join(active)}); name the one whose"
                " prompt is to be forced"
            )
        name = adapter_name or active[0]
        layer = self.smop_layer
        if name not in layer.smop_routers:
            raise ConfigError(f"adapter {name!r} has no router whose choice could be forced")
        Fixed(fixed_prompt=index).check(layer.smop_routers[name].shape[1])
        before = layer.strategies[name]
        layer.strategies[name] = Forced(own=before, prompt=index)
        try:
            yield
        finally:
            layer.strategies[name] = before

    @contextmanager
    def part_of_step(self, part: Part) -> Iterator[None]:
        """Compute some of a training step's rows: randomness, and steps, count by the whole step.

        What the routing strategies add to the loss is left in `smop_layer.routing_losses`. After
        the last part of a step call `smop_layer.end_step`.
        """
        self.smop_layer.part = part
        try:
            yield
        finally:
            self.smop_layer.part = None

    def adopt(self, name: str, other: SMoPModel, other_name: str) -> None:
        """Take up an adapter of a model around the same backbone; its tensors are shared.

        Training either model then trains the same parameters. Heads trained with the adapter come
        with it.

        Args:
            name: what it is called here.
            other: the model it belongs to.
            other_name: what it is called there.
        """
        self.peft_config[name] = other.peft_config[other_name]
        self.smop_layer.adopt(name, other.smop_layer, other_name)
        if other_name in other._hooks.context_adapters:
            self._hooks.context_adapters.add(name)
        theirs = dict(other.model.named_modules())
        for path, module in self.model.named_modules():
            if isinstance(module, ModulesToSaveWrapper):
                module.modules_to_save[name] = theirs[path].modules_to_save[other_name]

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        return peft_config

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("SMoP replaces no module")

    def _check_new_adapter_config(self, config: PeftConfig) -> None:
        if not isinstance(config, SMoPConfig):
            raise ConfigError(f"a SMoP model takes a SMoPConfig, not a {type(config).__name__}")

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Nothing to cast: prompts and routers are fp32 from the start."""

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        **kwargs: Any,
    ) -> None:
        """Create an adapter's tensors; with the first one also the module and the hooks."""
        config = self.peft_config[adapter_name]
        self._check_new_adapter_config(config)
        assert isinstance(config, SMoPConfig)
        backbone = Backbone.of(model)
        if not isinstance(getattr(model, CHILD, None), SMoPLayer):
            # before PEFT looks: it restores the trainability it finds once a tuner layer exists
            model.requires_grad_(False)
            layer = SMoPLayer()
            layer.train(model.training)
            self._hooks = PromptHooks(layer, model, backbone)
            self._hooks.register(model, backbone)
            setattr(model, CHILD, layer)
        self._add_adapter(model, backbone, adapter_name, config, low_cpu_mem_usage)
        super().inject_adapter(
            model,
            adapter_name,
            autocast_adapter_dtype,
            low_cpu_mem_usage=low_cpu_mem_usage,
            **kwargs,
        )
        self._hooks.register_heads(model)

    def _add_adapter(
        self,
        model: nn.Module,
        backbone: Backbone,
        name: str,
        config: SMoPConfig,
        low_cpu_mem_usage: bool,
    ) -> None:
        if config.router_scope == "context" and backbone.decoder is not None:
            raise ConfigError(
                "router_scope='context' is for causal LMs, which see answers in their input;"
                f" {type(model).__name__} does not: leave it out"
            )
        text_config = model.config.get_text_config()
        special = {
            value
            for key in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
            for value in _as_list(getattr(text_config, key, None))
        }
        start = Start(config, backbone.embedding, special, getattr(model, "name_or_path", None))
        strategy = config.strategy()
        if config.rank is not None and config.rank > start.width:
            raise ConfigError(
                f"rank={config.rank} exceeds the embedding's width {start.width}; lower rank"
            )
        with init_empty_weights() if low_cpu_mem_usage else nullcontext():
            prompts = initial_prompts(start)
            router = initial_router(start) if strategy.has_router else None
            size = config.hidden_size if config.rank is None else config.rank
            stored, network = PARAMETERISATIONS[config.parameterisation].of(
                prompts, size, start.generator
            )
            self._check_name(name, network)
            self.smop_layer.add_adapter(
                name,
                prompts=stored,
                router=router,
                strategy=strategy,
                seed=config.seed,
                network=network,
                penalties=Penalties(config.load_balancing, config.z_loss),
            )
        if config.router_scope == "context":
            self._hooks.context_adapters.add(name)
        else:
            self._hooks.context_adapters.discard(name)

    def _check_name(self, name: str, network: nn.Module | None) -> None:
        """Refuse names by which PEFT, saving an adapter, would leave out parts of its network."""
        networks = dict(self.smop_layer.smop_networks.items())
        networks |= {} if network is None else {name: network}
        for adapter, other in networks.items():
            parts = {part for key, _ in other.named_parameters() for part in key.split(".")}
            clash = parts & (set(self.peft_config) | {name}) - {adapter}
            if clash:
                raise ConfigError(
                    f"an adapter cannot be named {min(clash)!r} beside {adapter!r}, whose network"
                    " has a part of that name; choose another name"
                )

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        """Nothing to mark: the backbone was frozen at injection, adapters manage themselves."""

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        # only ours: an inner adapter (LoRA) belongs to the backbone
        for module in self.model.modules():
            if isinstance(module, SMoPLayer | AuxiliaryTrainingWrapper):
                module.enable_adapters(enabled)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; if it was active PEFT activates another one and says so."""
        super().delete_adapter(adapter_name)
        self._hooks.context_adapters.discard(adapter_name)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Surround one forward or generate: adapters by row, one decision, proof of the prompt.

        Raises:
            ConfigError: an adapter is unknown, or this kind of generation has no room for a prompt.
            PromptIgnoredError: the pass ended and the backbone never saw the prompt.
        """
        names: Sequence[str] | None = kwargs.get("adapter_names")
        if names is not None:
            self._check_adapter_names(names)
        self._check_generation(kwargs)
        rows = _rows_given(args, kwargs)
        if names is not None and rows is not None and rows != len(names):
            raise ConfigError(
                f"adapter_names has {len(names)} entries for a batch of {rows} rows; give one name"
                " per row"
            )
        # a forward does not show its rows here; only generate does, and only it repeats them
        before, call = self._hooks.call, Call(adapter_names=names, repeats=rows is not None)
        self._hooks.call = call
        try:
            yield
            if not call.seen:
                raise PromptIgnoredError(
                    f"{type(self.model).__name__} finished a pass without calling its backbone, so"
                    f" the soft prompt"
                    " was ignored; call the model through its forward or generate"
                )
        finally:
            self._hooks.call = before

    def _check_adapter_names(self, names: Sequence[str]) -> None:
        known = set(self.peft_config)
        missing = sorted(set(names) - known - {BASE})
        if missing:
            raise ConfigError(
                f"adapter_names has unknown adapters {', '.join(missing)}; known:"
                f" {', '.join(sorted(known))}, {BASE}"
            )

    def _check_generation(self, kwargs: dict[str, Any]) -> None:
        if kwargs.get("assistant_model") is not None:
            raise ConfigError(
                "assisted generation crops its cache by token count and would cut into the soft"
                " prompt;"
                " generate without assistant_model"
            )
        for key in ("prompt_lookup_num_tokens", "prefill_chunk_size"):
            settings = (
                kwargs,
                kwargs.get("generation_config"),
                getattr(self.model, "generation_config", None),
            )
            for where in settings:
                value = where.get(key) if isinstance(where, dict) else getattr(where, key, None)
                if value is not None:
                    raise ConfigError(
                        f"{key}={value} splits the input, but the soft prompt belongs before all"
                        f" of it;"
                        f" leave {key} out"
                    )

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: see `merge_and_unload`."""
        self._check_merge_allowed()

    def _check_merge_allowed(self) -> None:
        raise ConfigError(
            "a soft prompt cannot be merged into the weights: it depends on the input;"
            " use unload() for the bare model"
        )

    def _unload_and_optionally_merge(
        self, merge: bool = True, *args: Any, **kwargs: Any
    ) -> nn.Module:
        if merge:
            self._check_merge_allowed()
        self._hooks.unregister(self.model)
        delattr(self.model, CHILD)
        self.model.__dict__.pop("peft_config", None)
        for parent in list(self.model.modules()):
            for name, child in list(parent.named_children()):
                # a head that an inner adapter (LoRA) also trains stays as it is
                if isinstance(child, ModulesToSaveWrapper) and set(child.modules_to_save) <= set(
                    self.peft_config
                ):
                    setattr(parent, name, child.original_module)
        return self.model

    @classmethod
    def _get_adapter_state_dict(
        cls, *, state_dict: dict[str, Tensor], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Only our tensors: a backbone may carry another tuner's."""
        return {key: value for key, value in state_dict.items() if f"{CHILD}.{cls.prefix}" in key}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """The name follows our attribute; PEFT would miss it before the parts of a network."""
        before, mark, after = key.partition(f"{CHILD}.{cls.prefix}")
        attribute, _, rest = after.partition(".")
        if not mark or not f"{rest}.".startswith(f"{adapter_name}."):
            return super()._remove_adapter_name_from_key(key, adapter_name)
        return before + mark + attribute + rest.removeprefix(adapter_name)


def _rows_given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """The rows of the input, where a call shows them."""
    inputs = (*args[:1], *(kwargs.get(n) for n in ("input_ids", "inputs", "inputs_embeds")))
    return next((len(x) for x in inputs if isinstance(x, Tensor)), None)


def _as_list(ids: Any) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
