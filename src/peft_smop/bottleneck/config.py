"""The configuration of one bottleneck adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peft import PeftConfig, PeftType

from peft_smop.bottleneck.layer import ACTIVATIONS
from peft_smop.bottleneck.targets import PLACEMENTS
from peft_smop.errors import ConfigError, unknown

FORMAT_VERSION = 1

_WHOLE_NUMBERS = ("bottleneck_size", "seed", "format_version")


@dataclass
class BottleneckConfig(PeftConfig):
    """A bottleneck of two layers behind sub-layers: h ← h + U f(D h + b_D) + b_U.

    Trainable parameters: 2·e·d + d + e for each bottleneck, where e is the backbone's width.

    Args:
        bottleneck_size: d, the width of the bottleneck.
        placement: "houlsby": behind the self-attention and the feed-forward sub-layer of every
            block (Houlsby et al. 2019). "pfeiffer": behind the feed-forward sub-layer only
            (Pfeiffer et al. 2021). Without effect where `target_modules` is given.
        activation: f, one of "relu", "gelu", "silu", "tanh".
        target_modules: the modules whose output is adapted, as in PEFT: the ends of their names, or
            one regular expression for the whole name. By default those of the placement, for the
            model types in `peft_smop.bottleneck.targets.SUB_LAYERS`.
        modules_to_save: other modules to train and save, such as a classification head.
        seed: of the initialisation of D and b_D; U and b_U start at zero.
        format_version: of the saved adapter; written by this package.

    Raises:
        ConfigError: an option is out of range or of the wrong type.
    """

    bottleneck_size: int = field(default=48, metadata={"help": "d, the width of the bottleneck"})
    placement: Literal["houlsby", "pfeiffer"] = field(
        default="houlsby", metadata={"help": "behind which sub-layers of a block"}
    )
    activation: str = field(default="relu", metadata={"help": "f, between D and U"})
    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "the modules whose output is adapted"}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "modules besides the bottlenecks to train and save"}
    )
    seed: int = 0
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.BOTTLENECK
        # configurations come from JSON too: every field is checked before it is used
        for name in _WHOLE_NUMBERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{name}={value!r} must be a whole number")
        if self.bottleneck_size < 1:
            raise ConfigError(
                f"bottleneck_size={self.bottleneck_size} must be a whole number of at least 1"
            )
        if str(self.placement) not in PLACEMENTS:
            raise unknown("placement", str(self.placement), PLACEMENTS)
        if str(self.activation) not in ACTIVATIONS:
            raise unknown("activation", str(self.activation), ACTIVATIONS)
        if not isinstance(self.target_modules, str):
            self._check_names("target_modules", "one text or a list of texts")
        self._check_names("modules_to_save", "a list of texts")
        if isinstance(self.target_modules, list | tuple):
            self.target_modules = set(self.target_modules)  # as PEFT matches and writes them
        if self.format_version > FORMAT_VERSION:
            raise ConfigError(
                f"format_version={self.format_version} is newer than this peft-smop reads"
                f" ({FORMAT_VERSION}); upgrade peft-smop"
            )

    def _check_names(self, field_name: str, wanted: str) -> None:
        value = getattr(self, field_name)
        if value is None:
            return
        if (
            not isinstance(value, list | set | tuple)
            or not value
            or not all(isinstance(name, str) for name in value)
        ):
            raise ConfigError(f"{field_name}={value!r} must be {wanted}, or None")
