"""The same recordings, a little different each time that they are trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wavenet.audio import mulaw
from wavenet.audio.decoding import resampler

# The words that choose the segments begin at counter 0 of the same key; these lie far beyond any batch.
_COUNTER = (0, 0, 0, 1)
_SPEED_COUNTER = (0, 0, 0, 3)

_MARGIN = 512
"""Samples on either side of a stretch that its resampling looks at: its filter is shorter than that."""


@dataclass(frozen=True)
class Augmentation:
    """Changes to training segments that leave a recording one that could have been made.

    Attributes
    ----------
    quantization_channels : int
        Number of classes.
    gain_db : float
        Each segment is made softer by an amount drawn uniformly from 0 to this many dB.
    polarity : bool
        Whether each segment is turned upside down at a chance of one half.
    speed : float
        Each segment is played up to this share faster, or as many times slower, by an amount drawn uniformly
        on a scale of musical intervals: pitch and tempo change together, as those of a tape do.
    """

    quantization_channels: int
    gain_db: float = 0.0
    polarity: bool = False
    speed: float = 0.0

    def factors(self, step: int, rows: int, seed: int) -> np.ndarray:
        """Return the factor of each segment's amplitudes, float64 (rows,).

        It is the same whenever `step`, `seed` and the number of the row are, whatever else is asked for.
        """
        words = _words(_COUNTER, step, 2 * rows, seed)
        factors = 10.0 ** (-self.gain_db * _shares(words[::2]) / 20)
        if self.polarity:
            factors[words[1::2] >= np.uint64(2**63)] *= -1
        return factors

    def speeds(self, step: int, rows: int, seed: int) -> np.ndarray:
        """Return how many times as fast each segment is played, float64 (rows,), as `factors` are drawn."""
        if not self.speed:
            return np.ones(rows)
        shares = _shares(_words(_SPEED_COUNTER, step, rows, seed))
        return (1 + self.speed) ** (2 * shares - 1)

    def table(self, factor: float) -> np.ndarray:
        """Return the class that each class becomes, int64 (classes,): decoded, scaled, and encoded again."""
        amplitudes = mulaw.decode(np.arange(self.quantization_channels), self.quantization_channels)
        return mulaw.encode(amplitudes.astype(np.float64) * factor, self.quantization_channels)

    def apply(
        self, rows: list[tuple[np.ndarray, np.ndarray]], step: int, seed: int, first: int = 0
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return segments changed, each given as its classes and which of them are real samples.

        The silence between clips stays the class from which every stream begins. `first` is the number of the
        first row in the step.
        """
        factors = self.factors(step, first + len(rows), seed)[first:].tolist()
        return [
            (np.where(real, self.table(factor)[values], values), real)
            for (values, real), factor in zip(rows, factors, strict=True)
        ]


def _words(counter: tuple[int, ...], step: int, count: int, seed: int) -> np.ndarray:
    key = np.array([seed, step], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array(counter, dtype=np.uint64)).random_raw(count)


def _shares(words: np.ndarray) -> np.ndarray:
    # 53 bits are what a float64 holds exactly.
    return (words >> np.uint64(11)).astype(np.float64) / 2.0**53


def played(
    cut: Callable[[int, int], tuple[np.ndarray, np.ndarray]],
    start: int,
    before: int,
    after: int,
    speed: float,
    classes: int,
    silence: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a stretch as it sounds at another speed: its classes, and which of them are real.

    Parameters
    ----------
    cut : callable
        Given the first place and the length of a stretch, returns its classes and which of them are real.
    start : int
        Place of the sample that comes after the first `before` of the result; it may come from up to one
        sample later, as places between samples are not drawn.
    before, after : int
        Samples of the result before that one, and from it on.
    speed : float
        Sample n of the result is from n * speed samples after that place.
    classes, silence : int
        Number of classes, and the one between recordings.
    """
    lead = _MARGIN + math.ceil(before * speed)
    # The first sample of the result that is not from before `start`.
    first = math.ceil(lead / speed)
    values, real = cut(start - lead, math.ceil((first + after) * speed) + _MARGIN)
    audio = np.where(real, mulaw.decode(values, classes), 0).astype(np.float32)
    heard = np.arange(first - before, first + after)
    sounds = real[np.floor(heard * speed).astype(np.int64)]
    resampled = resampler().resample(audio, speed, 1.0, quality="HQ")[heard]
    return np.where(sounds, mulaw.encode(resampled, classes), silence), sounds
