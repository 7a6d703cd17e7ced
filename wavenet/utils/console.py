"""Messages of a running command: permanent lines, and one status line that is rewritten."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TextIO

from wavenet.utils.files import one_line


class Console:
    """Writes to standard error, or another text stream; to nothing if that is closed, or if `silent`.

    Control characters are escaped. On a terminal the status line is rewritten in place; elsewhere it is
    written as a line now and then, so that log files stay readable.
    """

    def __init__(self, stream: TextIO | None = None, silent: bool = False):
        self.stream = None if silent else sys.stderr if stream is None else stream
        self.terminal = self.stream is not None and self.stream.isatty()
        self.interval = 0.2 if self.terminal else 30.0
        self._shown = ""
        self._next = time.monotonic() if self.terminal else time.monotonic() + self.interval

    def line(self, text: str) -> None:
        """Write a line, or several with line feeds between them."""
        self.clear()
        self._write("".join(one_line(each) + "\n" for each in text.split("\n")))

    def status(self, text: str) -> None:
        """Show a status line, unless the last one was written a moment ago."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self.interval
        text = one_line(text)
        if not self.terminal:
            self._write(text + "\n")
            return
        # Imported here: it is slow, and most commands do not use it.
        import shutil

        text = text[: shutil.get_terminal_size().columns - 1]
        self._write("\r" + text.ljust(len(self._shown)))
        self._shown = text

    def clear(self) -> None:
        """Remove the status line from a terminal."""
        if self._shown:
            self._write("\r" + " " * len(self._shown) + "\r")
            self._shown = ""

    def _write(self, text: str) -> None:
        if self.stream is None:
            return
        # A closed pipe at standard error must not end hours of work.
        with contextlib.suppress(OSError):
            self.stream.write(text)
            self.stream.flush()


class Meter:
    """Units of work per second of working time."""

    def __init__(self, smoothing: float = 0.95):
        self.smoothing = smoothing
        self.rate = 0.0
        self._last = time.perf_counter()
        self._worked = 0.0

    def count(self, units: float) -> None:
        """Count work done since the last call."""
        now = time.perf_counter()
        rate = units / max(now - self._last, 1e-9)
        self._worked += now - self._last
        self._last = now
        self.rate = rate if self.rate == 0 else self.smoothing * self.rate + (1 - self.smoothing) * rate

    def share(self, seconds: float) -> float:
        """Return these seconds as a share of the working time counted since the last call."""
        worked, self._worked = self._worked, 0.0
        return min(1.0, seconds / max(worked, 1e-9))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._last += time.perf_counter() - start


def duration(seconds: float) -> str:
    """Return a length of time in seconds, minutes or hours, whichever is easiest to read."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
