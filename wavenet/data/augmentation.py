"""Random changes of gain, polarity and speed, applied to the audio of training segments."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wavenet.audio.decoding import resampler

AudioReader = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
"""Given a first position and a count, returns float32 audio and which of its samples are real (bool)."""

# The words that choose the segments start at counter 0 of the same key; these counters are far beyond any
# batch.
_COUNTER = (0, 0, 0, 1)
_SPEED_COUNTER = (0, 0, 0, 3)

_MARGIN = 512
"""Samples read on either side of a segment before it is resampled; the resampling filter is shorter."""


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training segments; each segment stays a plausible recording.

    Attributes
    ----------
    gain_db : float
        Each segment is attenuated by an amount drawn uniformly from 0 to this many dB.
    polarity : bool
        Whether each segment is inverted with probability one half.
    speed : float
        Each segment is resampled to play up to this share faster, or slower by the same ratio. The draw is
        uniform in log speed. Pitch and tempo change together, as with a tape.
    """

    gain_db: float = 0.0
    polarity: bool = False
    speed: float = 0.0

    def factors(self, step: int, rows: int, seed: int) -> np.ndarray:
        """Return the factor of each segment's amplitudes, float64 (rows,).

        A row's factor depends on `step`, `seed` and the row number only.
        """
        words = _words(_COUNTER, step, 2 * rows, seed)
        factors = 10.0 ** (-self.gain_db * _uniform(words[::2]) / 20)
        if self.polarity:
            factors[words[1::2] >= np.uint64(2**63)] *= -1
        return factors

    def speeds(self, step: int, rows: int, seed: int) -> np.ndarray:
        """Return the speed ratio of each segment, float64 (rows,); drawn like `factors`."""
        if not self.speed:
            return np.ones(rows)
        uniform = _uniform(_words(_SPEED_COUNTER, step, rows, seed))
        return (1 + self.speed) ** (2 * uniform - 1)

    def apply(self, rows: list[np.ndarray], step: int, seed: int, first: int = 0) -> list[np.ndarray]:
        """Return the audio of segments with gain and polarity applied.

        Parameters
        ----------
        rows : list of float32 arrays (samples,)
            Amplitudes, 0 between clips, which stays 0.
        step, seed : int
            Key of the draw.
        first : int
            Number of the first row within the step.
        """
        factors = self.factors(step, first + len(rows), seed)[first:]
        return [row * np.float32(factor) for row, factor in zip(rows, factors, strict=True)]


def _words(counter: tuple[int, ...], step: int, count: int, seed: int) -> np.ndarray:
    key = np.array([seed, step], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array(counter, dtype=np.uint64)).random_raw(count)


def _uniform(words: np.ndarray) -> np.ndarray:
    # float64 holds 53 bits exactly.
    return (words >> np.uint64(11)).astype(np.float64) / 2.0**53


def resampled_segment(
    read: AudioReader, start: int, before: int, after: int, speed: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return a segment at another speed.

    Parameters
    ----------
    read : callable
        Reads the audio; see `AudioReader`.
    start : int
        Position of the sample that follows the first `before` samples of the result. The source position may
        be up to one sample later, because the resampled grid does not contain every position.
    before, after : int
        Samples of the result before that position, and from it on.
    speed : float
        Sample n of the result is taken n * speed samples after that position.

    Returns
    -------
    float32 array (before + after,)
        Amplitudes in [-1, 1], 0 between clips.
    bool array (before + after,)
        Which of them are real.
    """
    lead = _MARGIN + math.ceil(before * speed)
    # The first sample of the result that does not come from before `start`.
    first = math.ceil(lead / speed)
    audio, real = read(start - lead, math.ceil((first + after) * speed) + _MARGIN)
    wanted = np.arange(first - before, first + after)
    kept = real[np.floor(wanted * speed).astype(np.int64)]
    resampled = resampler().resample(audio, speed, 1.0, quality="HQ")[wanted]
    # The filter overshoots, and it rings beyond the ends of a clip.
    return np.where(kept, np.clip(resampled, -1, 1), np.float32(0)), kept
