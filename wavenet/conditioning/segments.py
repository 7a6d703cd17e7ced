"""Frames of training segments, and which segments are trained without conditioning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from wavenet.conditioning import registry
from wavenet.conditioning.base import Frames, Timeline, TrainingSegment, require_conditioning
from wavenet.config import WaveNetConfig

# The words that choose the segments begin at counter 0 of the same key; no batch is large enough to reach
# these.
_COUNTER = (0, 0, 0, 2)


class Conditions:
    """Computes the frames of segments of one part of the data.

    Parameters
    ----------
    config : WaveNetConfig
        A conditioned network's.
    annotations : mapping, optional
        What a kind needs to know of each clip, by the kind's name: "classes" the numbers of the classes,
        "score" the scores of the recordings.
    condition_dropout : float
        Share of the training segments without conditioning (classifier-free guidance, Ho and Salimans 2022).
    """

    def __init__(
        self,
        config: WaveNetConfig,
        annotations: Mapping[str, Sequence[Any]] | None = None,
        condition_dropout: float = 0.0,
    ):
        self.config = config
        self.conditioning = require_conditioning(config)
        self.kinds = registry.kinds_of(self.conditioning)
        self.annotations = annotations or {}
        self.condition_dropout = condition_dropout
        self._context = registry.context_frames(self.conditioning)

    def frame_range(self, segment: int) -> tuple[int, int]:
        """Return the range [first, stop) of frames that a segment of so many targets needs."""
        hop = self.conditioning.hop
        before = -(-self.config.receptive_field // hop) + self._context
        # Interpolation needs the frame after the last sample's.
        return -before, (segment - 1) // hop + 2 + self._context

    def audio_window(self, segment: int) -> tuple[int, int]:
        """Return how many samples before a segment's first target, and from it on, are needed."""
        hops = [kind.audio_hops(self.conditioning) for kind in self.kinds]
        around = max((each for each in hops if each is not None), default=None)
        if around is None:
            return self.config.receptive_field, segment
        (first, stop), hop = self.frame_range(segment), self.conditioning.hop
        # Whole hops, so that frames are those of a signal that begins with the window.
        return (around - first) * hop, max(segment, (stop - 1 + around) * hop)

    def frames(
        self,
        clips: Timeline,
        starts: Sequence[int],
        audio: np.ndarray,
        segment: int,
        key: tuple[int, int, int] | None = None,
        speeds: Sequence[float] | None = None,
    ) -> Frames:
        """Return the frames of segments.

        Parameters
        ----------
        clips : Timeline
        starts : sequence of int
            Place of each segment's first target on the timeline.
        audio : float32 array (batch, before + after)
            The amplitudes that `audio_window` asks for, 0 between recordings.
        segment : int
            Targets of each segment.
        key : (int, int, int), optional
            Of a draw in training, for which the timeline is a ring: seed, step, and segments skipped.
        speeds : sequence of float, optional
            Factor by which each segment is played faster.

        Raises
        ------
        ConfigError
            If segments are played faster or slower and a kind does not allow it.
        """
        speeds = [1.0] * len(starts) if speeds is None else speeds
        if any(speed != 1 for speed in speeds):
            registry.check_speed(self.conditioning)
        first, stop = self.frame_range(segment)
        audio_frame = -(self.audio_window(segment)[0] // self.conditioning.hop)
        rows = []
        for start, row, speed in zip(starts, audio, speeds, strict=True):
            described = TrainingSegment(
                self.config, first, stop, clips, start, key is not None, speed, row, audio_frame, ()
            )
            parts = [
                kind.segment_frames(replace(described, annotations=self.annotations.get(kind.name, ())))
                for kind in self.kinds
            ]
            rows.append(np.concatenate(parts))
        found = Frames(torch.from_numpy(np.stack(rows)), first)
        if key is None or not self.condition_dropout:
            return found
        return replace(found, conditioned_mask=torch.from_numpy(~self._dropped(len(rows), key)))

    def _dropped(self, rows: int, key: tuple[int, int, int]) -> np.ndarray:
        seed, step, first = key
        words = np.random.Philox(
            key=np.array([seed, step], dtype=np.uint64), counter=np.array(_COUNTER, dtype=np.uint64)
        ).random_raw(first + rows)[first:]
        return words < np.uint64(self.condition_dropout * (2**64 - 1))
