"""The timeline of clips, compared with a naive one."""

import dataclasses
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.datasets import clips_of, real_samples

from wavenet.data.preparation import weights
from wavenet.errors import AudioError


def naive_timeline(arrays, receptive_field, silence=128):
    values, real = [], []
    for array in arrays:
        if len(array):
            values += [silence] * receptive_field + list(array)
            real += [False] * receptive_field + [True] * len(array)
    return np.array(values), np.array(real)


LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=6).filter(any)


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(1, 40), st.integers(1, 50), st.integers(0, 99), st.integers(0, 5))
def test_batches_match_the_naive_ring(tmp_path_factory, lengths, receptive_field, segment, step, seed):
    rng = np.random.default_rng(sum(lengths))
    arrays = [rng.integers(0, 256, size=length) for length in lengths]
    clips = clips_of(tmp_path_factory.mktemp("clips"), arrays, receptive_field)
    values, real = naive_timeline(arrays, receptive_field)
    inputs, targets, _ = clips.batch(step, 3, segment, seed)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.shape == (3, receptive_field - 1 + segment) and targets.shape == (3, segment)
    places = np.arange(len(values))[:, None] + np.arange(-receptive_field, segment)
    all_values, all_real = values[places % len(values)], real[places % len(values)]
    for row_inputs, row_targets in zip(inputs.numpy(), targets.numpy(), strict=True):
        assert (row_targets >= 0).any()
        matches = (all_values[:, :-1] == row_inputs).all(axis=1)
        wanted = np.where(all_real, all_values, -1)[:, receptive_field:]
        assert (matches & (wanted == row_targets).all(axis=1)).any()


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(1, 40), st.integers(1, 50), st.integers(1, 4))
def test_windows_contain_every_sample_once(tmp_path_factory, lengths, receptive_field, segment, batch):
    rng = np.random.default_rng(sum(lengths))
    arrays = [rng.integers(0, 256, size=length) for length in lengths]
    clips = clips_of(tmp_path_factory.mktemp("clips"), arrays, receptive_field)
    assert clips.samples == sum(lengths) and len(clips) == sum(length > 0 for length in lengths)
    scored, contexts = [], []
    for inputs, targets, _ in clips.windows(segment, batch=batch):
        assert 1 <= len(inputs) <= batch and (targets >= 0).any(dim=1).all()
        for row_inputs, row_targets in zip(inputs.tolist(), targets.tolist(), strict=True):
            for place, target in enumerate(row_targets):
                if target >= 0:
                    scored.append(target)
                    contexts.append(row_inputs[place : place + receptive_field])
    assert scored == np.concatenate(arrays).tolist()
    # The past of each sample is its own clip, and silence before that.
    wanted = []
    for array in arrays:
        padded = [128] * receptive_field + array.tolist()
        wanted += [padded[place : place + receptive_field] for place in range(len(array))]
    assert contexts == wanted


def test_every_sample_is_equally_likely(tmp_path, monkeypatch):
    monkeypatch.setattr("wavenet.data.clips.START_SHARE", 0.0)
    # Each sample has a value of its own, so that the targets can be counted.
    arrays = [np.arange(0, 3), np.arange(3, 100), np.arange(100, 140)]
    for receptive_field, segment in ((5, 20), (50, 8), (5, 400), (9, 1)):
        clips = clips_of(tmp_path, arrays, receptive_field)
        counts = np.zeros(140)
        rows, steps = 500, 40
        for step in range(steps):
            targets = clips.batch(step, rows, segment, 1)[1].numpy()
            counts += np.bincount(targets[targets >= 0], minlength=140)
        starts = sum(len(array) + min(receptive_field, segment - 1) for array in arrays)
        ring = 140 + 3 * receptive_field
        expected = rows * steps * segment / (starts if segment <= ring else ring)
        if segment > ring:
            assert np.abs(counts / counts.mean() - 1).max() < 0.1
        else:
            assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)


def test_a_share_of_segments_begins_with_a_clip(tmp_path):
    # Each sample has a value of its own; beginnings are 0, 60 and 180.
    arrays = [np.arange(0, 60), np.arange(60, 180), np.arange(180, 200)]
    clips = clips_of(tmp_path, arrays, 20)
    first = np.concatenate([clips.batch(step, 500, 40, 3)[1][:, 0].numpy() for step in range(40)])
    counts = np.array([(first == value).sum() for value in (0, 60, 180)])
    # Of 20,000 segments a sixteenth begins with a clip, and each other one does so by chance: there are 200
    # samples and three gaps of 20 to begin in.
    expected = 20_000 / 16 / 3 + 20_000 * 15 / 16 / 260
    assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)


def test_weights_multiply_lengths(tmp_path, monkeypatch):
    # Each sample has a value of its own; no segment reaches past a clip's gap.
    arrays = [np.arange(0, 100), np.arange(100, 140), np.arange(140, 200)]
    for share in (0.0, 1.0):
        monkeypatch.setattr("wavenet.data.clips.START_SHARE", share)
        clips = clips_of(tmp_path, arrays, 9)
        clips.clips[:] = [
            dataclasses.replace(clip, name=name) for clip, name in zip(clips.clips, "abc", strict=True)
        ]
        clips.names[:] = "abc"
        clips.set_weights({"a": 1.0, "b": 4.0, "c": 0.5}.__getitem__)
        counts = np.zeros(200)
        rows, steps = 500, 40
        for step in range(steps):
            targets = clips.batch(step, rows, 10, 1)[1].numpy()
            counts += np.bincount(targets[targets >= 0], minlength=200)
        if share:
            assert (counts[[20, 130, 180]] == 0).all()
            expected = rows * steps * np.array([1.0, 4.0, 0.5]) / 5.5
            assert np.abs(counts[[0, 100, 140]] - expected).max() < 5 * np.sqrt(expected.max())
            continue
        weight = np.repeat([1.0, 4.0, 0.5], [100, 40, 60])
        # The first and last samples of a clip are also reached by nine gap places.
        expected = rows * steps * 10 * weight / (109 * 1 + 49 * 4 + 69 * 0.5)
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max())


def test_draws_depend_on_step_and_seed_only(tmp_path):
    arrays = [np.random.default_rng(0).integers(0, 256, size=5000)]
    first, second = (clips_of(tmp_path, arrays, 16) for _ in range(2))
    forward = [first.batch(step, 4, 100, 7) for step in range(10)]
    backward = [second.batch(step, 4, 100, 7) for step in reversed(range(10))][::-1]
    for one, other in zip(forward, backward, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert not torch.equal(first.batch(0, 4, 100, 8)[0], forward[0][0])
    assert not torch.equal(forward[1][0], forward[0][0])
    first.batch(2**63 - 1, 1, 100, 2**63 - 1)


def test_limited_windows_are_evenly_spread(tmp_path):
    arrays = [np.arange(10_000) % 251]
    clips = clips_of(tmp_path, arrays, 16)
    for limit, count in ((1, 1), (999, 9), (1000, 10), (10**9, 100)):
        windows = list(clips.windows(100, max_samples=limit))
        assert len(windows) == count
    firsts = [int(t[0, 0]) for _, t, _ in clips.windows(100, max_samples=1000)]
    assert firsts == [(start * 1000 + 500) % 251 for start in range(10)]


def test_histogram_and_entropy(tmp_path):
    arrays = [[0] * 4 + [1] * 2 + [255], [7]]
    clips = clips_of(tmp_path, arrays, 16)
    counts = clips.histogram()
    assert counts.dtype == np.int64 and counts.shape == (256,)
    assert {i: int(n) for i, n in enumerate(counts) if n} == {0: 4, 1: 2, 7: 1, 255: 1}
    assert clips.unigram_bits == pytest.approx(0.5 * 1 + 0.25 * 2 + 2 * 0.125 * 3)


def test_many_clips_keep_few_files_open(tmp_path):
    arrays = [[index % 256] * 3 for index in range(300)]
    clips = clips_of(tmp_path, arrays, 4)
    assert real_samples(clips).tolist() == [value for array in arrays for value in array]
    if os.path.isdir("/proc/self/fd"):
        held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_link(fd)]
        assert sum(name.startswith(str(tmp_path)) for name in held) <= 64


def _is_link(descriptor):
    return os.path.islink(f"/proc/self/fd/{descriptor}")


def test_no_clips(tmp_path):
    clips = clips_of(tmp_path, [[]], 16)
    assert clips.samples == 0 and not list(clips.windows(10)) and clips.unigram_bits == 0
    with pytest.raises(AudioError, match="no audio"):
        clips.batch(0, 1, 10, 0)


def test_a_missing_cache_file_is_named(tmp_path):
    clips = clips_of(tmp_path, [[1, 2, 3]], 4)
    (tmp_path / "0.bin").unlink()
    with pytest.raises(AudioError, match=r"0\.bin is missing"):
        clips.batch(0, 1, 10, 0)


# -- weights ---------------------------------------------------------------------------------------------

NAMES = ["studio/a.wav", "studio/soft/b.wav", "studio 2/c.wav", "live/d.wav", "e.wav"]


def test_weights_by_folder():
    weight_of = weights(NAMES, ["studio=2", "studio/soft/=0.5", "studio 2=1e1"])
    assert [weight_of(name) for name in NAMES] == [2, 0.5, 10, 1, 1]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("studio", "must be FOLDER=W"),
        ("=2", "must be FOLDER=W"),
        ("studio=much", "must be FOLDER=W"),
        ("studio=0", "W from 0.001 to 1000"),
        ("studio=nan", "must be FOLDER=W"),
        ("stud=2", "have no such folder; folders: live, studio, studio 2"),
    ],
)
def test_invalid_weights(asked, message):
    with pytest.raises(AudioError, match=message) as caught:
        weights(NAMES, [asked])
    assert str(caught.value).startswith(f"{asked}: ") and caught.value.argument == "weight"
