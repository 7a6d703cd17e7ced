"""A run that is killed with SIGKILL, again and again, ends as if nothing had happened.

The commands run in processes of their own, forked from one that has loaded torch already, to save its time.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commands import NETWORK_FLAGS, environment, make_audio

from wavenet.training.metrics import TIMED

# Together more than ten seconds: left to those who ask for it, as continuous integration does.
pytestmark = pytest.mark.slow

KILLS = 20

FLAGS = [
    *NETWORK_FLAGS,
    *("--audio-dir", "audio", "--cache-dir", "cache", "--device", "cpu", "--threads", "1"),
    *("--steps", "240", "--batch", "1", "--segment", "0.02", "--warmup-steps", "20", "--dropout", "0.1"),
    *("--validate-every", "16", "--validation-seconds", "0.1", "--checkpoint-every", "3"),
    *("--sample-every", "60", "--sample-seconds", "0.02"),
]

# Its audit hook ends the process at the n-th change it makes to the run's files, or at none if n is 0. A line
# of JSON on standard input starts a process; its number and its status come back as lines.
NURSERY = """
import json, os, signal, sys
import torch._dynamo  # loaded by the first optimiser, slowly
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


class Nursery:
    """Starts runs of `wavenet-train` in a folder."""

    def __init__(self, home: Path):
        self.home = home
        self.errors = home / "errors.txt"
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", NURSERY], cwd=home, env=environment(), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip

    def run(self, name: str, kill_at: int = 0, kill_after: float | None = None) -> int:
        """Begin or resume a run; return its exit status, negative if a signal ended it."""
        begun = list((self.home / name).glob("step-*"))
        arguments = ["--out-dir", name, *(["--resume"] if begun else FLAGS)]
        self.process.stdin.write(json.dumps([arguments, f"{name}/", kill_at]) + "\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(int(self.process.stdout.readline()))


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    home = tmp_path_factory.mktemp("killed")
    make_audio(home / "audio", files=2, seconds=1.0)
    nursery = Nursery(home)
    yield nursery
    nursery.process.stdin.close()
    nursery.process.wait(timeout=60)


@pytest.fixture(scope="module")
def undisturbed(nursery):
    """A run that nobody killed, and the seconds it took."""
    start = time.monotonic()
    assert nursery.run("whole") == 0, nursery.errors.read_text()
    return nursery.home / "whole", time.monotonic() - start


def account(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


def files(run: Path) -> dict[str, bytes]:
    """All that a run holds, but the account with its times."""
    found = {path.relative_to(run): path for path in run.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in found.items() if name.name != "metrics.jsonl"}


def assert_as_undisturbed(run: Path, whole: Path) -> None:
    assert account(run) == account(whole)
    found, expected = files(run), files(whole)
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []


def test_kills_at_any_moment(nursery, undisturbed):
    whole, seconds = undisturbed
    draw = random.Random(1)
    for number in range(KILLS // 2):
        # Later and later, so that a slow start on a busy machine does not keep the run from getting anywhere.
        nursery.run("moments", kill_after=draw.uniform(0, seconds * (1 + number) / (2 * KILLS)))
    assert nursery.run("moments") == 0, nursery.errors.read_text()
    assert_as_undisturbed(nursery.home / "moments", whole)


def test_kills_at_any_change_of_a_file(nursery, undisturbed):
    """Between any two operations of writing a checkpoint, the best network, a sample or the account."""
    whole, _ = undisturbed
    draw, cut = random.Random(2), 0
    for _ in range(KILLS // 2):
        assert nursery.run("changes", kill_at=draw.randint(1, 150)) == -signal.SIGKILL
        cut += any((nursery.home / "changes").glob(".step-*.tmp"))
    # Most changes belong to checkpoints, so some of the kills must have cut one in two.
    assert cut >= 3
    assert nursery.run("changes") == 0, nursery.errors.read_text()
    assert_as_undisturbed(nursery.home / "changes", whole)


def test_a_kill_after_the_last_checkpoint_leaves_the_final_score_to_the_next_run(nursery, undisturbed):
    whole, _ = undisturbed
    run = nursery.home / "unscored"
    subprocess.run(["cp", "-r", whole, run], check=True)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert "final_validation_bits" in lines[-1]
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert nursery.run("unscored") == 0
    assert account(run) == account(whole)
