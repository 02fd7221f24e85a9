"""How one adapter is trained: the options with their checks, and rates that follow the backbone."""

from __future__ import annotations

import math
import re

from pydantic import BaseModel, ConfigDict, field_validator

from peft_smop.names import Rate, TrainingFields


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
        if isinstance(rate, str):
            if not re.fullmatch(r"\d+(\.\d+)?x", rate) or not 0 < float(rate[:-1]) < 1e6:
                raise ValueError(
                    "expected a number above 0, or of embeddings' spreads such as 0.4x"
                )
        elif rate is not None and not rate > 0:
            raise ValueError("expected a number above 0")
        return rate

    def planned_steps(self, rows: int) -> int:
        """How many steps training takes, if it is not stopped early."""
        return self.max_steps or math.ceil(self.epochs * math.ceil(rows / self.batch_size))
