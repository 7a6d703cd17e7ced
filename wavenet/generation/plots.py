"""A take as a picture: its waveform, its spectrogram, and how sure the network was of every sample."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from wavenet.utils.figures import picture

COLUMNS = 1600
"""Most points across; beyond these samples are drawn as ranges."""

WINDOW_SECONDS = 0.064
RANGE_DB = 80.0
"""What lies further below the loudest point of the spectrogram is black."""

SMOOTH_SECONDS = 0.05


def draw_take(path: Path, audio: np.ndarray, sample_rate: int, entropy: np.ndarray, classes: int) -> None:
    """Draw a take.

    Parameters
    ----------
    path : Path
        Of the picture: png, pdf or svg.
    audio : float array (samples,)
        Full scale is 1.
    sample_rate : int
        In Hz.
    entropy : float array (samples,)
        Of the network's predictions, in bits.
    classes : int
        Of the network.

    Errors are those of `drawing.picture`.
    """
    with picture("--plot", path, (11, 7)) as figure:
        wave, bands, bits = figure.subplots(3, 1, sharex=True, height_ratios=(1, 2, 1))
        seconds = len(audio) / sample_rate
        low, high, _ = envelope(audio)
        wave.fill_between(np.linspace(0, seconds, len(low)), low, high, step="mid", linewidth=0.5)
        wave.set(ylabel="amplitude", ylim=(-1, 1))
        spectrogram(bands, audio, sample_rate)
        _entropies(bits, entropy, seconds, classes)


def _entropies(bits: Any, entropy: np.ndarray, seconds: float, classes: int) -> None:
    low, high, _ = envelope(entropy)
    places = np.linspace(0, seconds, len(low))
    bits.fill_between(places, low, high, step="mid", alpha=0.3, linewidth=0, label="range")
    width = max(1, round(SMOOTH_SECONDS * len(low) / max(seconds, 1e-3)))
    bits.plot(
        places, _smooth(envelope(entropy)[2], width), linewidth=1, label=f"mean of {SMOOTH_SECONDS:g} s"
    )
    most = math.log2(classes)
    bits.axhline(most, linestyle=":", color="gray", label="knowing nothing")
    bits.set(ylabel="entropy (bits)", xlabel="seconds", xlim=(0, max(seconds, 1e-3)), ylim=(0, most * 1.05))
    bits.legend(loc="lower right", fontsize="small", ncols=3)


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


def spectrogram(axes: Any, audio: np.ndarray, sample_rate: int) -> None:
    """Draw the spectrogram of audio (samples,), black where it is far below its loudest point."""
    size = 1 << max(4, round(math.log2(WINDOW_SECONDS * sample_rate)))
    audio = np.pad(audio.astype(np.float32), (0, max(0, size - len(audio))))
    hop = max(size // 4, (len(audio) - size) // COLUMNS + 1)
    frames = np.lib.stride_tricks.sliding_window_view(audio, size)[::hop]
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    power = np.stack([np.square(np.abs(np.fft.rfft(frame * window))) for frame in frames], axis=1)
    level = 10 * np.log10(power + 1e-20)
    edges = (0, len(audio) / sample_rate, 0, sample_rate / 2000)
    axes.imshow(
        level, origin="lower", aspect="auto", extent=edges, cmap="magma",
        vmin=level.max() - RANGE_DB, vmax=level.max(), interpolation="nearest",
    )  # fmt: skip
    axes.set(ylabel="kHz")
