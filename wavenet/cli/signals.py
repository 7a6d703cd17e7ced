"""Signals that end a command: they become KeyboardInterrupt, and are remembered should that be lost."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from wavenet.cli import INTERRUPTED
from wavenet.utils.console import Console

ENDING = ("SIGINT", "SIGTERM", "SIGHUP")
"""An interrupt, a polite kill, and a terminal that closes; not every system has them all."""


class Interrupts:
    """The interrupts of a process.

    Attributes
    ----------
    received : int or None
        Number of the last signal that has not been `taken`. It outlives the exception, which a module being
        loaded may turn into another one or swallow.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._held = False

    @contextlib.contextmanager
    def caught(self, names: tuple[str, ...]) -> Iterator[None]:
        """Raise KeyboardInterrupt in the block at the signals named; those that are ignored stay so."""
        self.received = None
        before: dict[int, Any] = {}
        hook = sys.unraisablehook

        def unraisable(lost: Any) -> None:
            # An interrupt that falls into a destructor cannot be raised, and is no error to report.
            if not isinstance(lost.exc_value, KeyboardInterrupt):
                hook(lost)

        try:
            sys.unraisablehook = unraisable
            # Only the main thread may set handlers; elsewhere things stay as they are.
            with contextlib.suppress(ValueError):
                for name in names:
                    number = getattr(signal, name, None)
                    if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                        before[number] = signal.signal(number, self._receive)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            sys.unraisablehook = hook

    @contextlib.contextmanager
    def deferrable(self) -> Iterator[Callable[[], None]]:
        """Yield a function after whose call signals pass unheeded, until the block ends."""
        try:
            yield self._hold
        finally:
            self._held = False

    def _hold(self) -> None:
        self._held = True

    def _receive(self, number: int, _: object) -> None:
        if not self._held:
            self.received = number
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt if one was lost."""
        if self.received is not None:
            raise KeyboardInterrupt

    def taken(self) -> int:
        """Return the exit code of the interrupt at hand, which is thereby dealt with."""
        number, self.received = self.received, None
        return INTERRUPTED if number is None else 128 + number


interrupts = Interrupts()


class Stopper:
    """Notes the first interrupt, so that a step can be finished and saved; the second one is at once."""

    SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")

    def __init__(self, console: Console) -> None:
        self.console = console
        self.asked = self.told = False

    def __enter__(self) -> Callable[[], bool]:
        known = [getattr(signal, name) for name in self.SIGNALS if hasattr(signal, name)]
        # A run under nohup ignores the closing of its terminal.
        heeded = [each for each in known if signal.getsignal(each) is not signal.SIG_IGN]
        self.before = {each: signal.signal(each, self._ask) for each in heeded}
        return self._stop

    def __exit__(self, *_: object) -> None:
        for each, handler in self.before.items():
            signal.signal(each, handler)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def _stop(self) -> bool:
        # Not said where the signal arrives: that may be in the middle of another line.
        if self.asked and not self.told:
            self.told = True
            self.console.line("stopping: saving what there is; once more stops at once")
        return self.asked


class Limit:
    """Says when the time that a run was given is up.

    Parameters
    ----------
    text : str or None
        That time, as it was given.
    end : float or None
        On the clock of `time.monotonic`; None for never.
    console : Console
    """

    def __init__(self, text: str | None, end: float | None, console: Console) -> None:
        self.text = text
        self.end = end
        self.console = console
        self.passed = False

    def __call__(self) -> bool:
        if self.end is not None and not self.passed and time.monotonic() >= self.end:
            self.passed = True
            self.console.line(f"--max-time {self.text} is over: saving what there is")
        return self.passed
