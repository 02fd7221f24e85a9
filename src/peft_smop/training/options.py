"""How one adapter is trained; the defaults are the paper's protocol (appendix C)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingOptions(BaseModel):
    """Optimisation, stopping and batching of one run."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: float = Field(default=50, gt=0)
    max_steps: int | None = Field(default=None, gt=0, description="overrides epochs")
    batch_size: int = Field(default=32, gt=0)
    learning_rate: float = Field(default=0.5, gt=0)
    optimizer: Literal["adafactor", "adamw_torch"] = "adafactor"
    weight_decay: float = Field(default=1e-5, ge=0)
    warmup_ratio: float = Field(default=0.06, ge=0, lt=1)
    schedule: Literal["linear", "constant_with_warmup", "cosine"] = "linear"
    patience: int = Field(default=10, gt=0, description="evaluations without improvement")
    eval_steps: int | None = Field(default=None, gt=0, description="default: once an epoch")
    max_length: int = Field(default=512, gt=0, description="longest input in tokens")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool = False
