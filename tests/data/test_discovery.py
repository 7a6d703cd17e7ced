"""Searching folders for recordings: which files are found, and which are never opened."""

import os
import socket

import pytest
from support.audio_files import load_error, save, sine

from wavenet.audio.decoding import load_audio
from wavenet.data.discovery import find_audio
from wavenet.errors import AudioError
from wavenet.utils.files import printable


def names_in(folder, **options):
    return find_audio(folder, **options).names


def test_search_is_recursive_and_sorted_by_bytes(tmp_path):
    for name in ("b.wav", "a/z.FLAC", "a/b/c.mp3", "A.ogg", "z.txt", "y.txt", "._b.wav", "Makefile"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = find_audio(tmp_path)
    assert found.names == ["A.ogg", "a/b/c.mp3", "a/z.FLAC", "b.wav"]
    assert found.ignored == {"": 1, "txt": 2, "wav": 1}
    assert not found.unreadable


def test_a_single_file_is_a_folder_of_one(tmp_path):
    path = save(tmp_path / "one.wav", sine(440, 0.1, 16000))
    found = find_audio(path)
    assert found.root == tmp_path and found.names == ["one.wav"]


def test_pipes_sockets_and_devices_are_never_opened(tmp_path):
    save(tmp_path / "good.wav", sine(440, 0.1, 16000))
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "zero.wav").symlink_to("/dev/zero")
    (tmp_path / "dead.wav").symlink_to("nowhere")
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(tmp_path)  # a socket's path is limited to about 100 bytes
    try:
        server.bind("socket.wav")
    finally:
        os.chdir(here)
        server.close()
    found = find_audio(tmp_path)
    assert found.names == ["good.wav"]
    assert found.ignored == {"(not a file)": 3}
    assert list(found.unreadable) == ["dead.wav"]
    # Named directly they are refused, where an open would wait or never end.
    assert "not a regular file" in load_error(tmp_path / "pipe.wav")
    assert "not a regular file" in load_error(tmp_path / "zero.wav")


def test_links_are_followed_once(tmp_path):
    save(tmp_path / "tree" / "m" / "x.wav", sine(440, 0.1, 16000))
    save(tmp_path / "elsewhere" / "y.wav", sine(440, 0.1, 16000))
    assert names_in(tmp_path / "tree") == ["m/x.wav"]
    (tmp_path / "tree" / "a-loop").symlink_to(tmp_path / "tree")
    (tmp_path / "tree" / "m" / "up").symlink_to("..")
    (tmp_path / "tree" / "a-copy.wav").symlink_to("m/x.wav")
    (tmp_path / "tree" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "tree")
    assert names_in(tmp_path / "tree") == ["m/x.wav", "out/y.wav"]


def test_excluded_folders_are_not_searched(tmp_path):
    save(tmp_path / "x.wav", sine(440, 0.1, 16000))
    save(tmp_path / "checkpoints" / "sample.wav", sine(440, 0.1, 16000))
    assert names_in(tmp_path, exclude=[tmp_path / "checkpoints", tmp_path / "absent"]) == ["x.wav"]


def test_the_folder_itself_is_always_searched(tmp_path):
    save(tmp_path / "x.wav", sine(440, 0.1, 16000))
    save(tmp_path / "samples" / "made.wav", sine(440, 0.1, 16000))
    assert names_in(tmp_path, exclude=[tmp_path, tmp_path / "samples"]) == ["x.wav"]


def test_names_that_are_not_utf8(tmp_path):
    name = b"caf\xe9\n\x1b[31m.wav"
    plain = save(tmp_path / "plain.wav", sine(440, 0.1, 16000))
    os.rename(plain, os.path.join(os.fsencode(tmp_path), name))
    (found,) = names_in(tmp_path)
    assert os.fsencode(found) == name
    assert printable(found) == "caf\\xe9\\n\\x1b[31m.wav"
    assert len(load_audio(tmp_path / found, 16000)) == 1600


def test_folders_without_recordings(tmp_path):
    def refusal(folder):
        with pytest.raises(AudioError) as caught:
            find_audio(folder)
        assert "\n" not in str(caught.value) and printable(folder) in str(caught.value)
        return str(caught.value)

    assert "does not exist" in refusal(tmp_path / "absent")
    assert "is empty" in refusal(tmp_path)
    (tmp_path / "songs.zip").write_bytes(b"PK\3\4")
    assert "1 zip" in refusal(tmp_path) and "flac" in refusal(tmp_path)
    assert "does not exist" in refusal(tmp_path / "songs" / "x")
    os.mkfifo(tmp_path / "pipe")
    assert "not a folder" in refusal(tmp_path / "pipe")
    assert "cannot be read" in refusal(tmp_path / "songs.zip" / "x")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_unreadable_folders_are_named(tmp_path):
    save(tmp_path / "good.wav", sine(440, 0.1, 16000))
    locked = save(tmp_path / "locked" / "x.wav", sine(440, 0.1, 16000)).parent
    locked.chmod(0)
    try:
        assert find_audio(tmp_path).unreadable == {"locked": "permission denied"}
        with pytest.raises(AudioError, match="permission denied"):
            find_audio(locked)
    finally:
        locked.chmod(0o755)
