"""Stand-ins for an audio device."""

from __future__ import annotations

import threading

import numpy as np


class ManualDevice:
    """A device that requests samples when the test calls `pull`."""

    latency = 0.0

    def __init__(self):
        self.pull = None
        self.stopped = False

    def start(self, pull):
        assert self.pull is None
        self.pull = pull

    def stop(self):
        self.stopped = True


class PollingDevice(ManualDevice):
    """A device that requests samples all the time, from its own thread."""

    def __init__(self, count: int = 64):
        super().__init__()
        self.count = count
        self.played: list[np.ndarray] = []
        self.done = threading.Event()

    def start(self, pull):
        super().start(pull)
        self.thread = threading.Thread(target=self._poll, daemon=True)
        self.thread.start()

    def _poll(self):
        while not self.done.is_set():
            self.played.append(self.pull(self.count))
            self.done.wait(0.001)

    def stop(self):
        super().stop()
        self.done.set()
        self.thread.join(5)
