"""Memory of a step: counted against measured, and proposals that work."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.commands import NETWORK_FLAGS, assert_one_line_error, environment, make_audio, run
from support.trainers import CONFIG, TRAINING

from wavenet.cli.train_options import build_parser
from wavenet.config import TrainingConfig, WaveNetConfig, preset
from wavenet.errors import ConfigError
from wavenet.models import native_layers
from wavenet.training import memory_plan
from wavenet.training.memory_plan import (
    RESERVE,
    RESERVE_BYTES,
    advice,
    counted_bytes,
    explain_out_of_memory,
    fit_batch,
    rough_bytes,
)
from wavenet.utils.memory import _group_rooms, available_bytes, out_of_memory

CPU = torch.device("cpu")
GB = 10**9
MINUTE = dataclasses.replace(TRAINING, segment=60.0, batch=8)


def needed(training: TrainingConfig, config: WaveNetConfig = CONFIG) -> float:
    """Bytes that are asked for before a step is said to fit."""
    return RESERVE * counted_bytes(config, training) + RESERVE_BYTES


def applied(words: str, training: TrainingConfig) -> TrainingConfig:
    """The configuration with the settings of a message."""
    options = vars(build_parser().parse_args(flags(words)))
    names = ("batch", "segment", "checkpoint_layers")
    return dataclasses.replace(training, **{name: options[name] for name in names if name in options})


def flags(words: str) -> list[str]:
    """The settings of a message as command-line flags."""
    found = []
    for name, value in re.findall(r"(\w+)=(\S+)", words):
        found += ["--" + name.replace("_", "-"), *([] if value == "true" else [value])]
    return found


def proposals(message: str) -> list[str]:
    """The settings that a message proposes, one text for each way out."""
    found = re.search(r": try (.*)$", message)
    assert found, message
    return found[1].split(", or ")


@pytest.fixture
def machine(monkeypatch):
    """Sets how much memory there is."""

    def has(room: float | None) -> None:
        monkeypatch.setattr(memory_plan, "available_bytes", lambda *arguments, **settings: room)

    monkeypatch.setattr(memory_plan, "return_freed_blocks", lambda: None)
    return has


# -- counting --------------------------------------------------------------------------------------------


def test_one_layer_by_hand(monkeypatch):
    """One layer of one channel: the tensors can be counted on paper, except for weights."""
    config = WaveNetConfig(
        sample_rate=1000, quantization_channels=1000, layers=1, stacks=1, residual_channels=1,
        dilation_channels=1, skip_channels=1, head_channels=1,
    )  # fmt: skip
    training = dataclasses.replace(TRAINING, batch=1, segment=50.0)
    logits = 4 * 1000 * 50_000
    if native_layers.can_score(torch.zeros(1, 1)):
        # At the loss: logits and their gradient.
        assert 2 * logits < counted_bytes(config, training) < 2.1 * logits
    monkeypatch.setattr(native_layers, "can_score", lambda rows: False)
    # By torch: logits, their row-wise copy, its log-softmax, and the gradients of two of the three.
    assert 3 * logits < counted_bytes(config, training) < 5.2 * logits


@pytest.mark.parametrize("settings", [{}, {"checkpoint_layers": True, "dropout": 0.1}, {"precision": "bf16"}])
def test_memory_is_linear_in_batch_and_segment(settings):
    training = dataclasses.replace(TRAINING, segment=2.0, **settings)
    for name, low, middle, high in (("batch", 1, 16, 64), ("segment", 0.5, 3.0, 8.0)):
        found = memory_plan.MemoryModel(CONFIG, training, name, low, high).at(middle)
        expected = counted_bytes(CONFIG, dataclasses.replace(training, **{name: middle}))
        assert found == pytest.approx(expected, rel=0.01)


def test_counting_changes_no_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert counted_bytes(CONFIG, dataclasses.replace(TRAINING, dropout=0.5, label_smoothing=0.1)) > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert float(torch.ones(3).sum()) == 3


@pytest.mark.parametrize("name", ["tiny", "small", "base", "large"])
@pytest.mark.parametrize(
    "settings", [{"batch": 1, "segment": 0.01}, {"dropout": 0.1, "label_smoothing": 0.1}]
)
def test_the_rough_estimate_is_an_upper_bound(name, settings):
    """Below it nothing is counted; it leaves room for the freed blocks that the C library keeps."""
    training = dataclasses.replace(TrainingConfig(precision="fp32"), **settings)
    assert rough_bytes(preset(name), training) > 1.9 * counted_bytes(preset(name), training)


MEASURE = """
import resource, sys, torch, torch._dynamo
from wavenet.data.batch import Segments
from wavenet.config import TrainingConfig, preset
from wavenet.training.memory_plan import counted_bytes
from wavenet.utils.memory import return_freed_blocks
from wavenet.training.step import accumulate_gradients
from wavenet.training.wavenet_objective import WaveNetObjective
config = preset("tiny", layers=18)
training = TrainingConfig(batch=4, segment=2.0, precision="fp32", checkpoint_layers=sys.argv[1] == "1")
counted = counted_bytes(config, training)
return_freed_blocks()
objective = WaveNetObjective(config, training)
model = objective.build()
inputs = torch.randint(256, (4, config.receptive_field - 1 + 32000))
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
for step in range(2):
    segments = Segments(inputs, inputs[:, -32000:])
    accumulate_gradients(objective, model, training, step, segments, torch.device("cpu"))
print(counted, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures as Linux does")
def test_counted_bytes_are_measured():
    found = {}
    for recompute in "01":
        told = subprocess.check_output([sys.executable, "-c", MEASURE, recompute], env=environment())
        counted, measured = found[recompute] = [int(each) for each in told.split()]
        assert 0.95 * counted < measured < 1.05 * counted + 50e6
    # Recomputation frees at least the two halves of every gate, of 18 layers of 16 channels.
    assert found["0"][1] - found["1"][1] > 18 * 4 * 32000 * 2 * 16 * 4


# -- proposals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0.5 * GB, 3 * GB])
@pytest.mark.parametrize("settings", [{}, {"checkpoint_layers": True}, {"batch": 1, "segment": 3600.0}])
def test_proposals_fit_closely(room, settings):
    training = dataclasses.replace(MINUTE, **{"batch": 200, **settings})
    for words in proposals(": " + advice(CONFIG, training, room)):
        better = applied(words, training)
        assert needed(better) <= 1.01 * room
        larger = dataclasses.replace(better, batch=better.batch + 1)
        if "segment=" in words:
            larger = dataclasses.replace(better, segment=1.12 * better.segment)
        assert better.batch == training.batch or needed(larger) > 0.98 * room


@pytest.mark.slow
def test_proposals_in_order():
    one = counted_bytes(CONFIG, dataclasses.replace(MINUTE, batch=1))
    room = RESERVE_BYTES + RESERVE * 3.5 * one
    first, second = proposals(": " + advice(CONFIG, MINUTE, room))
    assert first == "batch=3" and re.fullmatch("batch=[45678] checkpoint_layers=true", second)
    # After a failure half is proposed, whatever was counted.
    assert proposals(": " + advice(CONFIG, MINUTE, 100 * room, failed=True))[0] == "batch=4"
    room = RESERVE_BYTES + RESERVE * 0.9 * one
    assert re.fullmatch("try batch=[1-8] checkpoint_layers=true", advice(CONFIG, MINUTE, room))
    room = RESERVE_BYTES + RESERVE * 0.1 * one
    assert re.search("try batch=1 segment=[0-9.]+ checkpoint_layers=true$", advice(CONFIG, MINUTE, room))
    wide = preset("large", residual_channels=2048, dilation_channels=2048)
    assert "preset=" in advice(wide, dataclasses.replace(MINUTE, segment=0.5), 1 * GB)
    assert advice(CONFIG, MINUTE, 0).startswith("free some memory")


def test_steps_that_cannot_fit_are_refused(machine):
    machine(available_bytes())
    assert fit_batch(CONFIG, TRAINING, CPU, False, print) is TRAINING
    greedy = dataclasses.replace(TRAINING, batch=65536, segment=3600.0)
    with pytest.raises(ConfigError, match=r"^batch=65536 segment=3600: a step takes about .* GB") as caught:
        fit_batch(CONFIG, greedy, CPU, False, print)
    room = available_bytes()
    assert all(needed(applied(words, greedy)) <= 1.05 * room for words in proposals(str(caught.value)))
    # If the free memory is unknown, nothing is refused.
    machine(None)
    assert fit_batch(CONFIG, greedy, CPU, False, print) is greedy


@pytest.mark.parametrize("wanted", [1, 3, 4, 63, 64, 5000])
def test_auto_is_the_largest_power_of_two_that_fits(machine, wanted):
    machine(1.001 * needed(dataclasses.replace(MINUTE, batch=wanted)))
    told = []
    found = fit_batch(CONFIG, MINUTE, CPU, True, told.append)
    expected = max(size for size in (1, 2, 4, 8, 16, 32, 64) if size <= wanted)
    assert found == dataclasses.replace(MINUTE, batch=expected)
    assert len(told) == 1 and told[0].startswith(f"batch    {expected} (auto): a step takes about ")


def test_auto_without_memory_for_one_segment(machine):
    machine(0.5 * GB)
    long = dataclasses.replace(TRAINING, segment=600.0)
    with pytest.raises(ConfigError, match=r"batch=1 segment=600: a step takes about .* try batch=1 seg"):
        fit_batch(CONFIG, long, CPU, True, print)
    machine(None)
    with pytest.raises(ConfigError, match="auto: this system does not report free memory"):
        fit_batch(CONFIG, long, CPU, True, print)


# -- running out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_running_out_proposes_half(machine, error):
    machine(100 * GB)
    assert out_of_memory(error)
    told = r"^out of memory at batch=8 segment=60: try batch=4, or "
    with pytest.raises(ConfigError, match=told), explain_out_of_memory(CONFIG, MINUTE, CPU):
        raise error


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shape"), explain_out_of_memory(CONFIG, MINUTE, CPU):
        raise RuntimeError("shape mismatch")
    with pytest.raises(KeyboardInterrupt), explain_out_of_memory(CONFIG, MINUTE, CPU):
        raise KeyboardInterrupt


def test_memory_is_free_when_advice_is_computed(monkeypatch):
    import weakref

    alive = []

    def fail():
        big = torch.zeros(1000)
        alive.append(weakref.ref(big))
        raise MemoryError

    monkeypatch.setattr(memory_plan, "available_bytes", lambda *_: alive.append(alive[0]()))
    with pytest.raises(ConfigError), explain_out_of_memory(CONFIG, MINUTE, CPU):
        fail()
    assert alive[1] is None


# -- how much there is -----------------------------------------------------------------------------------


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_limits_of_control_groups(tmp_path):
    proc = tmp_path / "cgroup"
    proc.write_text("0::/user/job\n")
    root = tmp_path / "fs"
    group(root / "user", memory__max=1000, memory__current=700, memory__stat="anon 5\ninactive_file 200")
    group(root / "user" / "job", memory__max="max", memory__current=600)
    assert _group_rooms(proc, root) == [500]
    proc.write_text("5:devices:/\n4:cpu,memory:/job\n1:name=systemd:/x\n")
    group(
        root / "memory" / "job", memory__limit_in_bytes=900, memory__usage_in_bytes=800,
        memory__stat="total_inactive_file 50\ninactive_file 20",
    )  # fmt: skip
    group(root / "memory", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=0)
    assert _group_rooms(proc, root) == [150, 2**63 - 4096]
    proc.write_text("0::/not/to/be/seen\n")
    group(root, memory__max=70, memory__current=20)
    assert _group_rooms(proc, root) == [50]
    assert _group_rooms(tmp_path / "none", root) == []


def test_free_memory_of_this_machine():
    free = available_bytes()
    assert free is None or 10**7 < free < 10**14
    assert free is None or (available_bytes(swap=True) or 0) >= 0.9 * free


# -- in the command --------------------------------------------------------------------------------

QUICK = [
    *NETWORK_FLAGS,
    *("--audio-dir", "audio", "--cache-dir", "cache", "--device", "cpu", "--threads", "1", "--steps", "2"),
    *("--validate-every", "0", "--sample-every", "0", "--precision", "fp32", "--validation-seconds", "0.1"),
]

# Limits the address space to the second argument beyond what the libraries take; without the check beforehand
# if the first argument is "late".
LIMITED = """
import os, resource, sys
import librosa, soundfile, torch, torch._dynamo
import wavenet.cli.train, wavenet.training.memory_plan, wavenet.training.trainer
torch.ones(2, requires_grad=True).sum().backward()
if sys.argv[1] == "late":
    real, asked = wavenet.training.memory_plan.available_bytes, []
    def first_everything(*arguments, **settings):
        asked.append(1)
        return real(*arguments, **settings) if len(asked) > 1 else None
    wavenet.training.memory_plan.available_bytes = first_everything
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(wavenet.cli.train.main(sys.argv[3:]))
"""


def limited(home, when, room, *arguments):
    words = [sys.executable, "-c", LIMITED, when, str(room), *QUICK, *arguments]
    return subprocess.run(words, cwd=home, capture_output=True, text=True, env=environment(), timeout=300)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("fitting")
    make_audio(home / "audio")
    return home


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
@pytest.mark.parametrize("when", ["before", "late"])
def test_proposed_values_work(home, when):
    room, asked = 700_000_000, ["--batch", "64", "--segment", "4"]
    failed = limited(home, when, room, *asked, "--out-dir", f"run-{when}")
    assert failed.returncode == 1 and "Traceback" not in failed.stderr, failed.stderr
    last = failed.stderr.splitlines()[-1]
    start = {"before": "batch=64 segment=4: a step takes", "late": "out of memory at batch=64"}[when]
    assert last.startswith(f"wavenet-train: error: {start}"), last
    for number, words in enumerate(proposals(last)):
        out = f"{when}-{number}"
        again = limited(home, "before", room, *asked, *flags(words), "--out-dir", out)
        assert again.returncode == 0 and "done: 2 steps" in again.stderr, again.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_auto_is_resolved_once(home):
    first = limited(home, "before", 900_000_000, "--batch", "auto", "--segment", "2", "--out-dir", "auto")
    assert first.returncode == 0, first.stderr
    told = re.search(
        r"^batch    (\d+) \(auto\): a step takes about \d+ MB, \d+ MB are free$", first.stderr, re.M
    )
    assert told, first.stderr
    batch = int(told[1])
    assert batch in (2, 4, 8, 16, 32)
    progress = json.loads((home / "auto/step-00000002/training.json").read_text())
    assert progress["training"]["batch"] == batch
    assert json.loads((home / "auto/effective.json").read_text())["batch"] == batch
    # Chosen again, with all of the machine's memory, it would be another number.
    (home / "settings.json").write_text('{"batch": "auto", "steps": 3}')
    for more in (["--batch", "auto", "--steps", "3"], ["--config", "settings.json"]):
        again = run("train", "--resume", "--out-dir", "auto", *more, cwd=home)
        assert again.returncode == 0 and "(auto)" not in again.stderr, again.stderr
        progress = json.loads((home / "auto/step-00000003/training.json").read_text())
        assert progress["training"]["batch"] == batch


def test_auto_in_a_file(home):
    (home / "auto.json").write_text('{"batch": "auto", "segment": 0.05}')
    result = run("train", *QUICK, "--config", "auto.json", "--dry-run", cwd=home)
    assert result.returncode == 0 and "batch    64 (auto): a step takes about" in result.stderr, result.stderr
    assert_one_line_error(
        run("train", *QUICK, "--batch", "many", cwd=home),
        "argument --batch: 'many' is neither a whole number nor auto",
        code=2,
    )
