"""Mutes the process's standard error while C decoders run."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_state = threading.Condition()
_muting = 0
_waiting = 0
_saved: int | None = None


@contextmanager
def muted_stderr() -> Iterator[None]:
    """Redirect file descriptor 2 to the null device: the MP3 decoder prints a line for every damaged frame.

    Several threads may be in such a block at once; the first one mutes and the last one restores.
    """
    global _muting
    with _state:
        # Without this wait, many threads could overlap forever and `unmuted_stderr` would never run.
        while _waiting:
            _state.wait()
        if not _muting:
            _mute()
        _muting += 1
    try:
        yield
    finally:
        with _state:
            _muting -= 1
            if not _muting:
                _restore()
            _state.notify_all()


@contextmanager
def unmuted_stderr() -> Iterator[None]:
    """Wait until no thread is in a `muted_stderr` block, and keep threads out of it meanwhile."""
    global _waiting
    with _state:
        _waiting += 1
        try:
            while _muting:
                _state.wait()
        finally:
            _waiting -= 1
            _state.notify_all()
        yield


def _mute() -> None:
    global _saved
    try:
        _saved = os.dup(2)
    except OSError:
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def _restore() -> None:
    global _saved
    if _saved is not None:
        os.dup2(_saved, 2)
        os.close(_saved)
        _saved = None
