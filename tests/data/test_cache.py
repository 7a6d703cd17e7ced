"""The cache: its contents, damage, and sharing between runs."""

import dataclasses
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.audio_files import noise, save
from support.datasets import CONFIG, contents, folder_of, prepare_dataset

import wavenet.data.cache
import wavenet.data.clips
from wavenet.config import WaveNetConfig
from wavenet.data.dataset import DataConfig
from wavenet.errors import AudioError

PACKAGE_PARENT = Path(wavenet.data.cache.__file__).parent.parent


def no_decoding(monkeypatch):
    def refuse(*args):
        raise AssertionError("a cached recording was decoded")

    monkeypatch.setattr(wavenet.data.cache, "Decoder", refuse)


def test_a_second_run_decodes_nothing(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "audio", 3)
    (folder / "bad.wav").write_bytes(b"text")
    first = prepare_dataset(folder, tmp_path / "cache", CONFIG)
    no_decoding(monkeypatch)
    assert contents(prepare_dataset(folder, tmp_path / "cache", CONFIG)) == contents(first)


def test_temporarily_unreadable_files_are_retried(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "audio", 3)
    key_of = wavenet.data.cache.key_of

    def locked(path, settings):
        if path.name == "n01.wav":
            raise PermissionError(13, "Permission denied")
        return key_of(path, settings)

    monkeypatch.setattr(wavenet.data.cache, "key_of", locked)
    report = prepare_dataset(folder, tmp_path / "cache", CONFIG).report
    assert report.skipped == {"cannot be read (permission denied)": ["n01.wav"]}
    assert prepare_dataset(None, tmp_path / "cache", CONFIG).report.skipped == report.skipped
    monkeypatch.undo()
    assert not prepare_dataset(folder, tmp_path / "cache", CONFIG).report.skipped


def test_one_cache_serves_any_number_of_classes(tmp_path, monkeypatch):
    folder, cache = folder_of(tmp_path / "audio", 3), tmp_path / "cache"
    config = WaveNetConfig(sample_rate=8000, quantization_channels=64, layers=2, stacks=1)
    fresh = prepare_dataset(folder, tmp_path / "other", config)
    prepare_dataset(folder, cache, CONFIG)
    files = {path: path.read_bytes() for path in cache.glob("*.clips")}
    no_decoding(monkeypatch)
    for source in (folder, None):
        shared = prepare_dataset(source, cache, config)
        assert contents(shared) == contents(fresh) and max(contents(shared)[0]) < 64
    assert {path: path.read_bytes() for path in cache.glob("*.clips")} == files


def test_the_cache_contains_16_bit_pcm(tmp_path):
    folder = folder_of(tmp_path / "audio", 1)
    dataset = prepare_dataset(folder, tmp_path / "cache", CONFIG, DataConfig(silence_db=None))
    recorded = soundfile.read(folder / "n00.wav", dtype="int16")[0]
    assert np.array_equal(dataset.whole.pcm(0), recorded)
    (path,) = (tmp_path / "cache").glob("*.clips")
    assert path.read_bytes().endswith(recorded.astype("<i2").tobytes())
    audio, real = dataset.whole.audio(0, CONFIG.receptive_field + len(recorded) + 5)
    assert audio.dtype == np.float32 and real.sum() == len(recorded)
    assert np.array_equal(audio[real], recorded / np.float32(32768)) and not audio[~real].any()


def test_settings_have_entries_of_their_own(tmp_path):
    folder, cache = folder_of(tmp_path / "audio", 2), tmp_path / "cache"
    for number, normalization in enumerate(("none", "peak", "loudness"), 1):
        config = dataclasses.replace(CONFIG, normalization=normalization)
        prepare_dataset(folder, cache, config)
        assert len(list(cache.glob("*.clips"))) == 2 * number


def test_a_recording_below_one_16_bit_step(tmp_path):
    folder = folder_of(tmp_path / "audio", 1)
    tone = np.sin(np.arange(8000) * 0.3)
    save(folder / "quiet.wav", tone * 0.45 / 32768, 8000, encoding="FLOAT")
    save(folder / "soft.wav", tone * 0.8 / 32768, 8000, encoding="FLOAT")
    report = prepare_dataset(folder, tmp_path / "cache", CONFIG).report
    assert report.skipped == {"too quiet: all samples round to the same 16-bit value": ["quiet.wav"]}
    config = dataclasses.replace(CONFIG, normalization="peak")
    assert not prepare_dataset(folder, tmp_path / "cache", config).report.skipped


def damage(kind, path, other):
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
    elif kind == "false header":
        path.write_bytes(content[:12] + b"\xff" * 20 + content[32:])
    elif kind == "missing":
        path.unlink()


KINDS = [
    *("torn", "headless", "empty", "longer", "flipped sample", "flipped header", "other version"),
    *("foreign", "of another recording", "false header", "missing"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_cache_is_rebuilt(tmp_path, kind):
    folder, cache = folder_of(tmp_path / "audio", 2), tmp_path / "cache"
    first = contents(prepare_dataset(folder, cache, CONFIG))
    one, other = sorted(cache.glob("*.clips"))
    good = one.read_bytes()
    damage(kind, one, other)
    with pytest.raises(AudioError, match="missing or damaged"):
        prepare_dataset(None, cache, CONFIG)
    assert contents(prepare_dataset(folder, cache, CONFIG)) == first
    assert one.read_bytes() == good
    assert contents(prepare_dataset(None, cache, CONFIG)) == first


def test_a_changed_recording_is_decoded_again(tmp_path):
    folder, cache = folder_of(tmp_path / "audio", 2), tmp_path / "cache"
    first = contents(prepare_dataset(folder, cache, CONFIG))
    path = folder / "n00.wav"
    times = os.stat(path)
    save(path, noise(0.5, 8000, seed=77), 8000)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, same time, other sound
    second = contents(prepare_dataset(folder, cache, CONFIG))
    assert second != first
    assert second == contents(prepare_dataset(folder, tmp_path / "fresh", CONFIG))


def test_damaged_indexes_are_ignored(tmp_path):
    folder, cache = folder_of(tmp_path / "audio", 2), tmp_path / "cache"
    first = contents(prepare_dataset(folder, cache, CONFIG))
    (index,) = cache.glob("index-*.json")
    text = index.read_text()
    for broken in ("", "{", "[]", "null", '{"format": "other"}', text[:-10], text.replace("cached", "cash")):
        index.write_text(broken)
        with pytest.raises(AudioError, match="no prepared audio"):
            prepare_dataset(None, cache, CONFIG)
    assert contents(prepare_dataset(folder, cache, CONFIG)) == first
    assert contents(prepare_dataset(None, cache, CONFIG)) == first


def test_without_a_folder_the_newest_index_is_used(tmp_path):
    cache = tmp_path / "cache"
    with pytest.raises(AudioError, match="no prepared audio"):
        prepare_dataset(None, cache, CONFIG)
    prepare_dataset(folder_of(tmp_path / "one", 2), cache, CONFIG)
    second = prepare_dataset(folder_of(tmp_path / "two", 5), cache, CONFIG)
    shutil.rmtree(tmp_path / "one")
    shutil.rmtree(tmp_path / "two")
    again = prepare_dataset(None, cache, CONFIG)
    assert contents(again) == contents(second) and again.report.audio_dir == str(tmp_path / "two")
    assert str(again.report) == str(second.report)
    with pytest.raises(AudioError, match="8000 Hz"):
        prepare_dataset(None, cache, WaveNetConfig(sample_rate=16000, layers=6, stacks=2))


def test_unusable_cache_folders(tmp_path):
    folder = folder_of(tmp_path / "audio", 1)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(AudioError, match="choose another") as caught:
        prepare_dataset(folder, tmp_path / "file", CONFIG)
    assert str(tmp_path / "file") in str(caught.value) and caught.value.argument == "cache_dir"


def test_old_unused_files_are_removed(tmp_path):
    folder, cache = folder_of(tmp_path / "audio", 2), tmp_path / "cache"
    prepare_dataset(folder, cache, CONFIG)
    before = set(cache.iterdir())
    mine = cache / "my-notes.txt"
    orphans = [cache / "0123.clips", cache / "4567.clips", cache / ".wavenet-89ab.tmp"]
    for path in (mine, *orphans, *before):
        path.touch()
        os.utime(path, (time.time() - 10**6,) * 2)
    os.utime(orphans[0])  # of a run that may be going on
    prepare_dataset(folder, cache, CONFIG)
    assert set(cache.iterdir()) == {*before, mine, orphans[0]}


PREPARE = """
import sys
sys.path.insert(0, {parent!r})
for name in {blocked!r}:
    sys.modules[name] = None
from wavenet.config import WaveNetConfig
from wavenet.data.dataset import prepare
config = WaveNetConfig(sample_rate=8000, layers=6, stacks=2)
prepared = prepare({audio!r}, {cache!r}, config.audio_format, config.receptive_field, 256)
print(prepared.train.samples, prepared.validation.samples, prepared.report.found)
"""


def program(audio, cache, blocked=()):
    text = PREPARE.format(
        parent=str(PACKAGE_PARENT), audio=audio and str(audio), cache=str(cache), blocked=list(blocked)
    )
    return [sys.executable, "-c", textwrap.dedent(text)]


def test_a_filled_cache_needs_no_audio_library(tmp_path):
    folder, cache = folder_of(tmp_path / "audio", 3), tmp_path / "cache"
    blocked = ("soundfile", "librosa", "soxr", "audioread", "scipy")
    refused = subprocess.run(program(folder, cache, blocked), capture_output=True, text=True)
    assert "AudioError" in refused.stderr and "pip install soundfile" in refused.stderr
    prepared = prepare_dataset(folder, cache, CONFIG)
    wanted = f"{prepared.train.samples} {prepared.validation.samples} 3\n"
    for audio in (folder, None):
        result = subprocess.run(program(audio, cache, blocked), capture_output=True, text=True)
        assert (result.returncode, result.stdout) == (0, wanted), result.stderr
    shutil.rmtree(folder)
    result = subprocess.run(program(None, cache, blocked), capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, wanted), result.stderr


def test_concurrent_runs_share_a_cache(tmp_path):
    folder, cache = folder_of(tmp_path / "audio", 40, 1.0), tmp_path / "cache"
    runs = [
        subprocess.Popen(program(folder, cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    results = [run.communicate() for run in runs]
    alone = prepare_dataset(folder, tmp_path / "alone", CONFIG)
    wanted = f"{alone.train.samples} {alone.validation.samples} 40\n"
    assert [(out, err) for out, err in results] == [(wanted, "")] * 3
    assert contents(prepare_dataset(None, cache, CONFIG)) == contents(alone)
    assert not [path for path in cache.iterdir() if path.suffix == ".tmp"]
