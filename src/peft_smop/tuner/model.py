"""SMoP as a PEFT tuner: what `get_peft_model` and `PeftModel.from_pretrained` build."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from peft import PeftConfig
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from peft_smop.errors import ConfigError
from peft_smop.rows import Call, RowTuner, calling, check_new_name, current
from peft_smop.tuner.backbone import Backbone
from peft_smop.tuner.call import Apart, PromptCall, Routed
from peft_smop.tuner.config import SMoPConfig
from peft_smop.tuner.creation import created
from peft_smop.tuner.deciding import router_logits
from peft_smop.tuner.doors import check_generation
from peft_smop.tuner.hooks import PromptHooks
from peft_smop.tuner.layer import Adapter, SMoPLayer
from peft_smop.tuner.passes import prompt_losses
from peft_smop.tuner.routes import Routes
from peft_smop.tuner.saved import loaded_keys, saved_key
from peft_smop.tuner.texts import KeptTexts
from peft_smop.tuner.verification import check_reads_first, check_verified

CHILD = "smop"
"""The one module added to a model. PEFT skips modules whose name contains the method's prefix,
`smop_`."""


class SMoPModel(RowTuner):
    """A frozen model with soft prompts before its backbone.

    Build it with `peft.get_peft_model(model, SMoPConfig(...))`. Rows of one batch may use different
    adapters, in inference and in training: `model(**batch, adapter_names=["a", "b", "__base__",
    ...])`.
    """

    prefix = "smop_"
    tuner_layer_cls = SMoPLayer
    config_class = SMoPConfig
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}
    part_names = (
        "settings",
        "prompts",
        "router",
        "network",
        "steps",
        "usage",
        "gain",
        "seed",
        "down",
        "up",
        "norm",
        "basis",
        "weight",
        "bias",
    )
    unmergeable = "a soft prompt cannot be merged into the weights: it depends on the input"

    @classmethod
    def of(cls, model: nn.Module) -> SMoPModel | None:
        """The tuner in a PEFT model, whatever a trainer has wrapped around it; None: no SMoP."""
        inner = getattr(model, "module", model)
        tuner = inner if isinstance(inner, cls) else getattr(inner, "base_model", None)
        return tuner if isinstance(tuner, cls) else None

    @classmethod
    def adapter_of(cls, model: nn.Module) -> Adapter | None:
        """The active adapter of a PEFT model; None: no SMoP."""
        tuner = cls.of(model)
        return None if tuner is None else tuner.smop_layer[tuner.active_adapters[0]]

    @property
    def smop_layer(self) -> SMoPLayer:
        """The module that holds every adapter's prompts and router."""
        return getattr(self.model, CHILD)

    @property
    def last_routes(self) -> Routes | None:
        """The last routing decision, row by row; None before the first."""
        return None if self.smop_layer.last is None else Routes.of(*self.smop_layer.last)

    @contextmanager
    def routed(self, indices: Any) -> Iterator[None]:
        """Ask for a prompt for every row, at the weight of the row's own choice.

        Args:
            indices: one for each row, counted from 0; -1: the row's own choice. Rows of adapters
                whose strategy chooses no prompt get theirs at weight 1.

        Raises:
            ConfigError: there is no such prompt, or there is not one for each row.
        """
        try:
            routes = torch.as_tensor(indices).cpu()
        except (TypeError, ValueError, RuntimeError):
            routes = torch.empty(0, 0)
        if routes.dim() != 1 or routes.dtype.is_floating_point or routes.dtype == torch.bool:
            raise ConfigError(f"routed({indices!r}) must be given one whole number for each row")
        if len(routes) and int(routes.min()) < -1:
            raise ConfigError(f"routed() asks for prompt {int(routes.min())}; choose 0 or more")
        with calling(Routed(self.smop_layer, indices=routes)):
            yield

    @contextmanager
    def forced_prompt(self, index: Any, adapter_name: str | None = None) -> Iterator[None]:
        """Ask for one prompt for all rows of an adapter: a special case of `routed`.

        Args:
            index: the prompt, counted from 0.
            adapter_name: the adapter; the active one by default.

        Raises:
            ConfigError: there is no such adapter or prompt, or none is named and not one is active.
        """
        name = self._named(adapter_name)
        self._check_prompt(name, index)
        outer = current(self.smop_layer, Routed)
        others = {} if outer is None else outer.by_adapter
        indices = None if outer is None else outer.indices
        forced = {**others, name: index}
        with calling(Routed(self.smop_layer, indices=indices, by_adapter=forced)):
            yield

    def prompt_losses(
        self, *, chunk: int = 64, adapter_names: Sequence[str] | None = None, **batch: Any
    ) -> Float[Tensor, "b k"]:
        """Every row's loss under each of its adapter's prompts: -log p(answer | text, prompt).

        Without gradient and in evaluation mode, so that rows differ by their prompts alone; the
        model is put back as it was. Losses are summed over a row's labels.

        Args:
            chunk: most rows in one pass, which bounds the memory.
            adapter_names: one name for each row; None: all follow the active adapter.
            batch: as the model takes it, with labels.

        Returns:
            NaN for prompts that a row's adapter does not have, and for rows of `__base__`.

        Raises:
            ConfigError: there are no labels, or the head gives no distribution over them.
        """
        return prompt_losses(self.smop_layer, batch, adapter_names=adapter_names, chunk=chunk)

    def router_logits(self, adapter_name: str | None = None, **batch: Any) -> Float[Tensor, "b k"]:
        """What an adapter's router says of rows: W x̄ of equation 3, without a pass of the backbone.

        Args:
            adapter_name: the adapter; the active one by default.
            batch: as the model takes it; a decoder's with labels, if there is an answer within.

        Raises:
            ConfigError: there is no such adapter, it has no router, or none is named and not one is
                active.
        """
        name = self._named(adapter_name)
        if self.smop_layer[name].router is None:
            raise ConfigError(f"adapter {name!r} has no router")
        return router_logits(self.smop_layer, name, batch)

    def keep_prompts(self, prompts: Sequence[int], adapter_name: str | None = None) -> None:
        """Take away all prompts of an adapter but these, and their places in its router.

        After training: an optimizer that was made before goes on moving what is no longer there.

        Args:
            prompts: those that stay, counted from 0.
            adapter_name: the adapter; the active one by default.

        Raises:
            ConfigError: there is no such adapter or prompt, none is to stay, one is named twice,
                the prompts are made by a network, or rows are not given what the router chooses.
        """
        name = self._named(adapter_name)
        own = [p if isinstance(p, bool) else operator.index(p) for p in prompts]
        for prompt in own:
            self._check_prompt(name, prompt)
        if not own or len(set(own)) < len(own):
            raise ConfigError(f"keep_prompts({own!r}) must be given some, each once")
        adapter, config = self.smop_layer[name], copy(self.peft_config[name])
        strategy = adapter.strategy
        if not (strategy.has_router and strategy.chooses) or hasattr(strategy, "fixed_prompt"):
            raise ConfigError(
                f"routing={config.routing!r} does not give rows what a router chooses, so its"
                " prompts cannot be taken away"
            )
        strategy.check(len(own))
        count = len(adapter.prompts)
        adapter.keep(own)
        config.num_prompts = len(own)
        for said in ("init_text", "init_token_ids"):  # of every prompt, or of all
            value = getattr(config, said)
            if isinstance(value, list) and len(value) == count:
                setattr(config, said, [value[j] for j in own])
        self.peft_config[name] = config

    def set_router(self, matrix: Float[Tensor, "e k"], adapter_name: str | None = None) -> None:
        """Let W of equation 3, transposed, be this matrix.

        Args:
            matrix: what mean embeddings are multiplied by.
            adapter_name: the adapter; the active one by default.

        Raises:
            ConfigError: there is no such adapter, it has no router, or one of another shape.
        """
        name = self._named(adapter_name)
        router = self.smop_layer[name].router
        if router is None or router.shape != matrix.shape:
            has = "no router" if router is None else f"a router of shape {tuple(router.shape)}"
            raise ConfigError(f"adapter {name!r} has {has}, not {tuple(matrix.shape)}")
        self.smop_layer[name].set_router(matrix)

    def _named(self, adapter_name: str | None) -> str:
        """The adapter that a caller means.

        Raises:
            ConfigError: there is none of that name, or none is named and not one is active.
        """
        active = self.active_adapters
        if adapter_name is None and len(active) != 1:
            raise ConfigError(
                f"{len(active)} adapters are active ({', '.join(active)}); name the one that is"
                " meant"
            )
        name = adapter_name or active[0]
        if name not in self.smop_layer:
            raise ConfigError(f"there is no adapter {name!r}")
        return name

    def _check_prompt(self, name: str, index: Any) -> None:
        count = self.smop_layer[name].prompts.shape[0]
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
            raise ConfigError(
                f"prompt {index!r} is not one of the {count} of adapter {name!r}; choose 0 to"
                f" {count - 1}"
            )

    @contextmanager
    def terms_apart(self) -> Iterator[Apart]:
        """Leave the routing's own losses to a caller who adds losses up by itself.

        Yields:
            Its `terms` are those of the last pass within, by adapter, each a mean over its rows.
        """
        with calling(Apart(self.smop_layer)) as apart:
            yield apart

    def keep_texts(self, gibibytes: Any) -> None:
        """Keep what is read of texts that prompts stand behind, over steps, epochs and evaluations.

        Args:
            gibibytes: most memory for it, where the backbone is; 0: forget all, and keep nothing.
                Weights of the backbone that change end what is kept of them.

        Raises:
            ConfigError: it is no such number, or the backbone itself is trained.
        """
        layer = self.smop_layer
        kept = KeptTexts.within(gibibytes)
        if kept is not None and layer.is_trained_beside(layer.hooks.backbone.module):
            raise ConfigError(
                "texts cannot be kept while the backbone itself is trained: they would be those of"
                " weights that are gone; freeze it, or leave keep_texts out"
            )
        layer.kept = kept

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
        self.smop_layer.smop_adapters[name] = other.smop_layer[other_name]
        theirs = dict(other.model.named_modules())
        for path, module in self.model.named_modules():
            if isinstance(module, ModulesToSaveWrapper):
                module.modules_to_save[name] = theirs[path].modules_to_save[other_name]

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        return peft_config

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("SMoP replaces no module")

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
        check_new_name(adapter_name, self.part_names)
        config = self.peft_config[adapter_name]
        self._check_new_adapter_config(config)
        assert isinstance(config, SMoPConfig)
        layer = getattr(model, CHILD, None)
        backbone = layer.hooks.backbone if isinstance(layer, SMoPLayer) else Backbone.of(model)
        if config.pooling == "mean":
            check_reads_first(model, backbone, layer if isinstance(layer, SMoPLayer) else None)
        adapter = created(model, backbone, config, low_cpu_mem_usage=low_cpu_mem_usage)
        if not isinstance(layer, SMoPLayer):
            if not config.unverified:
                check_verified(model, backbone)
            model.requires_grad_(False)  # before PEFT looks: it restores what it finds
            layer = SMoPLayer()
            layer.train(model.training)
            layer.hooks = PromptHooks(layer, model, backbone)
            layer.hooks.register()
            setattr(model, CHILD, layer)
        adapter.train(model.training)
        layer.smop_adapters[adapter_name] = adapter
        try:
            super().inject_adapter(
                model,
                adapter_name,
                autocast_adapter_dtype,
                low_cpu_mem_usage=low_cpu_mem_usage,
                **kwargs,
            )
        except Exception:
            del layer.smop_adapters[adapter_name]
            if not layer.smop_adapters:
                self._remove_from(model)
            raise
        layer.hooks.register_heads()

    def _new_call(self, adapter_names: Sequence[str] | None, repeats: bool) -> Call:
        return PromptCall(self.smop_layer, adapter_names, repeats)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Surround one forward or generate.

        Raises:
            ConfigError: an adapter is unknown, or this kind of generation has no room for a prompt.
        """
        if not self.smop_layer.disable_adapters:
            check_generation(self.model, args, kwargs)
        with super()._enable_peft_forward_hooks(*args, **kwargs):
            yield

    def _remove_from(self, model: nn.Module) -> None:
        self.smop_layer.hooks.unregister()
        delattr(model, CHILD)

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """The model's forward; rows named here, and not by PEFT's wrapper, follow their adapters.

        PEFT hands `adapter_names` on, unread, where a model type (MPT) has a branch of its own.
        """
        if adapter_names is None:
            return self.model(*args, **kwargs)
        with self._enable_peft_forward_hooks(*args, adapter_names=adapter_names, **kwargs):
            return self.model(*args, **kwargs)

    @classmethod
    def _get_adapter_state_dict(
        cls, *, state_dict: dict[str, Tensor], adapter_name: str, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Only our tensors of one adapter: a backbone may carry another tuner's."""
        part = f"{CHILD}.smop_adapters.{adapter_name}."
        return {key: value for key, value in state_dict.items() if part in key}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return saved_key(key, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, *, model: nn.Module, adapter_name: str, state_dict: dict[str, Tensor], **kwargs: Any
    ) -> dict[str, Tensor]:
        return loaded_keys(model, adapter_name, state_dict)
