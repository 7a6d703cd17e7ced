"""Scores: notes in seconds, and their piano rolls."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from wavenet.errors import ConfigError

PITCHES = 128


ROLL_CHANNELS = 3 * PITCHES
"""Rows of a piano roll: velocity of each pitch while it sounds, its onset, and its decay."""


FADING = 0.5
"""Time constant of the decay in seconds, about that of a piano.

The decay encodes how long ago a note began, which may be longer ago than a network's receptive field."""


# In frames: times this close to a frame's edge count as on it, whichever frame is the first.
_EDGE = 1e-6


_BLOCK = 64


_SHORTER_SECONDS, _LONGER_SECONDS = 2.0, 10.0


@dataclass(frozen=True, eq=False)
class Score:
    """The notes of a piece, in order of onset.

    Attributes
    ----------
    onset, release : float64 arrays (notes,)
        Seconds from the start of the piece; a note is released by key and pedal.
    pitch : int64 array (notes,)
        0 to 127; 60 is middle C.
    velocity : int64 array (notes,)
        1 to 127.

    Raises
    ------
    ConfigError
        If the arrays differ in shape or contain values outside these ranges.
    """

    onset: np.ndarray
    release: np.ndarray
    pitch: np.ndarray
    velocity: np.ndarray

    def __post_init__(self) -> None:
        kinds = {"onset": np.float64, "release": np.float64, "pitch": np.int64, "velocity": np.int64}
        arrays = {name: np.asarray(getattr(self, name), dtype=kind) for name, kind in kinds.items()}
        onset, release, pitch, velocity = arrays.values()
        if onset.ndim != 1 or any(each.shape != onset.shape for each in arrays.values()):
            shapes = ", ".join(f"{name} {each.shape}" for name, each in arrays.items())
            raise ConfigError(f"the arrays of a score differ in shape ({shapes}): give one value per note")
        if not (np.isfinite(onset).all() and np.isfinite(release).all() and (release >= onset).all()):
            raise ConfigError("a note of the score ends before it begins, or its times are not finite")
        if len(onset) and not (pitch.min() >= 0 and pitch.max() < PITCHES):
            raise ConfigError(f"pitches from {pitch.min()} to {pitch.max()} in the score: use 0 to 127")
        if len(onset) and not (velocity.min() >= 1 and velocity.max() <= 127):
            raise ConfigError(
                f"velocities from {velocity.min()} to {velocity.max()} in the score: use 1 to 127"
            )
        order = np.argsort(onset, kind="stable")
        for name, each in arrays.items():
            object.__setattr__(self, name, each[order])

    def __len__(self) -> int:
        return len(self.onset)

    @property
    def seconds(self) -> float:
        """End of the last note, in seconds; 0 without notes."""
        return float(self.release.max(initial=0.0))

    def roll(self, first: float, hop: float, frames: int) -> np.ndarray:
        """Return a piano roll; the cost depends on the notes nearby, not on the length of the piece.

        Parameters
        ----------
        first : float
            Seconds at which frame 0 begins; the piece is preceded and followed by silence.
        hop : float
            Seconds from one frame to the next: frame f covers [first + f * hop, first + (f + 1) * hop).
        frames : int

        Returns
        -------
        float32 array (ROLL_CHANNELS, frames)
            Rows 0 to 127: velocity / 127 of the latest note of that pitch that sounds at any time within the
            frame; a note always sounds in the frame where it begins. Rows 128 to 255: 1 in the frame where a
            note of that pitch begins. Rows 256 to 383: rows 0 to 127 times exp(-t / FADING), where the frame
            begins t seconds after the note.

        Raises
        ------
        ConfigError
            If `hop` is not above 0 or `frames` is below 0.
        """
        if not (hop > 0 and np.isfinite(hop) and np.isfinite(first) and frames >= 0):
            raise ConfigError(
                f"no roll of {frames} frames from {first} s every {hop} s: give finite times, hop > 0"
            )
        roll = np.zeros((ROLL_CHANNELS, frames), dtype=np.float32)
        near = self._near(first - _EDGE * hop, first + frames * hop)
        begin = np.floor((self.onset[near] - first) / hop + _EDGE)
        end = np.maximum(np.ceil((self.release[near] - first) / hop - _EDGE), begin + 1)
        begin, end = (np.clip(each, -1, frames).astype(np.int64).tolist() for each in (begin, end))
        times = first + hop * np.arange(frames)
        pitches, velocities = self.pitch[near].tolist(), (self.velocity[near] / 127).tolist()
        for start, stop, pitch, velocity, onset in zip(
            begin, end, pitches, velocities, self.onset[near].tolist(), strict=True
        ):
            sounding = slice(max(start, 0), max(stop, 0))
            roll[pitch, sounding] = velocity
            if 0 <= start < frames:
                roll[PITCHES + pitch, start] = 1
            seconds = np.maximum(times[sounding] - onset, 0)
            roll[2 * PITCHES + pitch, sounding] = velocity * np.exp(-seconds / FADING)
        return roll

    def shuffled(self, seed: int) -> Score:
        """Return the score with its pitches permuted at random among the notes."""
        pitch = np.random.default_rng(seed).permutation(self.pitch)
        return Score(self.onset, self.release, pitch, self.velocity)

    def shifted(self, seconds: float) -> Score:
        """Return the score with all notes later by some seconds."""
        return Score(self.onset + seconds, self.release + seconds, self.pitch, self.velocity)

    def _near(self, start: float, stop: float) -> np.ndarray:
        """Return the indices, ascending, of all notes that sound or begin within [start, stop)."""
        last = int(np.searchsorted(self.onset, stop, side="left"))
        block = max(int(np.searchsorted(self.onset, start, side="right")) - 1, 0) // _BLOCK
        offsets, notes = self._sounding
        begun = notes[offsets[block] : offsets[block + 1]]
        near = np.concatenate([begun, np.arange(block * _BLOCK, last)])
        return near[(self.release[near] > start) | (self.onset[near] >= start)]

    @cached_property
    def _sounding(self) -> tuple[np.ndarray, np.ndarray]:
        """Return, for each block of notes, the earlier notes that sound when it begins: (offsets, indices).

        With it neither a very long note nor the length of the piece makes a short roll slow.
        """
        blocks = max(1, -(-len(self) // _BLOCK))
        own = np.arange(len(self)) // _BLOCK
        stop = np.searchsorted(self.onset[::_BLOCK], self.release, side="left")
        counts = np.maximum(stop - own - 1, 0)
        note = np.repeat(np.arange(len(self)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        block = own[note] + 1 + within
        order = np.argsort(block, kind="stable")
        return np.searchsorted(block[order], np.arange(blocks + 1)), note[order]


def mismatch(score: Score, seconds: float) -> str | None:
    """Return why a score cannot belong to a recording of so many seconds, in one sentence; None if it can."""
    if not len(score):
        return "the score has no notes"
    if seconds < score.seconds - _SHORTER_SECONDS:
        return f"the score lasts {score.seconds:.1f} s but the recording ends at {seconds:.1f} s"
    if seconds > score.seconds + _LONGER_SECONDS:
        return f"the recording lasts {seconds:.1f} s but the score ends at {score.seconds:.1f} s"
    return None
