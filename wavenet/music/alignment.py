"""Whether the notes of a score begin when a recording grows louder: by the sound alone, without any model."""

from __future__ import annotations

import numpy as np

from wavenet.music.score import Score

STEP = 0.01
"""Seconds between the levels that are compared."""

REACH = 0.5
"""Seconds by which a score is looked for, early and late."""

_ON_TIME = (-0.03, 0.06)
"""Seconds after which a note that is played when it says grows louder: attacks take some time."""

_HEARD = 5.0
"""How much more often than by chance, in standard errors, notes begin where it grows louder."""

_FEWEST = 20
"""Onsets without which nothing is said."""


class Loudness:
    """How much louder a recording grows from step to step.

    Parameters
    ----------
    seconds : float
        Of the recording.
    rate : int
        Samples a second.
    """

    def __init__(self, seconds: float, rate: int):
        self.hop = max(1, round(rate * STEP))
        self.energy = np.zeros(int(seconds * rate) // self.hop + 1)

    def add(self, start: int, audio: np.ndarray) -> None:
        """Hear a stretch of it, float (time,), from sample `start` on; what is never heard is silent."""
        first, before = divmod(start, self.hop)
        after = -(before + len(audio)) % self.hop
        squares = np.pad(audio.astype(np.float64) ** 2, (before, after))
        steps = squares.reshape(-1, self.hop).sum(axis=1)[: len(self.energy) - first]
        self.energy[first : first + len(steps)] += steps

    def rises(self) -> np.ndarray:
        """Return by how much it grows louder at each step, in nepers of energy; 0 where it does not."""
        # 40 dB below the mean nothing counts as silence broken.
        level = np.log(self.energy + 1e-4 * self.energy.mean() + 1e-12)
        return np.maximum(np.diff(level, prepend=level[:1]), 0.0)


def alignment_problem(rises: np.ndarray, score: Score) -> str | None:
    """Say in a few words why a score may not go with a recording; None where nothing speaks against it.

    The rises at the score's onsets are averaged, and again for the score moved by up to `REACH`. Where notes
    are aligned with the sound the average is far above what chance gives. Music in strict time fits as well a
    beat off, so that only what fits twice as well elsewhere is taken for moved.

    Parameters
    ----------
    rises : float array (steps,)
        Of `Loudness`.
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
    # Attacks are spread over neighbouring steps.
    found = np.convolve(found, np.ones(3) / 3, "same")
    heard = (found - np.median(found)) / (deviation / np.sqrt(len(onset)))
    best = int(heard.argmax())
    low, high = (round(seconds / STEP) + reach for seconds in _ON_TIME)
    if heard[best] < _HEARD:
        return "no onset of a note is heard"
    if heard[low : high + 1].max() < heard[best] / 2:
        by = abs(int(moved[best])) * STEP
        return f"{by:.2f} s {'late' if moved[best] < 0 else 'early'}"
    return None
