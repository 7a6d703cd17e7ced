"""`wavenet-generate` when it is told to stop: what it leaves behind, what it says, at whatever moment."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time

import pytest
from support.commands import environment, make_checkpoint, start, temporaries

import wavenet


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a checkpoint where the command looks for one."""
    folder = tmp_path_factory.mktemp("home")
    make_checkpoint(folder / "checkpoints" / "step-00000001")
    return folder


def test_endless_stream_until_interrupted(home):
    process = start(home, "--seconds", 0, "-", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(44 + 2 * 5000)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"interrupted: standard output" in errors and b"Traceback" not in errors


def interrupt_underway(home, *arguments, number=signal.SIGINT):
    """Send a signal once some audio has been written; return the exit code and the errors."""
    process = start(home, "--seconds", 100_000, *arguments, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 20_000 for path in temporaries(home)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert b"Traceback" not in errors and not temporaries(home)
    return process.returncode, errors.decode()


def assert_whole(path):
    data = path.read_bytes()
    assert struct.unpack("<I", data[4:8])[0] == len(data) - 8
    assert struct.unpack("<I", data[40:44])[0] == len(data) - 44 > 0


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_an_interrupted_file_has_a_valid_header(home, name, code):
    (home / "long.wav").unlink(missing_ok=True)
    ended, errors = interrupt_underway(home, "--force", "long.wav", number=getattr(signal, name))
    assert ended == code and "interrupted: long.wav" in errors
    assert_whole(home / "long.wav")


def test_an_interrupt_replaces_no_whole_file_by_a_part(home):
    folder = home / "takes"
    folder.mkdir()
    for name in ("out-0.wav", "out-0-interrupted.wav"):
        (folder / name).write_bytes(b"precious")
    os.symlink("../checkpoints", folder / "checkpoints")
    # The second take has no predecessor, and gets its own name.
    ended, errors = interrupt_underway(folder, "--force", "--batch", 2, "out.wav")
    assert ended == 130 and "interrupted: out-0-interrupted-1.wav ... out-1.wav" in errors
    assert "unchanged: out-0.wav" in errors
    assert (
        (folder / "out-0.wav").read_bytes() == (folder / "out-0-interrupted.wav").read_bytes() == b"precious"
    )
    assert_whole(folder / "out-0-interrupted-1.wav")
    assert_whole(folder / "out-1.wav")


def test_ignored_signals_stay_ignored(home):
    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = start(
        home, "--seconds", 0, "-", stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=ignore
    )
    process.stdout.read(44)
    process.send_signal(signal.SIGHUP)
    assert len(process.stdout.read(40_000)) == 40_000
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143


@pytest.mark.parametrize("moment", [0.05, 0.3, 1.0])
def test_an_interrupt_while_starting_is_one_line(home, moment):
    code = (
        "from wavenet.cli.generate import main\nimport sys; print('main', flush=True)\n"
        "sys.exit(main(['--seconds', '100000', '--force', 'early.wav']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=home, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == b"main\n"
    time.sleep(moment)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in errors and b"interrupted" in errors


# What a module makes of an interrupt while it is being loaded.
SWALLOWED = {
    "argparse": "raise",
    "wavenet.utils.files": "raise",
    "secrets": "pass",
    "torch": "raise ImportError('numpy failed to import')",
    "wavenet.engine.registry": "pass",
}


@pytest.mark.parametrize("module", SWALLOWED)
def test_an_interrupt_during_imports_is_not_lost(home, module):
    code = (
        "import os, signal, sys\n"
        "from wavenet.cli.generate import main\n"
        f"sys.modules.pop({module!r}, None)\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            try: os.kill(os.getpid(), signal.SIGINT); [None for _ in range(1000)]\n"
        f"            except KeyboardInterrupt: {SWALLOWED[module]}\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "sys.exit(main(['--seconds', '1', '--force', 'early.wav']))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=home, env=environment(), capture_output=True)
    assert result.returncode == 130, result.stderr
    assert result.stderr.splitlines()[-1] == b"wavenet-generate: interrupted"
    assert b"Traceback" not in result.stderr


def test_the_entry_loads_next_to_nothing_before_main():
    def loaded(name):
        code = f"import {name}, sys; print(*sys.modules)"
        result = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=paths)
        return set(result.stdout.split())

    paths = environment(PYTHONPATH=os.path.dirname(wavenet.__path__[0]))
    assert loaded("wavenet.cli.generate") - loaded("wavenet") == {"wavenet.cli", "wavenet.cli.generate"}
