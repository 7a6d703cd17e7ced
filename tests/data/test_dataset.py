"""Samples, split and report, compared with naive computations on the recordings."""

import json
import math
import os
import tracemalloc

import numpy as np
import pytest
import soundfile
from support.audio_files import flac_claiming, noise, save, sine, wav_bytes
from support.datasets import CONFIG, contents, folder_of, prepare_dataset, real_samples

import wavenet.data.cache
import wavenet.data.clips
import wavenet.data.dataset
from wavenet.config import WaveNetConfig
from wavenet.data.dataset import DataConfig, held_out
from wavenet.errors import AudioError

CUT_SHORT = "cut short (it ends before its header says)"


def mu_law(audio, classes=256):
    """The formula, one sample at a time in plain floats."""
    mu = classes - 1
    result = []
    for value in np.asarray(audio, dtype=np.float64):
        curve = math.copysign(math.log1p(mu * abs(value)) / math.log1p(mu), value)
        result.append(math.floor((curve + 1) / 2 * mu + 0.5))
    return np.array(result)


# -- preparing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [256, 1024, 65536, 2])
def test_targets_are_the_classes_of_the_recording(tmp_path, classes):
    folder = folder_of(tmp_path / "audio", 4)
    config = WaveNetConfig(sample_rate=8000, quantization_channels=classes, layers=6, stacks=2)
    prepared = prepare_dataset(folder, tmp_path / "cache", config, DataConfig(validation_fraction=0.5))
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
    prepared = prepare_dataset(tmp_path / "audio", tmp_path / "cache", CONFIG)
    # Each tone keeps 50 ms on either side.
    kept = 2 * (8000 + 2 * 400)
    assert prepared.train.samples + prepared.validation.samples == kept
    assert prepared.report.silence_seconds == pytest.approx((5 * 8000 - kept) / 8000)
    # The second tone is divided, as the only file's end is held out.
    assert (len(prepared.train), len(prepared.validation)) == (2, 1)
    whole = prepare_dataset(tmp_path / "audio", tmp_path / "cache", CONFIG, DataConfig(silence_db=None))
    assert whole.train.samples + whole.validation.samples == 5 * 8000
    assert "kept" in str(whole.report)


def test_normalization_is_applied(tmp_path):
    tone = sine(300, 1.0, 8000, 0.01)
    save(tmp_path / "audio" / "x.wav", tone, 8000, encoding="FLOAT")
    config = WaveNetConfig(sample_rate=8000, layers=6, stacks=2, normalization="peak")
    got = np.concatenate(contents(prepare_dataset(tmp_path / "audio", tmp_path / "cache", config)))
    assert np.abs(got - mu_law(tone / np.abs(tone).max() * 0.95)).max() <= 1
    assert got.min() == mu_law([-0.95])[0] and got.max() == mu_law([0.95])[0]


def test_progress_counts_files(tmp_path):
    folder_of(tmp_path / "audio", 3)
    calls = []
    prepare_dataset(tmp_path / "audio", tmp_path / "cache", CONFIG, progress=lambda *call: calls.append(call))
    # In the order in which they are done.
    assert [call[:2] for call in calls] == [(1, 3), (2, 3), (3, 3)]
    assert sorted(call[2] for call in calls) == ["n00.wav", "n01.wav", "n02.wav"]


def test_a_long_recording_needs_little_memory(tmp_path, monkeypatch):
    rate, minutes = 8000, 12
    path = tmp_path / "audio" / "long.wav"
    path.parent.mkdir()
    with soundfile.SoundFile(path, "w", rate, 2, "PCM_16") as file:
        for minute in range(minutes):
            file.write(np.stack([noise(60, rate, seed=minute)] * 2, axis=1))
    monkeypatch.setattr(wavenet.data.cache, "_MEMORY_SAMPLES", 1 << 17)
    monkeypatch.setattr(wavenet.data.cache, "_CHUNK", 1 << 17)
    tracemalloc.start()
    prepared = prepare_dataset(tmp_path / "audio", tmp_path / "cache", CONFIG)
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


def test_new_files_do_not_change_the_split(tmp_path):
    folder, cache = tmp_path / "audio", tmp_path / "cache"
    folder_of(folder / "a", 12, 0.1)
    # The hash determines the part; at a fraction of one half these names are in different parts.
    before = {name: held_out(f"a/{name}", 0.5) for name in os.listdir(folder / "a")}
    assert len(set(before.values())) == 2
    first = prepare_dataset(folder, cache, CONFIG, DataConfig(validation_fraction=0.5))
    assert first.report.split == "files"
    folder_of(folder / "Z", 5, 0.1)
    folder_of(folder / "b", 7, 0.1)
    second = prepare_dataset(folder, cache, CONFIG, DataConfig(validation_fraction=0.5))
    for name in ("train", "validation"):
        old = {clip.path.name for clip in getattr(first, name).clips}
        assert old <= {clip.path.name for clip in getattr(second, name).clips}
    # Moving the whole folder moves none either.
    folder.rename(tmp_path / "renamed")
    third = prepare_dataset(tmp_path / "renamed", cache, CONFIG, DataConfig(validation_fraction=0.5))
    assert contents(third) == contents(second)


def test_held_out_share_is_the_fraction():
    names = [f"folder/recording-{index}.wav" for index in range(20_000)]
    for fraction in (0.01, 0.1, 0.5):
        share = sum(held_out(name, fraction) for name in names) / len(names)
        assert abs(share - fraction) < 4 * math.sqrt(fraction * (1 - fraction) / len(names))
    assert all(held_out(name, 0.5) for name in names if held_out(name, 0.1))


@pytest.mark.parametrize(("length", "held"), [(8000, 800), (100, 16), (20, 10), (2, 1), (3, 1)])
def test_the_end_of_a_single_file_is_validation(tmp_path, length, held):
    audio = noise(length / 8000, 8000)
    save(tmp_path / "audio" / "x.wav", audio, 8000)
    prepared = prepare_dataset(tmp_path / "audio", tmp_path / "cache", CONFIG)
    train, validation = contents(prepared)
    assert len(validation) == held
    assert train + validation == mu_law(soundfile.read(tmp_path / "audio" / "x.wav")[0]).tolist()
    assert prepared.report.split == "ends" and "end of each file" in str(prepared.report)


def test_one_sample_is_too_short(tmp_path):
    save(tmp_path / "audio" / "x.wav", np.array([0.5]), 8000)
    # A single sample equals its mean, so it is silent.
    with pytest.raises(AudioError, match="none of the 1"):
        prepare_dataset(tmp_path / "audio", tmp_path / "cache", CONFIG)


# -- the report ------------------------------------------------------------------------------------------


def folder_with_damaged_files(folder):
    """One good recording and damaged ones of every kind; returns the names to be reported."""
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
    broken["short.flac"] = flac[: len(flac) // 2]
    broken["claims.flac"] = flac_claiming(flac, 10**10)
    broken["short.wav"] = wav_bytes(bytes(range(256)) * 10, rate=8000, claimed=3000)
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    for name, value in (("nan.wav", np.nan), ("inf.wav", np.inf), ("huge.wav", 1e30), ("loud.wav", 3e4)):
        save(folder / name, noise(0.5, 8000) * np.float32(value), 8000, encoding="DOUBLE")
    (folder / "notes.txt").write_text("hello")
    os.mkfifo(folder / "pipe.wav")
    (folder / "loop").symlink_to(folder)
    (folder / "device.wav").symlink_to("/dev/zero")
    (folder / "gone.wav").symlink_to("nowhere")
    return {*broken, "nan.wav", "inf.wav", "huge.wav", "loud.wav", "gone.wav"}


def test_unusable_files_are_skipped_and_named(tmp_path, capfd):
    bad = folder_with_damaged_files(tmp_path / "audio")
    for audio_dir in (tmp_path / "audio", tmp_path / "audio", None):
        prepared = prepare_dataset(audio_dir, tmp_path / "cache", CONFIG)
        report = prepared.report
        assert {name for names in report.skipped.values() for name in names} == bad
        assert report.skipped[CUT_SHORT] == ["claims.flac", "short.flac", "short.wav"]
        assert report.used == 1 and report.found == 1 + len(bad)
        assert report.ignored == {"(not a file)": 2, "txt": 1}
        text = str(report)
        assert len(text.splitlines()) <= 14
        assert f"3 {CUT_SHORT}: claims.flac, short.flac, short.wav\n" in text
        assert f"{report.found} found, 1 used" in text and "8000 Hz" in text
        assert f"warning     {len(bad)} of {report.found} recordings skipped:\n" in text
        assert json.loads(json.dumps(report.as_dict()))["uniform_bits"] == 8
    assert capfd.readouterr() == ("", "")


def test_the_warning_counts_by_reason(tmp_path):
    folder = folder_of(tmp_path / "audio", 2)
    for index in range(4):
        (folder / f"cut{index}.wav").write_bytes(wav_bytes(bytes(4000), rate=8000, claimed=8000))
    for index in range(2):
        (folder / f"text{index}.wav").write_bytes(b"text")
    (folder / "silent.wav").write_bytes(wav_bytes(bytes(4000), rate=8000))
    lines = str(prepare_dataset(folder, tmp_path / "cache", CONFIG).report).splitlines()
    assert lines[-4:] == [
        "warning     7 of 9 recordings skipped:",
        f"              4 {CUT_SHORT}: cut0.wav, cut1.wav, cut2.wav, and 1 more",
        "              2 not audio that can be read (format not recognised): text0.wav, text1.wav",
        "              1 silent: silent.wav",
    ]


def test_no_usable_recording_is_an_error(tmp_path):
    (tmp_path / "audio").mkdir()
    for index in range(5):
        (tmp_path / "audio" / f"{index}.wav").write_bytes(b"text")
    with pytest.raises(AudioError, match="none of the 5") as caught:
        prepare_dataset(tmp_path / "audio", tmp_path / "cache", CONFIG)
    message = str(caught.value)
    assert "0.wav" in message and "2 more" in message and "\n" not in message
    assert str(tmp_path) in message
    with pytest.raises(AudioError, match="does not exist"):
        prepare_dataset(tmp_path / "absent", tmp_path / "cache", CONFIG)


def test_report_of_minutes_rates_and_channels(tmp_path):
    save(tmp_path / "audio" / "a.wav", noise(90, 8000), 8000)
    save(tmp_path / "audio" / "b.wav", np.stack([noise(45, 16000)] * 2, axis=1), 16000)
    report = prepare_dataset(tmp_path / "audio", tmp_path / "cache", CONFIG).report
    assert report.train_seconds + report.validation_seconds == pytest.approx(135, abs=1e-3)
    assert report.rates == {8000: 1, 16000: 1} and report.channels == {1: 1, 2: 1}


def test_clipped_recordings_are_named(tmp_path):
    audio = noise(1.0, 8000)
    audio[1000:1040] = 1.7
    save(tmp_path / "audio" / "x.wav", audio, 8000, encoding="FLOAT")
    report = prepare_dataset(tmp_path / "audio", tmp_path / "cache", CONFIG).report
    assert report.clipped == {"x.wav": 40} and "x.wav (40 samples)" in str(report)
    assert report.peak_db[1] == pytest.approx(20 * math.log10(1.7), abs=0.01)


def test_names_that_are_not_utf8_reach_the_report(tmp_path):
    folder = folder_of(tmp_path / "audio", 2)
    os.rename(os.fsencode(folder / "n00.wav"), os.path.join(os.fsencode(folder), b"\xe9\n.wav"))
    (folder / os.fsdecode(b"\xfftext.wav")).write_bytes(b"text")
    first = prepare_dataset(folder, tmp_path / "cache", CONFIG)
    second = prepare_dataset(None, tmp_path / "cache", CONFIG)
    assert contents(first) == contents(second)
    for prepared in (first, second):
        assert "\\xfftext.wav" in str(prepared.report)
        str(prepared.report).encode("utf-8")
        json.dumps(prepared.report.as_dict(), ensure_ascii=False).encode("utf-8")
