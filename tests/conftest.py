"""Settings of the test processes, and the dataset of the tests of training."""

from __future__ import annotations

import os
import signal

# Parallel workers share the cores. Set before torch is loaded, here or in a process that a test starts.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from support.datasets import prepare_dataset
from support.trainers import CONFIG

from wavenet.audio.wav import write_wav
from wavenet.data.dataset import DataConfig


def pytest_configure():
    """Restore the signals that a process started in the background of a shell ignores."""
    for name in ("SIGINT", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Two seconds of a chord of three notes."""
    folder = tmp_path_factory.mktemp("audio")
    time = np.arange(8000) / 4000
    chord = sum(np.sin(2 * np.pi * hz * time) for hz in (220, 277, 330)) * 0.25
    write_wav(folder / "chord.wav", chord.astype(np.float32), 4000)
    return prepare_dataset(folder, tmp_path_factory.mktemp("cache"), CONFIG, DataConfig(silence_db=None))
