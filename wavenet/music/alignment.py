"""Alignment of scores with recordings: notes have to begin where the recording grows louder."""

from __future__ import annotations

import numpy as np

from wavenet.music.score import Score

STEP = 0.01
"""Seconds between successive levels."""

REACH = 0.5
"""Largest shift of a score that is tried, in seconds, in either direction."""

_ON_TIME = (-0.03, 0.06)
"""Seconds from the onset of an aligned note to the rise of its level: attacks take some time."""

_SIGNIFICANT = 5.0
"""Standard errors by which the rises at the onsets exceed those at random times."""

_FEWEST = 20
"""Smallest number of onsets that allows a statement."""


class Loudness:
    """Rise of a recording's level from step to step.

    Parameters
    ----------
    seconds : float
        Length of the recording.
    rate : int
        Samples per second.
    """

    def __init__(self, seconds: float, rate: int):
        self.hop = max(1, round(rate * STEP))
        self.energy = np.zeros(int(seconds * rate) // self.hop + 1)

    def add(self, start: int, audio: np.ndarray) -> None:
        """Add a part of the recording, float (time,), beginning at sample `start`; the rest is silence."""
        first, before = divmod(start, self.hop)
        after = -(before + len(audio)) % self.hop
        squares = np.pad(audio.astype(np.float64) ** 2, (before, after))
        steps = squares.reshape(-1, self.hop).sum(axis=1)[: len(self.energy) - first]
        self.energy[first : first + len(steps)] += steps

    def rises(self) -> np.ndarray:
        """Return the rise of the level at each step, in nepers of energy; 0 where it falls."""
        # Levels more than 40 dB below the mean count as silence.
        level = np.log(self.energy + 1e-4 * self.energy.mean() + 1e-12)
        return np.maximum(np.diff(level, prepend=level[:1]), 0.0)


def alignment_problem(rises: np.ndarray, score: Score) -> str | None:
    """Return in a few words why a score may not be aligned with a recording; None if it may be.

    The rises at the score's onsets are averaged, and again for the score shifted by up to `REACH`. If notes
    are aligned with the audio, the average is far above that of random times. Music in strict time fits
    almost as well when shifted by a beat, so a score counts as shifted only if it fits twice as well there.

    Parameters
    ----------
    rises : float array (steps,)
        From `Loudness.rises`.
    score : Score
    """
    reach = round(REACH / STEP)
    onset = np.floor(np.unique(score.onset.round(3)) / STEP).astype(np.int64)
    onset = onset[(onset >= reach) & (onset < len(rises) - reach)]
    deviation = float(rises.std())
    if len(onset) < _FEWEST or deviation == 0.0:
        return None
    moved = np.arange(-reach, reach + 1)
    found = np.array([rises[onset + steps].mean() for steps in moved])
    # An attack spreads over neighbouring steps.
    found = np.convolve(found, np.ones(3) / 3, "same")
    significance = (found - np.median(found)) / (deviation / np.sqrt(len(onset)))
    best = int(significance.argmax())
    low, high = (round(seconds / STEP) + reach for seconds in _ON_TIME)
    if significance[best] < _SIGNIFICANT:
        return "the recording has no attacks at its onsets"
    if significance[low : high + 1].max() < significance[best] / 2:
        by = abs(int(moved[best])) * STEP
        return f"{by:.2f} s {'late' if moved[best] < 0 else 'early'}"
    return None
