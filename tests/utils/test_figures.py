"""Spectrograms of plots and reports."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from support.commands import environment

from wavenet.utils.figures import RANGE_DB, spectrogram


def test_a_tone_is_one_bright_line():
    rate, hertz = 8000, 1000
    levels = spectrogram(np.sin(2 * np.pi * hertz * np.arange(8000) / rate), 512, 128)
    assert levels.shape == (257, (8000 - 512) // 128 + 1)
    # Bins are 8000 / 512 Hz apart.
    assert set(levels.argmax(axis=0).tolist()) == {round(hertz * 512 / rate)}
    assert levels.max() == 0 and levels.min() == -RANGE_DB


def test_levels_against_numpy():
    audio = np.random.default_rng(0).standard_normal(700).astype(np.float32)
    window = np.hanning(257)[:-1]
    frames = np.lib.stride_tricks.sliding_window_view(audio, 256)[::100]
    expected = 20 * np.log10(np.abs(np.fft.rfft(frames * window)).T)
    expected = np.maximum(expected - expected.max(), -RANGE_DB)
    np.testing.assert_allclose(spectrogram(audio, 256, 100), expected, atol=1e-3)


def test_short_audio_is_padded():
    assert spectrogram(np.zeros(10), 512, 128).shape == (257, 1)


def test_librosa_and_scipy_are_imported_late():
    code = (
        "import sys, wavenet.utils.figures, wavenet.utils.statistics, wavenet.evaluation.results\n"
        "assert not {'librosa', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)
