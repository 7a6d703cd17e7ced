"""What every kind of conditioning shares: frames, sources of frames, and their context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from wavenet.config import ConditioningConfig, WaveNetConfig
from wavenet.errors import ConfigError


@dataclass(frozen=True)
class Frames:
    """What a network is told, per frame.

    Attributes
    ----------
    values : float32 tensor (batch, channels, frames)
        A weight for each class, then the features.
    first : int
        Number of the first frame; frame f begins at position f * hop of the stream.
    conditioned_mask : bool tensor (batch,), optional
        Which rows are told at all; the others have no bias, whatever their frames say.
    """

    values: torch.Tensor
    first: int = 0
    conditioned_mask: torch.Tensor | None = None

    def rows(self, some: slice, device: torch.device | None = None) -> Frames:
        """Return some of the batch, on a device."""
        conditioned_mask = (
            None
            if self.conditioned_mask is None
            else self.conditioned_mask[some].to(device, non_blocking=True)
        )
        return replace(
            self, values=self.values[some].to(device, non_blocking=True), conditioned_mask=conditioned_mask
        )

    def pinned(self) -> Frames:
        """Return them in memory from which a GPU copies while it computes."""
        conditioned_mask = None if self.conditioned_mask is None else self.conditioned_mask.pin_memory()
        return replace(self, values=self.values.pin_memory(), conditioned_mask=conditioned_mask)


TAPS = 3


DILATIONS = (1, 2, 4)


def context_frames(features: str) -> int:
    """Return how many frames before and after one its bias depends on."""
    return 0 if features == "none" else sum(DILATIONS) * (TAPS - 1) // 2


class Timeline(Protocol):
    """The clips end to end, as `wavenet.data.clips.Clips` has them."""

    def spans(self, first: int, stop: int, ring: bool) -> Iterator[tuple[int, int, int, int]]:
        """Yield the clips that touch [first, stop): number, beginning, end, and start in the recording."""
        ...

    def owners(self, places: np.ndarray, ring: bool) -> np.ndarray:
        """Return the number of the clip that each place belongs to, itself or as the gap before it."""
        ...


BLOCK = 16
"""Frames whose bias is computed at once: always the same ones, so that no sample depends on the chunks."""


class FrameSource(Protocol):
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


def look_ahead(conditioning: ConditioningConfig) -> int:
    """Return how many frames beyond those being played have to be known."""
    return BLOCK + context_frames(conditioning.features)


def require_conditioning(config: WaveNetConfig) -> ConditioningConfig:
    if config.conditioning is None:
        raise ConfigError("this network was trained without conditions: it can be told nothing")
    return config.conditioning


def require_features(config: WaveNetConfig, features: str) -> None:
    """Raise `ConfigError` unless a network was trained with these features."""
    found = require_conditioning(config).features
    if found != features:
        wants = "no features" if found == "none" else f"{found} features"
        raise ConfigError(f"this network was trained with {wants}, not with {features} features")
