"""Who works on a directory: a lock that the system lets go of when its owner dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from peft_smop.errors import RunError, RunInUseError
from peft_smop.results.files import writing

LOCK = ".lock"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Be the only one to work on a directory, among all processes that can see it.

    The lock is the system's, on a file in the directory: whatever kills the owner releases it, and
    what the file says is for people only. A directory that this made, and in which nothing was
    left, is taken away again.

    Raises:
        RunInUseError: another process works on it.
        RunError: it cannot be made, or its file system has no locks.
    """
    made = _make(directory)
    path = directory / LOCK
    handle = None
    try:
        handle = _acquire(path)
        yield
    finally:
        if handle is not None:
            # while it is still held: whoever waits for this very file looks again
            with suppress(OSError):
                path.unlink()
            os.close(handle)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()  # not where anything is in it


def _make(directory: Path) -> list[Path]:
    """Make a directory; which ones were not there, the innermost first."""
    with writing(directory):
        missing = []
        for folder in (directory, *directory.parents):
            if folder.exists():
                break
            missing.append(folder)
        directory.mkdir(parents=True, exist_ok=True)
    return missing


def _acquire(path: Path) -> int:
    while True:
        with writing(path):
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # another process made the directory, and took it away again
                path.parent.mkdir(parents=True, exist_ok=True)
                continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(handle)
            os.close(handle)
            raise RunInUseError(
                f"{path.parent} is being worked on by {owner}; wait for it, or give --output"
                " another directory"
            ) from None
        except OSError as error:
            os.close(handle)
            raise RunError(
                f"{path} cannot be locked: {error.strerror}; put runs on a file system with locks"
            ) from error
        if _is_still(path, handle):
            break
        os.close(handle)  # its last owner took it away between our two calls
    with suppress(OSError):  # a full disk hides who it is, and nothing else
        os.ftruncate(handle, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        os.pwrite(handle, json.dumps(me).encode(), 0)
    return handle


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.stat(path).st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False


def _owner(handle: int) -> str:
    try:
        said = json.loads(os.pread(handle, 1000, 0))
        return f"process {said['pid']} on {said['host']} since {said['since']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"
