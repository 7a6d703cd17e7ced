"""Conditioning on notes: the piano roll of a score."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavenet.conditioning.base import (
    Companion,
    FrameSource,
    Input,
    Kind,
    TrainingSegment,
    as_tensor,
    require_features,
)
from wavenet.config import ConditioningConfig, WaveNetConfig
from wavenet.errors import AudioError
from wavenet.utils.files import printable

if TYPE_CHECKING:
    import numpy as np
    import torch

    from wavenet.music.score import Score

RELEASE_SECONDS = 1.5
"""Seconds generated after the last note of a score, in which it decays."""


class ScoreSource:
    """A score whose first second begins with frame 0.

    Parameters
    ----------
    config : WaveNetConfig
    score : Score

    Raises
    ------
    ConfigError
        If the network was not trained with scores.
    """

    constant = False
    complete = True

    def __init__(self, config: WaveNetConfig, score: Score):
        self.frame = require_features(config, "score").hop / config.sample_rate
        self.score = score

    def read(self, first: int, count: int) -> torch.Tensor:
        """Return the frames of the piano roll; see `FrameSource`."""
        return as_tensor(self.score.roll(first * self.frame, self.frame, count))


class Tunes:
    """Tunes composed by rule, one after another without end.

    Parameters
    ----------
    config : WaveNetConfig
    seed : int
        The first tune is `compose(seed, bars)`.
    bars : int, optional
        Bars of each tune; by default the most that `compose` allows.

    Raises
    ------
    ConfigError
        If the network was not trained with scores.
    """

    constant = False
    complete = True

    def __init__(self, config: WaveNetConfig, seed: int, bars: int | None = None):
        from wavenet.music.rule_composer import BARS, BEATS, TEMPO, compose, score_of

        bars = BARS[1] if bars is None else bars
        self.frame = require_features(config, "score").hop / config.sample_rate
        # Half a bar of rest separates two tunes.
        self.period = (bars + 0.5) * BEATS * 60 / TEMPO
        self._tune = functools.lru_cache(maxsize=4)(
            lambda number: score_of(compose(seed + (number << 64), bars))
        )

    def read(self, first: int, count: int) -> torch.Tensor:
        """Return the frames of the piano roll; see `FrameSource`."""
        import numpy as np

        from wavenet.music.score import Score

        begin, end = first * self.frame, (first + count) * self.frame
        numbers = range(max(0, math.floor(begin / self.period)), math.floor(end / self.period) + 1)
        # A tune ends before the next one begins.
        rolls = [self._tune(k).roll(begin - k * self.period, self.frame, count) for k in numbers]
        silence = Score(*np.zeros((4, 0))).roll(begin, self.frame, count)
        return as_tensor(functools.reduce(np.maximum, rolls, silence))


class ScoreFile(Companion):
    """The MIDI file of a recording."""

    argument = "midi_dir"
    noun = "score"
    suffixes = (".mid", ".midi", ".MID", ".MIDI")

    def read(self, path: Path) -> Score:
        """Return the score in a MIDI file; `AudioError` if it is unusable."""
        from wavenet.music.midi_file import read_midi

        return read_midi(path)

    def mismatch(self, annotation: Score, seconds: float) -> str | None:
        """Return why a score cannot belong to a recording of so many seconds; None if it can."""
        from wavenet.music.score import mismatch

        return mismatch(annotation, seconds)

    def alignment_problem(self, annotation: Score, rises: np.ndarray) -> str | None:
        """Return why a score may not be aligned with a recording; see `music.alignment`."""
        from wavenet.music.alignment import alignment_problem

        return alignment_problem(rises, annotation)

    def summary(self, annotations: Sequence[Any]) -> str:
        """Return one line with the number of scores and notes."""
        return f"{super().summary(annotations)}, {sum(map(len, annotations)):,} notes"


class ScoreKind(Kind):
    """Piano rolls, from MIDI files.

    All channels share one scale: with scales of their own, rarely played pitches would outweigh the others.
    """

    name = "score"
    companion = ScoreFile()
    shared_scale = True
    # Pitches of the audio would move away from those of the score.
    allows_speed = False

    def channels(self, conditioning: ConditioningConfig) -> int:
        """Return the rows of a piano roll."""
        from wavenet.music.score import ROLL_CHANNELS

        return ROLL_CHANNELS

    def segment_frames(self, segment: TrainingSegment) -> np.ndarray:
        """Return the piano roll of a training segment, float32 (ROLL_CHANNELS, frames)."""
        import numpy as np

        from wavenet.music.score import ROLL_CHANNELS

        hop, rate, place = segment.conditioning.hop, segment.config.sample_rate, segment.place
        first, stop = segment.first, segment.stop
        found = np.zeros((ROLL_CHANNELS, stop - first), dtype=np.float32)
        spans = segment.timeline.spans(place + first * hop, place + stop * hop, segment.ring)
        for index, begin, end, source in spans:
            # Every frame that overlaps the clip.
            low = max((begin - place) // hop, first)
            high = min(-(-(end - place) // hop), stop)
            seconds = (place + low * hop - begin + source) / rate
            roll = segment.annotations[index].roll(seconds, hop / rate, high - low)
            part = found[:, low - first : high - first]
            np.maximum(part, roll, out=part)
        return found

    def default_source(self, config: WaveNetConfig, seed: int) -> tuple[FrameSource, str]:
        """Return tunes composed by rule."""
        return Tunes(config, seed), f"plays a tune composed by rule, number {seed}"


def _from_midi(config: WaveNetConfig, path: Path) -> tuple[ScoreSource, float]:
    from wavenet.music.midi_file import read_midi

    score = read_midi(path)
    if not len(score):
        raise AudioError(f"{printable(path)}: contains no notes; choose another score")
    return ScoreSource(config, score), score.seconds + RELEASE_SECONDS


ScoreKind.inputs = (Input("midi", "MIDI file with the score to play", _from_midi),)
