"""Folders of recordings, datasets and clips for tests of the data."""

import numpy as np

from support.audio_files import noise, save
from wavenet.audio import mulaw, pcm
from wavenet.config import WaveNetConfig
from wavenet.data.clips import Clip, Clips
from wavenet.data.dataset import DataConfig, Dataset, prepare

# A receptive field of 1 + 2 * (1 + 2 + 4) = 15 samples.
CONFIG = WaveNetConfig(sample_rate=8000, layers=6, stacks=2)


def folder_of(path, count=12, seconds=0.5, rate=8000):
    for index in range(count):
        save(path / f"n{index:02}.wav", noise(seconds, rate, seed=index), rate)
    return path


def prepare_dataset(audio_dir, cache_dir, config: WaveNetConfig, data: DataConfig | None = None, **settings):
    """`prepare` with the format, receptive field and classes of a network."""
    network = (config.audio_format, config.receptive_field, config.quantization_channels)
    return prepare(audio_dir, cache_dir, *network, data, **settings)


def real_samples(clips):
    """All real samples in order, read through the windows."""
    return np.concatenate([t[t >= 0].numpy() for _, t, _ in clips.windows(500)] or [np.zeros(0, int)])


def contents(dataset: Dataset):
    return real_samples(dataset.train).tolist(), real_samples(dataset.validation).tolist()


def pcm_of(values, classes=256) -> bytes:
    """Bytes of 16-bit PCM whose classes are `values`."""
    return pcm.from_float(mulaw.decode(np.asarray(values, dtype=np.int64), classes)).tobytes()


def clips_of(folder, arrays, receptive_field, offset=64, classes=256):
    """Clips of one file per array of classes."""
    clips = []
    for index, array in enumerate(arrays):
        path = folder / f"{index}.bin"
        path.write_bytes(b"\xee" * offset + pcm_of(array, classes))
        clips.append(Clip(path, offset, len(array)))
    return Clips(clips, receptive_field, classes)
