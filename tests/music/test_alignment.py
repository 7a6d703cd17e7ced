"""Misaligned scores are detected from the audio."""

import numpy as np
import pytest
from support.scores import PIECE_RATE, piece, shifted

from wavenet.music.alignment import Loudness, alignment_problem
from wavenet.music.score import Score


def said(audio: np.ndarray, score: Score) -> str | None:
    loudness = Loudness(len(audio) / PIECE_RATE, PIECE_RATE)
    loudness.add(0, audio)
    return alignment_problem(loudness.rises(), score)


@pytest.mark.parametrize("seed", range(5))
def test_a_shifted_score_is_detected(seed):
    audio, score = piece(seed)
    assert said(audio, score) is None
    assert said(audio, shifted(score, 0.02)) is None
    for by in (0.13, 0.4):
        for sign, word in ((1, "late"), (-1, "early")):
            found = said(audio, shifted(score, sign * by))
            assert found is not None and found.endswith(f" s {word}")
            assert abs(float(found.split()[0]) - by) <= 0.02


@pytest.mark.parametrize("seed", range(5))
def test_the_score_of_another_piece_does_not_match(seed):
    audio, _ = piece(seed)
    assert said(audio, piece(seed + 10)[1]) == "the recording has no attacks at its onsets"


def test_few_notes_and_silence_say_nothing():
    audio, _ = piece(0)
    assert said(audio, piece(1, notes=15)[1]) is None
    assert said(np.zeros_like(audio), piece(0)[1]) is None


def test_stretches_are_located():
    audio, score = piece(3)
    loudness = Loudness(len(audio) / PIECE_RATE, PIECE_RATE)
    for first, last in ((0, 30_011), (30_011, 77_777), (77_777, len(audio))):
        loudness.add(first, audio[first:last])
    whole = Loudness(len(audio) / PIECE_RATE, PIECE_RATE)
    whole.add(0, audio)
    np.testing.assert_allclose(loudness.energy, whole.energy, rtol=1e-12)
    assert alignment_problem(loudness.rises(), score) is None
    assert alignment_problem(loudness.rises(), shifted(score, 0.3)) is not None
