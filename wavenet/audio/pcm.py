"""16-bit PCM: the form in which prepared recordings are stored."""

from __future__ import annotations

import numpy as np

DTYPE = np.dtype("<i2")
"""Signed 16-bit integers, little-endian on every machine."""

_FULL_SCALE = 32768


def from_float(audio: np.ndarray) -> np.ndarray:
    """Round amplitudes to 16-bit PCM.

    The value is x * 32768, rounded to the nearest integer (halves to the even one) and limited to
    [-32768, 32767]. `to_float` inverts this exactly, and libsndfile uses the same scale: the samples of a
    16-bit recording do not change.

    Parameters
    ----------
    audio : floating array, any shape
        Amplitudes; values outside [-1, 1] are clipped.

    Returns
    -------
    int16 array of the same shape
    """
    scaled = np.rint(np.asarray(audio, dtype=np.float64) * _FULL_SCALE)
    return np.clip(scaled, -_FULL_SCALE, _FULL_SCALE - 1).astype(DTYPE)


def to_float(samples: np.ndarray) -> np.ndarray:
    """Return 16-bit PCM as float32 amplitudes in [-1, 1): sample / 32768, exact in float32."""
    return samples.astype(np.float32) * np.float32(1 / _FULL_SCALE)
