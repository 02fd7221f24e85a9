"""The methods by name: how each is configured, and what it costs in parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptLearningConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)
from pydantic import ConfigDict, create_model
from torch import nn
from transformers import PreTrainedModel

from peft_smop.bottleneck import BottleneckConfig
from peft_smop.errors import ConfigError, unknown
from peft_smop.names import DESCRIBED, MethodFields, OptionField, Rate, fields_of
from peft_smop.tuner import STRATEGIES, SMoPConfig
from peft_smop.tuner.config import PENALTY_OPTIONS, ROUTING_OPTIONS

_OF_ROUTING = [
    OptionField(name, kind, None, help)
    for name, (kind, help) in (ROUTING_OPTIONS | PENALTY_OPTIONS).items()
    if name != "annealing_steps"  # the run's own length
]
_kinds: dict[str, Any] = {field.name: (field.kind, field.default) for field in _OF_ROUTING}
_RoutingOptions: Any = create_model("RoutingOptions", **_kinds)


class MethodSpec(_RoutingOptions, MethodFields):
    """A method and its options, those of routing strategies included; None: the method's own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def given(self) -> dict[str, Any]:
        """The options that were said."""
        return {k: v for k, v in self.model_dump(exclude={"name"}).items() if v is not None}


OPTIONS = {field.name: field for field in (*fields_of(MethodFields), *_OF_ROUTING)}
"""The fields of `MethodSpec`, with what is said of them."""


@dataclass(frozen=True)
class Setting:
    """What a configuration may depend on besides the method's options."""

    task_type: TaskType | None
    """PEFT's name for the kind of model; None: not yet known."""
    verbalizers: tuple[str, ...]
    tokenizer_name: str
    seed: int
    steps: int | None = None
    """How many steps training is planned to take, for what is annealed."""
    populations: int | None = None
    """How many sub-populations the task names, for what is told them; None: none yet known."""
    pooling: Literal["own", "mean"] = "own"
    """What a classification head reads under prompts, where they do not say it themselves."""


@dataclass(frozen=True)
class Method:
    """A way to adapt a backbone."""

    description: str
    configure: Callable[[Mapping[str, Any], Setting], PeftConfig | None]
    """From the given options; None: every weight of the backbone is trained."""
    options: frozenset[str]
    rates: Callable[[str], tuple[Rate, ...]]
    """The learning rates of a recipe, the default first."""
    drops: Callable[[str], bool]
    """Whether the backbone's own dropout is on in training, by a recipe."""
    virtual_tokens: int = 0
    """The default length of the prompt before an input."""


def _smop(given: Mapping[str, Any], setting: Setting) -> PeftConfig:
    options = {"pooling": setting.pooling, **given}
    if options.get("init") == "labels":
        options["init_labels"] = list(setting.verbalizers)
    if "final_temperature" in options:
        options["annealing_steps"] = setting.steps or 1
    return SMoPConfig(
        task_type=setting.task_type,
        tokenizer_name_or_path=setting.tokenizer_name,
        seed=setting.seed,
        **options,
    )


def _single(given: Mapping[str, Any], setting: Setting) -> PeftConfig:
    return _smop({**given, "routing": "single"}, setting)


def _told(given: Mapping[str, Any], setting: Setting) -> PeftConfig:
    """As many prompts as sub-populations; a row that is told none gets the mean of all."""
    mixed = {**given, "routing": "uniform", "num_prompts": setting.populations or 1}
    return _smop(mixed, setting)


def _prompt_tuning(given: Mapping[str, Any], setting: Setting) -> PeftConfig:
    """PEFT's own prompt tuning, which starts from the vocabulary like ours."""
    return PromptTuningConfig(
        task_type=setting.task_type,
        num_virtual_tokens=given.get("num_virtual_tokens", 5),
        prompt_tuning_init="SAMPLE_VOCAB",
        # an encoder-decoder would otherwise be given rows for its decoder that nothing uses
        num_transformer_submodules=1,
    )


def _p_tuning(given: Mapping[str, Any], setting: Setting) -> PeftConfig:
    return PromptEncoderConfig(
        task_type=setting.task_type,
        num_virtual_tokens=given.get("num_virtual_tokens", 20),
        encoder_reparameterization_type="MLP",
        encoder_hidden_size=given.get("hidden_size", 128),
        num_transformer_submodules=1,
    )


def _prefix_tuning(given: Mapping[str, Any], setting: Setting) -> PeftConfig:
    return PrefixTuningConfig(
        task_type=setting.task_type, num_virtual_tokens=given.get("num_virtual_tokens", 20)
    )


def _lora(given: Mapping[str, Any], setting: Setting) -> PeftConfig:
    """Queries and values of every attention, PEFT's default targets; alpha = 2 r."""
    rank = given.get("rank", 8)
    return LoraConfig(task_type=setting.task_type, r=rank, lora_alpha=2 * rank)


def _ia3(given: Mapping[str, Any], setting: Setting) -> PeftConfig:
    return IA3Config(task_type=setting.task_type)


def _bottlenecks(
    placement: Literal["houlsby", "pfeiffer"],
) -> Callable[[Mapping[str, Any], Setting], PeftConfig]:
    def configure(given: Mapping[str, Any], setting: Setting) -> PeftConfig:
        return BottleneckConfig(
            task_type=setting.task_type,
            placement=placement,
            bottleneck_size=given.get("bottleneck_size", 48),
            seed=setting.seed,
        )

    return configure


_CONFIGURE: dict[str, Callable[[Mapping[str, Any], Setting], PeftConfig | None]] = {
    "smop": _smop,
    "single": _single,
    "told": _told,
    "prompt-tuning": _prompt_tuning,
    "p-tuning": _p_tuning,
    "prefix-tuning": _prefix_tuning,
    "lora": _lora,
    "ia3": _ia3,
    "houlsby": _bottlenecks("houlsby"),
    "pfeiffer": _bottlenecks("pfeiffer"),
    "full": lambda given, setting: None,
}

METHODS: dict[str, Method] = {
    name: Method(
        said.description,
        _CONFIGURE[name],
        said.options | (_kinds.keys() if said.routes else set()),
        said.rates,
        said.drops,
        said.virtual_tokens,
    )
    for name, said in DESCRIBED.items()
}


def method_of(spec: MethodSpec) -> Method:
    """Look a method up, and refuse options that it does not have.

    Raises:
        ConfigError: the method is unknown, or an option is not one of its own.
    """
    if spec.name not in METHODS:
        raise unknown("method", spec.name, METHODS)
    method = METHODS[spec.name]
    for option, value in spec.given().items():
        if option not in method.options:
            takers = [name for name, other in METHODS.items() if option in other.options]
            raise ConfigError(
                f"{option}={value!r} is no option of {spec.name}, but of {', '.join(takers)};"
                f" leave {option} out"
            )
    return method


def configure(spec: MethodSpec, setting: Setting) -> PeftConfig | None:
    """PEFT's configuration for a method; None for full fine-tuning.

    Raises:
        ConfigError: the method is unknown or its options contradict each other.
    """
    return method_of(spec).configure(spec.given(), setting)


def virtual_tokens(spec: MethodSpec) -> int:
    """How many positions a method puts before an input."""
    return spec.num_virtual_tokens or method_of(spec).virtual_tokens


def can_pack(spec: MethodSpec) -> bool:
    """Whether runs of this method can share passes: adapters of rows that see no other rows."""
    routing = "single" if spec.name == "single" else spec.routing or SMoPConfig.routing
    strategy = {str(name): kind for name, kind in STRATEGIES.items()}.get(routing)
    return spec.name in ("smop", "single") and strategy is not None and strategy.rows_independent


def build(backbone: PreTrainedModel, spec: MethodSpec, setting: Setting) -> nn.Module:
    """Adapt a backbone; it is changed in place, and frozen but for full fine-tuning.

    Raises:
        ConfigError: the method is unknown, its options contradict each other, or it does not go
            with this kind of model.
    """
    config = configure(spec, setting)
    if config is None:
        return backbone.requires_grad_(True)
    try:
        return get_peft_model(backbone, config)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"{spec.name} does not go with {type(backbone).__name__}: {reason}"
        ) from error


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters an adapted model has, and how many of them are trained."""

    trainable: int
    """The trained parameters that a pass uses."""
    allocated: int
    """All that are marked as trainable; PEFT allocates some that it never reads."""
    backbone: int

    @property
    def percentage(self) -> float:
        """100 · trainable / (backbone + trainable), the paper's definition."""
        trained_anew = self.backbone == 0  # full fine-tuning: the backbone is what is trained
        return 100.0 if trained_anew else 100 * self.trainable / (self.backbone + self.trainable)

    @classmethod
    def of(cls, model: nn.Module) -> ParameterCount:
        """Count a model's parameters; tied ones once."""
        allocated = sum(p.numel() for p in model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in model.parameters())
        return cls(allocated - _unread(model), allocated, total - allocated)


def _unread(model: nn.Module) -> int:
    """Rows of PEFT's prompts for a decoder that is never given them."""
    unread = 0
    for name, config in getattr(model, "peft_config", {}).items():
        if isinstance(config, PromptLearningConfig) and not isinstance(config, PrefixTuningConfig):
            rows = model.prompt_encoder[name].embedding.weight
            if rows.requires_grad:
                unread += (rows.shape[0] - config.num_virtual_tokens) * rows.shape[1]
    return unread
