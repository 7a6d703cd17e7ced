"""Mu-law companding and quantisation (ITU-T G.711's curve; van den Oord et al. 2016, section 2.2)."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", np.ndarray, torch.Tensor)


def encode(audio: Array, quantization_channels: int = 256) -> Array:
    """Quantise amplitudes to mu-law classes.

    With mu = quantization_channels - 1, the class is floor((f(x) + 1) / 2 * mu + 1/2), where
    f(x) = sign(x) ln(1 + mu |x|) / ln(1 + mu).

    Parameters
    ----------
    audio : numpy array or torch tensor, any shape, floating
        Amplitudes; those outside [-1, 1] are clipped.
    quantization_channels : int
        Number of classes, at least 2.

    Returns
    -------
    int64 array or tensor of the same shape, 0 to quantization_channels - 1.

    Raises
    ------
    ValueError
        If an amplitude is NaN.
    """
    if isinstance(audio, torch.Tensor):
        # float64 keeps the edges between classes where the formula puts them.
        wide = audio.to(torch.float64)
        if bool(torch.isnan(wide).any()):
            raise ValueError("mu-law encode: the audio contains NaN")
        mu = quantization_channels - 1
        magnitude = torch.log1p(mu * wide.abs().clamp(max=1)) / math.log1p(mu)
        return torch.floor((torch.sign(wide) * magnitude + 1) / 2 * mu + 0.5).to(torch.int64)
    return encode(torch.from_numpy(np.ascontiguousarray(audio)), quantization_channels).numpy()


def decode(samples: Array, quantization_channels: int = 256) -> Array:
    """Return the amplitude at the centre of each mu-law class.

    Parameters
    ----------
    samples : numpy array or torch tensor, any shape, integer
        Classes, 0 to quantization_channels - 1.
    quantization_channels : int
        Number of classes, at least 2.

    Returns
    -------
    float32 array or tensor of the same shape, in [-1, 1].
    """
    if isinstance(samples, torch.Tensor):
        mu = quantization_channels - 1
        companded = 2 * samples.to(torch.float64) / mu - 1
        magnitude = torch.expm1(companded.abs() * math.log1p(mu)) / mu
        return (torch.sign(companded) * magnitude).to(torch.float32)
    wide = torch.from_numpy(np.ascontiguousarray(samples).astype(np.int64))
    return decode(wide, quantization_channels).numpy()
