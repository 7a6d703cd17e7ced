"""The gate bias: conditioning as one bias per layer and frame."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from wavenet.errors import ConfigError


@dataclass(frozen=True)
class GateBias:
    """Bias that each layer adds before its gate, at frame rate (van den Oord et al. 2016, section 2.5).

    The bias at position p of a stream is used in the step that predicts sample p. With
    q = p - start and f = floor(q / hop) it is frame f, or, if `linear`, the mixture of frames f and
    f + 1 with weight (q mod hop) / hop on the latter. Beyond either end the nearest frame is used.

    Attributes
    ----------
    values : float32 tensor (batch, frames, layers, 2 * dilation_channels)
        The filter half first, as in the dilated convolutions.
    hop : int
        Samples per frame.
    start : int
        Position of the first sample of frame 0.
    linear : bool
        Interpolate between frames rather than repeat them.
    """

    values: torch.Tensor
    hop: int
    start: int = 0
    linear: bool = False

    def __post_init__(self) -> None:
        if self.values.dim() != 4 or self.values.dtype != torch.float32 or self.values.shape[1] == 0:
            raise ConfigError(
                "gate bias: expected float32 of shape (batch, frames, layers, 2 * dilation_channels), "
                f"found {self.values.dtype} {tuple(self.values.shape)}"
            )
        if self.hop < 1:
            raise ConfigError(f"gate bias: hop = {self.hop} samples per frame: must be at least 1")

    def at(self, position: int, steps: int, layer: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return one layer's bias for `steps` positions, (batch, steps, 2 * dilation_channels)."""
        values = self.values[:, :, layer].to(dtype)
        last = values.shape[1] - 1
        if last == 0:
            return values.expand(-1, steps, -1)
        first, skipped = divmod(position - self.start, self.hop)
        frames = -(-(skipped + steps) // self.hop)
        index = torch.arange(first, first + frames + 1, device=values.device)
        some = values[:, index.clamp(0, last)]
        if steps < self.hop:
            offset = torch.arange(skipped, skipped + steps, device=values.device)
            here, beyond = some[:, offset // self.hop], some[:, offset // self.hop + 1]
            weight = self._weight(offset % self.hop, dtype)
            return (1 - weight) * here + weight * beyond if self.linear else here
        # Repetition is a view, whose gradient is a plain sum over each frame's samples.
        here, beyond = (each.unsqueeze(2) for each in (some[:, :-1], some[:, 1:]))
        here = here.expand(-1, -1, self.hop, -1)
        if self.linear:
            weight = self._weight(torch.arange(self.hop, device=values.device), dtype)
            here = (1 - weight) * here + weight * beyond
        return here.reshape(len(values), frames * self.hop, -1)[:, skipped : skipped + steps]

    def _weight(self, within: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return (within.to(torch.float32) / self.hop).to(dtype)[:, None]

    def stream(self, index: int) -> GateBias:
        """Return the bias of one stream, batch 1."""
        return replace(self, values=self.values[index : index + 1])
