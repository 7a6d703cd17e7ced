"""Log-mel spectra of a whole signal or of any range of its frames, scaled for a network."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from wavenet.audio.levels import Signal
from wavenet.errors import AudioError, ConfigError

FLOOR = 1e-5
"""Smallest mel magnitude; anything below is silence."""
LOW, HIGH = math.log(FLOOR), 2.0
"""Natural logs of mel magnitude that are scaled to -1 and 1.

LOW is silence. HIGH is about the value of a full-scale tone with an n_fft of 1024; it is not a limit.
"""
_BLOCK_FRAMES = 256


@lru_cache(maxsize=8)
def _bank(
    sample_rate: int, n_fft: int, n_mels: int, fmin: float, fmax: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the window (n_fft,) and the filters as lists of taps: weight and bin, each (taps, n_mels).

    Each filter covers few bins. Sums over taps in a fixed order give a frame the same bits whichever frames
    are computed with it, which a matrix product does not guarantee.
    """
    if not (n_fft >= 2 and n_fft % 2 == 0 and n_mels >= 1 and sample_rate > 0):
        raise ConfigError(f"n_fft = {n_fft}, n_mels = {n_mels}: n_fft must be even, and both above 0")
    if not 0 <= fmin < fmax <= sample_rate / 2:
        raise ConfigError(
            f"mel bands from {fmin} to {fmax} Hz at {sample_rate} Hz: use a range within 0 and half the rate"
        )
    try:
        from librosa.filters import mel
    except ImportError as error:
        raise AudioError(
            f"mel spectra need librosa, which cannot be imported ({error}): pip install librosa"
        ) from None
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # librosa warns about empty bands, which raise an error below.
        filters = mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax)
    if not filters.any(axis=1).all():
        empty = int((~filters.any(axis=1)).sum())
        raise ConfigError(
            f"{empty} of {n_mels} mel bands contain no bin of n_fft = {n_fft}: lower n_mels or raise n_fft"
        )
    first = np.argmax(filters > 0, axis=1)
    taps = int(np.count_nonzero(filters, axis=1).max())
    bins = np.minimum(first[None, :] + np.arange(taps)[:, None], n_fft // 2)
    inside = first[None, :] + np.arange(taps)[:, None] == bins
    weights = np.take_along_axis(filters.T, bins, axis=0) * inside
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    return window.astype(np.float32), weights.astype(np.float32), bins


def frame_count(samples: int, hop: int) -> int:
    """Return the number of frames of a signal: one is centred at each multiple of `hop`, from 0 on."""
    return samples // hop + 1


def log_mel_frames(
    signal: Signal,
    first: int,
    count: int,
    sample_rate: int,
    n_fft: int,
    hop: int,
    n_mels: int,
    fmin: float,
    fmax: float,
) -> np.ndarray:
    """Return the frames [first, first + count) of `log_mel`, reading only the samples that they need.

    They equal those of the whole signal to the bit. The signal is silent beyond its ends, so every frame
    number is valid. Memory is that of the result and a few hundred frames.

    Parameters
    ----------
    signal : float32 array (samples,), or any `Signal`
    first, count : int
        Number of the first frame, which may be negative, and of frames.
    sample_rate, n_fft, hop, n_mels, fmin, fmax
        As for `log_mel`.

    Returns
    -------
    float32 array (n_mels, count)

    Raises
    ------
    ConfigError, AudioError
        As `log_mel` does.
    """
    if hop < 1 or count < 0:
        raise ConfigError(f"{count} mel frames with a hop of {hop}: use a hop of 1 or more samples")
    bank = _bank(sample_rate, n_fft, n_mels, fmin, fmax)
    out = np.empty((n_mels, count), dtype=np.float32)
    for start in range(0, count, _BLOCK_FRAMES):
        frames = min(_BLOCK_FRAMES, count - start)
        begin = (first + start) * hop - n_fft // 2
        end = begin + (frames - 1) * hop + n_fft
        # Limited to the signal, because a negative index would count from its end.
        low, high = min(max(begin, 0), len(signal)), min(max(end, 0), len(signal))
        samples = np.zeros(end - begin, dtype=np.float32)
        if high > low:
            samples[low - begin : high - begin] = signal[low:high]
        windows = np.lib.stride_tricks.sliding_window_view(samples, n_fft)[::hop]
        out[:, start : start + frames] = _scaled_bands(windows, *bank)
    return out


def _scaled_bands(
    windows: np.ndarray, window: np.ndarray, weights: np.ndarray, bins: np.ndarray
) -> np.ndarray:
    """Return the scaled bands (n_mels, frames) of windows of samples (frames, n_fft)."""
    spectrum = np.fft.rfft(windows * window)
    magnitude = np.ascontiguousarray(np.sqrt(spectrum.real**2 + spectrum.imag**2).T)
    bands = weights[0][:, None] * magnitude[bins[0]]
    for weight, index in zip(weights[1:], bins[1:], strict=True):
        bands += weight[:, None] * magnitude[index]
    # Limited after the log, so that silence is exactly LOW, and -1 when scaled, with any library's log.
    return scaled(np.maximum(np.log(np.maximum(bands, np.float32(FLOOR / 2))), np.float32(LOW)))


def log_mel(
    audio: np.ndarray,
    sample_rate: int,
    n_fft: int,
    hop: int,
    n_mels: int,
    fmin: float,
    fmax: float,
) -> np.ndarray:
    """Return the log mel spectrum of a signal, scaled to about [-1, 1].

    Frame k is centred at sample k * hop, with zeros beyond the ends: the magnitude of the Fourier transform
    under a periodic Hann window, Slaney's mel bands of equal area (librosa's defaults), the natural log of at
    least `FLOOR`, then `scaled`.

    Parameters
    ----------
    audio : float32 array (samples,)
    sample_rate : int
        In Hz.
    n_fft, hop : int
        Samples of a window (even), and from one frame to the next.
    n_mels : int
        Bands.
    fmin, fmax : float
        Lowest and highest edge of the bands in Hz.

    Returns
    -------
    float32 array (n_mels, samples // hop + 1)

    Raises
    ------
    ConfigError
        If a setting is outside its range or a band would be empty.
    AudioError
        If librosa is not installed.
    """
    count = frame_count(len(audio), max(hop, 1))
    return log_mel_frames(audio, 0, count, sample_rate, n_fft, hop, n_mels, fmin, fmax)


def scaled(log_magnitude: np.ndarray) -> np.ndarray:
    """Map natural logs of mel magnitude to about [-1, 1]: LOW to -1, HIGH to 1."""
    return (log_magnitude - LOW) * (2 / (HIGH - LOW)) - 1


def unscaled(mel: np.ndarray) -> np.ndarray:
    """Map scaled mel spectra back to natural logs of mel magnitude; the inverse of `scaled`."""
    return (mel + 1) * ((HIGH - LOW) / 2) + LOW
