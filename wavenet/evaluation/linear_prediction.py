"""A classical baseline for the same audio: linear prediction with a Laplace-distributed residual."""

from __future__ import annotations

import math

import numpy as np
import torch

from wavenet.audio import mulaw
from wavenet.conditioning.base import Frames
from wavenet.data.batch import IGNORED

ORDER = 32
"""Past samples in a prediction."""

SAMPLES_PER_COEFFICIENT = 16
"""Limits the order in short stretches, whose coefficients would cost more than they save."""

# Share of the mean square of the signal: keeps the equations solvable if fewer coefficients would do.
_RIDGE = 1e-9


def class_edges(quantization_channels: int) -> np.ndarray:
    """Return the amplitudes at which `mulaw.encode` changes its class, float64 (classes + 1,).

    The outermost are infinite: amplitudes beyond full scale are clipped into the first and the last class.
    """
    mu = quantization_channels - 1
    companded = (2 * np.arange(1, quantization_channels) - 1) / mu - 1
    inner = np.sign(companded) * np.expm1(np.abs(companded) * math.log1p(mu)) / mu
    return np.concatenate([[-np.inf], inner, [np.inf]])


def laplace_nats(low: np.ndarray, high: np.ndarray, scale: float) -> np.ndarray:
    """Return -ln of the probability between `low` and `high` of a Laplace density around 0, by element.

    Exact however far the interval is from 0; `scale` is the mean absolute value.
    """
    # The density is symmetric: intervals left of 0 are reflected to keep differences accurate.
    reflected = low + high < 0
    near = np.where(reflected, -high, low) / scale
    far = np.where(reflected, -low, high) / scale
    outside = near >= 0
    start = np.where(outside, near, 0.0)
    tail = start + math.log(2) - np.log(-np.expm1(start - np.where(outside, far, np.inf)))
    across = -np.log1p(-0.5 * (np.exp(np.minimum(near, 0.0)) + np.exp(-far)))
    return np.where(outside, tail, across)


def fit(past: np.ndarray, signal: np.ndarray) -> np.ndarray:
    """Return the least-squares coefficients (order,) that predict (time,) from its past (time, order)."""
    order = past.shape[1]
    if order == 0:
        return np.zeros(0)
    gram = past.T @ past
    # Never zero, even for silence.
    gram[np.diag_indices(order)] += _RIDGE * (np.trace(gram) / order + 1.0)
    return np.linalg.solve(gram, past.T @ signal)


class LinearPrediction:
    """Scores audio like a coder that fits linear prediction to every stretch of it.

    A stretch is the contiguous targets of one clip in one window (about a second). Its decoded amplitudes are
    predicted from the `ORDER` before each, with coefficients fitted to the stretch by least squares. The
    residual is modelled by a Laplace density with a scale fitted to the stretch too, and the probability of a
    class is that between its edges; over all classes it sums to 1. Such a coder must send the fitted numbers:
    each costs log2(samples) / 2 bits (Rissanen 1978), spread evenly over the stretch; for a second at 16 kHz
    that is 0.01 bits per sample.

    Parameters
    ----------
    quantization_channels : int
        Number of classes.
    """

    def __init__(self, quantization_channels: int):
        every = np.arange(quantization_channels)
        self.amplitudes = mulaw.decode(every, quantization_channels).astype(np.float64)
        self.edges = class_edges(quantization_channels)
        self.widths = np.diff(np.clip(self.edges, -1, 1))

    def nats(self, inputs: torch.Tensor, targets: torch.Tensor, frames: Frames | None = None) -> np.ndarray:
        """Return the cost of each target; see `wavenet.evaluation.scoring.Scorer`."""
        costs = np.zeros(targets.shape)
        for row, (given, wanted) in enumerate(zip(inputs.numpy(), targets.numpy(), strict=True)):
            time = len(wanted)
            context = given[: len(given) - time + 1]
            # Windows of a network with a shorter receptive field than `ORDER` have less context.
            lacking = max(0, ORDER - len(context))
            known = np.concatenate([np.full(lacking, context[0]), given])[-(ORDER + time - 1) :]
            past = np.lib.stride_tricks.sliding_window_view(self.amplitudes[known], ORDER)
            bounds = np.flatnonzero(np.diff(np.concatenate([[False], wanted != IGNORED, [False]])))
            for start, stop in zip(bounds[::2], bounds[1::2], strict=True):
                costs[row, start:stop] = self.stretch(past[start:stop], wanted[start:stop])
        return costs

    def stretch(self, past: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return the cost in nats of classes (time,), given the amplitudes before each (time, `ORDER`)."""
        count = len(classes)
        order = min(ORDER, count // SAMPLES_PER_COEFFICIENT)
        past = past[:, ORDER - order :]
        predicted = past @ fit(past, self.amplitudes[classes])
        # The mean absolute residual, but not below the quantisation error.
        scale = float(np.abs(self.amplitudes[classes] - predicted).mean())
        scale = max(scale, float(self.widths[classes].mean()) / 16)
        costs = laplace_nats(self.edges[classes] - predicted, self.edges[classes + 1] - predicted, scale)
        return costs + (order + 1) * 0.5 * math.log(count) / count
