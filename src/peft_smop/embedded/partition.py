"""Which texts belong to which split: decided by the text itself, so no text is in two splits."""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal

Split = Literal["train", "validation", "test"]

_BUCKETS = 100
_FIRST_BUCKET_AFTER: dict[Split, int] = {"train": 50, "validation": 70, "test": _BUCKETS}


def split_of(text: str) -> Split:
    """Return the one split that may hold `text`: about 50 % train, 20 % validation, 30 % test.

    Pretraining draws from train only as well, so the backbone has met no text of the other two.
    """
    bucket = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") % _BUCKETS
    return next(split for split, end in _FIRST_BUCKET_AFTER.items() if bucket < end)
