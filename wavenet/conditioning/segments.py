"""What comes with training segments besides the audio: the class and the features of each frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from wavenet.audio.mel import log_mel_frames
from wavenet.conditioning.base import Frames, Timeline, context_frames
from wavenet.config import ConditioningConfig, WaveNetConfig
from wavenet.errors import ConfigError
from wavenet.music.score import Score

# The words that choose the segments begin at counter 0 of the same key; these lie far beyond any batch.
_COUNTER = (0, 0, 0, 2)


def refuse_speed(conditioning: ConditioningConfig | None) -> None:
    """Raise `ConfigError` if segments must not be played faster or slower: scores say which pitches sound."""
    if conditioning is not None and conditioning.features == "score":
        raise ConfigError(
            "--augment-speed: moves pitches away from the scores of --midi-dir; leave one of them out"
        )


class Conditions:
    """Makes the frames of segments of one part of the data.

    Parameters
    ----------
    config : WaveNetConfig
        With a `conditioning`.
    labels : sequence of int, optional
        Of a network with classes: the number of each clip's class.
    scores : sequence of Score, optional
        Of a network with scores: that of each clip's recording.
    condition_dropout : float
        Share of the training segments that are told nothing.
    """

    def __init__(
        self,
        config: WaveNetConfig,
        labels: Sequence[int] | None = None,
        scores: Sequence[Score] | None = None,
        condition_dropout: float = 0.0,
    ):
        assert config.conditioning is not None
        self.config = config
        self.conditioning = config.conditioning
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        self.scores = scores
        self.condition_dropout = condition_dropout
        self._margin = context_frames(self.conditioning.features)

    def frame_range(self, segment: int) -> tuple[int, int]:
        """Return the numbers of the first frame and of the one after the last that a segment needs."""
        hop = self.conditioning.hop
        before = -(-self.config.receptive_field // hop) + self._margin
        # Interpolation needs the frame after the last sample's.
        return -before, (segment - 1) // hop + 2 + self._margin

    def audio_window(self, segment: int) -> tuple[int, int]:
        """Return how many samples before a segment's first target, and from it on, its frames look at."""
        (first, stop), hop = self.frame_range(segment), self.conditioning.hop
        if self.conditioning.features != "mel":
            return self.config.receptive_field, segment
        # Whole hops, so that the window's frames are those of a signal that begins with it.
        window = -(-self.conditioning.n_fft // 2 // hop)
        return (window - first) * hop, max(segment, (stop - 1 + window) * hop)

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
            Of a draw in training, for which the timeline is a ring: seed, step, and segments passed over.
        speeds : sequence of float, optional
            How many times as fast each segment is played.

        Raises
        ------
        ConfigError
            If segments are played faster or slower and come with scores, whose pitches do not change.
        """
        speeds = [1.0] * len(starts) if speeds is None else speeds
        if self.conditioning.features == "score" and any(speed != 1 for speed in speeds):
            refuse_speed(self.conditioning)
        first, stop = self.frame_range(segment)
        rows = []
        for start, row, speed in zip(starts, audio, speeds, strict=True):
            parts = []
            if self.labels is not None:
                parts.append(self._classes(clips, start, first, stop, key is not None, speed))
            if self.conditioning.features == "mel":
                parts.append(self._mel(row, segment))
            if self.conditioning.features == "score":
                parts.append(self._score(clips, start, first, stop, key is not None))
            rows.append(np.concatenate(parts))
        found = Frames(torch.from_numpy(np.stack(rows)), first)
        if key is None or not self.condition_dropout:
            return found
        return replace(found, conditioned_mask=torch.from_numpy(~self._dropped(len(rows), key)))

    def _classes(
        self, clips: Timeline, start: int, first: int, stop: int, ring: bool, speed: float
    ) -> np.ndarray:
        assert self.labels is not None
        places = start + np.floor(speed * self.conditioning.hop * np.arange(first, stop)).astype(np.int64)
        labels = self.labels[clips.owners(places, ring)]
        return (labels == np.arange(len(self.conditioning.class_names))[:, None]).astype(np.float32)

    def _mel(self, audio: np.ndarray, segment: int) -> np.ndarray:
        conditioning, (first, stop) = self.conditioning, self.frame_range(segment)
        begun = self.audio_window(segment)[0] // conditioning.hop
        return log_mel_frames(
            audio,
            first + begun,
            stop - first,
            self.config.sample_rate,
            conditioning.n_fft,
            conditioning.hop,
            conditioning.n_mels,
            conditioning.fmin,
            conditioning.fmax,
        )

    def _score(self, clips: Timeline, start: int, first: int, stop: int, ring: bool) -> np.ndarray:
        assert self.scores is not None
        hop, rate = self.conditioning.hop, self.config.sample_rate
        found = np.zeros((self.conditioning.feature_channels, stop - first), dtype=np.float32)
        for index, begin, end, source in clips.spans(start + first * hop, start + stop * hop, ring):
            # Every frame that touches the clip, counted from the segment's first target.
            low = max((begin - start) // hop, first)
            high = min(-(-(end - start) // hop), stop)
            seconds = (start + low * hop - begin + source) / rate
            roll = self.scores[index].roll(seconds, hop / rate, high - low)
            part = found[:, low - first : high - first]
            np.maximum(part, roll, out=part)
        return found

    def _dropped(self, rows: int, key: tuple[int, int, int]) -> np.ndarray:
        seed, step, first = key
        words = np.random.Philox(
            key=np.array([seed, step], dtype=np.uint64), counter=np.array(_COUNTER, dtype=np.uint64)
        ).random_raw(first + rows)[first:]
        return words < np.uint64(self.condition_dropout * (2**64 - 1))
