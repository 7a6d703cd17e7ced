"""Gain and polarity of training segments, against the formulas and the segments without them."""

import numpy as np
import pytest
import torch
from test_clips import clips_of

from wavenet.augmentation import Augmentation


@pytest.fixture
def clips(tmp_path):
    rng = np.random.default_rng(0)
    return clips_of(tmp_path, [rng.integers(0, 256, size=length) for length in (700, 30, 900)], 16)


def linear(classes, count=256):
    """The amplitude of each class, by the inverse of the mu-law formula."""
    curve = 2 * np.asarray(classes, dtype=np.float64) / (count - 1) - 1
    return np.sign(curve) * (np.float64(count) ** np.abs(curve) - 1) / (count - 1)


def parts(clips, augmentation, step=3, rows=40, segment=100, seed=7):
    clips.augmentation = augmentation
    inputs, targets, _ = clips.batch(step, rows, segment, seed)
    return inputs.numpy(), targets.numpy()


def test_off_is_the_same_to_the_bit(clips):
    plain, off = parts(clips, None), parts(clips, Augmentation(256))
    assert all(np.array_equal(one, other) for one, other in zip(plain, off, strict=True))


def test_polarity_turns_about_half_of_the_segments_upside_down(clips):
    (inputs, targets), (turned, wanted) = parts(clips, None), parts(clips, Augmentation(256, 0.0, True))
    gaps = targets < 0
    assert gaps.any() and np.array_equal(wanted < 0, gaps)
    upside = 0
    for row in range(40):
        real = targets[row] >= 0
        same = np.array_equal(wanted[row][real], targets[row][real])
        assert same or np.array_equal(wanted[row][real], 255 - targets[row][real])
        upside += not same
        # What a target is predicted from is turned with it; the silence before a clip stays what it is.
        overlap = turned[row][16:]
        assert np.array_equal(overlap[real[:-1]], wanted[row][:-1][real[:-1]])
        assert (overlap[~real[:-1]] == 128).all()
    assert 8 <= upside <= 32
    assert np.isin(turned[inputs == 128], (127, 128)).all()


def test_gain_scales_amplitudes_by_up_to_so_many_decibels(clips):
    (_, targets), (_, softer) = parts(clips, None), parts(clips, Augmentation(256, 12.0))
    found = []
    for before, after in zip(targets, softer, strict=True):
        loud = (before >= 0) & (np.abs(linear(before)) > 0.3)
        if not loud.any():
            continue
        # A class is a few percent wide; many of them tell the factor closely.
        decibels = 20 * np.log10(np.median(linear(after[loud]) / linear(before[loud])))
        exact = np.sign(linear(before)) * np.log1p(255 * np.abs(linear(before)) * 10 ** (decibels / 20))
        wanted = np.floor((exact / np.log(256) + 1) / 2 * 255 + 0.5)
        assert np.abs(after - wanted)[before >= 0].max() <= 1
        found.append(decibels)
    assert -12.3 < min(found) < -9 and -3 < max(found) < 0.3
    assert np.array_equal(softer < 0, targets < 0)


def test_the_draw_is_uniform_in_decibels_and_of_step_seed_and_row_alone():
    augmentation = Augmentation(256, 6.0, True)
    factors = augmentation.factors(5, 20_000, 1)
    decibels = 20 * np.log10(np.abs(factors))
    assert decibels.min() >= -6 and decibels.max() <= 0
    share = np.histogram(decibels, bins=10, range=(-6, 0))[0] / 20_000
    assert np.abs(share - 0.1).max() < 5 * np.sqrt(0.09 / 20_000)
    assert abs((factors < 0).mean() - 0.5) < 5 * np.sqrt(0.25 / 20_000)
    assert abs(np.corrcoef(decibels, factors < 0)[0, 1]) < 0.05
    assert np.array_equal(augmentation.factors(5, 10, 1), factors[:10])
    for other in (augmentation.factors(6, 10, 1), augmentation.factors(5, 10, 2)):
        assert not np.isclose(other, factors[:10]).any()
    # The gain of a row does not depend on whether its polarity is drawn.
    assert np.array_equal(np.abs(factors), Augmentation(256, 6.0).factors(5, 20_000, 1))


def test_segments_are_the_same_whenever_they_are_drawn(clips):
    augmentation = Augmentation(256, 6.0, True)
    forward = [parts(clips, augmentation, step) for step in range(4)]
    backward = [parts(clips, augmentation, step) for step in (3, 2, 1, 0)][::-1]
    for one, other in zip(forward, backward, strict=True):
        assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])


def test_windows_are_left_alone(clips):
    plain = [(inputs.clone(), targets.clone()) for inputs, targets, _ in clips.windows(100)]
    clips.augmentation = Augmentation(256, 20.0, True)
    for (inputs, targets), (one, other, _) in zip(plain, clips.windows(100), strict=True):
        assert torch.equal(inputs, one) and torch.equal(targets, other)


@pytest.mark.parametrize("classes", [2, 64, 1024, 65536])
def test_any_number_of_classes(classes):
    augmentation = Augmentation(classes, 6.0, True)
    every = np.arange(classes)
    assert np.array_equal(augmentation.table(1.0), every)
    assert np.array_equal(augmentation.table(-1.0), every[::-1])
    assert (np.diff(augmentation.table(0.5)) >= 0).all()
