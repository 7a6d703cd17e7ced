"""Folders of recordings for the data's tests, and what became of them."""

import numpy as np

from support.audio_files import noise, save
from wavenet.config import WaveNetConfig
from wavenet.data.clips import Clip, Clips

# A receptive field of 1 + 2 * (1 + 2 + 4) = 15 samples.
CONFIG = WaveNetConfig(sample_rate=8000, layers=6, stacks=2)


def folder_of(path, count=12, seconds=0.5, rate=8000):
    for index in range(count):
        save(path / f"n{index:02}.wav", noise(seconds, rate, seed=index), rate)
    return path


def real_samples(clips):
    """All real samples in order, read through the windows."""
    return np.concatenate([t[t >= 0].numpy() for _, t, _ in clips.windows(500)] or [np.zeros(0, int)])


def contents(prepared):
    return real_samples(prepared.train).tolist(), real_samples(prepared.validation).tolist()


def clips_of(folder, arrays, receptive_field, dtype="u1", offset=64, silence=128, classes=256):
    made = []
    for index, array in enumerate(arrays):
        path = folder / f"{index}.bin"
        path.write_bytes(b"\xee" * offset + np.asarray(array).astype(dtype).tobytes())
        made.append(Clip(path, offset, len(array), np.dtype(dtype)))
    return Clips(made, receptive_field, classes, silence)
