"""The cache: what it keeps, what spoils it, and who shares it."""

import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.audio_files import noise, save
from support.datasets import CONFIG, contents, folder_of

import wavenet.data.cache
import wavenet.data.clips
from wavenet.config import WaveNetConfig
from wavenet.data.dataset import prepare
from wavenet.errors import AudioError

PACKAGE_PARENT = Path(wavenet.data.cache.__file__).parent.parent


def no_decoding(monkeypatch):
    def refuse(*args):
        raise AssertionError("a cached recording was decoded")

    monkeypatch.setattr(wavenet.data.cache, "Decoder", refuse)


def test_a_second_run_decodes_nothing_not_even_bad_files(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "audio", 3)
    (folder / "bad.wav").write_bytes(b"text")
    first = prepare(folder, tmp_path / "cache", CONFIG)
    no_decoding(monkeypatch)
    assert contents(prepare(folder, tmp_path / "cache", CONFIG)) == contents(first)


def test_what_was_only_out_of_reach_is_tried_again(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "audio", 3)
    key_of = wavenet.data.cache.key_of

    def locked(path, settings):
        if path.name == "n01.wav":
            raise PermissionError(13, "Permission denied")
        return key_of(path, settings)

    monkeypatch.setattr(wavenet.data.cache, "key_of", locked)
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
from wavenet.data.dataset import prepare
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
