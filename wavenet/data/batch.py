"""Batches of segments: the inputs, targets and frames of a training step."""

from __future__ import annotations

from typing import NamedTuple

import torch

from wavenet.conditioning.base import Frames

IGNORED = -1


class Segments(NamedTuple):
    """Segments of audio to train on or to score.

    Attributes
    ----------
    inputs : int64 tensor (batch, receptive_field - 1 + segment)
        Classes; target i is predicted from inputs i to i + receptive_field - 1.
    targets : int64 tensor (batch, segment)
        Classes, or -1 (`IGNORED`) where nothing is predicted.
    frames : Frames or None
        Conditioning; position 0 is that of the first target.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    frames: Frames | None = None

    def rows(self, rows: slice) -> Segments:
        """Return some of the batch."""
        frames = self.frames and self.frames.rows(rows)
        return Segments(self.inputs[rows], self.targets[rows], frames)

    def pinned(self) -> Segments:
        """Return them in pinned memory, from which a GPU copies asynchronously; unchanged without a GPU."""
        if not torch.cuda.is_available():
            return self
        frames = self.frames and self.frames.pinned()
        return Segments(self.inputs.pin_memory(), self.targets.pin_memory(), frames)
