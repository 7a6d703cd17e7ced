"""A run that is killed with SIGKILL many times gives the results of a run without interruption."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.commands import NETWORK_FLAGS, make_audio
from support.fork_server import ForkServer
from support.trainers import metrics

pytestmark = pytest.mark.slow

KILLS = 20

FLAGS = [
    *NETWORK_FLAGS,
    *("--audio-dir", "audio", "--cache-dir", "cache", "--device", "cpu", "--threads", "1"),
    *("--steps", "240", "--batch", "1", "--segment", "0.02", "--warmup-steps", "20", "--dropout", "0.1"),
    *("--validate-every", "16", "--validation-seconds", "0.1", "--checkpoint-every", "3"),
    *("--sample-every", "60", "--sample-seconds", "0.02"),
]

# An audit hook kills the process at its n-th change of the run's files; never if n is 0. Each request starts
# a process; the answers are its identifier and its exit status.
SCRIPT = """
import json, os, signal, sys
import torch._dynamo  # slow, and otherwise loaded by the first optimiser
import wavenet.cli.train, wavenet.data.dataset, wavenet.training.memory_plan, wavenet.training.trainer
CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate"}
for line in sys.stdin:
    arguments, run, kill_at = json.loads(line)
    child = os.fork()
    if child == 0:
        left = [kill_at]
        def hook(event, values):
            if event in CHANGES and run in str(values[0]):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        if kill_at:
            sys.addaudithook(hook)
        code = 1
        try:
            code = wavenet.cli.train.main(arguments)
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Server(ForkServer):
    """Starts runs of `wavenet-train` in a folder."""

    def __init__(self, home: Path):
        self.errors = home / "errors.txt"
        with open(self.errors, "wb") as errors:
            super().__init__(SCRIPT, home, errors)

    def run(self, name: str, kill_at: int = 0, kill_after: float | None = None) -> int:
        """Start or resume a run; return its exit status, negative if a signal ended it."""
        started = list((self.home / name).glob("step-*"))
        arguments = ["--out-dir", name, *(["--resume"] if started else FLAGS)]
        self.request([arguments, f"{name}/", kill_at])
        (child,) = self.answer()
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        (status,) = self.answer()
        return os.waitstatus_to_exitcode(status)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("killed")
    make_audio(home / "audio", files=2, seconds=1.0)
    with Server(home) as server:
        yield server


@pytest.fixture(scope="module")
def uninterrupted(server):
    """A run without interruption, and the seconds it took."""
    start = time.monotonic()
    assert server.run("whole") == 0, server.errors.read_text()
    return server.home / "whole", time.monotonic() - start


def files(run: Path) -> dict[str, bytes]:
    """Return the files of a run except the metrics, which contain times."""
    found = {path.relative_to(run): path for path in run.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in found.items() if name.name != "metrics.jsonl"}


def assert_equal_runs(run: Path, whole: Path) -> None:
    assert metrics(run) == metrics(whole)
    found, expected = files(run), files(whole)
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []


def test_kills_at_any_moment(server, uninterrupted):
    whole, seconds = uninterrupted
    draw = random.Random(1)
    for number in range(KILLS // 2):
        # Later each time, so that the run progresses even if a start on a busy machine is slow.
        server.run("moments", kill_after=draw.uniform(0, seconds * (1 + number) / (2 * KILLS)))
    assert server.run("moments") == 0, server.errors.read_text()
    assert_equal_runs(server.home / "moments", whole)


def test_kills_at_any_change_of_a_file(server, uninterrupted):
    """Between any two operations of writing a checkpoint, the best network, a sample or the metrics."""
    whole, _ = uninterrupted
    draw, partial = random.Random(2), 0
    for _ in range(KILLS // 2):
        assert server.run("changes", kill_at=draw.randint(1, 150)) == -signal.SIGKILL
        partial += any((server.home / "changes").glob(".step-*.tmp"))
    # Most changes belong to checkpoints, so some of the kills must have interrupted one.
    assert partial >= 3
    assert server.run("changes") == 0, server.errors.read_text()
    assert_equal_runs(server.home / "changes", whole)


def test_a_resumed_run_adds_a_missing_final_score(server, uninterrupted):
    whole, _ = uninterrupted
    run = server.home / "unscored"
    subprocess.run(["cp", "-r", whole, run], check=True)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert "final_validation_bits" in lines[-1]
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert server.run("unscored") == 0
    assert metrics(run) == metrics(whole)
