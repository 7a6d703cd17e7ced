"""Sampling settings, and the uniform random numbers that samples are drawn with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from wavenet.engine.state import GeneratorState
from wavenet.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How the next sample is drawn from the logits.

    The distribution is tempered, cut to the `top_k` largest logits and then to the smallest set of most
    probable classes that hold `top_p` of what is left, and drawn from by inverting its cumulative
    distribution in class order.

    Attributes
    ----------
    temperature : float
        Divides the logits; 0 always takes the most probable class.
    top_k : int
        Classes kept; 0 keeps all.
    top_p : float
        Probability kept, more than 0; 1 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature = {self.temperature}: must be 0 (always the likeliest) or more")
        if not 0 <= self.top_k < 2**31:
            raise ConfigError(f"top-k = {self.top_k}: must be from 0 (keep all classes) to 2^31 - 1")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top-p = {self.top_p}: must be more than 0 and at most 1 (keep all)")


def uniforms(state: GeneratorState, steps: int) -> torch.Tensor:
    """Return the uniform numbers that the next `steps` samples of each stream are drawn with.

    The number for a sample depends on the seed, the numbers of the stream and its sub-stream, and the
    sample's position only: it is word p of numpy's counter-based `Philox` keyed (seed, stream) (Salmon et al.
    2011), to 24 bits. The sub-stream is the second word of the counter, whose first counts positions.

    Returns
    -------
    float32 tensor (batch, steps), in [0, 1), on the CPU
    """
    values = np.empty((state.batch, steps), dtype=np.float32)
    numbers = (state.stream.tolist(), state.substream.tolist(), state.position.tolist())
    for row, (stream, substream, position) in enumerate(zip(*numbers, strict=True)):
        # One step of the counter gives four 64-bit words.
        block, skip = divmod(position, 4)
        key = np.array([state.seed, stream], dtype=np.uint64)
        counter = np.array([block, substream, 0, 0], dtype=np.uint64)
        words = np.random.Philox(key=key, counter=counter).random_raw(skip + steps)[skip:]
        values[row] = (words >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    return torch.from_numpy(values)
