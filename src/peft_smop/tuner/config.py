"""The configuration of one SMoP adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Literal

from peft import PeftConfig, PeftType, TaskType
from peft.utils.constants import DUMMY_TARGET_MODULES

from peft_smop.errors import ConfigError, unknown
from peft_smop.tuner.routing import RoutingOptions, RoutingStrategy, build_strategy

INITIALISATIONS = ("vocabulary", "normal", "text", "labels", "adapter")
FORMAT_VERSION = 1

_NONE = type(None)
_WORDS = {int: "a whole number", str: "a text", _NONE: "None", bool: "true or false"}
_TYPES: dict[str, tuple[type, ...]] = {
    "num_prompts": (int, _NONE),
    "num_virtual_tokens": (int,),
    "routing": (str,),
    "perturbation": (bool, _NONE),
    "router_scope": (str, _NONE),
    "init": (str,),
    "init_text": (str, list, _NONE),
    "init_labels": (list, tuple, _NONE),
    "init_adapter": (str, PathLike, _NONE),
    "init_std": (float, int),
    "seed": (int,),
    "format_version": (int,),
}


@dataclass
class SMoPConfig(PeftConfig):
    """A sparse mixture of soft prompts: k prompts of l virtual tokens each, and one linear router.

    Trainable parameters: k·l·e + e·k for the linear router, l·e for `routing="single"`, where e is
        the width of the
    backbone's embeddings.

    Args:
        num_prompts: k, the number of soft prompts; 4 for a router, 1 for `routing="single"`.
        num_virtual_tokens: l, the length of ONE prompt; only this many positions are added to an
            input.
        routing: how a row is given its prompt, see `peft_smop.tuner.routing.STRATEGIES`.
        perturbation: whether the router's logits are multiplied by (1 + N(0, 1)) in training (eq.
            5); on for the linear router unless said otherwise.
        router_scope: what the router reads. "input": every attended token. "context": the tokens
            before the first label that is not -100, so that a causal LM routes in training on what
            it will see at inference. "context" for `task_type="CAUSAL_LM"`, "input" otherwise.
        init: where the prompts start: "vocabulary" (embeddings of randomly drawn tokens), "normal"
            (N(0, init_std²)), "text" (the tokens of `init_text`), "labels" (the words of
            `init_labels`, then vocabulary), "adapter" (the prompts, and where the shapes agree the
            router, of the adapter saved at `init_adapter`).
        init_text: a text for all prompts, or one for each.
        init_labels: the label words.
        init_adapter: the directory of a saved SMoP or prompt tuning adapter.
        init_std: the spread for `init="normal"`.
        tokenizer_name_or_path: the tokenizer for `init="text"` and `"labels"`; the backbone's own
            by default.
        seed: of the initialisation and of the perturbation.
        modules_to_save: other modules to train and save, such as a classification head.
        format_version: of the saved adapter; written by this package.

    Raises:
        ConfigError: an option is out of range or contradicts another one.
    """

    num_prompts: int | None = field(default=None, metadata={"help": "k, the number of prompts"})
    num_virtual_tokens: int = field(default=5, metadata={"help": "l, the length of one prompt"})
    routing: str = field(default="linear", metadata={"help": "the routing strategy"})
    perturbation: bool | None = field(
        default=None, metadata={"help": "noise on the router's logits in training (eq. 5)"}
    )
    router_scope: Literal["input", "context"] | None = field(
        default=None, metadata={"help": "what the router reads"}
    )
    init: str = field(default="vocabulary", metadata={"help": "where the prompts start"})
    init_text: str | list[str] | None = None
    init_labels: list[str] | None = None
    init_adapter: str | None = None
    init_std: float = 0.5
    # filled in at the first injection, so that a saved adapter never needs its start again
    init_token_ids: list[list[int]] | None = None
    init_tokenizer: str | None = None
    is_initialised: bool = False
    tokenizer_name_or_path: str | None = None
    seed: int = 0
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "modules besides the prompts to train and save"}
    )
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.SMOP
        self._check_types()
        strategy = self.strategy()
        if self.num_prompts is None:
            self.num_prompts = strategy.default_num_prompts
        if self.perturbation is None:
            self.perturbation = getattr(strategy, "perturbation", False)
        if self.router_scope is None:
            self.router_scope = "context" if self.task_type == TaskType.CAUSAL_LM else "input"
        for name in ("num_prompts", "num_virtual_tokens"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least 1")
        if self.router_scope == "context" and self.task_type not in (None, TaskType.CAUSAL_LM):
            raise ConfigError(
                f"router_scope='context' is for causal LMs, not task_type={str(self.task_type)!r};"
                " leave it out"
            )
        if self.router_scope not in ("input", "context"):
            raise unknown("router_scope", str(self.router_scope), ("input", "context"))
        if self.init not in INITIALISATIONS:
            raise unknown("init", self.init, INITIALISATIONS)
        needed = {"text": "init_text", "labels": "init_labels", "adapter": "init_adapter"}.get(
            self.init
        )
        if needed and not getattr(self, needed):
            raise ConfigError(f"init={self.init!r} needs {needed}")
        if self.init_adapter is not None:
            self.init_adapter = fspath(self.init_adapter)
        if not self.init_std > 0:
            raise ConfigError(f"init_std={self.init_std!r} must be above 0")
        if self.format_version > FORMAT_VERSION:
            raise ConfigError(
                f"format_version={self.format_version} is newer than this peft-smop reads"
                f" ({FORMAT_VERSION}); upgrade peft-smop"
            )

    def _check_types(self) -> None:
        """Configurations come from JSON too: every field is checked before it is used."""
        for name, kinds in _TYPES.items():
            value = getattr(self, name)
            if (isinstance(value, bool) and bool not in kinds) or not isinstance(value, kinds):
                wanted = " or ".join(_WORDS.get(kind, kind.__name__) for kind in kinds)
                raise ConfigError(f"{name}={value!r} must be {wanted}")

    def strategy(self) -> RoutingStrategy:
        """The routing strategy that this configuration describes."""
        # perturbation=False is no contradiction where there is nothing to perturb
        return build_strategy(
            self.routing,
            RoutingOptions(num_prompts=self.num_prompts, perturbation=self.perturbation),
        )

    @property
    def target_modules(self) -> str:
        """PEFT's mark for a method that replaces no module: the prompt goes before the backbone."""
        return DUMMY_TARGET_MODULES
