"""How sure a network was of what it drew: entropy and likelihood of every sample, in bits.

Drawing tells nothing of this, and asking in the sample loop would slow it for everyone. So what was drawn is
given to a copy of the state once more (`Generator.advance`), which is exact and costs about as much as
drawing, at the time that somebody wants to know. All figures are of the network's own distribution, before
temperature, top-k and top-p.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from wavenet.engine.state import GeneratorState
from wavenet.generation.generator import Bias, Generator

_LOGITS = 1 << 21
"""Numbers held at once."""

BIN_BITS = 1 / 256
"""Resolution of percentiles."""

PERCENTILES = (5, 25, 50, 75, 95)


def predictions(
    generator: Generator, state: GeneratorState, samples: torch.Tensor, gate_bias: Bias | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Feed samples and return what the network expected of each.

    Parameters
    ----------
    generator : Generator
    state : GeneratorState
        Before the samples; changed in place.
    samples : int64 tensor (batch, time)
    gate_bias : GateBias or Steering, optional
        What the samples were drawn with.

    Returns
    -------
    entropy, surprisal : float32 arrays (batch, time)
        In bits: the mean surprise that the network counted on, and that of the sample which came.
    """
    steps = max(1, _LOGITS // (state.batch * generator.config.quantization_channels))
    entropy, surprisal = [], []
    for some in samples.split(steps, dim=1):
        logits = generator.advance(state, some, gate_bias)
        logs = torch.log_softmax(logits, dim=1)
        entropy.append(-(logs.exp() * logs).sum(dim=1))
        surprisal.append(-logs.gather(1, some.to(logs.device)[:, None])[:, 0])
    empty = np.empty((state.batch, 0), dtype=np.float32)
    if not entropy:
        return empty, empty
    scale = 1 / math.log(2)
    return (torch.cat(entropy, 1) * scale).cpu().numpy(), (torch.cat(surprisal, 1) * scale).cpu().numpy()


class Account:
    """Statistics of one stream's entropies, in memory that grows by a number per second.

    Parameters
    ----------
    sample_rate : int
        In Hz.
    classes : int
        Of the network.
    """

    def __init__(self, sample_rate: int, classes: int):
        self.sample_rate = sample_rate
        self.uniform = math.log2(classes)
        self.samples = 0
        self.surprisal = 0.0
        self._sum = 0.0
        self._histogram = np.zeros(math.ceil(self.uniform / BIN_BITS) + 1, dtype=np.int64)
        self._seconds: list[float] = []

    def add(self, entropy: np.ndarray, surprisal: np.ndarray) -> None:
        """Count samples in, float arrays (time,) in bits."""
        self._sum += float(entropy.sum(dtype=np.float64))
        self.surprisal += float(surprisal.sum(dtype=np.float64))
        bins = np.clip((entropy / BIN_BITS).astype(np.int64), 0, len(self._histogram) - 1)
        self._histogram += np.bincount(bins, minlength=len(self._histogram))
        numbers = (self.samples + np.arange(len(entropy))) // self.sample_rate
        self.samples += len(entropy)
        self._seconds += [0.0] * (-(-self.samples // self.sample_rate) - len(self._seconds))
        for number in np.unique(numbers).tolist():
            self._seconds[number] += float(entropy[numbers == number].sum(dtype=np.float64))

    @property
    def bits(self) -> float:
        """Mean surprisal: bits per sample of what was drawn."""
        return self.surprisal / max(1, self.samples)

    @property
    def mean(self) -> float:
        """Mean entropy in bits."""
        return self._sum / max(1, self.samples)

    def percentile(self, share: float) -> float:
        """Return the entropy below which a share of the samples, in per cent, lies; to half of `BIN_BITS`."""
        total = np.cumsum(self._histogram)
        place = int(np.searchsorted(total, share / 100 * total[-1]))
        return (min(place, len(total) - 1) + 0.5) * BIN_BITS

    def seconds(self) -> list[float]:
        """Return the mean entropy of every second, the last one begun."""
        rate, last = self.sample_rate, len(self._seconds) - 1
        counts = [rate] * last + [self.samples - last * rate]
        return [total / count for total, count in zip(self._seconds, counts, strict=False)]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        return {
            "mean": self.mean,
            "percentiles": {str(share): self.percentile(share) for share in PERCENTILES},
            "per_second": self.seconds(),
            "bits_per_sample": self.bits,
            "uniform": self.uniform,
        }


class Follower:
    """Goes behind streams that are made and says how sure the network was of each sample.

    Parameters
    ----------
    generator : Generator
    state : GeneratorState
        Where the streams begin; copied.
    gate_bias : GateBias or Steering, optional
        What they are told.
    """

    def __init__(self, generator: Generator, state: GeneratorState, gate_bias: Bias | None = None):
        self.generator = generator
        self.state = state.clone()
        self.gate_bias = gate_bias
        config = generator.config
        self.accounts = [
            Account(config.sample_rate, config.quantization_channels) for _ in range(state.batch)
        ]

    def follow(self, samples: torch.Tensor) -> np.ndarray:
        """Take in the next samples, int64 (batch, time); return their entropies in bits, float32 alike."""
        entropy, surprisal = predictions(self.generator, self.state, samples, self.gate_bias)
        for account, expected, came in zip(self.accounts, entropy, surprisal, strict=True):
            account.add(expected, came)
        return entropy
