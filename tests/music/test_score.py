"""Scores: piano rolls against a loop over frames, and derived scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavenet.errors import ConfigError
from wavenet.music.score import Score, mismatch


def notes(score):
    """(onset, release, pitch, velocity) of each note."""
    columns = (score.onset, score.release, score.pitch, score.velocity)
    return [tuple(row) for row in zip(*(each.tolist() for each in columns), strict=True)]


# Rolls: times are whole milliseconds, so that the plain loop counts in integers


def build(rows):
    columns = zip(*rows, strict=True) if rows else ([], [], [], [])
    onset, length, pitch, velocity = (np.array(list(each), dtype=np.int64) for each in columns)
    return Score(onset / 1000, (onset + length) / 1000, pitch, velocity)


def plain_roll(rows, first, hop, frames):
    """Frame by frame, note by note; of several notes of a pitch the last in order of onset."""
    roll = np.zeros((384, frames))
    for frame in range(frames):
        low, high = first + frame * hop, first + (frame + 1) * hop
        for onset, length, pitch, velocity in sorted(rows, key=lambda row: row[0]):
            begins = low <= onset < high
            if begins or (onset < high and onset + length > low):
                roll[pitch, frame] = velocity / 127
                # Softer by a factor of e in each half second.
                roll[256 + pitch, frame] = velocity / 127 * np.exp(-2 * max(low - onset, 0) / 1000)
            if begins:
                roll[128 + pitch, frame] = 1
    return roll


rows_of_notes = st.lists(
    st.tuples(
        st.integers(0, 3000),
        st.one_of(st.integers(0, 30), st.integers(0, 3000)),
        st.sampled_from([0, 60, 61, 127]),
        st.integers(1, 127),
    ),
    max_size=200,
)


@given(rows_of_notes, st.integers(-500, 4000), st.integers(1, 60), st.integers(0, 40))
def test_roll_is_what_a_loop_over_frames_finds(rows, first, hop, frames):
    found = build(rows).roll(first / 1000, hop / 1000, frames)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, plain_roll(rows, first, hop, frames), rtol=1e-6)


def test_roll_of_many_blocks_and_note_lengths():
    rng = np.random.default_rng(3)
    lengths = (10 ** rng.uniform(0, 4.5, 700)).astype(int)
    columns = (rng.integers(0, 20_000, 700), lengths, rng.integers(40, 60, 700), rng.integers(1, 128, 700))
    rows = [tuple(map(int, row)) for row in zip(*columns, strict=True)]
    score = build(rows)
    for first in range(-1000, 42_000, 1733):
        np.testing.assert_allclose(
            score.roll(first / 1000, 0.016, 31), plain_roll(rows, first, 16, 31), rtol=1e-6
        )


@pytest.mark.parametrize("hop", [0.01, 1 / 62.5, 256 / 22050, 0.1])
def test_a_piece_of_a_roll_is_that_of_the_whole(hop):
    """Even where notes begin on the edges of frames, and hours into the piece."""
    frame = np.arange(0, 300)
    onset = 7200 + frame * hop
    score = Score(onset, onset + 3 * hop, frame % 128, frame % 127 + 1)
    whole = score.roll(7200, hop, 300)
    assert (whole[128:256].sum(axis=0) == 1).all() and (whole[:128, 2:] > 0).sum() == 3 * 298
    for start in range(0, 280, 7):
        piece = score.roll(7200 + start * hop, hop, 20)
        assert (piece[:256] == whole[:256, start : start + 20]).all()
        np.testing.assert_allclose(piece, whole[:, start : start + 20], rtol=1e-6)


def test_rolls_before_and_after_the_piece_are_silent():
    score = build([(0, 500, 60, 127), (700, 300, 61, 127)])
    assert not score.roll(-10, 0.1, 100).any()
    assert not score.roll(1.0, 0.1, 100).any()
    assert not score.roll(1e9, 0.1, 100).any() and not score.roll(-1e9, 0.1, 100).any()
    assert score.roll(-0.1, 0.1, 2)[188].tolist() == [0, 1]


@pytest.mark.parametrize(("first", "hop", "frames"), [(0, 0, 5), (0, -1, 5), (np.nan, 1, 5), (0, 1, -1)])
def test_invalid_rolls_are_refused(first, hop, frames):
    with pytest.raises(ConfigError, match="no roll of"):
        build([(0, 500, 60, 127)]).roll(first, hop, frames)


# Scores


def test_notes_are_sorted_by_onset():
    score = build([(500, 10, 60, 1), (0, 10, 61, 2), (500, 20, 62, 3)])
    assert notes(score) == [(0.0, 0.01, 61, 2), (0.5, 0.51, 60, 1), (0.5, 0.52, 62, 3)]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (([0], [1], [60], [1, 2]), "differ in shape"),
        (([0], [1], [128], [1]), "pitches from 128 to 128"),
        (([0], [1], [60], [0]), "velocities from 0 to 0"),
        (([1], [0], [60], [1]), "ends before it begins"),
        (([0], [np.inf], [60], [1]), "ends before it begins, or its times"),
    ],
)
def test_invalid_scores_are_refused(arrays, message):
    with pytest.raises(ConfigError, match=message):
        Score(*map(np.array, arrays))


def test_shuffled_permutes_the_pitches():
    rng = np.random.default_rng(0)
    score = build([(10 * i, 50, int(rng.integers(30, 90)), 1 + i % 127) for i in range(200)])
    dealt = score.shuffled(1)
    for name in ("onset", "release", "velocity"):
        assert (getattr(dealt, name) == getattr(score, name)).all()
    assert sorted(dealt.pitch) == sorted(score.pitch)
    assert (dealt.pitch == score.pitch).mean() < 0.1
    assert (score.shuffled(1).pitch == dealt.pitch).all() and (score.shuffled(2).pitch != dealt.pitch).any()


def test_shifted_moves_all_notes():
    assert notes(build([(0, 500, 60, 5)]).shifted(-0.25)) == [(-0.25, 0.25, 60, 5)]


def test_score_and_recording_differ_in_length():
    score = build([(0, 60_000, 60, 127)])
    assert mismatch(score, 60) is None and mismatch(score, 65) is None and mismatch(score, 59) is None
    assert mismatch(score, 30) == "the score lasts 60.0 s but the recording ends at 30.0 s"
    assert mismatch(score, 100) == "the recording lasts 100.0 s but the score ends at 60.0 s"
    assert mismatch(build([]), 1) == "the score has no notes"
