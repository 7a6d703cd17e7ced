"""Levels of a recording: the gain of each normalisation, and the non-silent spans."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

FRAME_SECONDS = 0.02
SILENCE_SECONDS = 0.5
PADDING_SECONDS = 0.05
# Below full scale, so that the outermost classes remain for a network that overshoots.
PEAK = 0.95
LOUDNESS_DB = -20.0
_LOUD_PART_DB = 40.0
_BLOCK_FRAMES = 2048


@dataclass(frozen=True)
class Levels:
    """The level of a signal over time.

    Attributes
    ----------
    frame : int
        Samples per frame (20 ms).
    power : float64 array (frames,)
        Mean square of each frame about the mean of the signal, so that an offset does not count.
    low, high : float
        Smallest and largest amplitude.
    over : int
        Samples beyond full scale, before clipping.
    """

    frame: int
    power: np.ndarray
    low: float
    high: float
    over: int

    @property
    def peak(self) -> float:
        """Largest absolute amplitude."""
        return max(abs(self.low), abs(self.high))


class Signal(Protocol):
    """Mono float32 samples that can be read in slices: an array, or a file."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> np.ndarray: ...


def measure(signal: Signal, sample_rate: int, clip: bool = False) -> Levels:
    """Measure a mono signal block by block.

    Parameters
    ----------
    signal : float32 array (samples,), or any `Signal`; at least one sample
        Less than a minute is read at once.
    sample_rate : int
        In Hz.
    clip : bool
        Whether to clip the signal to [-1, 1] before it is measured.
    """
    frame = max(1, round(FRAME_SECONDS * sample_rate))
    frames = -(-len(signal) // frame)
    total, squares = np.zeros(frames), np.zeros(frames)
    low, high, over = math.inf, -math.inf, 0
    for first in range(0, frames, _BLOCK_FRAMES):
        block = np.asarray(signal[first * frame : (first + _BLOCK_FRAMES) * frame], dtype=np.float64)
        over += int(np.count_nonzero(np.abs(block) > 1))
        if clip:
            block = np.clip(block, -1, 1)
        low, high = min(low, float(block.min())), max(high, float(block.max()))
        starts = np.arange(0, len(block), frame)
        total[first : first + len(starts)] = np.add.reduceat(block, starts)
        squares[first : first + len(starts)] = np.add.reduceat(block * block, starts)
    counts = np.full(frames, float(frame))
    counts[-1] = len(signal) - (frames - 1) * frame
    mean = total.sum() / len(signal)
    power = squares / counts - 2 * mean * (total / counts) + mean * mean
    return Levels(frame, np.maximum(power, 0), low, high, over)


def gain(levels: Levels, normalization: str) -> float:
    """Return the factor that a normalisation asks for.

    "none" is 1. "peak" scales the largest amplitude to 0.95. "loudness" scales the root mean square of the
    loud part (frames within 40 dB of the loudest) to -20 dB of full scale, limited to a peak of 0.95.

    Raises `ValueError` for any other normalisation.
    """
    if normalization == "none":
        return 1.0
    to_peak = PEAK / levels.peak
    if normalization == "peak":
        return to_peak
    if normalization != "loudness":
        raise ValueError(f"unknown normalization {normalization!r}")
    loud = levels.power[levels.power >= levels.power.max() * 10 ** (-_LOUD_PART_DB / 10)]
    rms = math.sqrt(float(loud.mean()))
    return min(10 ** (LOUDNESS_DB / 20) / rms, to_peak) if rms > 0 else to_peak


def non_silent_spans(
    levels: Levels, length: int, sample_rate: int, silence_db: float | None
) -> list[tuple[int, int]]:
    """Return the spans of a signal that are not silent.

    A frame is silent if its level is more than `silence_db` below the loudest frame of the signal. Silence of
    more than 0.5 s, or at either end, is removed, except for 50 ms next to each sound. The loudest frame is
    always kept.

    Returns
    -------
    list of (start, stop) in samples, in order; [(0, length)] if `silence_db` is None.
    """
    if silence_db is None or levels.power.max() <= 0:
        return [(0, length)]
    silent = levels.power < levels.power.max() * 10 ** (-silence_db / 10)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], silent, [False])).astype(np.int8)))
    padding = round(PADDING_SECONDS * sample_rate)
    kept, position = [], 0
    for first, last in edges.reshape(-1, 2):
        start, stop = int(first) * levels.frame, min(int(last) * levels.frame, length)
        # Silence at the ends is removed however short it is, so that a clip begins with a sound.
        if start > 0 and stop < length and stop - start <= SILENCE_SECONDS * sample_rate:
            continue
        cut_from = min(start + padding, length) if start > 0 else 0
        cut_to = max(stop - padding, cut_from) if stop < length else length
        if cut_from > position:
            kept.append((position, cut_from))
        position = cut_to
    if position < length:
        kept.append((position, length))
    return kept
