"""Entropy and likelihood, in bits, of every sample that was drawn.

The sample loop does not compute them. Feeding the samples to a copy of the state (`Generator.advance`) is
exact and costs about as much as drawing them, and only those who want the figures pay for it. All figures are
of the network's own distribution, before temperature, top-k and top-p.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from wavenet.engine.state import GeneratorState
from wavenet.generation.generator import Conditioning, Generator

_MAX_LOGITS = 1 << 21
"""Logits in memory at once."""

BIN_BITS = 1 / 256
"""Resolution of percentiles."""

PERCENTILES = (5, 25, 50, 75, 95)


def predictions(
    generator: Generator, state: GeneratorState, samples: torch.Tensor, gate_bias: Conditioning | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Feed samples and return how predictable each one was.

    Parameters
    ----------
    generator : Generator
    state : GeneratorState
        Before the samples; changed in place.
    samples : int64 tensor (batch, time)
    gate_bias : GateBias or GateBiasProvider, or a sequence of one for each stream, optional
        The conditioning that the samples were drawn with.

    Returns
    -------
    entropy, surprisal : float32 arrays (batch, time)
        In bits: the mean of the surprisal under the network's distribution, and that of the sample drawn.
    """
    steps = max(1, _MAX_LOGITS // (state.batch * generator.config.quantization_channels))
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


class EntropyStatistics:
    """Statistics of one stream's entropies, in memory that grows by one number per second.

    Parameters
    ----------
    sample_rate : int
        In Hz.
    classes : int
        Of the network.

    Attributes
    ----------
    samples : int
        Number of samples counted.
    surprisal : float
        Their sum, in bits.
    uniform : float
        Entropy of the uniform distribution over the classes, in bits.
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
        """Add samples, float arrays (time,) in bits."""
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
        """Mean surprisal: bits per sample of the samples drawn."""
        return self.surprisal / max(1, self.samples)

    @property
    def mean(self) -> float:
        """Mean entropy in bits."""
        return self._sum / max(1, self.samples)

    def percentile(self, share: float) -> float:
        """Return a percentile of the entropies, `share` in per cent, to half of `BIN_BITS`."""
        total = np.cumsum(self._histogram)
        place = int(np.searchsorted(total, share / 100 * total[-1]))
        return (min(place, len(total) - 1) + 0.5) * BIN_BITS

    def seconds(self) -> list[float]:
        """Return the mean entropy of every second, an incomplete last one included."""
        rate, last = self.sample_rate, len(self._seconds) - 1
        counts = [rate] * last + [self.samples - last * rate]
        return [total / count for total, count in zip(self._seconds, counts, strict=False)]

    def as_dict(self) -> dict[str, Any]:
        """Return all figures as plain values for JSON."""
        return {
            "mean": self.mean,
            "percentiles": {str(share): self.percentile(share) for share in PERCENTILES},
            "per_second": self.seconds(),
            "bits_per_sample": self.bits,
            "uniform": self.uniform,
        }


class LikelihoodTracker:
    """Computes the entropy of streams as they are generated.

    Parameters
    ----------
    generator : Generator
    state : GeneratorState
        The streams before their first sample; copied.
    gate_bias : GateBias or GateBiasProvider, or a sequence of one for each stream, optional
        Their conditioning.

    Attributes
    ----------
    statistics : list of EntropyStatistics
        Of each stream.
    """

    def __init__(self, generator: Generator, state: GeneratorState, gate_bias: Conditioning | None = None):
        self.generator = generator
        self.state = state.clone()
        self.gate_bias = gate_bias
        config = generator.config
        self.statistics = [
            EntropyStatistics(config.sample_rate, config.quantization_channels) for _ in range(state.batch)
        ]

    def add(self, samples: torch.Tensor) -> np.ndarray:
        """Add the next samples, int64 (batch, time); return their entropies in bits, float32 alike."""
        entropy, surprisal = predictions(self.generator, self.state, samples, self.gate_bias)
        for statistics, *row in zip(self.statistics, entropy, surprisal, strict=True):
            statistics.add(*row)
        return entropy
