"""Stand-ins for an audio device."""

from __future__ import annotations

import threading

import numpy as np


class Hand:
    """A device that asks when the test says so."""

    latency = 0.0

    def __init__(self):
        self.pull = None
        self.stopped = False

    def start(self, pull):
        assert self.pull is None
        self.pull = pull

    def stop(self):
        self.stopped = True


class Hungry(Hand):
    """A device that asks all the time, from a thread of its own."""

    def __init__(self, count: int = 64):
        super().__init__()
        self.count = count
        self.heard: list[np.ndarray] = []
        self.done = threading.Event()

    def start(self, pull):
        super().start(pull)
        self.thread = threading.Thread(target=self._ask, daemon=True)
        self.thread.start()

    def _ask(self):
        while not self.done.is_set():
            self.heard.append(self.pull(self.count))
            self.done.wait(0.001)

    def stop(self):
        super().stop()
        self.done.set()
        self.thread.join(5)
