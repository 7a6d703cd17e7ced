"""Composed tunes, and their frames one tune after another."""

from __future__ import annotations

import numpy as np
import pytest
from support.conditioned import BASE, config

from wavenet.conditioning.score import Tunes
from wavenet.errors import ConfigError
from wavenet.music.rule_composer import BEATS, TEMPO, TICKS, compose, score_of

HOP = 40
SCORES = config("score", hop=HOP)
FRAME = HOP / SCORES.sample_rate


def test_a_score_has_the_notes_at_the_tempo():
    voices = compose(5, 8)
    score = score_of(voices, tempo=120)
    assert len(score) == sum(map(len, voices))
    first = sorted(note for voice in voices for note in voice)[0]
    assert score.onset[0] == 0 and first[0] == 0
    # A bar of four quarter notes at 120 a minute lasts 2 s; the last is let go a 32nd of a quarter early.
    assert score.seconds == pytest.approx(8 * 2 - 60 / 120 / 32)
    assert set(score.pitch.tolist()) == {number for voice in voices for _, _, number, _ in voice}
    assert TICKS % 32 == 0


def test_the_first_tune_is_the_one_of_the_seed():
    tunes = Tunes(SCORES, 7, bars=8)
    frames = tunes.read(0, 1200)[0].numpy()
    assert np.array_equal(frames, score_of(compose(7, 8)).roll(0, FRAME, 1200))


def test_the_next_piece_differs_and_follows_a_rest():
    tunes = Tunes(SCORES, 7, bars=8)
    period = (8 + 0.5) * BEATS * 60 / TEMPO
    assert tunes.period == pytest.approx(period)
    begin = round(period / FRAME)
    rest = tunes.read(begin - round(1.0 / FRAME), round(0.9 / FRAME))
    assert not rest.any()
    first, second = tunes.read(0, 2000)[0].numpy(), tunes.read(begin, 2000)[0].numpy()
    assert second.any() and not np.array_equal(first, second)


def test_frames_do_not_depend_on_how_they_are_read():
    tunes = Tunes(SCORES, 3, bars=8)
    whole = tunes.read(-50, 5000)
    assert not whole[..., :50].any()
    parts = [tunes.read(first, min(777, 4950 - first)) for first in range(-50, 4950, 777)]
    assert np.array_equal(whole.numpy(), np.concatenate([part.numpy() for part in parts], axis=2))
    # Hours later, from a source that was asked for nothing before.
    late = round(5 * 3600 / FRAME)
    assert np.array_equal(Tunes(SCORES, 3, bars=8).read(late, 300).numpy(), tunes.read(late, 300).numpy())


def test_other_networks_play_no_tunes():
    for other in (BASE, config("mel")):
        with pytest.raises(ConfigError):
            Tunes(other, 0)
