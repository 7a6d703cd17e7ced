"""The state of streams between two samples: queues, position, random numbers and sampling settings."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from wavenet.engine.sampling import MAX_TOP_K, Sampling
from wavenet.errors import CheckpointError, ConfigError
from wavenet.models.serialization import read_tensors, serialized
from wavenet.utils.files import atomic_output

MAX_BATCH = 1_000_000
"""Streams in one state; a larger number is almost certainly a typo."""

_MAX_POSITION = 2**60
_ADVICE = "use another state"


def _default() -> torch.Tensor:
    return torch.empty(0)


@dataclass
class GeneratorState:
    """A batch of independent streams, one row of every tensor for each; generators change it in place.

    Streams can be added (`join`) and taken away (`select`, `remove`) between chunks. The samples of a stream
    depend on its own row only, to the bit.

    The queue of a layer with dilation d is a ring of (kernel_size - 1) * d rows of `queues`; the rings follow
    each other in layer order. The step at position p feeds `last_sample`, reads the tap with delay j * d at
    slot (p - j * d) mod depth, and then writes the layer's new input to slot p mod depth.

    Attributes
    ----------
    queues : float32 tensor (batch, queue_steps, residual_channels)
    position : int64 tensor (batch,)
        Samples in each stream so far, those of the primer included.
    last_sample : int64 tensor (batch,)
        Class of each stream's latest sample, not fed to the network yet.
    stream : int64 tensor (batch,)
        Number of each stream. Seed, number, substream and position determine a stream's random numbers.
    seed : int64 tensor (batch,)
        0 or more. By default 0.
    substream : int64 tensor (batch,)
        Selects one of the stream's sequences of random numbers; regenerated passages use the next one.
        By default 0.
    temperature : float64 tensor (batch,)
    top_k : int64 tensor (batch,)
    top_p : float64 tensor (batch,)
        Sampling settings; see `Sampling`. By default 1, 0 and 1.
    conditioning_start : int64 tensor (batch,)
        Position of the first sample of frame 0 of the stream's conditioning. By default 0.
    """

    queues: torch.Tensor
    position: torch.Tensor
    last_sample: torch.Tensor
    stream: torch.Tensor
    seed: torch.Tensor = field(default_factory=_default)
    substream: torch.Tensor = field(default_factory=_default)
    temperature: torch.Tensor = field(default_factory=_default)
    top_k: torch.Tensor = field(default_factory=_default)
    top_p: torch.Tensor = field(default_factory=_default)
    conditioning_start: torch.Tensor = field(default_factory=_default)

    def __post_init__(self) -> None:
        for name, value in _DEFAULTS.items():
            tensor = getattr(self, name)
            if not tensor.numel():
                dtype = torch.int64 if isinstance(value, int) else torch.float64
                default = torch.full((self.batch,), value, dtype=dtype, device=self.queues.device)
                setattr(self, name, default)

    @property
    def batch(self) -> int:
        """Number of streams."""
        return self.queues.shape[0]

    def sampling(self, row: int) -> Sampling:
        """Return the sampling settings of one stream."""
        return Sampling(float(self.temperature[row]), int(self.top_k[row]), float(self.top_p[row]))

    def with_sampling(self, sampling: Sampling | Sequence[Sampling]) -> GeneratorState:
        """Return the state with other sampling settings; it shares all other tensors with this one.

        Parameters
        ----------
        sampling : Sampling or sequence of Sampling
            For all streams, or one for each.

        Raises
        ------
        ConfigError
            If their number is not that of the streams.
        """
        rows = [sampling] * self.batch if isinstance(sampling, Sampling) else list(sampling)
        if len(rows) != self.batch:
            raise ConfigError(f"{len(rows)} sampling settings for {self.batch} stream(s): give one for each")
        device = self.queues.device
        return dataclasses.replace(
            self,
            temperature=torch.tensor([each.temperature for each in rows], dtype=torch.float64, device=device),
            top_k=torch.tensor([each.top_k for each in rows], dtype=torch.int64, device=device),
            top_p=torch.tensor([each.top_p for each in rows], dtype=torch.float64, device=device),
        )

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> GeneratorState:
        return GeneratorState(**{name: function(getattr(self, name)) for name in _TENSORS})

    def clone(self) -> GeneratorState:
        """Return an independent copy."""
        return self._map(lambda tensor: tensor.clone())

    def to(self, device: str | torch.device) -> GeneratorState:
        """Return the state on a device; tensors that are there already are not copied."""
        return self._map(lambda tensor: tensor.to(device))

    def select(self, indices: Sequence[int]) -> GeneratorState:
        """Return a copy of some of the streams, by row."""
        index = torch.as_tensor(list(indices), dtype=torch.int64, device=self.queues.device)
        return self._map(lambda tensor: tensor[index])

    def remove(self, indices: Sequence[int]) -> GeneratorState:
        """Return a copy of all streams but those of some rows."""
        removed = set(indices)
        return self.select([row for row in range(self.batch) if row not in removed])

    @torch.inference_mode()
    def put(self, indices: Sequence[int], streams: GeneratorState) -> None:
        """Overwrite the streams of some rows, in place."""
        index = torch.as_tensor(list(indices), dtype=torch.int64, device=self.queues.device)
        for name in _TENSORS:
            getattr(self, name)[index] = getattr(streams, name)

    @classmethod
    def join(cls, states: Sequence[GeneratorState]) -> GeneratorState:
        """Return the streams of several states of one network as one state.

        Raises
        ------
        ConfigError
            If there is no state, or their queues differ in shape.
        """
        shapes = {tuple(state.queues.shape[1:]) for state in states}
        if len(shapes) != 1:
            raise ConfigError(f"states with queues of shapes {sorted(shapes)}: join states of one network")
        return cls(**{name: torch.cat([getattr(state, name) for state in states]) for name in _TENSORS})

    def fan_out(self, batch: int, first_stream: int = 0) -> GeneratorState:
        """Return `batch` copies of a single stream, with consecutive numbers from `first_stream` on.

        Raises
        ------
        ConfigError
            If the state does not contain exactly one stream.
        """
        if self.batch != 1:
            raise ConfigError(f"only a single stream can be fanned out, this state contains {self.batch}")
        numbers = stream_numbers(batch, first_stream).to(self.stream.device)
        return dataclasses.replace(self.select([0] * batch), stream=numbers)

    def save(self, path: str | os.PathLike[str], notes: dict[str, str] | None = None) -> None:
        """Write the state and its metadata as a safetensors file, atomically."""
        with atomic_output(path) as file:
            file.write(serialized({name: getattr(self, name) for name in _TENSORS}, notes))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GeneratorState:
        """Read a state written by `save`; `CheckpointError` if the file is not one."""
        tensors = read_tensors(Path(path), _ADVICE)
        if set(tensors) != set(_TENSORS):
            raise CheckpointError(f"{path}: is not a generator's saved state; {_ADVICE}")
        try:
            state = cls(**tensors)
            state.check()
        except ConfigError as error:
            raise CheckpointError(f"{path}: is damaged ({error}); {_ADVICE}") from None
        if not bool(torch.isfinite(state.queues).all()):
            raise CheckpointError(f"{path}: is damaged (its queues contain NaN or infinity); {_ADVICE}")
        return state

    def check(self) -> None:
        """Raise `ConfigError` unless shapes and dtypes agree with each other and values are in range."""
        if self.queues.dtype != torch.float32 or self.queues.dim() != 3:
            raise ConfigError(
                f"the state's queues are {self.queues.dtype} {tuple(self.queues.shape)}: expected float32 "
                "(batch, queue_steps, residual_channels)"
            )
        for name in _TENSORS[1:]:
            tensor, default = getattr(self, name), _DEFAULTS.get(name, 0)
            dtype = torch.int64 if isinstance(default, int) else torch.float64
            if tensor.dtype != dtype or tensor.shape != (self.batch,):
                raise ConfigError(
                    f"the state's {name} is {tensor.dtype} {tuple(tensor.shape)}: "
                    f"expected {dtype} ({self.batch},)"
                )
        for name, (low, high) in _RANGES.items():
            tensor = getattr(self, name)
            # Written so that NaN is out of range.
            if not bool(((tensor >= low) & (tensor <= high)).all()):
                raise ConfigError(f"the state's {name} is out of range: {tensor.tolist()[:4]}")
        if bool((self.top_p == 0).any()):
            raise ConfigError(f"the state's top_p is out of range: {self.top_p.tolist()[:4]}")


_DEFAULTS: dict[str, int | float] = {
    "seed": 0,
    "substream": 0,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "conditioning_start": 0,
}
_TENSORS = tuple(each.name for each in dataclasses.fields(GeneratorState))
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("position", "last_sample", "stream", "substream"), (0, _MAX_POSITION - 1)),
    "seed": (0, 2**63 - 1),
    "temperature": (0.0, torch.finfo(torch.float64).max),
    "top_k": (0, MAX_TOP_K),
    "top_p": (0.0, 1.0),
    "conditioning_start": (1 - _MAX_POSITION, _MAX_POSITION - 1),
}


def stream_numbers(batch: int, first_stream: int = 0) -> torch.Tensor:
    """Return int64 (batch,) consecutive stream numbers; `ConfigError` if a count or number is negative."""
    if not 1 <= batch <= MAX_BATCH:
        raise ConfigError(f"batch = {batch}: must be from 1 to {MAX_BATCH}")
    if first_stream < 0:
        raise ConfigError(f"first_stream = {first_stream}: must not be negative")
    return torch.arange(first_stream, first_stream + batch, dtype=torch.int64)
