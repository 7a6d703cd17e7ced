"""Conditioning on frames that the caller supplies, all at once or as they arrive."""

from __future__ import annotations

import torch

from wavenet.conditioning.base import FrameSource, look_ahead, require_conditioning
from wavenet.conditioning.mel import SILENT_MEL
from wavenet.config import WaveNetConfig
from wavenet.errors import ConfigError


class SuppliedFrames:
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
        self.conditioning = require_conditioning(config)
        if self.conditioning.features == "none":
            raise ConfigError("this network reads no features: leave them out, or use one trained with some")
        self.closed = closed
        self.outside = SILENT_MEL if self.conditioning.features == "mel" else 0.0
        self.values = self._checked(values)

    def _checked(self, values: torch.Tensor) -> torch.Tensor:
        channels = self.conditioning.feature_channels
        values = values[None] if values.dim() == 2 else values
        if values.dim() != 3 or values.shape[1] != channels or not values.is_floating_point():
            raise ConfigError(
                f"features are {str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}: expected "
                f"floating point ({channels}, frames) or (batch, {channels}, frames), a frame for each "
                f"{self.conditioning.hop} samples"
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
        """Whether the last frames have come; see `FrameSource`."""
        return self.closed

    @property
    def ready(self) -> int:
        """Samples from position 0 on that can be generated now; after the last frames, those they cover.

        Until then they are fewer, by what the network looks ahead.
        """
        frames = self.values.shape[2]
        if not self.closed:
            frames = max(frames - look_ahead(self.conditioning), 0)
        return frames * self.conditioning.hop

    def read(self, first: int, count: int) -> torch.Tensor:
        """Return the frames, and silence where there are none; see `FrameSource`."""
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


class CombinedSource:
    """Classes and features at once, in the order in which a network has them."""

    def __init__(self, classes: FrameSource, features: FrameSource):
        self.parts = (classes, features)
        self.constant = False

    @property
    def complete(self) -> bool:
        """Whether all frames of both can be read; see `FrameSource`."""
        return all(part.complete for part in self.parts)

    def read(self, first: int, count: int) -> torch.Tensor:
        """Return the frames of both; see `FrameSource`."""
        found = [part.read(first, count) for part in self.parts]
        rows = max(map(len, found))
        return torch.cat([each.expand(rows, -1, -1) for each in found], dim=1)
