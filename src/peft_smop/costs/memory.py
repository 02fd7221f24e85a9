"""The most memory that something needed."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from types import TracebackType

import torch

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"
"""What the kernel wants to be told to begin the peak anew (proc(5), clear_refs)."""


class PeakMemory:
    """The peak inside a `with` block, in bytes.

    On CUDA: what PyTorch had allocated at most, weights included. On the CPU: by how much the
    resident memory of this process grew at most, which leaves out the weights that were there
    before. None where the system cannot tell.
    """

    def __init__(self) -> None:
        self.bytes: int | None = None
        self._before: int | None = None

    def __enter__(self) -> PeakMemory:
        """Begin."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            return self
        _give_back_free_pages()
        try:
            _CLEAR_REFS.write_text(_RESET_PEAK)
            self._before = _status("VmRSS")
        except OSError:
            self._before = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End."""
        if torch.cuda.is_available():
            self.bytes = torch.cuda.max_memory_allocated()
        elif self._before is not None:
            self.bytes = max(0, _status("VmHWM") - self._before)


def _status(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {key}")


def _give_back_free_pages() -> None:
    """Let the C library return what it holds back, so that growth shows."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return
