"""Mel spectra, compared with librosa, a plain Fourier sum, and ranges of frames."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavenet.audio import mel
from wavenet.audio.mel import FLOOR, frame_count, log_mel, log_mel_frames, scaled, unscaled
from wavenet.errors import AudioError, ConfigError

librosa = pytest.importorskip("librosa")

SETTINGS = (16000, 1024, 256, 80, 0.0, 8000.0)


def noise(samples, seed=0):
    rng = np.random.default_rng(seed)
    loudness = np.exp(rng.normal(size=samples // 500 + 1) * 2 - 4).repeat(500)[:samples]
    return (rng.normal(size=samples) * loudness).astype(np.float32)


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        (16000, 1024, 160, 80, 50.0, 7600.0),
        (22050, 1024, 256, 80, 0.0, 8000.0),
        (8000, 512, 100, 40, 20.0, 4000.0),
        (24000, 2048, 300, 100, 0.0, 12000.0),
        (16000, 400, 401, 1, 300.0, 3000.0),
    ],
)
def test_matches_librosa(settings):
    rate, n_fft, hop, n_mels, fmin, fmax = settings
    audio = noise(12_345)
    audio[5000:8000] = 0
    truth = librosa.feature.melspectrogram(
        y=audio.astype(np.float64), sr=rate, n_fft=n_fft, hop_length=hop, n_mels=n_mels, fmin=fmin, fmax=fmax,
        power=1.0, center=True, pad_mode="constant", htk=False, norm="slaney",
    )  # fmt: skip
    found = log_mel(audio, *settings)
    assert found.dtype == np.float32 and found.shape == truth.shape == (n_mels, frame_count(12_345, hop))
    np.testing.assert_allclose(unscaled(found), np.log(np.maximum(truth, FLOOR)), atol=2e-5)
    if hop < n_fft:
        assert found.min() == -1 and found.max() > -0.5


def test_one_frame_by_the_fourier_sum():
    """A frame is centred at its sample, and the transform is that of the definition."""
    audio = noise(4000)
    n_fft, hop, k = 256, 100, 17
    window = np.sin(np.pi * np.arange(n_fft) / n_fft) ** 2
    piece = audio[k * hop - n_fft // 2 : k * hop + n_fft // 2] * window
    angle = -2j * np.pi * np.outer(np.arange(n_fft // 2 + 1), np.arange(n_fft)) / n_fft
    filters = librosa.filters.mel(sr=16000, n_fft=n_fft, n_mels=20, fmin=0, fmax=8000)
    truth = np.log(np.maximum(filters @ np.abs(np.exp(angle) @ piece), 1e-5))
    found = log_mel(audio, 16000, n_fft, hop, 20, 0.0, 8000.0)
    np.testing.assert_allclose(unscaled(found[:, k]), truth, atol=2e-5)


AUDIO = noise(150_000, seed=5)
WHOLE = log_mel(AUDIO, *SETTINGS)


@given(st.integers(-10, 600), st.integers(0, 600))
def test_any_range_equals_the_whole_to_the_bit(first, count):
    found = log_mel_frames(AUDIO, first, count, *SETTINGS)
    assert found.shape == (80, count)
    low, high = max(first, 0), min(first + count, WHOLE.shape[1])
    if low < high:
        assert (found[:, low - first : high - first] == WHOLE[:, low:high]).all()
    # Frames whose windows lie outside are silent.
    assert (found[:, : max(0, -2 - first)] == -1).all()
    assert (found[:, max(0, WHOLE.shape[1] + 2 - first) :] == -1).all()


def test_frames_beyond_the_ends_are_silent():
    before, after = 8 * 256, 3000
    padded = np.concatenate([np.zeros(before, np.float32), AUDIO, np.zeros(after, np.float32)])
    count = frame_count(len(AUDIO), 256) + 12
    truth = log_mel(padded, *SETTINGS)
    assert (log_mel_frames(AUDIO, -5, count, *SETTINGS) == truth[:, 3 : 3 + count]).all()


class Counted:
    """A signal that remembers what was read of it."""

    def __init__(self, samples):
        self.samples, self.reads = samples, []

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, part):
        self.reads.append((part.start, part.stop))
        return self.samples[part]


def test_only_the_needed_samples_are_read():
    signal = Counted(AUDIO)
    log_mel_frames(signal, 100, 3, *SETTINGS)
    assert signal.reads == [(100 * 256 - 512, 102 * 256 + 512)]
    signal.reads.clear()
    log_mel_frames(signal, 0, 580, *SETTINGS)
    assert max(stop - start for start, stop in signal.reads) < 80_000


@pytest.mark.parametrize("samples", [0, 1, 100, 255, 256, 1023])
def test_signals_shorter_than_a_window(samples):
    found = log_mel(AUDIO[:samples], *SETTINGS)
    assert found.shape == (80, samples // 256 + 1)
    if not samples:
        assert (found == -1).all()


def test_scale():
    quiet = log_mel(np.zeros(4000, dtype=np.float32), *SETTINGS)
    assert (quiet == -1).all()
    tone = np.sin(2 * np.pi * 440 * np.arange(8000) / 16000).astype(np.float32)
    assert 0.8 < log_mel(tone, *SETTINGS).max() < 1.2
    values = np.linspace(-12, 3, 100, dtype=np.float32)
    np.testing.assert_allclose(unscaled(scaled(values)), values, atol=1e-5)
    assert scaled(values).dtype == np.float32
    assert scaled(np.log(FLOOR)) == pytest.approx(-1) and scaled(2.0) == pytest.approx(1)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (1, 0, "n_fft = 0"),
        (1, 511, "n_fft = 511"),
        (2, 0, "a hop of 0"),
        (3, 0, "n_mels = 0"),
        (3, 600, r"\d+ of 600 mel bands contain no bin of n_fft = 1024"),
        (4, -1.0, "from -1.0 to 8000.0 Hz"),
        (4, 8000.0, "from 8000.0 to 8000.0 Hz"),
        (5, 8001.0, "at 16000 Hz"),
    ],
)
def test_settings_outside_their_range(place, value, message):
    settings = [*SETTINGS]
    settings[place] = value
    with pytest.raises(ConfigError, match=message):
        log_mel(AUDIO[:1000], *settings)


def test_missing_librosa_is_named(monkeypatch):
    mel._bank.cache_clear()
    monkeypatch.setitem(sys.modules, "librosa.filters", None)
    with pytest.raises(AudioError, match=r"pip install librosa$"):
        log_mel(AUDIO[:1000], *SETTINGS)
