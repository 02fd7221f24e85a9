"""The configuration of one SMoP adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import fspath
from typing import Any, Literal, get_args

from peft import PeftType, TaskType
from peft.utils.constants import DUMMY_TARGET_MODULES

from peft_smop.errors import ConfigError, unknown
from peft_smop.tuner.losses import Penalties
from peft_smop.tuner.options import check_seed, check_types, options_of, with_options
from peft_smop.tuner.parameterisation import PARAMETERISATIONS, ParameterisationName
from peft_smop.tuner.pooling import Pooling
from peft_smop.tuner.routing import RoutingStrategy
from peft_smop.tuner.splice import Position
from peft_smop.tuner.strategies import STRATEGIES, RoutingName, build_strategy

InitName = Literal["vocabulary", "normal", "text", "labels", "adapter"]
FORMAT_VERSION = 2
ROUTING_OPTIONS = options_of(STRATEGIES.values())
PENALTY_OPTIONS = options_of([Penalties])

_Options: Any = with_options("RoutingOptions", ROUTING_OPTIONS | PENALTY_OPTIONS)


@dataclass
class SMoPConfig(_Options):
    """A sparse mixture of soft prompts: k prompts of l virtual tokens each, and one linear router.

    Trainable parameters: k·l·e + e·k for the linear router, l·e for `routing="single"`, where e is
    the width of the backbone's embeddings.

    Args:
        num_prompts: k, the number of soft prompts; 4 for a router, 8 for one that is taught, 1 for
            `routing="single"`.
        num_virtual_tokens: l, the length of ONE prompt; only this many positions are added to an
            input.
        routing: how a row is given its prompt, see `peft_smop.tuner.strategies.STRATEGIES`; its
            options are listed below.
        parameterisation: what is trained in place of the prompts: "direct" (the prompts),
            "residual" (the prompts and a shared network added to them), "low-rank" (coefficients
            over a basis that all prompts share). See `peft_smop.tuner.parameterisation`.
        hidden_size: width of the network of "residual"; 64.
        rank: number of basis vectors of "low-rank"; 8.
        router_scope: what the router reads. "input": every attended token. "context": the tokens
            before the first label that is not -100, so that a causal LM routes in training on what
            it will see at inference; labels must then reach the model. A whole number: that many
            first tokens of the row, where labels do not reach the model or leave no context.
            "context" for causal LMs, "input" for all others.
        position: where a prompt stands. "before": the text, as in the paper. "after": between the
            text and its answer, on causal LMs. In training labels say where the answer begins;
            without labels the prompt follows the whole input.
        pooling: what a classification head on an encoder reads. "own": what it does by itself, the
            first token's state. "mean": the mean of the text's states, as sentence transformers are
            trained to be read.
        init: where the prompts start: "vocabulary" (embeddings of randomly drawn tokens), "normal"
            (N(0, init_std²)), "text" (the tokens of `init_text`), "labels" (the words of
            `init_labels`, then vocabulary), "adapter" (the prompts, and where the shapes agree the
            router, of the adapter saved at `init_adapter`).
        init_text: a text for all prompts, or one for each.
        init_labels: the label words.
        init_adapter: the directory of a saved SMoP or prompt tuning adapter.
        init_std: the spread for `init="normal"`.
        init_token_ids: the tokens of `init_text` or `init_labels`, filled in at the first
            injection, so that a saved adapter never needs their tokenizer again.
        init_tokenizer: the tokenizer that `init_token_ids` are of.
        is_initialised: whether the prompts have had their start; an adapter of a saved
            configuration waits for its saved values.
        tokenizer_name_or_path: the tokenizer for `init="text"` and `"labels"`; the backbone's own
            by default.
        seed: of the initialisation and of the noise, from 0 to 2³² - 1.
        unverified: whether to adapt a model of a type on which prompts were not seen to be right.
        modules_to_save: other modules to train and save, such as a classification head.
        format_version: of the saved adapter; written by this package.

    Raises:
        ConfigError: an option is out of range or contradicts another one.
    """

    num_prompts: int | None = field(default=None, metadata={"help": "k, the number of prompts"})
    num_virtual_tokens: int = field(default=5, metadata={"help": "l, the length of one prompt"})
    routing: RoutingName = field(default="linear", metadata={"help": "the routing strategy"})
    parameterisation: ParameterisationName = "direct"
    hidden_size: int | None = None
    rank: int | None = None
    router_scope: Literal["input", "context"] | int | None = field(
        default=None, metadata={"help": "what the router reads"}
    )
    position: Position = field(
        default="before", metadata={"help": "where a prompt stands: before or after the text"}
    )
    pooling: Pooling = field(
        default="own", metadata={"help": "what an encoder's head reads: own, or the mean of states"}
    )
    init: InitName = field(default="vocabulary", metadata={"help": "where the prompts start"})
    init_text: str | list[str] | None = None
    init_labels: list[str] | None = None
    init_adapter: str | None = None
    init_std: float = 0.5
    init_token_ids: list[list[int]] | None = None
    init_tokenizer: str | None = None
    is_initialised: bool = False
    tokenizer_name_or_path: str | None = None
    seed: int = 0
    unverified: bool = False
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "modules besides the prompts to train and save"}
    )
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.SMOP
        if self.init_adapter is not None:
            self.init_adapter = fspath(self.init_adapter)
        if isinstance(self.init_labels, tuple):
            self.init_labels = list(self.init_labels)
        # unknown names before types, which would only list all the known ones
        for name, known in (
            ("routing", STRATEGIES),
            ("parameterisation", PARAMETERISATIONS),
            ("init", get_args(InitName)),
            ("position", get_args(Position)),
            ("pooling", get_args(Pooling)),
            ("router_scope", ("input", "context")),
        ):
            value = getattr(self, name)
            if isinstance(value, str) and value not in known:
                raise unknown(name, value, known)
        check_types(self)
        if self.format_version > FORMAT_VERSION:
            raise ConfigError(
                f"format_version={self.format_version} is newer than this peft-smop reads"
                f" ({FORMAT_VERSION}); upgrade peft-smop"
            )
        check_seed(self.seed)
        self.awaits_values = self.is_initialised
        """Whether this configuration was read from a saved adapter, whose values follow."""
        strategy = self.strategy()
        if self.num_prompts is None:
            self.num_prompts = strategy.default_num_prompts
        for name in ("num_prompts", "num_virtual_tokens"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least 1")
        strategy.check(self.num_prompts)
        for name in ROUTING_OPTIONS:
            # said in full, so that a saved adapter does not change with a default
            setattr(self, name, getattr(strategy, name, None))
        self._check_penalties(strategy)
        self._check_parameterisation()
        self._check_scope()
        self._check_start()
        self.format_version = FORMAT_VERSION  # older ones are written anew as this one

    def _check_start(self) -> None:
        """Refuse a start without what it needs, and what is said of one that is not asked for."""
        if not self.init_std > 0:
            raise ConfigError(f"init_std={self.init_std!r} must be above 0")
        of_start = {
            "init_text": "text",
            "init_labels": "labels",
            "init_adapter": "adapter",
            "init_std": "normal",
        }
        for name, start in of_start.items():
            value = getattr(self, name)
            if self.init == start and not value:
                raise ConfigError(f"init={start!r} needs {name}")
            is_said = value != getattr(type(self), name) and not self.is_initialised
            if is_said and self.init != start:
                raise ConfigError(
                    f"{name}={value!r} has no effect on init={self.init!r}; give init={start!r} or"
                    f" leave {name} out"
                )

    def _check_penalties(self, strategy: RoutingStrategy) -> None:
        penalties = self.penalties()
        for name in PENALTY_OPTIONS:
            value = getattr(penalties, name)
            setattr(self, name, value)
            if value and not strategy.has_router:
                raise ConfigError(
                    f"{name}={value!r} contradicts routing={self.routing!r}, which has no router;"
                    f" leave {name} out"
                )

    def _check_parameterisation(self) -> None:
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

    def _check_scope(self) -> None:
        scope = self.router_scope
        if isinstance(scope, int) and scope < 1:
            raise ConfigError(f"router_scope={scope} must be at least 1 token")
        if scope == "context" and self.task_type not in (None, TaskType.CAUSAL_LM):
            raise ConfigError(
                f"router_scope='context' is for causal LMs, not"
                f" task_type={_plain(self.task_type)!r}; leave it out"
            )
        if self.position == "after" and self.task_type not in (None, TaskType.CAUSAL_LM):
            raise ConfigError(
                f"position='after' is for causal LMs, not task_type={_plain(self.task_type)!r}:"
                " only there an answer follows the text; leave it out"
            )

        if self.pooling == "mean" and self.task_type not in (None, TaskType.SEQ_CLS):
            raise ConfigError(
                f"pooling='mean' is for classification heads, not"
                f" task_type={_plain(self.task_type)!r}; leave it out"
            )

    def strategy(self) -> RoutingStrategy:
        """The routing strategy that this configuration describes."""
        options = {name: getattr(self, name) for name in ROUTING_OPTIONS}
        accepted = options_of([STRATEGIES[self.routing]])
        for name, value in list(options.items()):
            if value is False and name not in accepted:
                del options[name]  # not to do what is never done is no contradiction
        return build_strategy(self.routing, options)

    def penalties(self) -> Penalties:
        """The losses on the routing that this configuration asks for."""
        given = {name: getattr(self, name) for name in PENALTY_OPTIONS}
        return Penalties(**{name: value for name, value in given.items() if value is not None})

    @property
    def target_modules(self) -> str:
        """PEFT's mark for a method that replaces no module: the prompt goes before the backbone."""
        return DUMMY_TARGET_MODULES


def _plain(task_type: Any) -> str:
    """A task type as a user writes it."""
    return str(getattr(task_type, "value", task_type))


SMoPConfig.__doc__ = f"{SMoPConfig.__doc__}\n    Options of strategies and losses:\n" + "".join(
    f"        {name}: {help}.\n" for name, (_, help) in (ROUTING_OPTIONS | PENALTY_OPTIONS).items()
)
