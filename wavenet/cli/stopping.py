"""What ends a run before its last step: an interrupt, or the time that it was given."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from wavenet.utils.console import Console


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
