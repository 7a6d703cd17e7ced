"""Conditioning on notes: the piano roll of a score, frame by frame."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch

from wavenet.conditioning.base import require_conditioning, require_features
from wavenet.config import WaveNetConfig
from wavenet.music.rule_composer import BARS, BEATS, TEMPO, compose, score_of
from wavenet.music.score import Score


class Tunes:
    """One composed tune after the other, endlessly, for a network that was trained with scores.

    Parameters
    ----------
    config : WaveNetConfig
    seed : int
        The first tune is `compose(seed, bars)`.
    bars : int
        Of each tune.

    Raises
    ------
    ConfigError
        If the network was not trained with scores.
    """

    constant = False
    complete = True

    def __init__(self, config: WaveNetConfig, seed: int, bars: int = BARS[1]):
        require_features(config, "score")
        assert config.conditioning is not None
        self.frame = config.conditioning.hop / config.sample_rate
        # Between two tunes there is half a bar's rest.
        self.period = (bars + 0.5) * BEATS * 60 / TEMPO
        self._tune = functools.lru_cache(maxsize=4)(
            lambda number: score_of(compose(seed + (number << 64), bars))
        )

    def read(self, first: int, count: int) -> torch.Tensor:
        """Return frames; see `FrameSource` in `wavenet.generation.conditioned`."""
        begin, end = first * self.frame, (first + count) * self.frame
        numbers = range(max(0, math.floor(begin / self.period)), math.floor(end / self.period) + 1)
        # A tune ends before the next one begins.
        rolls = [self._tune(k).roll(begin - k * self.period, self.frame, count) for k in numbers]
        silence = Score(*np.zeros((4, 0))).roll(begin, self.frame, count)
        return torch.from_numpy(functools.reduce(np.maximum, rolls, silence))[None]


class ScoreSource:
    """A score that begins with frame 0."""

    constant = False
    complete = True

    def __init__(self, config: WaveNetConfig, score: Score):
        require_features(config, "score")
        self.score = score
        self.frame = require_conditioning(config).hop / config.sample_rate

    def read(self, first: int, count: int) -> torch.Tensor:
        """Return the frames of the score; see `FrameSource`."""
        return torch.from_numpy(self.score.roll(first * self.frame, self.frame, count))[None]
