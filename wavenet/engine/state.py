"""What a stream is between two samples: its queues, its place, its randomness, and how samples are drawn."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from wavenet.errors import CheckpointError, ConfigError
from wavenet.models.serialization import read_tensors, serialized
from wavenet.utils.files import atomic_output


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
    substream : int64 tensor (batch,)
        Which of its sequences of random numbers each stream draws from: 0, and another one where a stretch
        is made once more. By default 0 for all.
    """

    queues: torch.Tensor
    position: torch.Tensor
    last_sample: torch.Tensor
    stream: torch.Tensor
    seed: int = 0
    substream: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        if not self.substream.numel():
            self.substream = torch.zeros_like(self.stream)

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

    @classmethod
    def join(cls, states: Sequence[GeneratorState]) -> GeneratorState:
        """Return the streams of several states with the same seed as one state."""
        tensors = {name: torch.cat([getattr(state, name) for state in states]) for name in _TENSORS}
        return cls(**tensors, seed=states[0].seed)

    def fan_out(self, batch: int, first_stream: int = 0) -> GeneratorState:
        """Return `batch` copies of a single stream, numbered from `first_stream` on.

        Raises `ConfigError` if the state holds more than one stream.
        """
        if self.batch != 1:
            raise ConfigError(f"only a single stream can be fanned out, this state holds {self.batch}")
        numbers = stream_numbers(batch, first_stream).to(self.stream.device)
        return dataclasses.replace(self.select([0] * batch), stream=numbers)

    def save(self, path: str | os.PathLike[str], notes: dict[str, str] | None = None) -> None:
        """Write the state, and notes beside it, as a safetensors file that appears whole or not at all."""
        seed = torch.tensor(self.seed, dtype=torch.int64)
        tensors = {name: getattr(self, name) for name in _TENSORS}
        with atomic_output(path) as file:
            file.write(serialized({**tensors, "seed": seed}, notes))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GeneratorState:
        """Read a state written by `save`; `CheckpointError` if the file is not one."""
        tensors = read_tensors(Path(path), _ADVICE)
        # Older files know no sub-streams.
        if {*tensors, "substream"} != {*_TENSORS, "seed"}:
            raise CheckpointError(f"{path}: is not a generator's saved state; {_ADVICE}")
        seed = tensors.pop("seed")
        if seed.numel() != 1 or seed.dtype != torch.int64:
            raise CheckpointError(f"{path}: is not a generator's saved state; {_ADVICE}")
        try:
            state = cls(**tensors, seed=int(seed))
            state.check()
        except ConfigError as error:
            raise CheckpointError(f"{path}: is damaged ({error}); {_ADVICE}") from None
        if not bool(torch.isfinite(state.queues).all()):
            raise CheckpointError(f"{path}: is damaged (its queues hold NaN or infinity); {_ADVICE}")
        return state

    def check(self) -> None:
        """Raise `ConfigError` unless shapes and dtypes agree with each other and values are in range."""
        for name in ("position", "last_sample", "stream", "substream"):
            tensor = getattr(self, name)
            if tensor.dtype != torch.int64 or tensor.shape != (self.batch,):
                raise ConfigError(
                    f"the state's {name} is {tensor.dtype} {tuple(tensor.shape)}: "
                    f"expected int64 ({self.batch},)"
                )
            if tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) < 2**60:
                raise ConfigError(f"the state's {name} is out of range: {tensor.tolist()[:4]}")
        if self.queues.dtype != torch.float32 or self.queues.dim() != 3:
            raise ConfigError(
                f"the state's queues are {self.queues.dtype} {tuple(self.queues.shape)}: expected float32 "
                "(batch, queue_steps, residual_channels)"
            )
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed = {self.seed}: must be from 0 to 2^63 - 1")


MAX_BATCH = 1_000_000
"""Streams in one state; more is a slip of the hand."""

_ADVICE = "use another state"

_TENSORS = ("queues", "position", "last_sample", "stream", "substream")


def stream_numbers(batch: int, first_stream: int = 0) -> torch.Tensor:
    """Return int64 (batch,) consecutive stream numbers; `ConfigError` if a count or number is negative."""
    if not 1 <= batch <= MAX_BATCH:
        raise ConfigError(f"batch = {batch}: must be from 1 to {MAX_BATCH}")
    if first_stream < 0:
        raise ConfigError(f"first stream number = {first_stream}: must not be negative")
    return torch.arange(first_stream, first_stream + batch, dtype=torch.int64)
