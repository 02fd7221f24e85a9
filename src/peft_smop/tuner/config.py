"""The configuration of one SMoP adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Literal

from peft import PeftConfig, PeftType, TaskType
from peft.utils.constants import DUMMY_TARGET_MODULES

from peft_smop.errors import ConfigError, unknown
from peft_smop.tuner.parameterisation import PARAMETERISATIONS
from peft_smop.tuner.routing import RoutingStrategy, build_strategy, option_names

INITIALISATIONS = ("vocabulary", "normal", "text", "labels", "adapter")
FORMAT_VERSION = 1
ROUTING_OPTIONS = (
    "perturbation",
    "top_k",
    "router_dropout",
    "temperature",
    "final_temperature",
    "annealing_steps",
    "consistency",
    "fixed_prompt",
)

_NONE = type(None)
_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    _NONE: "None",
    bool: "true or false",
}
_TYPES: dict[str, tuple[type, ...]] = {
    "num_prompts": (int, _NONE),
    "num_virtual_tokens": (int,),
    "routing": (str,),
    "perturbation": (bool, _NONE),
    "top_k": (int, _NONE),
    "router_dropout": (float, int, _NONE),
    "temperature": (float, int, _NONE),
    "final_temperature": (float, int, _NONE),
    "annealing_steps": (int, _NONE),
    "consistency": (float, int, _NONE),
    "fixed_prompt": (int, _NONE),
    "load_balancing": (float, int),
    "z_loss": (float, int),
    "parameterisation": (str,),
    "hidden_size": (int, _NONE),
    "rank": (int, _NONE),
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
            5); on for `linear` and `released` unless said otherwise.
        top_k: how many prompts are summed for a row, by their probabilities (`linear`); 1.
        router_dropout: share of the logits that are zeroed in training (`linear` without
            perturbation); 0.
        temperature: of the softmax (`linear`, `gumbel`); 1.
        final_temperature: where the temperature ends, if it moves.
        annealing_steps: over how many training batches it moves, geometrically.
        consistency: weight of the divergence between two passes (`stochastic`); 1.
        fixed_prompt: the prompt that every row gets (`fixed`); 0.
        load_balancing: weight of the loss that spreads rows over prompts (Switch transformers,
            Fedus et al., 2022, eq. 4); 0. It joins the loss that the model returns in training.
        z_loss: weight of the loss that keeps the router's logits small (ST-MoE, Zoph et al., 2022,
            eq. 5); 0.
        parameterisation: what is trained in place of the prompts: "direct" (the prompts),
            "residual" (the prompts and a shared network added to them), "low-rank" (coefficients
            over a basis that all prompts share). See `peft_smop.tuner.parameterisation`.
        hidden_size: width of the network of "residual"; 64.
        rank: number of basis vectors of "low-rank"; 8.
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
    top_k: int | None = None
    router_dropout: float | None = None
    temperature: float | None = None
    final_temperature: float | None = None
    annealing_steps: int | None = None
    consistency: float | None = None
    fixed_prompt: int | None = None
    load_balancing: float = 0.0
    z_loss: float = 0.0
    parameterisation: str = "direct"
    hidden_size: int | None = None
    rank: int | None = None
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
        for name in ("num_prompts", "num_virtual_tokens"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least 1")
        strategy.check(self.num_prompts)
        if self.perturbation is None:
            self.perturbation = getattr(strategy, "perturbation", False)
        self._check_losses(strategy)
        self._check_parameterisation()
        if self.router_scope is None:
            self.router_scope = "context" if self.task_type == TaskType.CAUSAL_LM else "input"
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

    def _check_losses(self, strategy: RoutingStrategy) -> None:
        for name in ("load_balancing", "z_loss"):
            value = getattr(self, name)
            if not value >= 0:
                raise ConfigError(f"{name}={value!r} must be at least 0")
            if value and not strategy.has_router:
                raise ConfigError(
                    f"{name}={value!r} contradicts routing={self.routing!r}, which has no router;"
                    f" leave {name} out"
                )

    def _check_parameterisation(self) -> None:
        if self.parameterisation not in PARAMETERISATIONS:
            raise unknown("parameterisation", self.parameterisation, PARAMETERISATIONS)
        own = PARAMETERISATIONS[self.parameterisation].option
        for name in ("hidden_size", "rank"):
            value = getattr(self, name)
            if value is not None and name != own:
                raise ConfigError(
                    f"{name}={value!r} contradicts parameterisation={self.parameterisation!r};"
                    f" leave {name} out or choose another parameterisation"
                )
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value!r} must be at least 1")
        tokens = (self.num_prompts or 1) * self.num_virtual_tokens
        if self.rank is not None and self.rank > tokens:
            raise ConfigError(
                f"rank={self.rank} exceeds the {tokens} virtual tokens of all prompts; lower rank"
            )

    def strategy(self) -> RoutingStrategy:
        """The routing strategy that this configuration describes."""
        options = {name: getattr(self, name) for name in ROUTING_OPTIONS}
        if self.perturbation is False and "perturbation" not in option_names(self.routing):
            del options["perturbation"]  # nothing to perturb is no contradiction
        return build_strategy(self.routing, options)

    @property
    def target_modules(self) -> str:
        """PEFT's mark for a method that replaces no module: the prompt goes before the backbone."""
        return DUMMY_TARGET_MODULES
