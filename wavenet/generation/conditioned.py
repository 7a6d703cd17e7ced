"""What generation is told, read frame by frame as it is needed: classes, features, scores."""

from __future__ import annotations

import contextlib
import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from wavenet.audio.levels import Signal
from wavenet.audio.mel import log_mel_frames
from wavenet.config import ConditioningConfig, WaveNetConfig
from wavenet.errors import ConfigError
from wavenet.models.conditioner import Frames, GateBias, mixture, reach
from wavenet.music.midi_file import Score

BLOCK = 16
"""Frames whose bias is computed at once: always the same ones, so that no sample depends on the chunks."""

LONG_BLOCK = 64
"""The same where nobody waits for the last of them, and a frame's bias depends on no others' being computed
with it: what a call costs, and the frames around a block that count for it, are shared by more."""

_FRAMES_KEPT = 1024

SILENT_MEL = -1.0
"""What `log_mel` gives for silence."""

Weights = Mapping[str, float]


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Keep torch to one thread: a product split over another number of them may round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Source(Protocol):
    """Frames by number, endlessly in both directions."""

    constant: bool
    """Whether all frames are the same."""

    @property
    def complete(self) -> bool:
        """Whether all frames can be read by now."""
        ...

    def read(self, first: int, count: int) -> torch.Tensor:
        """Return frames [first, first + count), float32 (1 or batch, channels, count)."""
        ...


class Classes:
    """Weights of the classes, linear in time between break points and constant beyond them.

    Parameters
    ----------
    config : WaveNetConfig
    points : sequence of (seconds, weights)
        In order of time; a single one is constant. Weights by class name; those not named are 0.

    Raises
    ------
    ConfigError
        If a name is unknown, a weight not finite, or the points are not in order.
    """

    complete = True

    def __init__(self, config: WaveNetConfig, points: Sequence[tuple[float, Weights]]):
        told = _told(config)
        if not points:
            raise ConfigError("no class is named: give one, or a mixture as piano:0.7,cello:0.3")
        self.seconds = np.array([seconds for seconds, _ in points], dtype=np.float64)
        self.weights = np.stack([mixture(told.class_names, dict(each)).numpy() for _, each in points])
        if not np.isfinite(self.weights).all():
            raise ConfigError("a class weight is not finite: give plain numbers, as piano:0.7,cello:0.3")
        if not np.isfinite(self.seconds).all() or (np.diff(self.seconds) <= 0).any():
            raise ConfigError(f"classes at {self.seconds.tolist()} seconds: times must rise")
        self.frame = told.hop / config.sample_rate
        self.constant = len(points) == 1

    def read(self, first: int, count: int) -> torch.Tensor:
        """Return the weights at the beginning of each frame; see `Source`."""
        times = (first + np.arange(count)) * self.frame
        rows = [np.interp(times, self.seconds, each) for each in self.weights.T]
        return torch.from_numpy(np.stack(rows).astype(np.float32))[None]


def class_points(text: str) -> list[tuple[float, dict[str, float]]]:
    """Return the break points in a text, for `Classes`.

    "cello" and "piano:0.7,cello:0.3" hold throughout; "0:piano 2.5:piano:0.2,cello:0.8" goes from one to the
    other in the time between. A name without a weight has 1.

    Raises `ConfigError` if it is not of this form.
    """
    parts = text.split()
    if len(parts) == 1 and not _TIMED.match(parts[0]):
        return [(0.0, _weights(parts[0], text))]
    points = []
    for part in parts:
        timed = _TIMED.match(part)
        if timed is None:
            raise ConfigError(f"class {text!r}: before {part!r} a time is missing, as in '0:piano 2:cello'")
        points.append((float(timed[1]), _weights(timed[2], text)))
    return points


_TIMED = re.compile(r"(\d+(?:\.\d*)?):([^\d.].*)$")


def _weights(part: str, text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for each in part.split(","):
        name, colon, weight = each.partition(":")
        try:
            value = float(weight) if colon else 1.0
        except ValueError:
            value = math.nan
        if not name or not math.isfinite(value) or name in found:
            raise ConfigError(
                f"class {text!r}: {each!r} is not NAME or NAME:WEIGHT; a mixture is piano:0.7,cello:0.3"
            )
        found[name] = value
    return found


class Notes:
    """A score that begins with frame 0."""

    constant = False
    complete = True

    def __init__(self, config: WaveNetConfig, score: Score):
        expect(config, "score")
        self.score = score
        self.frame = _told(config).hop / config.sample_rate

    def read(self, first: int, count: int) -> torch.Tensor:
        """Return the frames of the score; see `Source`."""
        return torch.from_numpy(self.score.roll(first * self.frame, self.frame, count))[None]


class MelOf:
    """The mel spectrum of a recording, computed as it is needed.

    Parameters
    ----------
    config : WaveNetConfig
    signal : array or anything read in slices, float32 (samples,)
        At the network's rate.
    """

    constant = False
    complete = True

    def __init__(self, config: WaveNetConfig, signal: Signal):
        expect(config, "mel")
        self.config = config
        self.signal = signal

    def read(self, first: int, count: int) -> torch.Tensor:
        """Return the frames of the spectrum; see `Source`."""
        told = _told(self.config)
        return torch.from_numpy(
            log_mel_frames(
                self.signal,
                first,
                count,
                self.config.sample_rate,
                told.n_fft,
                told.hop,
                told.n_mels,
                told.fmin,
                told.fmax,
            )
        )[None]


class Given:
    """Frames of features given as they are, all at once or while generation goes on.

    Parameters
    ----------
    config : WaveNetConfig
    values : float tensor (feature_channels, frames) or (batch, feature_channels, frames)
    closed : bool
        Whether these are all; otherwise `append` adds more and `ready` says how far they reach.

    Raises
    ------
    ConfigError
        If the shape is not the network's, or a value is not finite.
    """

    constant = False

    def __init__(self, config: WaveNetConfig, values: torch.Tensor, closed: bool = True):
        self.told = _told(config)
        if self.told.features == "none":
            raise ConfigError("this network reads no features: leave them out, or use one trained with some")
        self.closed = closed
        self.outside = SILENT_MEL if self.told.features == "mel" else 0.0
        self.values = self._checked(values)

    def _checked(self, values: torch.Tensor) -> torch.Tensor:
        channels = self.told.feature_channels
        values = values[None] if values.dim() == 2 else values
        if values.dim() != 3 or values.shape[1] != channels or not values.is_floating_point():
            raise ConfigError(
                f"features are {str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}: expected "
                f"floating point ({channels}, frames) or (batch, {channels}, frames), a frame for each "
                f"{self.told.hop} samples"
            )
        if not bool(torch.isfinite(values).all()):
            bad = int((~torch.isfinite(values)).flatten(0, 1).any(dim=0).nonzero()[0])
            raise ConfigError(f"features: frame {bad} holds NaN or infinity; mend it first")
        return values.to("cpu", torch.float32)

    def append(self, values: torch.Tensor, last: bool = False) -> None:
        """Add frames of the same shape; `last` says that no more will come."""
        if self.closed:
            raise ConfigError("features: the last frames have come already")
        self.values = torch.cat([self.values, self._checked(values)], dim=2)
        self.closed = last

    @property
    def complete(self) -> bool:
        """Whether the last frames have come; see `Source`."""
        return self.closed

    @property
    def ready(self) -> int:
        """Samples from position 0 on that can be generated now; after the last frames, those they cover.

        Until then they are fewer, by what the network looks ahead.
        """
        frames = self.values.shape[2]
        if not self.closed:
            frames = max(frames - look_ahead(self.told), 0)
        return frames * self.told.hop

    def read(self, first: int, count: int) -> torch.Tensor:
        """Return the frames, and silence where there are none; see `Source`."""
        rows, channels, length = self.values.shape
        if not self.closed and first + count > length:
            raise ConfigError(
                f"features: {length} frames have come, and {first + count} are needed now; generate no more "
                "than `ready` samples"
            )
        found = torch.full((rows, channels, count), self.outside)
        low, high = min(max(first, 0), length), min(max(first + count, 0), length)
        found[:, :, low - first : high - first] = self.values[:, :, low:high]
        return found


class Together:
    """Classes and features at once, in the order in which a network has them."""

    def __init__(self, classes: Source, features: Source):
        self.parts = (classes, features)
        self.constant = False

    @property
    def complete(self) -> bool:
        """Whether all frames of both can be read; see `Source`."""
        return all(part.complete for part in self.parts)

    def read(self, first: int, count: int) -> torch.Tensor:
        """Return the frames of both; see `Source`."""
        found = [part.read(first, count) for part in self.parts]
        rows = max(map(len, found))
        return torch.cat([each.expand(rows, -1, -1) for each in found], dim=1)


def look_ahead(told: ConditioningConfig) -> int:
    """Return how many frames beyond those being played have to be known."""
    return BLOCK + reach(told.features)


class BiasMaker(Protocol):
    """What makes gate biases: a `Conditioner`, or a compiled one."""

    told: ConditioningConfig
    steady: bool
    """Whether a frame's bias is the same to the bit whatever frames are computed with it."""

    @property
    def reach(self) -> int:
        """Frames before and after one that its bias depends on."""
        ...

    def gate_bias(self, frames: Frames) -> GateBias:
        """Return the gate bias of frames, which must reach `reach` beyond what is wanted on either side."""
        ...


class Steering:
    """The gate bias of a stream, made piece by piece of what a source tells.

    Its memory does not grow with the length of the stream.

    Parameters
    ----------
    conditioner : BiasMaker
        The network's `Conditioner`, or what a backend has in its place.
    source : Source
    start : int
        Position of the stream at which frame 0 begins.
    guidance : float
        What the bias is multiplied by: 1 as trained, 0 as told nothing, above 1 told with emphasis.

    Raises
    ------
    ConfigError
        If `guidance` is not finite or below 0.

    Notes
    -----
    Classifier-free guidance (Ho and Salimans 2022) runs a network twice, told (c) and untold (u), and goes on
    from one through the other: logits u + guidance * (c - u). Here untold is the same network with a bias of
    zero, as `condition_dropout` trains it, so the same way can be gone in the bias itself. With l(b) the
    logits under a bias b, both are l(0) + guidance * l'(0) b to first order; beyond that they differ: gates
    saturate, so that too much guidance distorts less here, and logits do not. It is therefore guidance in
    that paper's sense only where biases are small, but it takes one pass a sample instead of two, and every
    backend has it.
    """

    def __init__(self, conditioner: BiasMaker, source: Source, start: int = 0, guidance: float = 1.0):
        if not (math.isfinite(guidance) and guidance >= 0):
            raise ConfigError(f"guidance = {guidance:g}: must be 0 or more; 1 is as trained")
        self.conditioner = conditioner
        self.source = source
        self.start = start
        self.guidance = guidance
        self.block = LONG_BLOCK if conditioner.steady and source.complete else BLOCK
        self._blocks: OrderedDict[int, torch.Tensor] = OrderedDict()

    @torch.inference_mode()
    def between(self, first: int, stop: int) -> GateBias:
        """Return the gate bias that holds for the positions [first, stop)."""
        told = self.conditioner.told
        if self.source.constant:
            return GateBias(self._block(0)[:, :1], told.hop)
        low = (first - self.start) // told.hop // self.block
        # With interpolation the frame after the last one counts as well.
        high = ((stop - 1 - self.start) // told.hop + told.linear) // self.block
        blocks = [self._block(block) for block in range(low, high + 1)]
        values = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
        return GateBias(values, told.hop, self.start + low * self.block * told.hop, told.linear)

    def _block(self, number: int) -> torch.Tensor:
        if number not in self._blocks:
            reach = self.conditioner.reach
            frames = self.source.read(number * self.block - reach, self.block + 2 * reach)
            with single_thread():
                rows = [self.conditioner.gate_bias(Frames(row[None])).values for row in frames]
            values = rows[0] if len(rows) == 1 else torch.cat(rows)
            self._blocks[number] = values if self.guidance == 1 else values * self.guidance
            if len(self._blocks) * self.block > _FRAMES_KEPT:
                self._blocks.popitem(last=False)
        return self._blocks[number]


def _told(config: WaveNetConfig) -> ConditioningConfig:
    if config.conditioning is None:
        raise ConfigError("this network was trained without conditions: it can be told nothing")
    return config.conditioning


def expect(config: WaveNetConfig, features: str) -> None:
    """Raise `ConfigError` unless a network was trained with these features."""
    found = _told(config).features
    if found != features:
        wants = "no features" if found == "none" else f"{found} features"
        raise ConfigError(f"this network was trained with {wants}, not with {features} features")
