"""The signals that end a command: interrupt, termination, and the closing of its terminal."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from wavenet.cli import INTERRUPTED
from wavenet.utils.console import Console

ENDING = ("SIGINT", "SIGTERM", "SIGHUP")
"""Names of the signals; not every system has all of them."""


class SignalHandler:
    """Turns signals into KeyboardInterrupt, at once or after the current step.

    Attributes
    ----------
    received : int or None
        Number of the last signal that raised KeyboardInterrupt and for which `exit_code` was not called. It
        outlives the exception: a module that is being imported may replace or swallow that.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._ignoring = False

    @contextlib.contextmanager
    def raising(self, names: tuple[str, ...] = ENDING) -> Iterator[None]:
        """Raise KeyboardInterrupt in the block when one of the named signals arrives."""
        self.received = None
        hook = sys.unraisablehook

        def unraisable(report: Any) -> None:
            # A KeyboardInterrupt inside a destructor cannot propagate and is no error to report.
            if not isinstance(report.exc_value, KeyboardInterrupt):
                hook(report)

        try:
            sys.unraisablehook = unraisable
            with _installed(names, self._raise):
                yield
        finally:
            sys.unraisablehook = hook

    @contextlib.contextmanager
    def stopping(self, console: Console, names: tuple[str, ...] = ENDING) -> Iterator[Callable[[], bool]]:
        """Yield a function that returns whether a signal asked to stop; a second signal raises at once.

        The work in the block calls the function between its steps, so that it can finish one and save.
        """
        requested = announced = False

        def request(number: int, frame: object) -> None:
            nonlocal requested
            if requested:
                self._raise(number, frame)
            requested = True

        def stop() -> bool:
            nonlocal announced
            # Not printed by the handler, which may run in the middle of another line.
            if requested and not announced:
                announced = True
                console.line("stopping: saving a checkpoint; a second Ctrl-C stops without saving")
            return requested

        with _installed(names, request):
            yield stop

    @contextlib.contextmanager
    def ignorable(self) -> Iterator[Callable[[], None]]:
        """Yield a function; from its call to the end of the block signals are ignored."""
        try:
            yield self._ignore
        finally:
            self._ignoring = False

    def _ignore(self) -> None:
        self._ignoring = True

    def _raise(self, number: int, _: object) -> None:
        if not self._ignoring:
            self.received = number
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal arrived and the exception was lost."""
        if self.received is not None:
            raise KeyboardInterrupt

    def exit_code(self) -> int:
        """Return the exit code for the signal received, 128 plus its number, and reset `received`."""
        number, self.received = self.received, None
        return INTERRUPTED if number is None else 128 + number


@contextlib.contextmanager
def _installed(names: tuple[str, ...], handler: Callable[[int, object], None]) -> Iterator[None]:
    """Install a handler for signals in the block; signals that the process ignores stay ignored (nohup)."""
    before: dict[int, Any] = {}
    try:
        # Only the main thread may set handlers; in another thread nothing changes.
        with contextlib.suppress(ValueError):
            for name in names:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


signal_handler = SignalHandler()
"""The handler of the process."""
