"""How one adapter is trained; the defaults are the paper's protocol (appendix C)."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from peft_smop.names import Rate
from peft_smop.scoring import MAX_PADDING


def _checked_rate(rate: Rate) -> Rate:
    if isinstance(rate, str):
        if not re.fullmatch(r"\d+(\.\d+)?x", rate) or not 0 < float(rate[:-1]) < 1e6:
            raise ValueError("expected a number above 0, or of embeddings' spreads such as 0.4x")
    elif not rate > 0:
        raise ValueError("expected a number above 0")
    return rate


def absolute_rate(rate: Rate, spread: float) -> float:
    """A learning rate as optimizers take it.

    Args:
        rate: a number, or as 0.4x a number of spreads, whose product is taken to one digit.
        spread: the standard deviation of the backbone's embeddings.
    """
    return float(f"{float(rate[:-1]) * spread:.1g}") if isinstance(rate, str) else rate


class TrainingOptions(BaseModel):
    """Optimisation, stopping and batching of one run."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    epochs: float = Field(default=50, gt=0)
    max_steps: int | None = Field(default=None, gt=0, description="overrides epochs")
    batch_size: int = Field(default=32, gt=0)
    recipe: Literal["default", "paper"] = Field(
        default="default", description="what is meant where nothing is said"
    )
    learning_rate: Annotated[Rate, AfterValidator(_checked_rate)] | None = Field(
        default=None,
        description="or spreads of the backbone's embeddings, as 0.4x; default: the recipe's",
    )
    router_learning_rate: float | None = Field(default=None, gt=0, description="default: the same")
    network_learning_rate: float | None = Field(
        default=None, gt=0, description="of what prompts are made from; default: the same"
    )
    head_learning_rate: float = Field(
        default=1e-2, gt=0, description="of a new classification head beside an adapter"
    )
    optimizer: Literal["adafactor", "adamw_torch"] = "adafactor"
    weight_decay: float = Field(default=1e-5, ge=0)
    warmup_ratio: float = Field(default=0.06, ge=0, lt=1)
    schedule: Literal["linear", "constant_with_warmup", "cosine"] = "linear"
    dropout: bool = Field(
        default=True, description="the backbone's own, while something is trained"
    )
    revive_dead_prompts: bool = False
    patience: int = Field(default=10, gt=0, description="evaluations without improvement")
    eval_steps: int | None = Field(default=None, gt=0, description="default: once an epoch")
    max_length: int = Field(default=512, gt=0, description="longest input in tokens")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool = False
    keep_texts: float = Field(
        default=0, ge=0, description="GiB for texts before prompts of position=after; 0: none kept"
    )
    max_padding: float = Field(
        default=MAX_PADDING, ge=1, description="tokens computed over tokens of text, at most"
    )

    def planned_steps(self, rows: int) -> int:
        """How many steps training takes, if it is not stopped early."""
        return self.max_steps or math.ceil(self.epochs * math.ceil(rows / self.batch_size))
