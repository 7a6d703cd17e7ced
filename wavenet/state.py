"""What a stream is between two samples: its queues, its place, its randomness, and how samples are drawn."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from wavenet.errors import CheckpointError, ConfigError
from wavenet.weights import read_tensors, save_tensors


@dataclass
class GeneratorState:
    """A batch of streams, ready to go on; changed in place by a generator.

    The queue of a layer with dilation d is a ring of (kernel_size - 1) * d rows of `queues`, one ring after
    the other in layer order. The step at position p feeds `last_sample`, reads the tap with delay j * d at
    slot (p - j * d) mod depth, and then writes the layer's new input to slot p mod depth.

    Attributes
    ----------
    queues : float32 tensor (batch, queue_steps, residual_channels)
    position : int64 tensor (batch,)
        Samples in each stream so far, the primer's included.
    last_sample : int64 tensor (batch,)
        Class of each stream's latest sample, not fed to the network yet.
    stream : int64 tensor (batch,)
        Number of each stream; with the seed and the position it decides the stream's randomness.
    seed : int
    """

    queues: torch.Tensor
    position: torch.Tensor
    last_sample: torch.Tensor
    stream: torch.Tensor
    seed: int = 0

    @property
    def batch(self) -> int:
        """Number of streams."""
        return self.queues.shape[0]

    def _map(self, function) -> GeneratorState:
        tensors = {name: function(getattr(self, name)) for name in _TENSORS}
        return dataclasses.replace(self, **tensors)

    def clone(self) -> GeneratorState:
        """Return an independent copy."""
        return self._map(lambda tensor: tensor.clone())

    def to(self, device: str | torch.device) -> GeneratorState:
        """Return the state on a device (itself if it is there already)."""
        return self._map(lambda tensor: tensor.to(device))

    def select(self, indices: Sequence[int]) -> GeneratorState:
        """Return a copy of some of the streams, keeping their stream numbers."""
        index = torch.as_tensor(list(indices), dtype=torch.int64, device=self.queues.device)
        return self._map(lambda tensor: tensor[index])

    def fan_out(self, batch: int, first_stream: int = 0) -> GeneratorState:
        """Return `batch` copies of a single stream, numbered from `first_stream` on.

        Raises `ConfigError` if the state holds more than one stream.
        """
        if self.batch != 1:
            raise ConfigError(f"only a single stream can be fanned out, this state holds {self.batch}")
        copies = self.select([0] * batch)
        copies.stream = stream_numbers(batch, first_stream).to(self.stream.device)
        return copies

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state as a safetensors file."""
        seed = torch.tensor(self.seed, dtype=torch.int64)
        save_tensors(Path(path), {**{name: getattr(self, name) for name in _TENSORS}, "seed": seed})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GeneratorState:
        """Read a state written by `save`; `CheckpointError` if the file is not one."""
        tensors = read_tensors(Path(path))
        if set(tensors) != {*_TENSORS, "seed"}:
            raise CheckpointError(f"{path}: is not a generator's saved state")
        seed = int(tensors.pop("seed"))
        return cls(**tensors, seed=seed)


_TENSORS = ("queues", "position", "last_sample", "stream")


def stream_numbers(batch: int, first_stream: int = 0) -> torch.Tensor:
    """Return int64 (batch,) consecutive stream numbers; `ConfigError` if a count or number is negative."""
    if batch < 1:
        raise ConfigError(f"batch = {batch}: must be at least 1")
    if first_stream < 0:
        raise ConfigError(f"first stream number = {first_stream}: must not be negative")
    return torch.arange(first_stream, first_stream + batch, dtype=torch.int64)


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
        if self.top_k < 0:
            raise ConfigError(f"top-k = {self.top_k}: must be 0 (keep all classes) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top-p = {self.top_p}: must be more than 0 and at most 1 (keep all)")


def uniforms(state: GeneratorState, steps: int) -> torch.Tensor:
    """Return the uniform numbers that the next `steps` samples of each stream are drawn with.

    The number for a sample depends on the seed, the stream's number and the sample's position only: it is
    word p of numpy's counter-based `Philox` keyed (seed, stream) (Salmon et al. 2011), to 24 bits.

    Returns
    -------
    float32 tensor (batch, steps), in [0, 1), on the CPU
    """
    values = np.empty((state.batch, steps), dtype=np.float32)
    streams, positions = state.stream.tolist(), state.position.tolist()
    for row, (stream, position) in enumerate(zip(streams, positions, strict=True)):
        # One step of the counter gives four 64-bit words.
        block, skip = divmod(position, 4)
        key = np.array([state.seed, stream], dtype=np.uint64)
        words = np.random.Philox(key=key, counter=block).random_raw(skip + steps)[skip:]
        values[row] = (words >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    return torch.from_numpy(values)
