"""A take as a picture: waveform, spectrogram, and the entropy of the network's predictions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from wavenet.utils.figures import RANGE_DB, saved_figure, spectrogram

COLUMNS = 1600
"""Most points across; longer curves are drawn as ranges."""

WINDOW_SECONDS = 0.064
"""Length of the spectrogram's windows."""

SMOOTHING_SECONDS = 0.05
"""Length of the moving average of the entropy."""


def draw_take(path: Path, audio: np.ndarray, sample_rate: int, entropy: np.ndarray, classes: int) -> None:
    """Draw a take.

    Parameters
    ----------
    path : Path
        Picture: png, pdf or svg.
    audio : float array (samples,)
        Full scale is 1.
    sample_rate : int
        In Hz.
    entropy : float array (samples,)
        Entropy of the network's predictions, in bits.
    classes : int
        Number of classes of the network.

    Raises
    ------
    ConfigError, AudioError
        As `saved_figure` does.
    """
    with saved_figure(path, (11, 7)) as figure:
        wave, bands, bits = figure.subplots(3, 1, sharex=True, height_ratios=(1, 2, 1))
        seconds = len(audio) / sample_rate
        low, high, _ = envelope(audio)
        wave.fill_between(np.linspace(0, seconds, len(low)), low, high, step="mid", linewidth=0.5)
        wave.set(ylabel="amplitude", ylim=(-1, 1))
        _draw_spectrogram(bands, audio, sample_rate)
        _draw_entropy(bits, entropy, seconds, classes)


def _draw_entropy(axes: Any, entropy: np.ndarray, seconds: float, classes: int) -> None:
    low, high, mean = envelope(entropy)
    times = np.linspace(0, seconds, len(low))
    axes.fill_between(times, low, high, step="mid", alpha=0.3, linewidth=0, label="range")
    width = max(1, round(SMOOTHING_SECONDS * len(low) / max(seconds, 1e-3)))
    axes.plot(times, _smooth(mean, width), linewidth=1, label=f"mean of {SMOOTHING_SECONDS:g} s")
    most = math.log2(classes)
    axes.axhline(most, linestyle=":", color="gray", label="uniform")
    axes.set(ylabel="entropy (bits)", xlabel="seconds", xlim=(0, max(seconds, 1e-3)), ylim=(0, most * 1.05))
    axes.legend(loc="lower right", fontsize="small", ncols=3)


def envelope(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return minimum, maximum and mean of at most `COLUMNS` equal parts of values (samples,)."""
    if not len(values):
        values = np.zeros(1)
    edges = np.linspace(0, len(values), min(COLUMNS, len(values)) + 1).astype(np.int64)
    starts = edges[:-1]
    means = np.add.reduceat(values.astype(np.float64), starts) / np.diff(edges)
    return np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts), means


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.full(width, 1 / width), mode="valid")


def _draw_spectrogram(axes: Any, audio: np.ndarray, sample_rate: int) -> None:
    n_fft = 1 << max(4, round(math.log2(WINDOW_SECONDS * sample_rate)))
    hop = max(n_fft // 4, (len(audio) - n_fft) // COLUMNS + 1)
    edges = (0, max(len(audio), n_fft) / sample_rate, 0, sample_rate / 2000)
    axes.imshow(
        spectrogram(audio, n_fft, hop), origin="lower", aspect="auto", extent=edges, cmap="magma",
        vmin=-RANGE_DB, vmax=0, interpolation="nearest",
    )  # fmt: skip
    axes.set(ylabel="kHz")
