"""The most memory that something needed."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"
"""What the kernel wants to be told to begin the peak anew (proc(5), clear_refs)."""


class PeakMemory:
    """The peak between `start` and `stop`, in bytes, over as many stretches as wanted.

    On CUDA: what PyTorch had allocated at most, weights included. On the CPU: by how much the
    resident memory of this process grew at most since the first start, which leaves out the weights
    that were there before.
    """

    def __init__(self) -> None:
        self.bytes: int | None = None
        """None before the first stretch has ended, and where the system cannot tell."""
        self.reserved: int | None = None
        """On CUDA what PyTorch held from the device at most; None elsewhere."""
        self._before: int | None = None
        self._is_running = False

    def start(self) -> None:
        """Begin a stretch; nothing happens inside one."""
        if self._is_running:
            return
        self._is_running = True
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            return
        # once from the ground; later, of what an evaluation left, a full one would cost seconds
        gc.collect(2 if self._before is None else 1)
        _give_back_free_pages()
        try:
            _CLEAR_REFS.write_text(_RESET_PEAK)
            if self._before is None:
                self._before = _status("VmRSS")
        except OSError:
            self._before = None

    def stop(self) -> None:
        """End the stretch."""
        if not self._is_running:
            return
        self._is_running = False
        if torch.cuda.is_available():
            found = torch.cuda.max_memory_allocated()
            self.reserved = max(torch.cuda.max_memory_reserved(), self.reserved or 0)
        elif self._before is not None:
            found = max(0, _status("VmHWM") - self._before)
        else:
            return
        self.bytes = max(found, self.bytes or 0)


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
