"""Scores that are not played when they say: found by the sound, and told."""

import numpy as np
import pytest

from wavenet.music.alignment import Loudness, doubts
from wavenet.music.midi_file import Score

RATE = 8000


def piece(seed: int, notes: int = 60, apart: tuple[float, float] = (0.2, 0.6)) -> tuple[np.ndarray, Score]:
    """Struck tones that fade, at random times, and the score of them."""
    rng = np.random.default_rng(seed)
    onset = 0.7 + np.cumsum(rng.uniform(*apart, notes))
    audio = rng.normal(0, 0.002, round((onset[-1] + 1.5) * RATE))
    for first, pitch in zip((onset * RATE).astype(int), rng.integers(48, 84, notes), strict=True):
        time = np.arange(len(audio) - first) / RATE
        # An attack of 10 ms.
        tone = np.minimum(time / 0.01, 1) * np.exp(-4 * time)
        audio[first:] += 0.2 * tone * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time)
    return audio, Score(onset, onset + 0.2, rng.integers(48, 84, notes), np.full(notes, 80))


def said(audio: np.ndarray, score: Score) -> str | None:
    loudness = Loudness(len(audio) / RATE, RATE)
    loudness.add(0, audio)
    return doubts(loudness.rises(), score)


def moved(score: Score, seconds: float) -> Score:
    return Score(score.onset + seconds, score.release + seconds, score.pitch, score.velocity)


@pytest.mark.parametrize("seed", range(5))
def test_a_score_that_is_played_raises_no_doubt_and_one_that_is_moved_does(seed):
    audio, score = piece(seed)
    assert said(audio, score) is None
    assert said(audio, moved(score, 0.02)) is None
    for by in (0.13, 0.4):
        for sign, word in ((1, "late"), (-1, "early")):
            told = said(audio, moved(score, sign * by))
            assert told is not None and told.endswith(f" s {word}")
            assert abs(float(told.split()[0]) - by) <= 0.02


@pytest.mark.parametrize("seed", range(5))
def test_the_score_of_another_piece_is_not_heard(seed):
    audio, _ = piece(seed)
    assert said(audio, piece(seed + 10)[1]) == "no onset of a note is heard"


def test_few_notes_and_silence_say_nothing():
    audio, _ = piece(0)
    assert said(audio, piece(1, notes=15)[1]) is None
    assert said(np.zeros_like(audio), piece(0)[1]) is None


def test_stretches_are_heard_where_they_lie():
    audio, score = piece(3)
    loudness = Loudness(len(audio) / RATE, RATE)
    for first, last in ((0, 30_011), (30_011, 77_777), (77_777, len(audio))):
        loudness.add(first, audio[first:last])
    whole = Loudness(len(audio) / RATE, RATE)
    whole.add(0, audio)
    np.testing.assert_allclose(loudness.energy, whole.energy, rtol=1e-12)
    assert doubts(loudness.rises(), score) is None
    assert doubts(loudness.rises(), moved(score, 0.3)) is not None
