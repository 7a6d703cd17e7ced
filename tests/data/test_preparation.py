"""Recordings of one or several folders, prepared by several threads, compared with sequential work."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.audio_files import noise, save
from support.datasets import CONFIG, contents, folder_of, prepare_dataset, real_samples

import wavenet.data.cache
import wavenet.data.preparation
from wavenet.audio import decoder_stderr
from wavenet.config import AudioFormat
from wavenet.data.cache import CacheSettings, load_or_build
from wavenet.data.dataset import DataConfig, held_out
from wavenet.data.preparation import load_or_build_all, match_globs
from wavenet.errors import AudioError
from wavenet.training.resume import fingerprint

SETTINGS = CacheSettings(AudioFormat(8000), 40.0)


@pytest.fixture(autouse=True)
def four_threads(monkeypatch):
    monkeypatch.setattr(wavenet.data.preparation, "workers", lambda: 4)


def only_some(inner, first):
    """A `load_or_build` that never returns from some name on."""

    def wrapped(source, name, cache_dir, settings, check):
        while name >= first:
            check()
            time.sleep(1e-3)
        return inner(source, name, cache_dir, settings, check)

    return wrapped


def files_of(folder):
    return {name: folder / name for name in sorted(os.listdir(folder))}


# -- several at once -------------------------------------------------------------------------------------


def test_threads_write_the_same_bytes(tmp_path):
    folder = folder_of(tmp_path / "audio", 9)
    save(folder / "rate.wav", noise(1.0, 11025, seed=50), 11025)
    (folder / "bad.wav").write_bytes(b"text")
    folder.rename(tmp_path / "here")
    files = files_of(tmp_path / "here")
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    expected = {name: load_or_build(path, name, tmp_path / "one", SETTINGS) for name, path in files.items()}
    found = load_or_build_all(files, tmp_path / "many", SETTINGS, None)
    assert list(found) == list(expected)
    for name, entry in expected.items():
        assert found[name].path.name == entry.path.name
        assert found[name].path.read_bytes() == entry.path.read_bytes()
        assert (found[name].clips, found[name].metadata) == (entry.clips, entry.metadata)


def test_results_do_not_depend_on_thread_order(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "audio", 4)
    for name in ("bad0.wav", "bad1.wav"):
        (folder / name).write_bytes(b"text")
    wanted = prepare_dataset(folder, tmp_path / "first", CONFIG)
    names, done = sorted(os.listdir(folder)), []
    monkeypatch.setattr(wavenet.data.preparation, "workers", lambda: len(names))
    turns = {name: threading.Event() for name in names}
    turns[names[-1]].set()
    inner = wavenet.data.preparation.load_or_build

    def last_first(source, name, *rest):
        assert turns[name].wait(60)
        result = inner(source, name, *rest)
        done.append(name)
        if name != names[0]:
            turns[names[names.index(name) - 1]].set()
        return result

    monkeypatch.setattr(wavenet.data.preparation, "load_or_build", last_first)
    prepared = prepare_dataset(folder, tmp_path / "second", CONFIG)
    assert done == names[::-1]
    assert contents(prepared) == contents(wanted) and fingerprint(prepared) == fingerprint(wanted)
    assert str(prepared.report) == str(wanted.report)
    assert prepared.report.as_dict() == wanted.report.as_dict()


def test_the_number_of_threads_is_limited(tmp_path, monkeypatch):
    lock, inside, most = threading.Lock(), 0, 0
    together = threading.Barrier(4, timeout=60)

    def counting(source, name, *rest):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        together.wait()
        with lock:
            inside -= 1
        return "not now"

    monkeypatch.setattr(wavenet.data.preparation, "load_or_build", counting)
    files = {str(number): tmp_path / str(number) for number in range(12)}
    assert load_or_build_all(files, tmp_path, SETTINGS, None) == dict.fromkeys(files, "not now")
    assert most == 4


def test_an_interrupt_keeps_finished_entries(tmp_path, monkeypatch):
    folder, cache = folder_of(tmp_path / "audio", 12), tmp_path / "cache"
    wanted = contents(prepare_dataset(folder, tmp_path / "whole", CONFIG))
    finished = []

    def interrupt(done, total, name):
        finished.append(name)
        if done == 3:
            raise KeyboardInterrupt

    inner = wavenet.data.preparation.load_or_build
    monkeypatch.setattr(wavenet.data.preparation, "load_or_build", only_some(inner, "n08.wav"))
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(folder, cache, CONFIG, progress=interrupt)
    assert not [each for each in threading.enumerate() if each.name.startswith("wavenet-prepare")]
    kept = {path.name for path in cache.iterdir()}
    monkeypatch.setattr(wavenet.data.preparation, "load_or_build", inner)
    assert 3 <= len(kept) <= 8 and all(name.endswith(".clips") for name in kept)
    decoded, decoder = [], wavenet.data.cache.Decoder
    monkeypatch.setattr(
        wavenet.data.cache, "Decoder", lambda path, rate: decoded.append(path) or decoder(path, rate)
    )
    assert contents(prepare_dataset(folder, cache, CONFIG)) == wanted
    assert len(decoded) == 12 - len(kept) and not {path.name for path in decoded} & set(finished)


def test_an_interrupt_stops_within_a_recording(tmp_path, monkeypatch):
    save(tmp_path / "audio" / "long.wav", noise(2.0, 8000), 8000)
    started, blocks = threading.Event(), 0

    class Endless(wavenet.data.cache.Decoder):
        def blocks(self):
            nonlocal blocks
            while True:
                blocks += 1
                started.set()
                yield np.zeros(100, np.float32)

    monkeypatch.setattr(wavenet.data.cache, "Decoder", Endless)
    save(tmp_path / "audio" / "a.wav", noise(0.1, 8000), 8000)
    inner = wavenet.data.preparation.load_or_build

    def other(source, name, *rest):
        if name == "a.wav":
            assert started.wait(60)
            return "not now"
        return inner(source, name, *rest)

    monkeypatch.setattr(wavenet.data.preparation, "load_or_build", other)

    def interrupt(*call):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(tmp_path / "audio", tmp_path / "cache", CONFIG, progress=interrupt)
    assert blocks and not list((tmp_path / "cache").iterdir())


def test_a_full_disk_stops_preparation(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wavenet.data.cache, "_write", full)
    with pytest.raises(AudioError, match="no space left on device; free some space"):
        prepare_dataset(folder_of(tmp_path / "audio", 6), tmp_path / "cache", CONFIG)


INTERRUPTED = """
import os, signal, sys
sys.path.insert(0, {parent!r})
import wavenet.data.preparation
from wavenet.config import AudioFormat
from wavenet.data.dataset import prepare
import time
wavenet.data.preparation.workers = lambda: 2
inner = wavenet.data.preparation.load_or_build
def load_or_build(source, name, cache_dir, settings, check):
    while name > "n10":
        check()
        time.sleep(1e-3)
    return inner(source, name, cache_dir, settings, check)
wavenet.data.preparation.load_or_build = load_or_build
def progress(done, total, name):
    if done == 2:
        os.kill(os.getpid(), signal.SIGINT)
prepare({audio!r}, {cache!r}, AudioFormat(8000), 15, 256, progress=progress)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are another thing there")
def test_a_signal_ends_the_process(tmp_path):
    folder, cache = folder_of(tmp_path / "audio", 15), tmp_path / "cache"
    parent = str(Path(wavenet.data.cache.__file__).parent.parent)
    text = INTERRUPTED.format(parent=parent, audio=str(folder), cache=str(cache))
    command = [sys.executable, "-c", textwrap.dedent(text)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0 and result.stderr.rstrip().endswith("KeyboardInterrupt")
    assert 2 <= len(list(cache.glob("*.clips"))) <= 10 and not list(cache.glob("*.tmp"))


def test_progress_is_printed_between_muted_blocks(capfd):
    stop = threading.Event()

    def noisy():
        while not stop.is_set():
            with decoder_stderr.muted_stderr():
                os.write(2, b"mpg123")

    threads = [threading.Thread(target=noisy) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(20):
        with decoder_stderr.unmuted_stderr():
            os.write(2, b"%d " % number)
            time.sleep(0)
    stop.set()
    for thread in threads:
        thread.join()
    os.write(2, b"end")
    assert capfd.readouterr().err == "".join(f"{number} " for number in range(20)) + "end"


# -- several folders -------------------------------------------------------------------------------------


def two_folders(home):
    """Folders that hold the same relative names with other sounds."""
    for number, name in enumerate(("one", "two")):
        for index in range(6):
            save(home / name / "in" / f"n{index}.wav", noise(0.3, 8000, seed=10 * number + index), 8000)
    return home / "one", home / "two"


def samples_of(path):
    """Any recording here, quantised by the inverse of the decoder's table."""
    audio = soundfile.read(path)[0]
    return np.floor((np.sign(audio) * np.log1p(255 * np.abs(audio)) / np.log(256) + 1) / 2 * 255 + 0.5)


def test_several_folders_split_by_relative_path(tmp_path):
    one, two = two_folders(tmp_path)
    settings = DataConfig(validation_fraction=0.5)
    prepared = prepare_dataset([one, two], tmp_path / "cache", CONFIG, settings)
    names = [f"in/n{index}.wav" for index in range(6)]
    for part, side in ((prepared.train, False), (prepared.validation, True)):
        chosen = [name for name in names if held_out(name, 0.5) == side]
        assert part.names == [f"{folder}/{name}" for folder in ("one", "two") for name in chosen] != []
        wanted = [samples_of(folder / name) for folder in (one, two) for name in chosen]
        assert np.array_equal(real_samples(part), np.concatenate(wanted))
    assert prepared.report.audio_dir == f"{one}, {two}" and prepared.report.found == 12
    again = prepare_dataset(None, tmp_path / "cache", CONFIG, settings)
    assert contents(again) == contents(prepared) and str(again.report) == str(prepared.report)
    # The order asked for is kept, and a folder named twice counts once.
    turned = prepare_dataset([two, one, two], tmp_path / "cache", CONFIG, settings)
    assert turned.whole.names[0] == "two/in/n0.wav" and turned.report.found == 12


def test_a_list_of_one_folder(tmp_path):
    folder = folder_of(tmp_path / "audio")
    alone = prepare_dataset(folder, tmp_path / "cache", CONFIG)
    files = sorted(path.name for path in (tmp_path / "cache").iterdir())
    listed = prepare_dataset([folder], tmp_path / "cache", CONFIG)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == files
    assert fingerprint(listed) == fingerprint(alone) and listed.train.names == alone.train.names
    assert listed.report == alone.report


def test_report_names_include_the_folder(tmp_path):
    one, two = two_folders(tmp_path)
    for folder in (one, two):
        (folder / "bad.wav").write_bytes(b"text")
    called = []
    report = prepare_dataset(
        [one, two], tmp_path / "c", CONFIG, progress=lambda *call: called.append(call)
    ).report
    assert list(report.skipped.values()) == [["one/bad.wav", "two/bad.wav"]]
    assert {name for _, _, name in called} >= {"one/bad.wav", "two/bad.wav", "two/in/n0.wav"}
    # Folders of the same name are shown with their full paths.
    two.rename(tmp_path / "one" / "one")
    (tmp_path / "other").mkdir()
    (tmp_path / "one" / "one").rename(tmp_path / "other" / "one")
    report = prepare_dataset([one, tmp_path / "other" / "one"], tmp_path / "c", CONFIG).report
    assert list(report.skipped.values()) == [[f"{one}/bad.wav", f"{tmp_path}/other/one/bad.wav"]]


def test_a_recording_in_two_folders_is_used_once(tmp_path):
    one, _ = two_folders(tmp_path)
    save(one / "top.wav", noise(0.3, 8000, seed=90), 8000)
    prepared = prepare_dataset([one, one / "in"], tmp_path / "cache", CONFIG)
    assert prepared.report.found == 7 and all(name.startswith("one/") for name in prepared.whole.names)


# -- a folder for validation -----------------------------------------------------------------------------


def test_validation_from_a_separate_folder(tmp_path):
    one, two = two_folders(tmp_path)
    prepared = prepare_dataset(one, tmp_path / "cache", CONFIG, val_dir=two)
    for part, folder in ((prepared.train, one), (prepared.validation, two)):
        wanted = [samples_of(folder / "in" / f"n{index}.wav") for index in range(6)]
        assert np.array_equal(real_samples(part), np.concatenate(wanted))
    report = prepared.report
    assert report.split == "folders" and (report.train_files, report.validation_files) == (6, 6)
    assert report.audio_dir == f"{one}; validation {two}" and "from a separate folder" in str(report)
    again = prepare_dataset(None, tmp_path / "cache", CONFIG)
    assert contents(again) == contents(prepared) and str(again.report) == str(report)


def test_validation_recordings_are_not_trained_on(tmp_path):
    one, _ = two_folders(tmp_path)
    save(one / "top.wav", noise(0.3, 8000, seed=90), 8000)
    prepared = prepare_dataset(one, tmp_path / "cache", CONFIG, val_dir=one / "in")
    assert prepared.train.names == ["one/top.wav"] and len(prepared.validation.names) == 6


def test_unusable_validation_folders(tmp_path):
    one, _ = two_folders(tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "text.wav").write_bytes(b"text")
    for val_dir, message in (
        (one, "is also a training folder"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / "bad", "bad: no recording in this folder can be used"),
    ):
        with pytest.raises(AudioError, match=message) as caught:
            prepare_dataset(one, tmp_path / "cache", CONFIG, val_dir=val_dir)
        assert caught.value.argument in ("val_dir", None)
    with pytest.raises(AudioError, match="no training recordings beside it"):
        prepare_dataset(None, tmp_path / "cache", CONFIG, val_dir=one)


# -- leaving out -----------------------------------------------------------------------------------------


def test_globs_on_relative_paths():
    names = ["a.wav", "b.mp3", "drafts/a.wav", "drafts/deep/b.mp3", "other/drafts/c.wav", "A.WAV"]
    expected = {
        "*.mp3": {"b.mp3", "drafts/deep/b.mp3"},
        "drafts/*": {"drafts/a.wav", "drafts/deep/b.mp3"},
        "drafts/": {"drafts/a.wav", "drafts/deep/b.mp3"},
        "a.wav": {"a.wav"},
        "[ab].*": {"a.wav", "b.mp3"},
        "drafts": set(),
    }
    assert match_globs(names, expected) == expected


def test_excluded_recordings_are_counted(tmp_path):
    folder = folder_of(tmp_path / "audio", 6)
    folder_of(folder / "drafts", 2)
    (folder / "drafts" / "bad.wav").write_bytes(b"text")
    patterns = ("drafts/*", "n05.*", "*.mp3")
    prepared = prepare_dataset(folder, tmp_path / "cache", CONFIG, patterns=patterns)
    assert prepared.whole.names == [f"n{index:02}.wav" for index in range(5)]
    report = prepared.report
    assert report.excluded == {"drafts/*": 3, "n05.*": 1, "*.mp3": 0} == report.as_dict()["excluded"]
    assert report.found == 5 and not report.skipped
    text = str(report)
    assert "5 found, 5 used" in text and "excluded 3 by 'drafts/*', 1 by 'n05.*'" in text
    assert "warning     the exclude pattern '*.mp3' matches no recording" in text
    # What was prepared stays as it was left, and more can be left out of it.
    assert str(prepare_dataset(None, tmp_path / "cache", CONFIG).report) == text
    fewer = prepare_dataset(None, tmp_path / "cache", CONFIG, patterns=("n00.wav",))
    assert fewer.whole.names == prepared.whole.names[1:] and fewer.report.excluded["n00.wav"] == 1
    for source in (folder, None):
        with pytest.raises(AudioError, match="the patterns exclude every"):
            prepare_dataset(source, tmp_path / "cache", CONFIG, patterns=("*",))
    assert len(prepare_dataset(folder, tmp_path / "cache", CONFIG).whole.names) == 8
