"""Detects faulty audio: silence, runaway noise, or a tone that never ends.

Audio is measured in blocks of a quarter of a second. The thresholds are outside the range of recorded music:
none of the 12,863 windows of 2 s in 54.8 minutes of recorded piano is faulty, nor any of 1 s or 3 s, whereas
white noise, digital silence and a held sine are. Level and spectrum are enough; if the entropy of the
network's predictions is known too, it finds faults that are not yet audible.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

BLOCK_SECONDS = 0.25
FRAME_SECONDS = 0.064
"""Approximate length of a spectrum; each block averages several."""

SILENCE, NOISE, TONE = "silence", "noise", "tone"
KINDS = (SILENCE, NOISE, TONE)
WINDOWS = {SILENCE: 8, NOISE: 4, TONE: 12}
"""Blocks that a fault has to last: 2 s, 1 s, 3 s."""

SILENCE_DB = -60.0
"""Level of every block, in dB of full scale. Data preparation removes silence of that length."""

NOISE_DB = -45.0
NOISE_FLATNESS = 0.3
"""Geometric over arithmetic mean of the power spectrum; white noise has 0.9, piano less than 0.05."""

OVERLOAD_DB = -3.0
"""Audio louder than a full-scale sine is noise, whatever its spectrum."""

NOISE_SHARE = 7 / 8
"""Entropy relative to a uniform distribution; white noise in 256 classes has at most 6.9 bits of 8."""

TONE_LIKENESS = 0.98
"""Least cosine between the magnitude spectra of the blocks and their mean; white noise has 0.97."""

TONE_SPREAD_DB = 1.0
"""Largest difference between the levels of the blocks; struck and plucked notes fade by more."""

TONE_BITS = 0.05
"""Mean entropy below which a network that is not silent repeats itself."""


@dataclass(frozen=True)
class Fault:
    """A faulty span of audio.

    Attributes
    ----------
    kind : str
        "silence", "noise" or "tone".
    start, stop : float
        In seconds.
    """

    kind: str
    start: float
    stop: float


@dataclass(frozen=True)
class AudioStatistics:
    """Measurements of the same block of several streams.

    Attributes
    ----------
    level : float64 array (streams,)
        Mean square about the mean, in dB of full scale.
    flatness : float64 array (streams,)
        Spectral flatness.
    spectrum : float32 array (streams, bins)
        Magnitudes, of norm 1.
    share : float64 array (streams,)
        Mean entropy of the network's predictions over log2(classes); NaN if unknown.
    bits : float64 array (streams,)
        That entropy in bits; NaN if unknown.
    """

    level: np.ndarray
    flatness: np.ndarray
    spectrum: np.ndarray
    share: np.ndarray
    bits: np.ndarray

    def stream(self, row: int) -> AudioStatistics:
        """Return the measurements of one stream."""
        one = slice(row, row + 1)
        return AudioStatistics(
            self.level[one], self.flatness[one], self.spectrum[one], self.share[one], self.bits[one]
        )


def block_samples(sample_rate: int) -> int:
    """Return the number of samples of a block."""
    return max(64, round(BLOCK_SECONDS * sample_rate))


def measure_block(
    audio: np.ndarray, sample_rate: int, entropy: np.ndarray | None = None, classes: int | None = None
) -> AudioStatistics:
    """Measure a block of several streams.

    Parameters
    ----------
    audio : float array (streams, samples)
        As many samples as `block_samples` returns.
    sample_rate : int
        In Hz.
    entropy : float array (streams,), optional
        Mean entropy of the network's predictions in bits.
    classes : int, optional
        Of the network; with `entropy`.
    """
    signal = audio - audio.mean(axis=1, dtype=np.float64, keepdims=True)
    level = 10 * np.log10(np.square(signal).mean(axis=1) + 1e-20)
    size = 1 << max(4, round(math.log2(FRAME_SECONDS * sample_rate)))
    size = min(size, 1 << int(math.log2(signal.shape[1])))
    window = np.hanning(size + 1)[:-1]
    starts = range(0, signal.shape[1] - size + 1, size // 2)
    power = np.zeros((len(signal), size // 2 + 1))
    for start in starts:
        power += np.square(np.abs(np.fft.rfft(signal[:, start : start + size] * window, axis=1)))
    power = power / len(starts) + 1e-20
    # Without the bins next to the mean, and without the top, which is empty in resampled recordings.
    band = power[:, 2 : max(4, round(0.95 * (size // 2)))]
    flatness = np.exp(np.log(band).mean(axis=1)) / band.mean(axis=1)
    magnitude = np.sqrt(power[:, 2:])
    spectrum = magnitude / np.linalg.norm(magnitude, axis=1, keepdims=True)
    unknown = np.full(len(signal), np.nan)
    bits = unknown if entropy is None else np.asarray(entropy, dtype=np.float64)
    share = unknown if classes is None else bits / math.log2(classes)
    return AudioStatistics(level, flatness, spectrum.astype(np.float32), share, bits)


def detect_fault(blocks: Sequence[AudioStatistics], kinds: Collection[str] = KINDS) -> str | None:
    """Return the kind of fault in the latest blocks of one stream, or None.

    Parameters
    ----------
    blocks : sequence of AudioStatistics
        Of one stream, in order of time.
    kinds : collection of str
        Kinds to detect.
    """
    for kind in KINDS:
        if kind in kinds and len(blocks) >= WINDOWS[kind] and _RULES[kind](blocks[-WINDOWS[kind] :]):
            return kind
    return None


def _silent(blocks: Sequence[AudioStatistics]) -> bool:
    return bool(_levels(blocks).max() < SILENCE_DB)


def _noisy(blocks: Sequence[AudioStatistics]) -> bool:
    levels = _levels(blocks)
    flat = min(float(block.flatness[0]) for block in blocks) > NOISE_FLATNESS
    # A comparison with NaN is false.
    uncertain = float(np.mean([block.share[0] for block in blocks])) > NOISE_SHARE
    return bool(levels.min() > NOISE_DB and (flat or uncertain)) or bool(levels.min() > OVERLOAD_DB)


def _steady(blocks: Sequence[AudioStatistics]) -> bool:
    levels = _levels(blocks)
    if levels.min() < SILENCE_DB:
        return False
    if float(np.mean([block.bits[0] for block in blocks])) < TONE_BITS:
        return True
    if np.ptp(levels) > TONE_SPREAD_DB:
        return False
    spectra = np.stack([block.spectrum[0] for block in blocks])
    mean = spectra.mean(axis=0)
    return bool((spectra @ mean).min() > TONE_LIKENESS * np.linalg.norm(mean))


def _levels(blocks: Sequence[AudioStatistics]) -> np.ndarray:
    return np.array([block.level[0] for block in blocks])


_RULES = {SILENCE: _silent, NOISE: _noisy, TONE: _steady}


def find_faults(audio: np.ndarray, sample_rate: int, kinds: Collection[str] = KINDS) -> list[Fault]:
    """Return the faulty spans of a recording or take, in order of time.

    Parameters
    ----------
    audio : float array (samples,)
        Full scale is 1. Audio shorter than a second and the part after the last complete block are ignored.
    sample_rate : int
        In Hz.
    kinds : collection of str
        Kinds to detect: "silence", "noise", "tone".
    """
    size = block_samples(sample_rate)
    blocks: list[AudioStatistics] = []
    found: list[Fault] = []
    for number in range(len(audio) // size):
        blocks.append(measure_block(audio[None, number * size : (number + 1) * size], sample_rate))
        kind = detect_fault(blocks, kinds)
        if kind is not None:
            stop = (number + 1) * size / sample_rate
            start = stop - WINDOWS[kind] * size / sample_rate
            if found and found[-1].kind == kind and start <= found[-1].stop:
                start = found.pop().start
            found.append(Fault(kind, start, stop))
        del blocks[: -max(WINDOWS.values())]
    return found
