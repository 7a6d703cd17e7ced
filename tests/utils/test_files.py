"""What a search finds and never touches, and output that is whole or absent."""

import io
import os
import socket

import numpy as np
import pytest
from support.audio_files import noise, save, sine

from wavenet.audio.decoding import load_audio
from wavenet.audio.wav import WavWriter, write_wav
from wavenet.data.discovery import find_audio
from wavenet.errors import AudioError
from wavenet.utils.console import Console
from wavenet.utils.files import atomic_output, free_name, printable


def names_in(folder, **options):
    return find_audio(folder, **options).names


def failure(path, rate=16000):
    with pytest.raises(AudioError) as caught:
        load_audio(path, rate)
    message = str(caught.value)
    assert "\n" not in message and printable(path) in message
    return message


# -- finding ---------------------------------------------------------------------------------------------


def test_search_is_recursive_sorted_by_bytes_and_counts_the_rest(tmp_path):
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


def test_pipes_sockets_and_device_links_are_never_opened(tmp_path):
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
    assert "not a regular file" in failure(tmp_path / "pipe.wav")
    assert "not a regular file" in failure(tmp_path / "zero.wav")


def test_links_are_followed_once_and_rename_nothing(tmp_path):
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


def test_the_folder_itself_is_searched_even_if_it_is_to_be_left_out(tmp_path):
    save(tmp_path / "x.wav", sine(440, 0.1, 16000))
    save(tmp_path / "samples" / "made.wav", sine(440, 0.1, 16000))
    assert names_in(tmp_path, exclude=[tmp_path, tmp_path / "samples"]) == ["x.wav"]


def test_names_that_are_not_utf8_work_and_print_as_one_line(tmp_path):
    name = b"caf\xe9\n\x1b[31m.wav"
    plain = save(tmp_path / "plain.wav", sine(440, 0.1, 16000))
    os.rename(plain, os.path.join(os.fsencode(tmp_path), name))
    (found,) = names_in(tmp_path)
    assert os.fsencode(found) == name
    assert printable(found) == "caf\\xe9\\n\\x1b[31m.wav"
    assert len(load_audio(tmp_path / found, 16000)) == 1600


def test_folders_without_recordings_say_what_they_hold(tmp_path):
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
def test_unreadable_folders_and_files_are_named(tmp_path):
    save(tmp_path / "good.wav", sine(440, 0.1, 16000))
    locked = save(tmp_path / "locked" / "x.wav", sine(440, 0.1, 16000)).parent
    locked.chmod(0)
    try:
        assert find_audio(tmp_path).unreadable == {"locked": "permission denied"}
        with pytest.raises(AudioError, match="permission denied"):
            find_audio(locked)
    finally:
        locked.chmod(0o755)


# -- output ---------------------------------------------------------------------------------------------


def test_output_appears_whole_or_not_at_all(tmp_path):
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


def test_output_may_choose_its_name_at_the_end(tmp_path):
    target = tmp_path / "x.wav"
    for content in (b"1", b"2"):
        target.write_bytes(b"old")
        with atomic_output(target, lambda: free_name(target, "part")) as stream:
            stream.write(content)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "x.wav": b"old", "x-part.wav": b"1", "x-part-1.wav": b"2",
    }  # fmt: skip


def test_a_header_agrees_with_the_data_after_an_interrupt_in_the_midst_of_writing(tmp_path):
    with open(tmp_path / "x.wav", "wb") as stream:
        writer = WavWriter(stream, 16000, 1000)
        writer.write(np.zeros(100, np.float32))
        stream.write(b"left over")
        writer.finish()
    data = (tmp_path / "x.wav").read_bytes()
    assert len(data) == 44 + 200 and data[40:44] == (200).to_bytes(4, "little")


# -- lines ----------------------------------------------------------------------------------------------


def test_a_console_escapes_controls_and_lives_without_a_stream(monkeypatch):
    stream = io.StringIO()
    console = Console(stream)
    console.line("a\x1b[31m\r\udce9\ud800 \u00e9\nb\t\u202e")
    assert stream.getvalue() == "a\\x1b[31m\\r\\xe9\\ud800 \u00e9\nb\\t\\u202e\n"
    monkeypatch.setattr("sys.stderr", None)
    silent = Console()
    silent.interval = silent._next = 0
    silent.line("x")
    silent.status("x")
    silent.clear()


def test_output_that_cannot_be_written_is_one_line(tmp_path):
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
