"""Clips, cache, split and report, against naive computations over what was put into the files."""

import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from audio_files import flac_claiming, noise, save, sine, wav_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

import wavenet.cache
import wavenet.clips
import wavenet.dataset
from wavenet.clips import Clip, Clips
from wavenet.config import WaveNetConfig
from wavenet.dataset import DataConfig, held_out, prepare
from wavenet.errors import AudioError

# A receptive field of 1 + 2 * (1 + 2 + 4) = 15 samples.
CONFIG = WaveNetConfig(sample_rate=8000, layers=6, stacks=2)
PACKAGE_PARENT = Path(wavenet.cache.__file__).parent.parent


def mu_law(audio, classes=256):
    """The formula, one sample at a time in plain floats."""
    mu = classes - 1
    result = []
    for value in np.asarray(audio, dtype=np.float64):
        curve = math.copysign(math.log1p(mu * abs(value)) / math.log1p(mu), value)
        result.append(math.floor((curve + 1) / 2 * mu + 0.5))
    return np.array(result)


def folder_of(path, count=12, seconds=0.5, rate=8000):
    for index in range(count):
        save(path / f"n{index:02}.wav", noise(seconds, rate, seed=index), rate)
    return path


def real_samples(clips):
    """All real samples in order, read through the windows."""
    return np.concatenate([t[t >= 0].numpy() for _, t in clips.windows(500)] or [np.zeros(0, int)])


def contents(prepared):
    return real_samples(prepared.train).tolist(), real_samples(prepared.validation).tolist()


# -- the timeline ----------------------------------------------------------------------------------------


def clips_of(folder, arrays, receptive_field, dtype="u1", offset=64, silence=128, classes=256):
    made = []
    for index, array in enumerate(arrays):
        path = folder / f"{index}.bin"
        path.write_bytes(b"\xee" * offset + np.asarray(array).astype(dtype).tobytes())
        made.append(Clip(path, offset, len(array), np.dtype(dtype)))
    return Clips(made, receptive_field, classes, silence)


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
def test_batches_are_cut_from_the_naive_ring(tmp_path_factory, lengths, receptive_field, segment, step, seed):
    rng = np.random.default_rng(sum(lengths))
    arrays = [rng.integers(0, 256, size=length) for length in lengths]
    clips = clips_of(tmp_path_factory.mktemp("clips"), arrays, receptive_field)
    values, real = naive_timeline(arrays, receptive_field)
    inputs, targets = clips.batch(step, 3, segment, seed)
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
def test_windows_score_every_sample_once_with_its_whole_context(
    tmp_path_factory, lengths, receptive_field, segment, batch
):
    rng = np.random.default_rng(sum(lengths))
    arrays = [rng.integers(0, 256, size=length) for length in lengths]
    clips = clips_of(tmp_path_factory.mktemp("clips"), arrays, receptive_field)
    assert clips.samples == sum(lengths) and len(clips) == sum(length > 0 for length in lengths)
    scored, contexts = [], []
    for inputs, targets in clips.windows(segment, batch=batch):
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


def test_every_sample_is_equally_likely_to_be_a_target(tmp_path):
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


def test_the_draw_depends_on_step_and_seed_alone(tmp_path):
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
    firsts = [int(t[0, 0]) for _, t in clips.windows(100, max_samples=1000)]
    assert firsts == [(start * 1000 + 500) % 251 for start in range(10)]


def test_histogram_and_entropy(tmp_path):
    arrays = [[0] * 4 + [1] * 2 + [255], [7]]
    clips = clips_of(tmp_path, arrays, 16)
    counts = clips.histogram()
    assert counts.dtype == np.int64 and counts.shape == (256,)
    assert {i: int(n) for i, n in enumerate(counts) if n} == {0: 4, 1: 2, 7: 1, 255: 1}
    assert clips.unigram_bits == pytest.approx(0.5 * 1 + 0.25 * 2 + 2 * 0.125 * 3)


def test_many_clips_hold_few_files_open(tmp_path):
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


def test_a_cache_file_that_goes_away_is_named(tmp_path):
    clips = clips_of(tmp_path, [[1, 2, 3]], 4)
    (tmp_path / "0.bin").unlink()
    with pytest.raises(AudioError, match=r"0\.bin has gone"):
        clips.batch(0, 1, 10, 0)


# -- preparing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [256, 1024, 65536, 2])
def test_samples_are_the_mu_law_classes_of_the_recording(tmp_path, classes):
    folder = folder_of(tmp_path / "audio", 4)
    config = WaveNetConfig(sample_rate=8000, quantization_channels=classes, layers=6, stacks=2)
    prepared = prepare(folder, tmp_path / "cache", config, DataConfig(validation_fraction=0.5))
    wanted = {"train": [], "validation": []}
    for name in sorted(os.listdir(folder)):
        samples = mu_law(soundfile.read(folder / name)[0], classes)
        wanted["validation" if held_out(name, 0.5) else "train"].append(samples)
    assert all(wanted.values())
    for part in ("train", "validation"):
        clips = getattr(prepared, part)
        assert np.array_equal(real_samples(clips), np.concatenate(wanted[part]))
        counts = np.bincount(np.concatenate(wanted[part]), minlength=classes)
        share = counts[counts > 0] / counts.sum()
        assert clips.unigram_bits == pytest.approx(-(share * np.log2(share)).sum())
        assert getattr(prepared.report, f"{part}_unigram_bits") == pytest.approx(clips.unigram_bits)
    assert prepared.report.uniform_bits == math.log2(classes)


def test_silence_makes_several_clips(tmp_path):
    gap, tone = np.zeros(8000, np.float32), sine(300, 1.0, 8000)
    save(tmp_path / "audio" / "x.wav", np.concatenate([gap, tone, gap, tone, gap]), 8000)
    prepared = prepare(tmp_path / "audio", tmp_path / "cache", CONFIG)
    # Each tone keeps 50 ms on either side.
    kept = 2 * (8000 + 2 * 400)
    assert prepared.train.samples + prepared.validation.samples == kept
    assert prepared.report.silence_seconds == pytest.approx((5 * 8000 - kept) / 8000)
    # The second tone is divided, as the only file's end is held out.
    assert (len(prepared.train), len(prepared.validation)) == (2, 1)
    whole = prepare(tmp_path / "audio", tmp_path / "cache", CONFIG, DataConfig(silence_db=None))
    assert whole.train.samples + whole.validation.samples == 5 * 8000
    assert "kept" in str(whole.report)


def test_normalization_is_applied(tmp_path):
    tone = sine(300, 1.0, 8000, 0.01)
    save(tmp_path / "audio" / "x.wav", tone, 8000, encoding="FLOAT")
    config = WaveNetConfig(sample_rate=8000, layers=6, stacks=2, normalization="peak")
    got = np.concatenate(contents(prepare(tmp_path / "audio", tmp_path / "cache", config)))
    assert np.abs(got - mu_law(tone / np.abs(tone).max() * 0.95)).max() <= 1
    assert got.min() == mu_law([-0.95])[0] and got.max() == mu_law([0.95])[0]


def test_progress_counts_files(tmp_path):
    folder_of(tmp_path / "audio", 3)
    calls = []
    prepare(tmp_path / "audio", tmp_path / "cache", CONFIG, progress=lambda *call: calls.append(call))
    assert calls == [(1, 3, "n00.wav"), (2, 3, "n01.wav"), (3, 3, "n02.wav")]


def test_a_long_recording_needs_little_memory(tmp_path, monkeypatch):
    rate, minutes = 8000, 12
    path = tmp_path / "audio" / "long.wav"
    path.parent.mkdir()
    with soundfile.SoundFile(path, "w", rate, 2, "PCM_16") as file:
        for minute in range(minutes):
            file.write(np.stack([noise(60, rate, seed=minute)] * 2, axis=1))
    monkeypatch.setattr(wavenet.cache, "_MEMORY_SAMPLES", 1 << 17)
    monkeypatch.setattr(wavenet.cache, "_CHUNK", 1 << 17)
    tracemalloc.start()
    prepared = prepare(tmp_path / "audio", tmp_path / "cache", CONFIG)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    samples = minutes * 60 * rate
    assert prepared.train.samples + prepared.validation.samples == samples
    # As float32 the recording alone would be 23 MB.
    assert peak < 4 * samples / 2
    expected = mu_law(soundfile.read(path, stop=3000)[0].mean(axis=1))
    assert real_samples(prepared.train)[:3000].tolist() == expected.tolist()
    assert sorted(file.suffix for file in (tmp_path / "cache").iterdir()) == [".clips", ".json"]


# -- the split -------------------------------------------------------------------------------------------


def test_adding_files_moves_none_across(tmp_path):
    folder, cache = tmp_path / "audio", tmp_path / "cache"
    folder_of(folder / "a", 12, 0.1)
    # The hash alone decides: these stand on either side at one half.
    before = {name: held_out(f"a/{name}", 0.5) for name in os.listdir(folder / "a")}
    assert len(set(before.values())) == 2
    first = prepare(folder, cache, CONFIG, DataConfig(validation_fraction=0.5))
    assert first.report.split == "files"
    folder_of(folder / "Z", 5, 0.1)
    folder_of(folder / "b", 7, 0.1)
    second = prepare(folder, cache, CONFIG, DataConfig(validation_fraction=0.5))
    for name in ("train", "validation"):
        old = {clip.path.name for clip in getattr(first, name).clips}
        assert old <= {clip.path.name for clip in getattr(second, name).clips}
    # Moving the whole folder moves none either.
    folder.rename(tmp_path / "renamed")
    third = prepare(tmp_path / "renamed", cache, CONFIG, DataConfig(validation_fraction=0.5))
    assert contents(third) == contents(second)


def test_the_share_of_held_out_files_is_the_fraction():
    names = [f"folder/recording-{index}.wav" for index in range(20_000)]
    for fraction in (0.01, 0.1, 0.5):
        share = sum(held_out(name, fraction) for name in names) / len(names)
        assert abs(share - fraction) < 4 * math.sqrt(fraction * (1 - fraction) / len(names))
    assert all(held_out(name, 0.5) for name in names if held_out(name, 0.1))


@pytest.mark.parametrize(("length", "held"), [(8000, 800), (100, 16), (20, 10), (2, 1), (3, 1)])
def test_a_single_file_gives_its_end_to_validation(tmp_path, length, held):
    audio = noise(length / 8000, 8000)
    save(tmp_path / "audio" / "x.wav", audio, 8000)
    prepared = prepare(tmp_path / "audio", tmp_path / "cache", CONFIG)
    train, validation = contents(prepared)
    assert len(validation) == held
    assert train + validation == mu_law(soundfile.read(tmp_path / "audio" / "x.wav")[0]).tolist()
    assert prepared.report.split == "ends" and "end of each file" in str(prepared.report)


def test_one_sample_is_too_little(tmp_path):
    save(tmp_path / "audio" / "x.wav", np.array([0.5]), 8000)
    # One sample has no level but its own, which is an offset rather than a sound.
    with pytest.raises(AudioError, match="none of the 1"):
        prepare(tmp_path / "audio", tmp_path / "cache", CONFIG)


# -- the report ------------------------------------------------------------------------------------------


def spoiled_folder(folder):
    """One good recording among bad ones of every kind; returns the names that must be reported."""
    folder_of(folder, 1, 2.0)
    flac = save(folder / "whole.flac", noise(5, 8000, seed=9), 8000, "FLAC").read_bytes()
    (folder / "whole.flac").unlink()
    broken = {
        "text.wav": b"no audio at all",
        "page.mp3": b"<html>404</html>",
        "pack.flac": b"PK\x03\x04" * 10,
        "empty.ogg": b"",
        "zero.wav": wav_bytes(b""),
        "slow.wav": wav_bytes(bytes(range(256)) * 10, rate=1),
        "fast.wav": wav_bytes(bytes(range(256)) * 10, rate=2_000_000_000),
        "none.wav": wav_bytes(bytes(range(256)) * 10, channels=0),
        "many.wav": wav_bytes(bytes(range(256)) * 1000, channels=65535),
        "damaged.flac": flac[:20000] + bytes(2000) + flac[22000:],
        "silent.wav": wav_bytes(bytes(16000)),
    }
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    for name, value in (("nan.wav", np.nan), ("inf.wav", np.inf), ("huge.wav", 1e30), ("loud.wav", 3e4)):
        save(folder / name, noise(0.5, 8000) * np.float32(value), 8000, encoding="DOUBLE")
    (folder / "short.flac").write_bytes(flac[: len(flac) // 2])
    (folder / "claims.flac").write_bytes(flac_claiming(flac, 10**10))
    (folder / "notes.txt").write_text("hello")
    os.mkfifo(folder / "pipe.wav")
    (folder / "loop").symlink_to(folder)
    (folder / "device.wav").symlink_to("/dev/zero")
    (folder / "gone.wav").symlink_to("nowhere")
    return {*broken, "nan.wav", "inf.wav", "huge.wav", "loud.wav", "gone.wav"}


def test_bad_files_are_skipped_counted_and_named(tmp_path, capfd):
    bad = spoiled_folder(tmp_path / "audio")
    for audio_dir in (tmp_path / "audio", tmp_path / "audio", None):
        prepared = prepare(audio_dir, tmp_path / "cache", CONFIG)
        report = prepared.report
        assert {name for names in report.skipped.values() for name in names} == bad
        assert set(report.cut_short) == {"short.flac", "claims.flac"}
        assert report.used == 3 and report.found == 3 + len(bad)
        assert report.ignored == {"(not a file)": 2, "txt": 1}
        decoded, claimed = report.cut_short["short.flac"]
        assert claimed == 5 and 2 < decoded < 3
        text = str(report)
        assert len(text.splitlines()) <= 14
        assert all(name in text for name in bad)
        assert f"{report.found} found, 3 used" in text and "short.flac" in text and "8000 Hz" in text
        assert json.loads(json.dumps(report.as_dict()))["uniform_bits"] == 8
    assert capfd.readouterr() == ("", "")


def test_nothing_usable_is_an_error_that_names_files(tmp_path):
    (tmp_path / "audio").mkdir()
    for index in range(5):
        (tmp_path / "audio" / f"{index}.wav").write_bytes(b"text")
    with pytest.raises(AudioError, match="none of the 5") as caught:
        prepare(tmp_path / "audio", tmp_path / "cache", CONFIG)
    message = str(caught.value)
    assert "0.wav" in message and "2 more" in message and "\n" not in message
    assert str(tmp_path) in message
    with pytest.raises(AudioError, match="does not exist"):
        prepare(tmp_path / "absent", tmp_path / "cache", CONFIG)


def test_minutes_rates_and_channels_are_told(tmp_path):
    save(tmp_path / "audio" / "a.wav", noise(90, 8000), 8000)
    save(tmp_path / "audio" / "b.wav", np.stack([noise(45, 16000)] * 2, axis=1), 16000)
    report = prepare(tmp_path / "audio", tmp_path / "cache", CONFIG).report
    assert report.train_seconds + report.validation_seconds == pytest.approx(135, abs=1e-3)
    assert report.rates == {8000: 1, 16000: 1} and report.channels == {1: 1, 2: 1}


def test_clipped_recordings_are_named(tmp_path):
    audio = noise(1.0, 8000)
    audio[1000:1040] = 1.7
    save(tmp_path / "audio" / "x.wav", audio, 8000, encoding="FLOAT")
    report = prepare(tmp_path / "audio", tmp_path / "cache", CONFIG).report
    assert report.clipped == {"x.wav": 40} and "x.wav (40 samples)" in str(report)
    assert report.peak_db[1] == pytest.approx(20 * math.log10(1.7), abs=0.01)


def test_names_that_are_not_utf8_go_all_the_way(tmp_path):
    folder = folder_of(tmp_path / "audio", 2)
    os.rename(os.fsencode(folder / "n00.wav"), os.path.join(os.fsencode(folder), b"\xe9\n.wav"))
    (folder / os.fsdecode(b"\xfftext.wav")).write_bytes(b"text")
    first = prepare(folder, tmp_path / "cache", CONFIG)
    second = prepare(None, tmp_path / "cache", CONFIG)
    assert contents(first) == contents(second)
    for prepared in (first, second):
        assert "\\xfftext.wav" in str(prepared.report)
        str(prepared.report).encode("utf-8")
        json.dumps(prepared.report.as_dict(), ensure_ascii=False).encode("utf-8")


# -- the cache -------------------------------------------------------------------------------------------


def no_decoding(monkeypatch):
    def refuse(*args):
        raise AssertionError("a cached recording was decoded")

    monkeypatch.setattr(wavenet.cache, "Decoder", refuse)


def test_a_second_run_decodes_nothing_not_even_bad_files(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "audio", 3)
    (folder / "bad.wav").write_bytes(b"text")
    first = prepare(folder, tmp_path / "cache", CONFIG)
    no_decoding(monkeypatch)
    assert contents(prepare(folder, tmp_path / "cache", CONFIG)) == contents(first)


def test_what_was_only_out_of_reach_is_tried_again(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "audio", 3)
    key_of = wavenet.cache.key_of

    def locked(path, settings):
        if path.name == "n01.wav":
            raise PermissionError(13, "Permission denied")
        return key_of(path, settings)

    monkeypatch.setattr(wavenet.cache, "key_of", locked)
    report = prepare(folder, tmp_path / "cache", CONFIG).report
    assert report.skipped == {"cannot be read (permission denied)": ["n01.wav"]}
    assert prepare(None, tmp_path / "cache", CONFIG).report.skipped == report.skipped
    monkeypatch.undo()
    assert not prepare(folder, tmp_path / "cache", CONFIG).report.skipped


def test_settings_have_caches_of_their_own(tmp_path):
    folder, cache = folder_of(tmp_path / "audio", 3), tmp_path / "cache"
    expected = {}
    for classes in (256, 64):
        config = WaveNetConfig(sample_rate=8000, quantization_channels=classes, layers=6, stacks=2)
        expected[classes] = contents(prepare(folder, cache, config))
        assert contents(prepare(folder, tmp_path / f"cache{classes}", config)) == expected[classes]
    assert expected[256] != expected[64]
    # Both are still there for a run without the folder, and the network's shape does not matter to them.
    config = WaveNetConfig(sample_rate=8000, quantization_channels=64, layers=2, stacks=1)
    assert Counter(np.concatenate(contents(prepare(None, cache, config)))) == Counter(
        np.concatenate(expected[64])
    )


def spoil(kind, path, other):
    content = path.read_bytes()
    if kind == "torn":
        path.write_bytes(content[:-1])
    elif kind == "headless":
        path.write_bytes(content[:20])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "longer":
        path.write_bytes(content + b"\0")
    elif kind == "flipped sample":
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    elif kind == "flipped header":
        path.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    elif kind == "other version":
        path.write_bytes(content[:8] + b"\xff" + content[9:])
    elif kind == "foreign":
        path.write_bytes(b"RIFF" + content[4:])
    elif kind == "of another recording":
        shutil.copy(other, path)
    elif kind == "lying":
        path.write_bytes(content[:12] + b"\xff" * 20 + content[32:])
    elif kind == "gone":
        path.unlink()


KINDS = [
    *("torn", "headless", "empty", "longer", "flipped sample", "flipped header", "other version"),
    *("foreign", "of another recording", "lying", "gone"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_spoiled_cache_is_rebuilt(tmp_path, kind):
    folder, cache = folder_of(tmp_path / "audio", 2), tmp_path / "cache"
    first = contents(prepare(folder, cache, CONFIG))
    one, other = sorted(cache.glob("*.clips"))
    good = one.read_bytes()
    spoil(kind, one, other)
    with pytest.raises(AudioError, match="missing or damaged"):
        prepare(None, cache, CONFIG)
    assert contents(prepare(folder, cache, CONFIG)) == first
    assert one.read_bytes() == good
    assert contents(prepare(None, cache, CONFIG)) == first


def test_a_changed_recording_is_read_again(tmp_path):
    folder, cache = folder_of(tmp_path / "audio", 2), tmp_path / "cache"
    first = contents(prepare(folder, cache, CONFIG))
    path = folder / "n00.wav"
    times = os.stat(path)
    save(path, noise(0.5, 8000, seed=77), 8000)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, same time, other sound
    second = contents(prepare(folder, cache, CONFIG))
    assert second != first
    assert second == contents(prepare(folder, tmp_path / "fresh", CONFIG))


def test_spoiled_indexes_are_no_index(tmp_path):
    folder, cache = folder_of(tmp_path / "audio", 2), tmp_path / "cache"
    first = contents(prepare(folder, cache, CONFIG))
    (index,) = cache.glob("index-*.json")
    text = index.read_text()
    for broken in ("", "{", "[]", "null", '{"format": "other"}', text[:-10], text.replace("cached", "cash")):
        index.write_text(broken)
        with pytest.raises(AudioError, match="no prepared audio"):
            prepare(None, cache, CONFIG)
    assert contents(prepare(folder, cache, CONFIG)) == first
    assert contents(prepare(None, cache, CONFIG)) == first


def test_without_a_folder_the_newest_index_counts(tmp_path):
    cache = tmp_path / "cache"
    with pytest.raises(AudioError, match="no prepared audio"):
        prepare(None, cache, CONFIG)
    prepare(folder_of(tmp_path / "one", 2), cache, CONFIG)
    second = prepare(folder_of(tmp_path / "two", 5), cache, CONFIG)
    shutil.rmtree(tmp_path / "one")
    shutil.rmtree(tmp_path / "two")
    again = prepare(None, cache, CONFIG)
    assert contents(again) == contents(second) and again.report.audio_dir == str(tmp_path / "two")
    assert str(again.report) == str(second.report)
    with pytest.raises(AudioError, match="8000 Hz"):
        prepare(None, cache, WaveNetConfig(sample_rate=16000, layers=6, stacks=2))


def test_cache_places_that_do_not_work(tmp_path):
    folder = folder_of(tmp_path / "audio", 1)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(AudioError, match="--cache-dir") as caught:
        prepare(folder, tmp_path / "file", CONFIG)
    assert str(tmp_path / "file") in str(caught.value)


def test_old_files_that_nothing_mentions_are_removed(tmp_path):
    folder, cache = folder_of(tmp_path / "audio", 2), tmp_path / "cache"
    prepare(folder, cache, CONFIG)
    before = set(cache.iterdir())
    mine = cache / "my-notes.txt"
    orphans = [cache / "0123.clips", cache / "4567.clips", cache / ".wavenet-89ab.tmp"]
    for path in (mine, *orphans, *before):
        path.touch()
        os.utime(path, (time.time() - 10**6,) * 2)
    os.utime(orphans[0])  # of a run that may be going on
    prepare(folder, cache, CONFIG)
    assert set(cache.iterdir()) == {*before, mine, orphans[0]}


PREPARE = """
import sys
sys.path.insert(0, {parent!r})
for name in {blocked!r}:
    sys.modules[name] = None
from wavenet.config import WaveNetConfig
from wavenet.dataset import prepare
config = WaveNetConfig(sample_rate=8000, layers=6, stacks=2)
prepared = prepare({audio!r}, {cache!r}, config)
print(prepared.train.samples, prepared.validation.samples, prepared.report.found)
"""


def program(audio, cache, blocked=()):
    text = PREPARE.format(
        parent=str(PACKAGE_PARENT), audio=audio and str(audio), cache=str(cache), blocked=list(blocked)
    )
    return [sys.executable, "-c", textwrap.dedent(text)]


def test_a_prepared_cache_needs_no_audio_library(tmp_path):
    folder, cache = folder_of(tmp_path / "audio", 3), tmp_path / "cache"
    blocked = ("soundfile", "librosa", "soxr", "audioread", "scipy")
    refused = subprocess.run(program(folder, cache, blocked), capture_output=True, text=True)
    assert "AudioError" in refused.stderr and "pip install soundfile" in refused.stderr
    prepared = prepare(folder, cache, CONFIG)
    wanted = f"{prepared.train.samples} {prepared.validation.samples} 3\n"
    for audio in (folder, None):
        result = subprocess.run(program(audio, cache, blocked), capture_output=True, text=True)
        assert (result.returncode, result.stdout) == (0, wanted), result.stderr
    shutil.rmtree(folder)
    result = subprocess.run(program(None, cache, blocked), capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, wanted), result.stderr


def test_runs_at_once_share_a_cache(tmp_path):
    folder, cache = folder_of(tmp_path / "audio", 40, 1.0), tmp_path / "cache"
    runs = [
        subprocess.Popen(program(folder, cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    results = [run.communicate() for run in runs]
    alone = prepare(folder, tmp_path / "alone", CONFIG)
    wanted = f"{alone.train.samples} {alone.validation.samples} 40\n"
    assert [(out, err) for out, err in results] == [(wanted, "")] * 3
    assert contents(prepare(None, cache, CONFIG)) == contents(alone)
    assert not [path for path in cache.iterdir() if path.suffix == ".tmp"]
