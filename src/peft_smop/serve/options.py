"""The limits of a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServeOptions:
    """What a server grants at most."""

    patience_ms: float = 3.0
    """How long a batch that is not full waits for more rows."""
    batch_rows: int = 64
    batch_tokens: int = 16_384
    """Tokens of text in a batch, its longest row counted for each."""
    queue_rows: int = 2_048
    """Rows that wait; beyond them requests are answered 429."""
    deadline_s: float = 30.0
    """The longest a request may wait for its answer; it may ask for less."""
    body_bytes: int = 1_048_576
    body_s: float = 10.0
    """The longest a request's body may take to arrive."""
    inputs: int = 256
    """Inputs in a request."""
    characters: int = 100_000
    """Characters of an input."""
    new_tokens: int = 256
    """Tokens that may be written after an input."""
    adapters: int = 1_000
    token: str | None = None
    """A bearer token that every request of `/v1` needs."""
    directory: Path | None = None
    """Where adapters may be loaded from while serving; None: nowhere."""
    stop_s: float = 30.0
    """How long requests that were accepted may take once the server is told to stop."""
