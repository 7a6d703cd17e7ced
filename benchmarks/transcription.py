"""Measure how closely a recording follows a score, without any model: python transcription.py AUDIO MIDI

Frames of 64 ms (Hann) every 10 ms give each semitone from 21 to 108 a salience: the mean over its first
eight harmonics, with weights that fall by 0.8, of the log magnitude relative to the mean magnitude within a
third of an octave on both sides. This normalises registers and levels. The mean of logs, not of magnitudes,
separates octaves: a missing harmonic costs as much as a strong one gains, the octave below a sounding pitch
finds every second harmonic only, and the octave above finds weaker ones. Magnitudes are clipped below at a
tone 80 dB under the loudest sample, so that silence has no pitches.

All figures but the last two are probabilities that one pitch outranks another: 0.5 is chance, 1 is best, ties
count half. They do not depend on loudness, timbre or a threshold.

- pitch: a sounding pitch of the score over all other pitches; mean over the frames with sounding notes. The
  right register alone scores above 0.5.
- own: the same over only those other pitches that the score uses at some time. Register and key gain little;
  this is the main figure.
- octave: the same over the two octaves of the pitch; it falls if a part is played an octave off.
- onset: at each onset, the rise of the note's pitch over the rises of pitches without an onset. The rise is
  the change of the mean log magnitude of the harmonics from 50 ms before to 50 ms after.
- rise_db: that rise minus the mean rise of the other pitches, in dB; mean over notes.
- lag_ms: delay of the largest spectral flux after the score's onsets, within 70 ms on both sides: some ms for
  the attack of the instrument, arbitrary if score and recording are not aligned.

Controls: the same figures for the score with shuffled pitches, and for the score delayed by half a second
(above chance where the music repeats or sustains). A note that rings after its end in the score counts
against the recording.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from wavenet.music.score import Score

LOWEST, HIGHEST = 21, 108
FRAME_SECONDS, HOP_SECONDS = 0.064, 0.01
HARMONICS, DECAY = 8, 0.8
SURROUNDINGS = 2 ** (1 / 3)
FLOOR = 1e-4
BEFORE_AFTER = 0.05
REACH = 0.07
SHUFFLES = 3
FIGURES = ("pitch", "own", "octave", "onset", "rise_db", "lag_ms")
_PADDING = 4
_BLOCK = 256


class Saliences:
    """The salience of each semitone at given times of a recording.

    Parameters
    ----------
    audio : float array (samples,)
    rate : int
        In Hz.
    """

    def __init__(self, audio: np.ndarray, rate: int) -> None:
        self.rate, self.size = rate, 2 * round(FRAME_SECONDS * rate / 2)
        # Padded with silence, so that every time has a whole frame.
        self.audio = np.pad(np.asarray(audio, dtype=np.float32), self.size)
        self.window = np.hanning(self.size + 1)[:-1].astype(np.float32)
        self.floor = max(FLOOR * float(np.abs(self.audio).max()), 1e-12) * self.window.sum() / 2
        bins = _PADDING * self.size // 2 + 1
        lowest = 440 * 2 ** ((np.arange(LOWEST, HIGHEST + 1) - 69) / 12)
        frequency = lowest[:, None] * np.arange(1, HARMONICS + 1)
        audible = frequency < 0.475 * rate
        weight = DECAY ** np.arange(HARMONICS) * audible
        self.weight = weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-12)
        self.place = np.where(audible, frequency, 0) / rate * _PADDING * self.size
        # At least twice the main lobe of the window, where a third of an octave is less.
        centre = np.rint(self.place).astype(int)
        least = 6 * _PADDING
        self.low = np.maximum(np.minimum(centre / SURROUNDINGS, centre - least), 0).astype(int)
        self.high = np.minimum(np.maximum(centre * SURROUNDINGS, centre + least) + 1, bins).astype(int)

    def at(self, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the saliences and the mean log magnitudes of the harmonics, each (moments, semitones)."""
        start = np.clip(
            np.rint(seconds * self.rate).astype(int) + self.size // 2, 0, len(self.audio) - self.size
        )
        frames = self.audio[start[:, None] + np.arange(self.size)] * self.window
        magnitude = np.abs(np.fft.rfft(frames, _PADDING * self.size))
        below = self.place.astype(int)
        share = self.place - below
        peak = magnitude[:, below] * (1 - share) + magnitude[:, below + 1] * share
        total = np.pad(np.cumsum(magnitude, axis=1, dtype=np.float64), ((0, 0), (1, 0)))
        around = (total[:, self.high] - total[:, self.low]) / (self.high - self.low)
        level = np.log(peak + self.floor)
        salience = level - np.log(around + self.floor)
        return (salience * self.weight).sum(axis=2), (level * self.weight).sum(axis=2)


def outranking(
    values: np.ndarray, above: np.ndarray, below: np.ndarray, pairs: np.ndarray | None = None
) -> np.ndarray:
    """Return for each frame the share of pairs in which the pitch of `above` has the higher value, else NaN.

    `values` and the masks are (frames, semitones); `pairs` (semitones, semitones) allows only some of them.
    """
    frame, pitch = np.nonzero(above)
    own, others = values[frame, pitch][:, None], values[frame]
    asked = below[frame] if pairs is None else below[frame] & pairs[pitch]
    higher = ((own > others) + 0.5 * (own == others)) * asked
    count = np.bincount(frame, asked.sum(axis=1), len(values))
    won = np.bincount(frame, higher.sum(axis=1), len(values))
    return np.where(count, won / np.maximum(count, 1), np.nan)


def check(audio: np.ndarray, rate: int, score: Score) -> dict[str, Any]:
    """Measure how closely a recording follows a score.

    Parameters
    ----------
    audio : float array (samples,)
    rate : int
        In Hz.
    score : Score
        Its time 0 is the first sample.

    Returns
    -------
    dict
        The figures of `FIGURES` as the module defines them, None where there is nothing to measure, and the
        number of measured `frames` and `notes`.
    """
    saliences = Saliences(audio, rate)
    found: dict[str, list[np.ndarray]] = {"pitch": [], "own": [], "octave": []}
    played = np.isin(np.arange(LOWEST, HIGHEST + 1), score.pitch)
    octave = np.abs(np.subtract.outer(np.arange(len(played)), np.arange(len(played)))) == 12
    frames = int(len(audio) / rate / HOP_SECONDS)
    for values, sounding in _sounding_frames(saliences, score, frames):
        found["pitch"].append(outranking(values, sounding, ~sounding))
        found["own"].append(outranking(values, sounding, ~sounding & played))
        found["octave"].append(outranking(values, sounding, ~sounding, octave))
    found["onset"], found["rise_db"] = _onsets(saliences, score, len(audio) / rate)
    result: dict[str, Any] = {name: _mean(values) for name, values in found.items()}
    result["lag_ms"] = lag(audio, rate, score)
    result["frames"] = sum(map(len, found["pitch"]))
    result["notes"] = sum(map(len, found["onset"]))
    return result


def _mean(parts: list[np.ndarray]) -> float | None:
    values = np.concatenate([np.zeros(0), *parts])
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def _sounding_frames(
    saliences: Saliences, score: Score, frames: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield saliences and sounding pitches, (frames, semitones) each, of the frames with sounding notes.

    Frame f is centred at f * HOP_SECONDS.
    """
    for start in range(0, frames, _BLOCK):
        count = min(_BLOCK, frames - start)
        roll = score.roll((start - 0.5) * HOP_SECONDS, HOP_SECONDS, count)
        sounding = roll[LOWEST : HIGHEST + 1].T > 0
        some = np.flatnonzero(sounding.any(axis=1))
        if len(some):
            yield saliences.at((start + some) * HOP_SECONDS)[0], sounding[some]


def _onsets(saliences: Saliences, score: Score, seconds: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return for each note the share of other pitches that rise less, and its rise above theirs in dB."""
    ranks, rises = [], []
    inside = (score.onset >= 0) & (score.onset + BEFORE_AFTER < seconds)
    inside &= (score.pitch >= LOWEST) & (score.pitch <= HIGHEST)
    notes = np.flatnonzero(inside)
    for start in range(0, len(notes), _BLOCK):
        block = notes[start : start + _BLOCK]
        onset, row = score.onset[block], np.arange(len(block))
        rise = saliences.at(onset + BEFORE_AFTER)[1] - saliences.at(onset - BEFORE_AFTER)[1]
        own = np.zeros(rise.shape, dtype=bool)
        own[row, score.pitch[block] - LOWEST] = True
        struck = np.stack([score.roll(t - BEFORE_AFTER, 2 * BEFORE_AFTER, 1)[:, 0] > 0 for t in onset])
        others = ~struck[:, 128 + LOWEST : 128 + HIGHEST + 1] & ~own
        ranks.append(outranking(rise, own, others))
        mean = (rise * others).sum(axis=1) / others.sum(axis=1)
        rises.append((rise[own] - mean) * 20 / np.log(10))
    return ranks, rises


def lag(audio: np.ndarray, rate: int, score: Score) -> float | None:
    """Return the delay of the recording's onsets in ms, at most REACH; None without onsets."""
    step, size = max(1, round(rate / 1000)), 2 * round(0.008 * rate)
    samples = np.pad(np.asarray(audio, dtype=np.float32), (size // 2, size))
    windows = np.lib.stride_tricks.sliding_window_view(samples, size)[::step]
    flux, last = np.zeros(len(windows)), np.zeros((1, size // 2 + 1), dtype=np.float32)
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    for start in range(0, len(windows), 4096):
        magnitude = np.abs(np.fft.rfft(windows[start : start + 4096] * window))
        change = np.diff(magnitude, axis=0, prepend=last)
        flux[start : start + len(magnitude)] = np.maximum(change, 0).sum(axis=1)
        last = magnitude[-1:]
    reach = round(REACH * rate / step)
    onset = np.unique(np.rint(score.onset * rate / step).astype(int))
    onset = onset[(onset >= reach) & (onset < len(flux) - reach)]
    if not len(onset):
        return None
    strength = [flux[onset + shift].mean() for shift in range(-reach, reach + 1)]
    return (int(np.argmax(strength)) - reach) * step / rate * 1000


def compare(audio: np.ndarray, rate: int, score: Score) -> dict[str, dict[str, Any]]:
    """Return the figures of a score, of shuffled pitches and of a delayed score."""
    shuffled = [check(audio, rate, score.shuffled(seed)) for seed in range(SHUFFLES)]
    mean = {name: _mean([np.array([each[name] for each in shuffled], dtype=float)]) for name in shuffled[0]}
    return {
        "score": check(audio, rate, score),
        "shuffled": mean,
        "0.5 s late": check(audio, rate, score.shifted(0.5)),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the figures as lines of text."""
    lines = [f"{'':12}" + "".join(f"{name:>9}" for name in FIGURES)]
    for name, result in results.items():
        cells = (
            "-" if result[key] is None else f"{result[key]:.{1 if '_' in key else 3}f}" for key in FIGURES
        )
        lines.append(f"{name:12}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


def load(path: str) -> tuple[np.ndarray, int]:
    """Return a recording at its own rate (resampling would change the figures), and the rate in Hz."""
    import soundfile

    from wavenet.audio.decoding import load_audio

    rate = 16000  # For a file that cannot be opened; load_audio then reports the error.
    if Path(path).is_file():
        with suppress(soundfile.LibsndfileError, TypeError):
            rate = soundfile.info(path).samplerate
    return load_audio(path, rate), rate


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("audio", metavar="AUDIO", help="the recording, of a format that libsndfile reads")
    parser.add_argument("midi", metavar="MIDI", help="the score to compare it with")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    options = parser.parse_args(arguments)

    from wavenet.errors import WaveNetError
    from wavenet.music.midi_file import read_midi
    from wavenet.music.score import mismatch

    try:
        score = read_midi(options.midi)
        audio, rate = load(options.audio)
        problem = mismatch(score, len(audio) / rate)
        if problem:
            print(f"transcription: warning: {problem}", file=sys.stderr)
        results = compare(audio, rate, score)
        print(table(results))
        if options.json is not None:
            options.json.write_text(json.dumps(results, indent=2) + "\n")
    except (WaveNetError, OSError) as error:
        print(f"transcription: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
