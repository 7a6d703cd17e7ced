"""What all kinds of conditioning share: frames, sources of frames, and the interface of a kind.

A kind of conditioning is one object: it knows how many channels its frames have, how they are computed for
training segments, from which arguments a source of frames for generation is made, and how its channels are
normalized. `registry` lists the kinds. Nothing here imports torch at run time, so that commands can list the
arguments of all kinds before they load it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from wavenet.config import ConditioningConfig, WaveNetConfig
from wavenet.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch

TAPS = 3
"""Kernel size of the conditioner's convolutions over frames."""

DILATIONS = (1, 2, 4)
"""Their dilations, in frames."""

CONTEXT_FRAMES = sum(DILATIONS) * (TAPS - 1) // 2
"""Frames before and after a frame that its gate bias depends on, for kinds that pass the convolutions."""

BLOCK = 16
"""Frames whose gate bias is computed in one call; blocks are aligned, so that samples do not depend on how
generation is cut into chunks."""


@dataclass(frozen=True)
class Frames:
    """Conditioning of a batch at frame rate.

    Attributes
    ----------
    values : float32 tensor (batch, channels, frames)
        The channels of all kinds that the network uses, in the order of `registry.kinds_of`.
    first : int
        Number of the first frame; frame f begins at position f * hop of the stream.
    conditioned_mask : bool tensor (batch,), optional
        Rows that are conditioned; the others get a gate bias of zero, whatever their values are.
    """

    values: torch.Tensor
    first: int = 0
    conditioned_mask: torch.Tensor | None = None

    def rows(self, some: slice, device: torch.device | None = None) -> Frames:
        """Return some rows of the batch, on a device."""
        mask = self.conditioned_mask
        mask = None if mask is None else mask[some].to(device, non_blocking=True)
        return replace(self, values=self.values[some].to(device, non_blocking=True), conditioned_mask=mask)

    def pinned(self) -> Frames:
        """Return the same frames in page-locked memory, from which a GPU copies asynchronously."""
        mask = None if self.conditioned_mask is None else self.conditioned_mask.pin_memory()
        return replace(self, values=self.values.pin_memory(), conditioned_mask=mask)


class FrameSource(Protocol):
    """Frames by number, without end in either direction."""

    constant: bool
    """Whether all frames are equal."""

    @property
    def complete(self) -> bool:
        """Whether every frame can be read already."""
        ...

    def read(self, first: int, count: int) -> torch.Tensor:
        """Return frames [first, first + count), float32 (1 or batch, channels, count)."""
        ...


class CombinedSource:
    """Several sources whose channels are concatenated: class weights, then features.

    Parameters
    ----------
    *parts : FrameSource
        In the order of `registry.kinds_of`.
    """

    constant = False

    def __init__(self, *parts: FrameSource):
        self.parts = parts

    @property
    def complete(self) -> bool:
        """Whether every frame of all parts can be read already."""
        return all(part.complete for part in self.parts)

    def read(self, first: int, count: int) -> torch.Tensor:
        """Return frames [first, first + count), float32 (batch, channels, count)."""
        import torch

        found = [part.read(first, count) for part in self.parts]
        rows = max(map(len, found))
        return torch.cat([each.expand(rows, -1, -1) for each in found], dim=1)


def as_tensor(frames: np.ndarray) -> torch.Tensor:
    """Return frames (channels, frames) of one stream as a tensor (1, channels, frames)."""
    import torch

    return torch.from_numpy(frames)[None]


class Timeline(Protocol):
    """Clips end to end with gaps of silence between them; `wavenet.data.clips.Clips` implements it."""

    def spans(self, first: int, stop: int, ring: bool) -> Iterator[tuple[int, int, int, int]]:
        """Yield the clips that overlap [first, stop): index, begin, end, and start in the recording."""
        ...

    def owners(self, places: np.ndarray, ring: bool) -> np.ndarray:
        """Return the index of the clip that each place belongs to; a gap belongs to the clip after it."""
        ...


@dataclass(frozen=True)
class TrainingSegment:
    """One training segment, as `Kind.segment_frames` reads it.

    Attributes
    ----------
    config : WaveNetConfig
    first, stop : int
        Frames [first, stop) are needed; frame 0 begins with the segment's first target.
    timeline : Timeline
    place : int
        Place of the first target on the timeline.
    ring : bool
        Whether the timeline continues from its end to its beginning.
    speed : float
        Factor by which the recording is played faster.
    audio : float32 array (samples,)
        Amplitudes around the segment, 0 between recordings.
    audio_frame : int
        Number of the frame that begins with `audio`, 0 or less. Meaningful for kinds with `audio_hops`.
    annotations : sequence
        What the kind needs to know of each clip of the timeline, as a label or a score; empty if nothing.
    """

    config: WaveNetConfig
    first: int
    stop: int
    timeline: Timeline
    place: int
    ring: bool
    speed: float
    audio: np.ndarray
    audio_frame: int
    annotations: Sequence[Any]

    @property
    def conditioning(self) -> ConditioningConfig:
        """Settings of the network's conditioning."""
        return require_conditioning(self.config)


@dataclass(frozen=True)
class Input:
    """An argument of generation from which a kind makes a source of frames.

    Attributes
    ----------
    name : str
        Name of the argument, as in `mel_from`; errors carry it as their `argument`.
    description : str
        What the argument is, for the help of a command.
    read : callable (WaveNetConfig, value) -> (FrameSource, float or None)
        Returns the source, and the seconds that it covers if it ends.
    """

    name: str
    description: str
    read: Callable[[WaveNetConfig, Any], tuple[FrameSource, float | None]]


class Companion(ABC):
    """A file that accompanies each recording in training, under the same name, as a score does."""

    argument: ClassVar[str]
    """Name of the argument for the folder of these files; errors carry it as their `argument`."""

    noun: ClassVar[str]
    """What such a file is called in messages."""

    suffixes: ClassVar[tuple[str, ...]]
    """Endings of file names, with the dot."""

    @abstractmethod
    def read(self, path: Path) -> Any:
        """Return the content of a file, the annotation of the recording; `AudioError` if it is unusable."""

    def mismatch(self, annotation: Any, seconds: float) -> str | None:
        """Return why an annotation cannot belong to a recording of so many seconds; None if it can."""
        return None

    def alignment_problem(self, annotation: Any, rises: np.ndarray) -> str | None:
        """Return why an annotation may not be aligned with a recording; see `music.alignment`."""
        return None

    def summary(self, annotations: Sequence[Any]) -> str:
        """Return one line about all annotations."""
        return f"{self.noun + 's':<12}{len(annotations)} read"


class Kind(ABC):
    """One kind of conditioning."""

    name: ClassVar[str]
    """Value of `ConditioningConfig.features`, and key of a segment's annotations."""

    inputs: ClassVar[tuple[Input, ...]] = ()
    """Arguments of generation, besides frames that the caller supplies."""

    companion: ClassVar[Companion | None] = None
    """File that accompanies each recording in training; None if frames are computed without one."""

    context_frames: ClassVar[int] = CONTEXT_FRAMES
    """Frames before and after a frame that its gate bias depends on."""

    silence: ClassVar[float] = 0.0
    """Value of all channels where there is nothing to follow."""

    shared_scale: ClassVar[bool] = False
    """Whether all channels are normalized by one scale rather than each by its own."""

    allows_speed: ClassVar[bool] = True
    """Whether frames stay right when a training segment is played faster or slower."""

    @abstractmethod
    def channels(self, conditioning: ConditioningConfig) -> int:
        """Return the number of values per frame."""

    @abstractmethod
    def segment_frames(self, segment: TrainingSegment) -> np.ndarray:
        """Return the frames of a training segment, float32 (channels, stop - first)."""

    def check(self, config: WaveNetConfig) -> None:  # noqa: B027
        """Raise `ConfigError` if the network's settings do not suit this kind."""

    def audio_hops(self, conditioning: ConditioningConfig) -> int | None:
        """Return how many hops of audio beyond its first sample a frame reads; None if it reads no audio."""
        return None

    def default_source(self, config: WaveNetConfig, seed: int) -> tuple[FrameSource, str] | None:
        """Return a source for generation without inputs, and a note on it; None if there is none."""
        return None


def require_conditioning(config: WaveNetConfig) -> ConditioningConfig:
    """Return the settings of a network's conditioning; `ConfigError` if it is unconditional."""
    if config.conditioning is None:
        raise ConfigError("this network is unconditional; remove the conditioning")
    return config.conditioning


def require_features(config: WaveNetConfig, name: str) -> ConditioningConfig:
    """Return the settings of a network's conditioning; `ConfigError` unless it uses the named features."""
    conditioning = require_conditioning(config)
    if conditioning.features != name:
        found = f"{conditioning.features} features" if conditioning.has_features else "no features"
        raise ConfigError(f"this network was trained with {found}, not with {name} features")
    return conditioning
