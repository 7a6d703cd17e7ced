"""Loads the segments of each training step and measures the waiting time."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from wavenet.data.batch import Segments


class Loader:
    """Returns the segments of one step after another.

    The segments depend on the number of the step only. With training on a CPU they are made on request,
    because another thread would slow the step down.

    Parameters
    ----------
    make : callable
        Returns the segments of a step, given its number.
    ahead : bool
        For training on a GPU: make the segments of the next step during the current one, in pinned memory.

    Attributes
    ----------
    waited : float
        Seconds spent in `take` so far.
    """

    def __init__(self, make: Callable[[int], Segments], ahead: bool):
        self.make = make
        self.waited = 0.0
        self._pool = ThreadPoolExecutor(1, "wavenet-load") if ahead else None
        self._next: tuple[int, Future[Segments]] | None = None

    def take(self, step: int) -> Segments:
        """Return the segments of a step; raises the errors of `make`."""
        start = time.perf_counter()
        if self._pool is None:
            found = self.make(step)
        else:
            if self._next is None or self._next[0] != step:
                self._next = step, self._pool.submit(self._pinned, step)
            found = self._next[1].result()
            self._next = step + 1, self._pool.submit(self._pinned, step + 1)
        self.waited += time.perf_counter() - start
        return found

    def close(self) -> None:
        """End the thread; the next `take` starts another."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool, self._next = ThreadPoolExecutor(1, "wavenet-load"), None

    def _pinned(self, step: int) -> Segments:
        return self.make(step).pinned()
