"""Standard error, closed while C libraries read damaged files and open while this program speaks."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_turn = threading.Condition()
_inside = 0
_asking = 0
_saved: int | None = None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the process's standard error: the MP3 decoder writes there about every damaged frame.

    Several threads may be in such a block at once; the first closes it and the last opens it again.
    """
    global _inside
    with _turn:
        # Between the blocks of many threads there would never be a moment to speak in.
        while _asking:
            _turn.wait()
        if not _inside:
            _close()
        _inside += 1
    try:
        yield
    finally:
        with _turn:
            _inside -= 1
            if not _inside:
                _open()
            _turn.notify_all()


@contextmanager
def audible() -> Iterator[None]:
    """Wait until no thread is in a `quiet` block and let none enter, so that what is written is seen."""
    global _asking
    with _turn:
        _asking += 1
        try:
            while _inside:
                _turn.wait()
        finally:
            _asking -= 1
            _turn.notify_all()
        yield


def _close() -> None:
    global _saved
    try:
        _saved = os.dup(2)
    except OSError:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _open() -> None:
    global _saved
    if _saved is not None:
        os.dup2(_saved, 2)
        os.close(_saved)
        _saved = None
