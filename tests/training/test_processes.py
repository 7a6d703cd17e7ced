"""Two real processes that train, generate and end together.

They are forked from one that has loaded torch already, to save its time; one test goes through torchrun.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commands import NETWORK_FLAGS, environment, make_audio, make_checkpoint

from wavenet.training.metrics import TIMED

# Together more than ten seconds: left to those who ask for it, as continuous integration does.
pytestmark = pytest.mark.slow

# A line of JSON starts processes, each with its arguments, its folder and its environment. Their numbers come
# back as one line, and once all have ended their exit codes as another.
NURSERY = """
import datetime, json, os, sys
import torch._dynamo, torch.distributed  # the first is loaded by the first optimiser, slowly
import wavenet.cli.generate, wavenet.cli.train
import wavenet.data.dataset, wavenet.utils.memory, wavenet.training.trainer
import wavenet.cli.generate_output
for line in sys.stdin:
    children = []
    for program, arguments, folder, values in json.loads(line):
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.chdir(folder)
                os.environ.update(values)
                if "LIMIT" in values:
                    seconds = datetime.timedelta(seconds=int(values["LIMIT"]))
                    wavenet.utils.distributed.LIMIT = seconds
                errors = os.open("errors.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(errors, 2)
                code = getattr(wavenet.cli, program).main(arguments)
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    print(*children, flush=True)
    print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), flush=True)
"""


class Nursery:
    """Starts processes that work together, each in a folder of its own below a common one."""

    def __init__(self, home: Path):
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], env=environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def start(self, name: str, *arguments: list, program: str = "train", **told: object) -> list[int]:
        """Start a process for each list of arguments; return their numbers."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        order = []
        for rank, each in enumerate(arguments):
            folder = self.home / name / f"rank{rank}"
            folder.mkdir(parents=True, exist_ok=True)
            values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(arguments)}
            values.update(LOCAL_WORLD_SIZE=len(arguments), MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **told)
            values = {key: str(value) for key, value in values.items()}
            order.append((program, [str(argument) for argument in each], str(folder), values))
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return [int(number) for number in self.process.stdout.readline().split()]

    def ended(self) -> list[int]:
        """Wait for those started last; return their exit codes, negative if a signal ended them."""
        return [int(code) for code in self.process.stdout.readline().split()]

    def run(self, name: str, *arguments: list, program: str = "train") -> list[int]:
        self.start(name, *arguments, program=program)
        return self.ended()

    def errors(self, name: str, rank: int = 0) -> str:
        return (self.home / name / f"rank{rank}" / "errors.txt").read_text()


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    home = tmp_path_factory.mktemp("processes")
    make_audio(home / "audio", files=4, seconds=1.0)
    nursery = Nursery(home)
    yield nursery
    nursery.process.stdin.close()
    nursery.process.wait(timeout=60)


def flags(home: Path, *more: object) -> list:
    return [
        *NETWORK_FLAGS,
        *("--audio-dir", home / "audio", "--cache-dir", home / "cache", "--device", "cpu", "--threads", "1"),
        *("--precision", "fp32", "--steps", "30", "--batch", "4", "--segment", "0.05", "--warmup-steps", "5"),
        *("--validate-every", "10", "--validation-seconds", "0.5", "--checkpoint-every", "10"),
        *("--sample-every", "15", "--sample-seconds", "0.05", "--out-dir", "run", *more),
    ]


def account(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


def assert_close(found: list[dict], expected: list[dict]) -> None:
    assert [list(line) for line in found] == [list(line) for line in expected]
    for a, b in zip(found, expected, strict=True):
        # Sums in another order, over thirty steps of Adam.
        assert a == pytest.approx(b, rel=1e-4), (a, b)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} has not come"
        time.sleep(0.02)


def test_losses_and_writers(nursery):
    """One process of 8, two of 4; and with dropout and accumulation, whose batches have keys of their own."""
    home = nursery.home
    augmented = ("--augment-gain", "6", "--augment-polarity")
    assert nursery.run("one", flags(home, "--batch", 8, *augmented)) == [0], nursery.errors("one")
    assert nursery.run("two", *[flags(home, *augmented)] * 2) == [0, 0], nursery.errors("two")
    one, two = (home / name / "rank0" / "run" for name in ("one", "two"))
    assert len(account(one)) == 3 + 3 + 1
    assert_close(account(two), account(one))
    # Only the first has written, and said, anything.
    assert files(two) == files(one) and "samples/step-00000030.wav" in files(one)
    assert files(home / "two" / "rank1") == ["errors.txt"] and nursery.errors("two", 1) == ""
    assert "2 processes" in nursery.errors("two") and "done: 30 steps" in nursery.errors("two")

    dropping = flags(home, "--dropout", 0.2, "--steps", 10, "--validate-every", 5)
    assert nursery.run("dropping", [*dropping, "--accumulate", 4, "--batch", 2]) == [0]
    assert nursery.run("dropping-two", *[[*dropping, "--accumulate", 2, "--batch", 2]] * 2) == [0, 0]
    one, two = (home / name / "rank0" / "run" for name in ("dropping", "dropping-two"))
    assert_close(account(two), account(one))


def test_resuming_with_another_number_of_processes(nursery):
    """Two, then one of twice the batch, then two again: the losses of an uninterrupted run."""
    home = nursery.home
    assert nursery.run("whole", flags(home, "--batch", 8)) == [0], nursery.errors("whole")
    # A run's schedule spans all its steps, so it is stopped rather than given fewer; out-dir is shared.
    shared = ["--out-dir", home / "parts"]
    part = [*flags(home), *shared, "--max-time", "0.001s"]
    again = ["--resume", *shared, "--device", "cpu", "--cache-dir", home / "cache"]
    assert nursery.run("parts2", part, part) == [0, 0], nursery.errors("parts2")
    assert "--max-time 0.001s is over" in nursery.errors("parts2")
    assert "torchrun --nproc-per-node 2 -m wavenet.cli.train --resume" in nursery.errors("parts2")
    assert files(home / "parts" / "step-00000000")

    def interrupted_at(name, wanted, *ranks):
        children = nursery.start(name, *ranks)
        wait_for(home / "parts" / f"step-{wanted:08d}")
        os.kill(children[-1], signal.SIGTERM)
        codes = nursery.ended()
        assert codes in ([130] * len(ranks), [0] * len(ranks)), nursery.errors(name)

    interrupted_at("parts-a", 10, again, again)
    interrupted_at("parts-b", 20, [*again, "--batch", 8])
    assert "1 process(es), not 2" in nursery.errors("parts-b")
    assert set(nursery.run("parts-c", *[[*again, "--batch", 4]] * 2)) == {0}, nursery.errors("parts-c")
    assert_close(account(home / "parts"), account(home / "whole" / "rank0" / "run"))


LONG = ("--steps", 100_000, "--sample-every", 0, "--checkpoint-every", 100_000, "--validate-every", 100)


@pytest.mark.parametrize("asked", [(0,), (1,), (0, 1)])
def test_an_interrupt_of_any_stops_all(nursery, asked):
    name = "asked" + "".join(map(str, asked))
    children = nursery.start(name, *[flags(nursery.home, *LONG)] * 2)
    run = nursery.home / name / "rank0" / "run"
    wait_for(run / "metrics.jsonl")
    for rank in asked:
        os.kill(children[rank], signal.SIGTERM if rank else signal.SIGINT)
    assert nursery.ended() == [130, 130], nursery.errors(name)
    assert "stopped and saved at step" in nursery.errors(name) and nursery.errors(name, 1) == ""
    (saved,) = run.glob("step-*")
    assert f"at step {int(saved.name[5:])}" in nursery.errors(name)


@pytest.mark.parametrize("killed", [0, 1])
def test_the_death_of_one_ends_the_other_with_a_message(nursery, killed):
    name = f"killed{killed}"
    children = nursery.start(name, *[flags(nursery.home, *LONG)] * 2)
    wait_for(nursery.home / name / "rank0" / "run" / "metrics.jsonl")
    start = time.monotonic()
    os.kill(children[killed], signal.SIGKILL)
    codes = nursery.ended()
    assert time.monotonic() - start < 20
    assert codes[killed] == -signal.SIGKILL and codes[1 - killed] == 1
    last = nursery.errors(name, 1 - killed).splitlines()[-1]
    assert last.startswith(
        f"wavenet-train: error: process {1 - killed}: the connection to the other processes"
    )
    assert "Traceback" not in nursery.errors(name, 1 - killed)


def test_one_that_no_longer_answers_is_not_waited_for(nursery):
    children = nursery.start("frozen", *[flags(nursery.home, *LONG)] * 2, LIMIT=8)
    wait_for(nursery.home / "frozen" / "rank0" / "run" / "metrics.jsonl")
    os.kill(children[1], signal.SIGSTOP)
    try:
        errors, deadline = "", time.monotonic() + 60
        while "error: process 0: the connection" not in errors:
            assert time.monotonic() < deadline, errors
            time.sleep(0.1)
            errors = nursery.errors("frozen")
    finally:
        os.kill(children[1], signal.SIGKILL)
    assert nursery.ended() == [1, -signal.SIGKILL]


def test_all_end_by_themselves_at_the_same_step(nursery):
    """Patience, and steps that are no longer finite."""
    home = nursery.home
    rising = flags(home, "--lr", 3, "--patience", 2, "--steps", 2000, "--validate-every", 3)
    assert nursery.run("patience", rising, rising) == [0, 0], nursery.errors("patience")
    assert "no better validation in the last 2" in nursery.errors("patience")
    # Weights that grow by a factor of nine at every step.
    hopeless = flags(home, "--lr", 10, "--weight-decay", 1, "--schedule", "constant", "--steps", 2000)
    hopeless += ["--validate-every", 0, "--sample-every", 0]
    assert nursery.run("hopeless", hopeless, hopeless) == [1, 1], nursery.errors("hopeless")
    assert "100 steps in a row" in nursery.errors("hopeless")


def test_processes_that_differ_are_refused(nursery):
    home = nursery.home
    make_audio(home / "other", files=3, seconds=1.0)
    elsewhere = flags(home, "--audio-dir", home / "other")
    assert nursery.run("recordings", flags(home), elsewhere) == [1, 1]
    assert "the processes differ in recordings" in nursery.errors("recordings")
    assert nursery.run("settings", flags(home), flags(home, "--lr", 0.1)) == [1, 1]
    assert "the processes differ in settings" in nursery.errors("settings", 1)
    assert not list((home / "settings" / "rank0" / "run").glob("step-*"))


def test_the_first_tells_why_it_ends_before_they_meet_again(nursery):
    home = nursery.home
    (home / "empty").mkdir()
    nothing = flags(home, "--audio-dir", home / "empty")
    assert nursery.run("nothing", nothing, nothing) == [1, 1]
    assert "is empty: put recordings into it" in nursery.errors("nothing")
    assert nursery.errors("nothing", 1).count("\n") == 1


@pytest.mark.parametrize("more", [(), ("--prime",)])
def test_generation_in_shares(nursery, more, monkeypatch):
    home, kind = nursery.home, "primed" if more else "plain"
    make_checkpoint(home / "network")
    more = (*more, home / "audio" / "take-0.wav") if more else ("--keep-silence",)
    wanted = ["--checkpoint", home / "network", "--seconds", 0.02, "--batch", 301, "--seed", 5, *more]
    shared, whole = home / kind / "shared" / "takes", home / kind / "whole"
    codes = nursery.run(f"{kind}-a", *[[*wanted, "--out-dir", shared]] * 2, program="generate")
    assert codes == [0, 0], nursery.errors(f"{kind}-a") + nursery.errors(f"{kind}-a", 1)
    assert nursery.run(f"{kind}-b", [*wanted, "--out-dir", whole], program="generate") == [0]
    assert files(shared) == files(whole) == [f"{number:04}.wav" for number in range(301)]
    contents = [(whole / name).read_bytes() for name in files(whole)]
    assert [(shared / name).read_bytes() for name in files(shared)] == contents
    assert len(set(contents)) == 301
    # The same streams as takes of one batch without a folder.
    assert nursery.run(f"{kind}-c", [*wanted, "take.wav"], program="generate") == [0]
    takes = [home / f"{kind}-c" / "rank0" / f"take-{number}.wav" for number in range(301)]
    assert [take.read_bytes() for take in takes] == contents


def test_through_torchrun(nursery, tmp_path):
    """As a person starts it: a run, and the end of one process."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    start += ["-m", "wavenet.cli.train", *(str(flag) for flag in flags(nursery.home, *LONG))]
    with open(tmp_path / "errors.txt", "wb") as errors:
        process = subprocess.Popen(start, cwd=tmp_path, env=environment(), stderr=errors)
    try:
        wait_for(tmp_path / "run" / "metrics.jsonl")
        ps = ["ps", "-o", "pid=", "--ppid", str(process.pid)]
        listed = subprocess.run(ps, capture_output=True, text=True, check=True)
        workers = [int(number) for number in listed.stdout.split()]
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        assert process.wait(timeout=60) == 1
    finally:
        # It ends what it has started.
        process.terminate()
        process.wait(timeout=60)
    told = (tmp_path / "errors.txt").read_text()
    assert "2 processes" in told and "Signal 9 (SIGKILL)" in told
    assert not list((tmp_path / "run").glob(".step-*"))
