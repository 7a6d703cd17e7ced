"""The segments that training takes, step by step, and how long it waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from wavenet.data.batch import Segments


class Loader:
    """Hands out the segments of one step after the other.

    Which ones they are the number of the step says alone, whoever makes them and when. On a CPU they are
    made when they are asked for: a thread beside would take its time from the step.

    Parameters
    ----------
    make : callable
        Given the number of a step, returns its segments.
    ahead : bool
        For a GPU: make those of the next step while the device is busy with this one, in memory from which
        it copies while it computes.

    Attributes
    ----------
    waited : float
        Seconds that `take` has taken so far.
    """

    def __init__(self, make: Callable[[int], Segments], ahead: bool):
        self.make = make
        self.waited = 0.0
        self._pool = ThreadPoolExecutor(1, "wavenet-load") if ahead else None
        self._next: tuple[int, Future[Segments]] | None = None

    def take(self, step: int) -> Segments:
        """Return the segments of a step; an error in making them is raised here."""
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
        """End the thread; the next `take` makes its segments anew."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool, self._next = ThreadPoolExecutor(1, "wavenet-load"), None

    def _pinned(self, step: int) -> Segments:
        return self.make(step).pinned()
