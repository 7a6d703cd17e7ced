"""Output files that are complete or absent, and the folder of caches."""

import os
from pathlib import Path

import numpy as np
import pytest
from support.audio_files import noise

from wavenet.audio.wav import write_wav
from wavenet.errors import AudioError
from wavenet.utils.files import atomic_output, free_name, user_cache


def test_output_is_complete_or_absent(tmp_path):
    target = tmp_path / "x.bin"
    with atomic_output(target) as stream:
        stream.write(b"first")
        assert not target.exists()
    assert target.read_bytes() == b"first"
    with pytest.raises(KeyboardInterrupt), atomic_output(target) as stream:
        stream.write(b"second")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["x.bin"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_output_through_a_link_keeps_the_link(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with atomic_output(tmp_path / "link") as stream:
        stream.write(b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"


def test_output_chooses_its_name_at_the_end(tmp_path):
    target = tmp_path / "x.wav"
    for content in (b"1", b"2"):
        target.write_bytes(b"old")
        with atomic_output(target, lambda: free_name(target, "part")) as stream:
            stream.write(content)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "x.wav": b"old", "x-part.wav": b"1", "x-part-1.wav": b"2",
    }  # fmt: skip


def test_unwritable_output_is_one_line(tmp_path):
    for path, why in (
        (tmp_path / "absent" / "x.wav", "folder does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / ("x" * 300), "name too long"),
    ):
        with pytest.raises(AudioError, match=why) as caught:
            write_wav(path, np.zeros(10, np.float32), 16000)
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_full_disk_and_devices():
    with pytest.raises(AudioError, match="no space left"):
        write_wav("/dev/full", noise(1, 16000), 16000)
    write_wav("/dev/null", noise(1, 16000), 16000)
    assert not os.path.isfile("/dev/null")


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="other systems have other cache folders")
def test_the_cache_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "wavenet"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert user_cache() == Path.home() / ".cache" / "wavenet"
