"""Gain, polarity and speed of training segments, compared with formulas and unchanged segments."""

import numpy as np
import pytest
import torch
from support.datasets import clips_of

from wavenet.audio import mulaw, pcm
from wavenet.data.augmentation import Augmentation, resampled_segment
from wavenet.data.clips import Clip, Clips


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


def test_no_augmentation_changes_nothing(clips):
    plain, off = parts(clips, None), parts(clips, Augmentation())
    assert all(np.array_equal(one, other) for one, other in zip(plain, off, strict=True))


def test_polarity_inverts_about_half_of_the_segments(clips):
    (inputs, targets), (turned, wanted) = parts(clips, None), parts(clips, Augmentation(0.0, True))
    gaps = targets < 0
    assert gaps.any() and np.array_equal(wanted < 0, gaps)
    upside = 0
    for row in range(40):
        real = targets[row] >= 0
        same = np.array_equal(wanted[row][real], targets[row][real])
        assert same or np.array_equal(wanted[row][real], 255 - targets[row][real])
        upside += not same
        # The context of a target is inverted with it; the silence before a clip does not change.
        overlap = turned[row][16:]
        assert np.array_equal(overlap[real[:-1]], wanted[row][:-1][real[:-1]])
        assert (overlap[~real[:-1]] == 128).all()
    assert 8 <= upside <= 32
    assert np.isin(turned[inputs == 128], (127, 128)).all()


def test_gain_attenuates_by_up_to_the_maximum(clips):
    (_, targets), (_, softer) = parts(clips, None), parts(clips, Augmentation(12.0))
    found = []
    for before, after in zip(targets, softer, strict=True):
        loud = (before >= 0) & (np.abs(linear(before)) > 0.3)
        if not loud.any():
            continue
        # A class is a few percent wide; the median over many of them is precise.
        decibels = 20 * np.log10(np.median(linear(after[loud]) / linear(before[loud])))
        exact = np.sign(linear(before)) * np.log1p(255 * np.abs(linear(before)) * 10 ** (decibels / 20))
        wanted = np.floor((exact / np.log(256) + 1) / 2 * 255 + 0.5)
        assert np.abs(after - wanted)[before >= 0].max() <= 1
        found.append(decibels)
    assert -12.3 < min(found) < -9 and -3 < max(found) < 0.3
    assert np.array_equal(softer < 0, targets < 0)


def test_gains_are_uniform_in_decibels():
    augmentation = Augmentation(6.0, True)
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
    # The gain of a row does not depend on the polarity setting.
    assert np.array_equal(np.abs(factors), Augmentation(6.0).factors(5, 20_000, 1))


def test_segments_do_not_depend_on_the_order_of_steps(clips):
    augmentation = Augmentation(6.0, True)
    forward = [parts(clips, augmentation, step) for step in range(4)]
    backward = [parts(clips, augmentation, step) for step in (3, 2, 1, 0)][::-1]
    for one, other in zip(forward, backward, strict=True):
        assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])


def test_windows_are_not_augmented(clips):
    plain = [(inputs.clone(), targets.clone()) for inputs, targets, _ in clips.windows(100)]
    clips.augmentation = Augmentation(20.0, True)
    for (inputs, targets), (one, other, _) in zip(plain, clips.windows(100), strict=True):
        assert torch.equal(inputs, one) and torch.equal(targets, other)


@pytest.mark.parametrize("classes", [64, 1024, 65536])
def test_augmented_audio_is_encoded_once(tmp_path, classes):
    """Gain applies to the amplitudes of the recording, not to decoded classes."""
    rng = np.random.default_rng(1)
    samples = pcm.from_float(rng.uniform(-1, 1, 500))
    path = tmp_path / "clip.bin"
    path.write_bytes(samples.tobytes())
    clips = Clips([Clip(path, 0, len(samples))], 16, classes)
    clips.augmentation = Augmentation(6.0, True)
    factor = clips.augmentation.factors(0, 1, 0)[0]
    targets = clips.batch(0, 1, 700, 0).targets.numpy()[0]
    # As a ring of 516 positions, the segment contains the whole clip.
    expected = mulaw.encode(pcm.to_float(samples) * np.float32(factor), classes).tolist()
    found = np.concatenate([targets, targets])
    gaps = np.flatnonzero((found[:-1] < 0) & (found[1:] >= 0))
    assert any(found[gap + 1 : gap + 501].tolist() == expected for gap in gaps)


# -- speed ---------------------------------------------------------------------------------------------


def tones(tmp_path, hertz=440.0, rate=16000, seconds=1.0, receptive_field=64):
    time = np.arange(round(seconds * rate)) / rate
    return clips_of(tmp_path, [mulaw.encode(0.5 * np.sin(2 * np.pi * hertz * time))], receptive_field)


def pitch_of(audio, rate=16000):
    size = 2**18
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio)), size))
    return np.argmax(spectrum) * rate / size


def test_speed_shifts_the_pitch(tmp_path):
    clips = tones(tmp_path)
    augmentation = Augmentation(speed=0.25)
    _, targets = parts(clips, augmentation, rows=30, segment=4000)
    speeds = augmentation.speeds(3, 30, 7)
    assert 1 / 1.25 <= speeds.min() < 0.9 and 1.1 < speeds.max() <= 1.25
    assert 0.3 < (speeds > 1).mean() < 0.7
    compared = 0
    for row, speed in zip(targets, speeds, strict=True):
        if (row >= 0).all():
            assert pitch_of(mulaw.decode(row)) == pytest.approx(440 * speed, rel=0.002)
            compared += 1
    assert compared > 10


@pytest.mark.parametrize("speed", [0.5, 0.93, 1.0371, 1.9])
def test_resampled_segment_matches_the_signal(speed):
    """The tone is computed between the samples; silence and clip borders keep their positions."""
    length = 6000
    places = np.arange(length)
    real = (places >= 2000) & (places < 5000)
    audio = np.where(real, 0.5 * np.sin(0.1 * places), 0).astype(np.float32)

    def read(first, count):
        assert first >= 0 and first + count <= length
        return audio[first : first + count], real[first : first + count]

    start, before, after = 3000, 200, 600
    found, sounds = resampled_segment(read, start, before, after, speed)
    assert len(found) == len(sounds) == before + after
    at = np.arange(-before, after) * speed
    # The offset, up to one source sample after `start`, follows from the sine.
    inside = sounds & (start + at > 2100) & (start + at < 4900)
    offsets = np.linspace(0, 1, 101) * max(1.0, speed)
    errors = [np.abs(found - 0.5 * np.sin(0.1 * (start + at + offset)))[inside].max() for offset in offsets]
    assert min(errors) < 2e-3
    inner = np.abs(start + at - 2000) > 2
    assert np.array_equal(sounds[inner], ((start + at >= 2000) & (start + at < 5000))[inner])
    assert found.dtype == np.float32 and (found[~sounds] == 0).all()


def test_speed_keeps_clip_beginnings(tmp_path):
    """Segments that begin with a clip do so at any speed, after silence only."""
    clips = tones(tmp_path)
    clips.augmentation = Augmentation(speed=0.5)
    beginnings = 0
    for step in range(40):
        inputs, targets, _ = clips.batch(step, 8, 50, 0)
        for row, wanted in zip(inputs.numpy(), targets.numpy(), strict=True):
            context = row[: clips.receptive_field]
            if (wanted >= 0).all() and (context[:-1] == 128).all():
                beginnings += 1
                assert abs(mulaw.decode(wanted[:1])[0]) < 0.3
    # A sixteenth of 320, and chance.
    assert beginnings >= 8


def test_speed_is_drawn_independently(tmp_path):
    clips = tones(tmp_path)
    both = Augmentation(6.0, True, 0.1)
    whole = parts(clips, both, rows=6)
    clips.augmentation = both
    inputs, targets, _ = clips.batch(3, 2, 100, 7, first=4)
    assert np.array_equal(inputs, whole[0][4:]) and np.array_equal(targets, whole[1][4:])
    plain = Augmentation(6.0, True)
    assert np.array_equal(both.factors(3, 6, 7), plain.factors(3, 6, 7))
    assert np.array_equal(plain.speeds(3, 6, 7), np.ones(6))
