"""The methods by name: how each is configured, and what it costs in parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from peft import PeftConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from transformers import PreTrainedModel

from peft_smop.errors import unknown
from peft_smop.tuner import SMoPConfig


class MethodSpec(BaseModel):
    """A method and its options; an option that the method does not have is refused by `build`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "smop"
    num_prompts: int | None = Field(default=None, description="k, the number of soft prompts")
    num_virtual_tokens: int = Field(default=5, description="l, the length of one soft prompt")
    perturbation: bool | None = Field(default=None, description="noise on the router (eq. 5)")
    init: Literal["vocabulary", "normal", "labels", "text", "adapter"] = "vocabulary"
    init_text: str | None = None
    init_adapter: str | None = None


@dataclass(frozen=True)
class Setting:
    """What a configuration may depend on besides the method's options."""

    task_type: TaskType
    verbalizers: tuple[str, ...]
    tokenizer_name: str
    seed: int


@dataclass(frozen=True)
class Method:
    """A way to adapt a frozen backbone."""

    description: str
    configure: Callable[[MethodSpec, Setting], PeftConfig]


def _smop(spec: MethodSpec, setting: Setting, **routing: Any) -> PeftConfig:
    return SMoPConfig(
        task_type=setting.task_type,
        num_prompts=spec.num_prompts,
        num_virtual_tokens=spec.num_virtual_tokens,
        perturbation=spec.perturbation,
        init=spec.init,
        init_text=spec.init_text,
        init_labels=list(setting.verbalizers) if spec.init == "labels" else None,
        init_adapter=spec.init_adapter,
        tokenizer_name_or_path=setting.tokenizer_name,
        seed=setting.seed,
        **routing,
    )


def _single(spec: MethodSpec, setting: Setting) -> PeftConfig:
    return _smop(spec, setting, routing="single")


def _prompt_tuning(spec: MethodSpec, setting: Setting) -> PeftConfig:
    """PEFT's own prompt tuning, which starts from the vocabulary like ours."""
    return PromptTuningConfig(
        task_type=setting.task_type,
        num_virtual_tokens=spec.num_virtual_tokens,
        prompt_tuning_init="SAMPLE_VOCAB",
        # an encoder-decoder would otherwise be given rows for its decoder that nothing uses
        num_transformer_submodules=1,
    )


METHODS: dict[str, Method] = {
    "smop": Method("sparse mixture of soft prompts: k prompts of l tokens and a router", _smop),
    "single": Method("one soft prompt of l tokens, through our tuner", _single),
    "prompt-tuning": Method("one soft prompt of l tokens, PEFT's own", _prompt_tuning),
}


def configure(spec: MethodSpec, setting: Setting) -> PeftConfig:
    """PEFT's configuration for a method.

    Raises:
        ConfigError: the method is unknown or its options contradict each other.
    """
    if spec.name not in METHODS:
        raise unknown("method", spec.name, METHODS)
    return METHODS[spec.name].configure(spec, setting)


def build(backbone: PreTrainedModel, spec: MethodSpec, setting: Setting) -> PeftModel:
    """Adapt a backbone; it is frozen and changed in place.

    Raises:
        ConfigError: the method is unknown or its options contradict each other.
    """
    return get_peft_model(backbone, configure(spec, setting))


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters an adapted model has, and how many of them are trained."""

    trainable: int
    backbone: int

    @property
    def percentage(self) -> float:
        """100 · trainable / (backbone + trainable), the paper's definition."""
        return 100 * self.trainable / (self.backbone + self.trainable)

    @classmethod
    def of(cls, model: nn.Module) -> ParameterCount:
        """Count a model's parameters; tied ones once."""
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return cls(trainable, sum(p.numel() for p in model.parameters()) - trainable)
