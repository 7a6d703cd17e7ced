"""Conditioning on frames that the caller supplies, all at once or while generation runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wavenet.conditioning import registry
from wavenet.conditioning.base import Input, require_conditioning
from wavenet.config import WaveNetConfig
from wavenet.errors import AudioError, ConfigError
from wavenet.utils.files import cause, printable

if TYPE_CHECKING:
    import torch


class SuppliedFrames:
    """Frames of features as the caller computed them, whatever kind of features the network uses.

    Parameters
    ----------
    config : WaveNetConfig
    values : float tensor (feature channels, frames) or (batch, feature channels, frames)
    closed : bool
        Whether these are all frames; otherwise `append` adds more, and `ready` samples can be generated.

    Raises
    ------
    ConfigError
        If the network has no features, the shape is not the network's, or a value is not finite.
    """

    constant = False

    def __init__(self, config: WaveNetConfig, values: torch.Tensor, closed: bool = True):
        self.conditioning = require_conditioning(config)
        kind = registry.feature_kind(self.conditioning)
        if kind is None:
            raise ConfigError("this network has no features; remove them, or use a network trained with some")
        self.kind = kind
        self.closed = closed
        self.values = self._checked(values)

    def _checked(self, values: torch.Tensor) -> torch.Tensor:
        import torch

        channels = self.kind.channels(self.conditioning)
        values = values[None] if values.dim() == 2 else values
        if values.dim() != 3 or values.shape[1] != channels or not values.is_floating_point():
            raise ConfigError(
                f"features are {str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}: expected "
                f"floating point ({channels}, frames) or (batch, {channels}, frames), one frame for "
                f"{self.conditioning.hop} samples"
            )
        if not bool(torch.isfinite(values).all()):
            bad = int((~torch.isfinite(values)).flatten(0, 1).any(dim=0).nonzero()[0])
            raise ConfigError(f"features: frame {bad} contains NaN or infinity")
        return values.to("cpu", torch.float32)

    def append(self, values: torch.Tensor, last: bool = False) -> None:
        """Add frames of the same shape; `last` closes the source.

        Raises `ConfigError` if the source is closed.
        """
        import torch

        if self.closed:
            raise ConfigError("features: no frames can be added after the last ones")
        self.values = torch.cat([self.values, self._checked(values)], dim=2)
        self.closed = last

    @property
    def complete(self) -> bool:
        """Whether the last frames were added."""
        return self.closed

    @property
    def ready(self) -> int:
        """Samples from position 0 on that can be generated now.

        The frames cover them; until the source is closed, the network's look-ahead is subtracted.
        """
        frames = self.values.shape[2]
        if not self.closed:
            frames = max(frames - registry.look_ahead_frames(self.conditioning), 0)
        return frames * self.conditioning.hop

    def read(self, first: int, count: int) -> torch.Tensor:
        """Return the frames, and silence outside of them; see `FrameSource`.

        Raises `ConfigError` if frames are needed that were not added yet.
        """
        import torch

        rows, channels, length = self.values.shape
        if not self.closed and first + count > length:
            raise ConfigError(
                f"features: {first + count} frames are needed and {length} were added; generate at most "
                "`ready` samples"
            )
        found = torch.full((rows, channels, count), self.kind.silence)
        low, high = min(max(first, 0), length), min(max(first + count, 0), length)
        found[:, :, low - first : high - first] = self.values[:, :, low:high]
        return found


def _from_file(config: WaveNetConfig, path: Path) -> tuple[SuppliedFrames, float]:
    frames = SuppliedFrames(config, _read_array(path))
    return frames, frames.ready / config.sample_rate


def _read_array(path: Path) -> torch.Tensor:
    import numpy as np
    import torch

    try:
        values = np.load(path, allow_pickle=False)
    except OSError as error:
        raise AudioError(f"{printable(path)}: cannot be read: {cause(error)}") from None
    except (ValueError, EOFError):
        values = None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise AudioError(f"{printable(path)}: is no .npy file of numbers; save one with numpy.save")
    return torch.from_numpy(values.astype(np.float32))


FEATURES_FILE = Input("features", ".npy file of frames (channels, frames) to follow", _from_file)
"""A .npy file of frames (feature channels, frames), for every kind of features."""
