"""Scores with their recordings, and MIDI files."""

from __future__ import annotations

import mido
import numpy as np

from wavenet.music.score import Score

PIECE_RATE = 8000


def piece(seed: int, notes: int = 60, apart: tuple[float, float] = (0.2, 0.6)) -> tuple[np.ndarray, Score]:
    """Return decaying tones at random times, and their score."""
    rng = np.random.default_rng(seed)
    onset = 0.7 + np.cumsum(rng.uniform(*apart, notes))
    audio = rng.normal(0, 0.002, round((onset[-1] + 1.5) * PIECE_RATE))
    for first, pitch in zip((onset * PIECE_RATE).astype(int), rng.integers(48, 84, notes), strict=True):
        time = np.arange(len(audio) - first) / PIECE_RATE
        # An attack of 10 ms.
        tone = np.minimum(time / 0.01, 1) * np.exp(-4 * time)
        audio[first:] += 0.2 * tone * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time)
    return audio, Score(onset, onset + 0.2, rng.integers(48, 84, notes), np.full(notes, 80))


def shifted(score: Score, seconds: float) -> Score:
    return Score(score.onset + seconds, score.release + seconds, score.pitch, score.velocity)


def rows(score: Score):
    return zip(score.onset, score.release, score.pitch.tolist(), score.velocity.tolist(), strict=True)


def write_midi(path, score: Score) -> None:
    """Write a MIDI file with one tick per millisecond."""
    events = [(on, "note_on", pitch, velocity) for on, _, pitch, velocity in rows(score)]
    events += [(off, "note_off", pitch, 0) for _, off, pitch, _ in rows(score)]
    track, now = mido.MidiTrack(), 0
    for time, kind, pitch, velocity in sorted(events):
        tick = round(time * 1000)
        track.append(mido.Message(kind, note=pitch, velocity=velocity, time=tick - now))
        now = tick
    file = mido.MidiFile(ticks_per_beat=500)  # At 120 beats a minute.
    file.tracks.append(track)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save(path)
