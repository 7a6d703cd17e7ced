"""The benchmarks of generation and training: reports, ceilings, timing, baselines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.engines import UNAVAILABLE, needs_extension, random_model

from wavenet.engine import registry
from wavenet.generation.generator import Generator

FOLDER = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="runs in a source tree only")
TINY = [
    "--layers",
    "2",
    "--stacks",
    "1",
    "--residual-channels",
    "4",
    "--skip-channels",
    "8",
    "--classes",
    "16",
]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for name in ("generation", "plain"):
        sys.modules.pop(name, None)


def test_rows_of_the_report(tmp_path, capsys):
    import generation

    precisions = ["fp32"] if UNAVAILABLE else ["fp32", "int8"]
    options = ["--batch", "1", "3", "--precision", *precisions, "--seconds", "0.01", "--repeats", "2"]
    backend = ["--backend", "plain", "numba" if UNAVAILABLE else "cpu"]
    arguments = ["A", *TINY, *options, *backend, "--json", str(tmp_path / "rows.json")]
    assert generation.main(arguments) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["results"]
    assert len(rows) == 2 + 2 * len(precisions)
    keys = {
        "network", "backend", "precision", "batch", "threads", "samples_per_second_per_stream",
        "samples_per_second_total", "ceiling_samples_per_second", "fraction_of_ceiling", "latency_ms",
        "peak_memory_mb", "ceiling_set_by",
    }  # fmt: skip
    for row in rows:
        assert keys <= set(row)
        each, total = row["samples_per_second_per_stream"], row["samples_per_second_total"]
        assert each > 0 and abs(total - row["batch"] * each) <= row["batch"]
        assert row["x_realtime"]["16000"] == pytest.approx(each / 16000, abs=0.006)
    assert len(capsys.readouterr().out.strip().splitlines()) == len(rows) + 2 + len(registry.NAMES)


@needs_extension
def test_rates_of_the_machine():
    import generation

    small = torch.ops.wavenet.cpu_read_rate(torch.zeros(4096, dtype=torch.uint8), 0.01)
    assert 1e8 < small < 1e13
    assert 1e8 < torch.ops.wavenet.cpu_multiply_add_rate(False, 0.01) < 1e13
    model = random_model(1)[2]
    assert generation.ceiling(model, "fp32", 40, 2, 3)[0] > generation.ceiling(model, "fp32", 1, 1, 3)[0]
    with pytest.raises(RuntimeError, match=r"^wavenet:error: data has 8 bytes"):
        torch.ops.wavenet.cpu_read_rate(torch.zeros(8, dtype=torch.uint8), 0.01)
    with pytest.raises(RuntimeError, match=r"^wavenet:error: data is not aligned to 4 bytes"):
        torch.ops.wavenet.cpu_read_rate(torch.zeros(4097, dtype=torch.uint8)[1:], 0.01)


class Engine:
    """A CUDA engine with the attributes that the ceiling reads."""

    def __init__(self, precision, kernel=""):
        self.precision, self.kernel = precision, kernel
        self.packed = SimpleNamespace(data=torch.zeros(1000, dtype=torch.uint8))

    def serving(self, batch):
        few = self.precision == "fp16" and batch <= 8
        return self.kernel or ("stage_grid" if few else "stream_cta")


def test_cuda_ceiling(monkeypatch):
    import generation

    _, _, model = random_model(1, residual=60, dilation=70, stacks=2, layers_per_stack=5)
    needed = generation.multiply_adds(model)
    weights = [weight.numel() for weight in model.state_dict().values() if weight.dim() == 2]
    assert needed == sum(weights) - model.embedding.weight.numel()
    rates = {"fp16": 1e7 * needed, "fp32": 1e5 * needed, "layer_16": 1e-9, "layer_32": 5e-7, "reads": 1e8}
    monkeypatch.setattr(torch.ops.wavenet, "cuda_rate", lambda data, what: rates[what], raising=False)

    def ceiling_of(batch, precision, kernel=""):
        (most, by), which = generation.cuda_ceiling(model, Engine(precision, kernel), batch)
        return round(most), by, which

    # Ten layers of half a microsecond each, the time of 32 channels: the widest probe below 60.
    assert ceiling_of(1, "fp16") == (200_000, "latency", "stage_grid")
    assert ceiling_of(8, "fp16") == (1_600_000, "latency", "stage_grid")
    # The 1,000 bytes of weights are read once per 64 streams.
    assert ceiling_of(8, "fp16", "stream_cta") == (800_000, "reads", "stream_cta")
    assert ceiling_of(64, "fp16") == (6_400_000, "reads", "stream_cta")
    assert ceiling_of(65, "fp16") == (3_250_000, "reads", "stream_cta")
    assert ceiling_of(64, "fp32") == (100_000, "products", "stream_cta")
    rates["reads"] = 1e12
    assert ceiling_of(10**6, "fp16") == (10_000_000, "products", "stream_cta")
    assert ceiling_of(1, "fp32") == (100_000, "products", "stream_cta")


def test_gpu_work_is_timed_by_events(monkeypatch):
    import generation

    events = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            self.at = None

        def record(self):
            self.at = len(events)
            events.append("event")

        def synchronize(self):
            events.append("wait")

        def elapsed_time(self, other):
            return 500.0 * (other.at - self.at)

    class Engine:
        def start(self, batch):
            return batch

        def generate(self, steps, state):
            assert state == 3
            events.append(steps)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    rate, latency = generation.measure(Engine(), 3, 10.0, 2, cuda=True)
    # Every call takes one second here: a trial of 1,024 samples, then two repeats of five seconds.
    assert [steps for steps in events if isinstance(steps, int)] == [256, 1024, 5120, 5120]
    assert events == [part for steps in (256, 1024, 5120, 5120) for part in ("event", steps, "event", "wait")]
    assert (rate, latency) == (5120.0, 1000.0)


def test_combinations_of_engine_and_precision():
    import generation

    options = generation.build_parser().parse_args(["--precision", "fp32", "bf16", "fp16"])
    found = [each[:2] for each in generation.combinations(options, ["cuda:stage_grid", "cpu", "numba"])]
    assert found == [
        ("cuda:stage_grid", "fp32"), ("cuda:stage_grid", "fp16"),
        ("cpu", "fp32"), ("cpu", "bf16"), ("numba", "fp32"),
    ]  # fmt: skip


def test_unknown_network(capsys):
    import generation

    assert generation.main(["Z"]) == 1
    assert "unknown network 'Z'" in capsys.readouterr().err


def test_plain_generator_equals_the_network():
    """For the same samples its logits equal those of the engine."""
    from plain import PlainGenerator

    shape, _, model = random_model(4, kernel_size=3, stacks=2, layers_per_stack=3)
    engine = Generator(model, "reference")
    samples = torch.from_numpy(np.random.default_rng(0).integers(0, shape.classes, (2, 3 * shape.context)))
    expected = engine.advance(engine.start(2), samples)
    plain = PlainGenerator(engine.model, 1)
    state = plain.start(2)
    found = []
    for sample in samples.T:
        found.append(plain.step(state))
        state["sample"], state["position"] = sample, state["position"] + 1
    # The baseline starts from empty queues, which have no effect after one receptive field.
    last = slice(shape.context + 1, None)
    assert torch.allclose(torch.stack(found, 2)[:, :, last], expected[:, :, last], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_training_benchmark(tmp_path, capsys, monkeypatch):
    import training

    monkeypatch.setenv("PYTHONPATH", str(FOLDER))
    arguments = ["A", *TINY, "--batch", "2", "--segment", "50", "--steps", "2", "--threads", "1"]
    assert training.main([*arguments, "--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["results"]
    assert [(row["kind"], row["precision"]) for row in rows] == [
        ("wavenet", "fp32"), ("wavenet", "bf16"), ("plain", "fp32"), ("plain", "bf16"),
    ]  # fmt: skip
    for row in rows:
        assert row["target_samples_per_second"] > 0
        assert row["peak_memory_mb"] >= row["memory_before_mb"] > 10
    assert len(capsys.readouterr().out.strip().splitlines()) == 1 + len(rows)
    assert training.main(["Z"]) == 1
    assert "unknown network 'Z'" in capsys.readouterr().err


def test_plain_training_network_is_a_wavenet():
    """With the weights of a network its logits equal that network's after one receptive field."""
    from plain_training import PlainWaveNet

    shape, weights, model = random_model(6, kernel_size=3, stacks=2, layers_per_stack=3)
    plain = PlainWaveNet(model.config)
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    state = {"entry.weight": tensors["embedding.weight"].t()[:, :, None]}
    state["entry.bias"] = torch.zeros(shape.residual)
    shares = tensors["skip.weight"].split(shape.dilation, dim=1)
    for index in range(len(shape.dilations)):
        kernel = tensors[f"layers.{index}.dilated.weight"]
        kernel = kernel.unflatten(1, (shape.kernel_size, shape.residual)).transpose(1, 2)
        halves = zip(kernel.chunk(2), tensors[f"layers.{index}.dilated.bias"].chunk(2), strict=True)
        for branch, (weight, bias) in zip(("filters", "gates"), halves, strict=True):
            state[f"{branch}.{index}.weight"], state[f"{branch}.{index}.bias"] = weight, bias
        for part in ("weight", "bias"):
            name = f"layers.{index}.residual.{part}"
            last = plain.residuals[index].state_dict()[part]
            value = tensors.get(name, torch.zeros(last.shape))
            state[f"residuals.{index}.{part}"] = value.reshape(last.shape)
        state[f"skips.{index}.weight"] = shares[index][:, :, None]
        bias = tensors["skip.bias"]
        state[f"skips.{index}.bias"] = bias if index == 0 else torch.zeros_like(bias)
    for head in ("head1", "head2"):
        state[f"{head}.weight"] = tensors[f"{head}.weight"][:, :, None]
        state[f"{head}.bias"] = tensors[f"{head}.bias"]
    plain.load_state_dict(state)
    samples = torch.from_numpy(np.random.default_rng(0).integers(0, shape.classes, (2, 3 * shape.context)))
    with torch.no_grad():
        expected = model(samples)
        found = plain(samples)[:, :, shape.context :]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
