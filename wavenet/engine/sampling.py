"""Sampling settings, and the uniform random numbers that samples are drawn with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from wavenet.errors import ConfigError

if TYPE_CHECKING:
    from wavenet.engine.state import GeneratorState

MAX_TOP_K = 2**31 - 1


@dataclass(frozen=True)
class Sampling:
    """How one stream draws its next sample from the logits.

    The logits are divided by the temperature and cut to the `top_k` largest, then to the smallest set of most
    probable classes whose probability is at least `top_p` of the rest. The sample is drawn by inverting the
    cumulative distribution in class order.

    Attributes
    ----------
    temperature : float
        Divides the logits; 0 always takes the most probable class.
    top_k : int
        Number of classes kept; 0 keeps all.
    top_p : float
        Probability kept, more than 0; 1 keeps all.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(
                f"temperature = {self.temperature}: must be 0 (always the most probable class) or more"
            )
        if not 0 <= self.top_k <= MAX_TOP_K:
            raise ConfigError(f"top_k = {self.top_k}: must be from 0 (keep all classes) to {MAX_TOP_K}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p = {self.top_p}: must be more than 0 and at most 1 (keep all)")

    @property
    def deterministic(self) -> bool:
        """Whether the random numbers have no effect."""
        return self.temperature == 0 or self.top_k == 1


def uniforms(state: GeneratorState, steps: int) -> torch.Tensor:
    """Return the uniform numbers that the next `steps` samples of each stream are drawn with.

    The number of a sample depends on the stream's seed, number and substream and on the sample's position
    only. It is word p of numpy's counter-based `Philox` keyed (seed, stream), cut to 24 bits (Salmon et al.
    2011). The first word of the counter counts positions, the second is the substream.

    Returns
    -------
    float32 tensor (batch, steps), in [0, 1), on the CPU
    """
    values = np.empty((state.batch, steps), dtype=np.float32)
    keys = (state.seed.tolist(), state.stream.tolist(), state.substream.tolist(), state.position.tolist())
    for row, (seed, stream, substream, position) in enumerate(zip(*keys, strict=True)):
        # One step of the counter gives four 64-bit words.
        block, skip = divmod(position, 4)
        key = np.array([seed, stream], dtype=np.uint64)
        counter = np.array([block, substream, 0, 0], dtype=np.uint64)
        words = np.random.Philox(key=key, counter=counter).random_raw(skip + steps)[skip:]
        values[row] = (words >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    return torch.from_numpy(values)
