"""The gate bias: conditioning as one bias per layer and frame."""

from __future__ import annotations

from collections.abc import Sequence
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
    start : int or int64 tensor (1 or batch,)
        Position of the first sample of frame 0, in all streams or in each.
    linear : bool
        Interpolate between frames rather than repeat them.
    """

    values: torch.Tensor
    hop: int
    start: int | torch.Tensor = 0
    linear: bool = False

    def __post_init__(self) -> None:
        if self.values.dim() != 4 or self.values.dtype != torch.float32 or self.values.shape[1] == 0:
            raise ConfigError(
                "gate bias: expected float32 of shape (batch, frames, layers, 2 * dilation_channels), "
                f"found {self.values.dtype} {tuple(self.values.shape)}"
            )
        if self.hop < 1:
            raise ConfigError(f"gate bias: hop = {self.hop} samples per frame: must be at least 1")
        if isinstance(self.start, torch.Tensor):
            if self.start.dtype != torch.int64 or self.start.shape not in ((1,), self.values.shape[:1]):
                raise ConfigError(
                    f"gate bias: start is {self.start.dtype} {tuple(self.start.shape)}: expected int64 "
                    f"(1,) or ({len(self.values)},)"
                )
            if len(self.start) == 1:
                object.__setattr__(self, "start", int(self.start))

    @classmethod
    def join(cls, parts: Sequence[GateBias]) -> GateBias:
        """Return the biases of single streams, of one `hop` and interpolation, as one with a row for each.

        Fewer frames are padded with the last one, which has no effect.
        """
        frames = max(part.values.shape[1] for part in parts)
        padded = [
            torch.cat([part.values, part.values[:, -1:].expand(-1, frames - part.values.shape[1], -1, -1)], 1)
            for part in parts
        ]
        starts = torch.tensor([int(part.start) for part in parts], dtype=torch.int64)
        return cls(torch.cat(padded), parts[0].hop, starts, parts[0].linear)

    def at(self, position: int, steps: int, layer: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return one layer's bias for `steps` positions, (batch, steps, 2 * dilation_channels)."""
        if isinstance(self.start, torch.Tensor):
            rows = [self.stream(row).at(position, steps, layer, dtype) for row in range(len(self.values))]
            return torch.cat(rows)
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
        start = self.start if isinstance(self.start, int) else int(self.start[index])
        return replace(self, values=self.values[index : index + 1], start=start)
