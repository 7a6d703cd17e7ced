"""Two processes that train, generate and stop together; one test starts them by torchrun."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commands import NETWORK_FLAGS, environment, make_audio, make_checkpoint
from support.fork_server import ForkServer
from support.trainers import metrics

pytestmark = pytest.mark.slow

# A request starts processes, each with its arguments, its folder and its environment. The first answer
# contains their identifiers; the second, once all have ended, their exit codes.
SCRIPT = """
import datetime, json, os, sys
import torch._dynamo, torch.distributed  # slow, and otherwise loaded by the first optimiser
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
                if "TIMEOUT" in values:
                    seconds = datetime.timedelta(seconds=int(values["TIMEOUT"]))
                    wavenet.utils.distributed.COLLECTIVE_TIMEOUT = seconds
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


class Server(ForkServer):
    """Starts processes that train or generate together, each in its own folder below a common one."""

    def __init__(self, home: Path):
        super().__init__(SCRIPT, home)

    def start(self, name: str, *arguments: list, program: str = "train", **variables: object) -> list[int]:
        """Start a process for each list of arguments; return their identifiers."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        requested = []
        for rank, each in enumerate(arguments):
            folder = self.home / name / f"rank{rank}"
            folder.mkdir(parents=True, exist_ok=True)
            values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(arguments)}
            values.update(LOCAL_WORLD_SIZE=len(arguments), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            values.update(variables)
            values = {key: str(value) for key, value in values.items()}
            requested.append((program, [str(argument) for argument in each], str(folder), values))
        self.request(requested)
        return self.answer()

    def wait(self) -> list[int]:
        """Wait for the processes started last; return their exit codes, negative if a signal ended them."""
        return self.answer()

    def run(self, name: str, *arguments: list, program: str = "train") -> list[int]:
        self.start(name, *arguments, program=program)
        return self.wait()

    def errors(self, name: str, rank: int = 0) -> str:
        return (self.home / name / f"rank{rank}" / "errors.txt").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("processes")
    make_audio(home / "audio", files=4, seconds=1.0)
    with Server(home) as server:
        yield server


def flags(home: Path, *more: object) -> list:
    return [
        *NETWORK_FLAGS,
        *("--audio-dir", home / "audio", "--cache-dir", home / "cache", "--device", "cpu", "--threads", "1"),
        *("--precision", "fp32", "--steps", "30", "--batch", "4", "--segment", "0.05", "--warmup-steps", "5"),
        *("--validate-every", "10", "--validation-seconds", "0.5", "--checkpoint-every", "10"),
        *("--sample-every", "15", "--sample-seconds", "0.05", "--out-dir", "run", *more),
    ]


def assert_close(found: list[dict], expected: list[dict]) -> None:
    assert [list(line) for line in found] == [list(line) for line in expected]
    for a, b in zip(found, expected, strict=True):
        # The order of summation differs, over thirty steps of Adam.
        assert a == pytest.approx(b, rel=1e-4), (a, b)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.02)


def test_losses_and_writers(server):
    """One process with a batch of 8 equals two with 4; also with dropout and accumulation."""
    home = server.home
    augmented = ("--augment-gain", "6", "--augment-polarity")
    assert server.run("one", flags(home, "--batch", 8, *augmented)) == [0], server.errors("one")
    assert server.run("two", *[flags(home, *augmented)] * 2) == [0, 0], server.errors("two")
    one, two = (home / name / "rank0" / "run" for name in ("one", "two"))
    assert len(metrics(one)) == 3 + 3 + 1
    assert_close(metrics(two), metrics(one))
    # Only the first process writes files and messages.
    assert files(two) == files(one) and "samples/step-00000030.wav" in files(one)
    assert files(home / "two" / "rank1") == ["errors.txt"] and server.errors("two", 1) == ""
    assert "2 processes" in server.errors("two") and "done: 30 steps" in server.errors("two")

    dropping = flags(home, "--dropout", 0.2, "--steps", 10, "--validate-every", 5)
    assert server.run("dropping", [*dropping, "--accumulate", 4, "--batch", 2]) == [0]
    assert server.run("dropping-two", *[[*dropping, "--accumulate", 2, "--batch", 2]] * 2) == [0, 0]
    one, two = (home / name / "rank0" / "run" for name in ("dropping", "dropping-two"))
    assert_close(metrics(two), metrics(one))


def test_resuming_with_another_number_of_processes(server):
    """Two, then one of twice the batch, then two again: the losses of an uninterrupted run."""
    home = server.home
    assert server.run("whole", flags(home, "--batch", 8)) == [0], server.errors("whole")
    # The schedule depends on the number of steps, so the run is stopped early instead; out-dir is shared.
    shared = ["--out-dir", home / "parts"]
    part = [*flags(home), *shared, "--max-time", "0.001s"]
    again = ["--resume", *shared, "--device", "cpu", "--cache-dir", home / "cache"]
    assert server.run("parts2", part, part) == [0, 0], server.errors("parts2")
    assert "--max-time 0.001s is over" in server.errors("parts2")
    assert "torchrun --nproc-per-node 2 -m wavenet.cli.train --resume" in server.errors("parts2")
    assert files(home / "parts" / "step-00000000")

    def interrupted_at(name, wanted, *ranks):
        children = server.start(name, *ranks)
        wait_for(home / "parts" / f"step-{wanted:08d}")
        os.kill(children[-1], signal.SIGTERM)
        codes = server.wait()
        assert codes in ([130] * len(ranks), [0] * len(ranks)), server.errors(name)

    interrupted_at("parts-a", 10, again, again)
    interrupted_at("parts-b", 20, [*again, "--batch", 8])
    assert "1 process(es), not 2" in server.errors("parts-b")
    assert set(server.run("parts-c", *[[*again, "--batch", 4]] * 2)) == {0}, server.errors("parts-c")
    assert_close(metrics(home / "parts"), metrics(home / "whole" / "rank0" / "run"))


LONG = ("--steps", 100_000, "--sample-every", 0, "--checkpoint-every", 100_000, "--validate-every", 100)


@pytest.mark.parametrize("interrupted", [(0,), (1,), (0, 1)])
def test_an_interrupt_of_any_process_stops_all(server, interrupted):
    name = "interrupted" + "".join(map(str, interrupted))
    children = server.start(name, *[flags(server.home, *LONG)] * 2)
    run = server.home / name / "rank0" / "run"
    wait_for(run / "metrics.jsonl")
    for rank in interrupted:
        os.kill(children[rank], signal.SIGTERM if rank else signal.SIGINT)
    assert server.wait() == [130, 130], server.errors(name)
    assert "stopped and saved at step" in server.errors(name) and server.errors(name, 1) == ""
    (saved,) = run.glob("step-*")
    assert f"at step {int(saved.name[5:])}" in server.errors(name)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_stops_the_other(server, killed):
    name = f"killed{killed}"
    children = server.start(name, *[flags(server.home, *LONG)] * 2)
    wait_for(server.home / name / "rank0" / "run" / "metrics.jsonl")
    start = time.monotonic()
    os.kill(children[killed], signal.SIGKILL)
    codes = server.wait()
    assert time.monotonic() - start < 20
    assert codes[killed] == -signal.SIGKILL and codes[1 - killed] == 1
    last = server.errors(name, 1 - killed).splitlines()[-1]
    assert last.startswith(
        f"wavenet-train: error: process {1 - killed}: the connection to the other processes"
    )
    assert "Traceback" not in server.errors(name, 1 - killed)


def test_a_stopped_process_stops_the_other(server):
    children = server.start("frozen", *[flags(server.home, *LONG)] * 2, TIMEOUT=8)
    wait_for(server.home / "frozen" / "rank0" / "run" / "metrics.jsonl")
    os.kill(children[1], signal.SIGSTOP)
    try:
        errors, deadline = "", time.monotonic() + 60
        while "error: process 0: the connection" not in errors:
            assert time.monotonic() < deadline, errors
            time.sleep(0.1)
            errors = server.errors("frozen")
    finally:
        os.kill(children[1], signal.SIGKILL)
    assert server.wait() == [1, -signal.SIGKILL]


def test_all_processes_end_at_the_same_step(server):
    """By patience, and by steps that are not finite."""
    home = server.home
    rising = flags(home, "--lr", 3, "--patience", 2, "--steps", 2000, "--validate-every", 3)
    assert server.run("patience", rising, rising) == [0, 0], server.errors("patience")
    assert "no better validation in the last 2" in server.errors("patience")
    # The weights grow by a factor of nine at every step.
    diverging = flags(home, "--lr", 10, "--weight-decay", 1, "--schedule", "constant", "--steps", 2000)
    diverging += ["--validate-every", 0, "--sample-every", 0]
    assert server.run("diverging", diverging, diverging) == [1, 1], server.errors("diverging")
    assert "100 steps in a row" in server.errors("diverging")


def test_processes_that_differ_are_an_error(server):
    home = server.home
    make_audio(home / "other", files=3, seconds=1.0)
    elsewhere = flags(home, "--audio-dir", home / "other")
    assert server.run("recordings", flags(home), elsewhere) == [1, 1]
    assert "the processes differ in recordings" in server.errors("recordings")
    assert server.run("settings", flags(home), flags(home, "--lr", 0.1)) == [1, 1]
    assert "the processes differ in settings" in server.errors("settings", 1)
    assert not list((home / "settings" / "rank0" / "run").glob("step-*"))


def test_an_early_error_is_reported_by_one_process(server):
    home = server.home
    (home / "empty").mkdir()
    nothing = flags(home, "--audio-dir", home / "empty")
    assert server.run("nothing", nothing, nothing) == [1, 1]
    assert "is empty: add recordings" in server.errors("nothing")
    assert server.errors("nothing", 1).count("\n") == 1


@pytest.mark.parametrize("more", [(), ("--prime",)])
def test_generation_by_two_processes(server, more, monkeypatch):
    home, kind = server.home, "primed" if more else "plain"
    make_checkpoint(home / "network")
    more = (*more, home / "audio" / "take-0.wav") if more else ("--keep-silence",)
    wanted = ["--checkpoint", home / "network", "--seconds", 0.02, "--batch", 301, "--seed", 5, *more]
    shared, whole = home / kind / "shared" / "takes", home / kind / "whole"
    codes = server.run(f"{kind}-a", *[[*wanted, "--out-dir", shared]] * 2, program="generate")
    assert codes == [0, 0], server.errors(f"{kind}-a") + server.errors(f"{kind}-a", 1)
    assert server.run(f"{kind}-b", [*wanted, "--out-dir", whole], program="generate") == [0]
    assert files(shared) == files(whole) == [f"{number:04}.wav" for number in range(301)]
    contents = [(whole / name).read_bytes() for name in files(whole)]
    assert [(shared / name).read_bytes() for name in files(shared)] == contents
    assert len(set(contents)) == 301
    # The same streams as takes of one batch without a folder.
    assert server.run(f"{kind}-c", [*wanted, "take.wav"], program="generate") == [0]
    takes = [home / f"{kind}-c" / "rank0" / f"take-{number}.wav" for number in range(301)]
    assert [take.read_bytes() for take in takes] == contents


def test_through_torchrun(server, tmp_path):
    """A run, and the end of one process."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    start += ["-m", "wavenet.cli.train", *(str(flag) for flag in flags(server.home, *LONG))]
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
        # torchrun ends its processes.
        process.terminate()
        process.wait(timeout=60)
    errors = (tmp_path / "errors.txt").read_text()
    assert "2 processes" in errors and "Signal 9 (SIGKILL)" in errors
    assert not list((tmp_path / "run").glob(".step-*"))
