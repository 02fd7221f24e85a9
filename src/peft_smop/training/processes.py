"""The processes that train one run together, as `torchrun` and `accelerate launch` start them."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState


def count() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def meet() -> None:
    """Wait until all are here; nothing for one alone."""
    if count() > 1:
        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()
