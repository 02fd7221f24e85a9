"""How one adapter is trained: the options with their checks, and rates that follow the backbone."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, field_validator

from peft_smop.names import RATE, Rate, TrainingFields, is_rate


def absolute_rate(rate: Rate, spread: float) -> float:
    """A learning rate as optimizers take it.

    Args:
        rate: a number, or as 0.4x a number of spreads, whose product is taken to one digit.
        spread: the standard deviation of the backbone's embeddings.
    """
    return float(f"{float(rate[:-1]) * spread:.1g}") if isinstance(rate, str) else rate


class TrainingOptions(BaseModel, TrainingFields):
    """Optimisation, stopping and batching of one run."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("learning_rate")
    @classmethod
    def _checked_rate(cls, rate: Rate | None) -> Rate | None:
        if rate is not None and not is_rate(rate):
            raise ValueError(f"Input should be {RATE}")
        return rate

    def planned_steps(self, rows: int) -> int:
        """How many steps training takes, if it is not stopped early."""
        return self.max_steps or math.ceil(self.epochs * math.ceil(rows / self.batch_size))
