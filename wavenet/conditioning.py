"""Conditioning as one mechanism: a bias on every layer's gate, known per frame."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from wavenet.errors import ConfigError


@dataclass(frozen=True)
class GateBias:
    """What is added to each layer's gate, at frame rate (van den Oord et al. 2016, section 2.5).

    The bias at position p of a stream is the one used in the step that predicts sample p. With
    q = p - start and f = floor(q / hop) it is frame f, or, if `linear`, the mixture of frames f and
    f + 1 with weight (q mod hop) / hop on the latter. Beyond either end the nearest frame holds.

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

    def at(self, position: int, steps: int, layer: int) -> torch.Tensor:
        """Return one layer's bias for `steps` positions, (batch, steps, 2 * dilation_channels)."""
        offset = torch.arange(position - self.start, position - self.start + steps)
        frame = torch.div(offset, self.hop, rounding_mode="floor")
        last = self.values.shape[1] - 1
        values = self.values[:, :, layer]
        here = values[:, frame.clamp(0, last)]
        if not self.linear:
            return here
        weight = ((offset - frame * self.hop).to(torch.float32) / self.hop).to(values.device)[:, None]
        return (1 - weight) * here + weight * values[:, (frame + 1).clamp(0, last)]

    def stream(self, index: int) -> GateBias:
        """Return the bias of one stream, batch 1."""
        return replace(self, values=self.values[index : index + 1])
