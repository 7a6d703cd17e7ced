"""The measured choice of a CUDA kernel: with an engine and a clock that stand in for a device's."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from support.engines import random_model

from wavenet.cli import tune_cuda
from wavenet.engine import cuda, cuda_tuning
from wavenet.engine.cuda import CudaBackend
from wavenet.engine.state import GeneratorState
from wavenet.generation import generator

# Seconds of a run on so many streams: one has room for 16 streams only, and is sooner on 8.
SECONDS = {
    "stage_cluster": lambda batch: 1.0 if batch <= 8 else 4.0,
    "stage_grid": lambda batch: 2.0,
    "stream_cta": lambda batch: 3.0 - batch / 1000,
}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "wavenet" / "cuda-kernels.json"


class Engine(CudaBackend):
    """The backend without a device: it notes which kernel was used on how many streams."""

    def __init__(self, kernel=""):
        self.device, self.kernel, self.used = torch.device("cpu"), kernel, []
        self.packed = SimpleNamespace(geometry=[4, 256])
        self.fastest = [] if kernel else cuda_tuning.remembered(self.identity())

    def identity(self):
        return "a card"

    def kernels(self, batch=1):
        few = "one pipeline" if batch <= 16 else "no: it supports at most 16 streams"
        return {"stage_cluster": few, "stage_grid": "pipelines", "stream_cta": "tiles"}

    def generate(self, state, uniforms, gate_bias=None):
        assert uniforms.shape == (state.batch, cuda_tuning.STEPS) and float(uniforms.max()) < 1
        self.used.append((self._kernel_for(state.batch), state.batch))
        return uniforms.long()


def start(batch):
    zeros = torch.zeros(batch, dtype=torch.int64)
    return GeneratorState(torch.zeros(batch, 1, 1), zeros, zeros.clone(), torch.arange(batch))


def clock_of(engine):
    def clock(work):
        work()
        kernel, batch = engine.used[-1]
        return SECONDS[kernel](batch)

    return clock


def test_every_kernel_that_serves_is_measured():
    engine = Engine()
    found = dict(cuda_tuning.measure(engine, start, 20, clock_of(engine)))
    steps = cuda_tuning.STEPS
    assert found == {
        8: {"stage_cluster": 8 * steps, "stage_grid": 4 * steps, "stream_cta": 8 * steps / 2.992},
        16: {"stage_cluster": 4 * steps, "stage_grid": 8 * steps, "stream_cta": 16 * steps / 2.984},
        32: {"stage_grid": 16 * steps, "stream_cta": 32 * steps / 2.968},
    }
    # Once before it counts.
    assert engine.used[: 1 + cuda_tuning.REPEATS] == [("stage_cluster", 8)] * (1 + cuda_tuning.REPEATS)
    assert engine.kernel == ""


def test_a_failed_measurement_restores_the_engine():
    engine = Engine()

    def fails(work):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        next(cuda_tuning.measure(engine, start, 8, fails))
    assert engine.kernel == ""


def test_what_is_remembered_is_chosen():
    cuda_tuning.remember("another card", [(8, "stream_cta")])
    assert Engine().serving(1) == "stage_cluster" and Engine().serving(17) == "stage_grid"
    cuda_tuning.remember("a card", [(8, "stage_cluster"), (16, "stage_grid"), (32, "stream_cta")])
    found = {batch: Engine().serving(batch) for batch in (1, 8, 9, 16, 17, 32, 33)}
    assert found == {
        1: "stage_cluster", 8: "stage_cluster", 9: "stage_grid", 16: "stage_grid", 17: "stream_cta",
        32: "stream_cta", 33: "stage_grid",
    }  # fmt: skip
    # Beyond what was measured the engine chooses; a forced kernel is that.
    assert Engine()._kernel_for(33) == ""
    assert Engine("stage_grid").serving(1) == "stage_grid"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"a card": 5}', '{"a card": [8]}', '{"a card": [["x", 1]]}']
)
def test_a_damaged_file_is_nothing_measured(cache, text):
    cache.parent.mkdir()
    cache.write_text(text)
    assert Engine().fastest == []
    cuda_tuning.remember("a card", [(8, "stream_cta")])
    assert Engine().fastest == [(8, "stream_cta")]


def test_a_measurement_is_for_one_device_and_shape(monkeypatch):
    card = SimpleNamespace(name="Card 5", multi_processor_count=7)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    found = cuda_tuning.identity(torch.device("cuda", 0), [4, 256, 64])
    assert found == "Card 5, 7 multiprocessors, wavenet 0.1.0: 4 256 64"


def test_the_command_reports_and_saves(monkeypatch, tmp_path, capsys, cache):
    random_model(0)[2].save_pretrained(tmp_path / "net")
    engine = Engine()

    class Generator:
        def __init__(self, model, name, device, precision):
            assert (name, device, precision) == ("cuda", "cuda:0", "fp16")
            self.backend, self.start = engine, start

    measure = cuda_tuning.measure
    monkeypatch.setattr(generator, "Generator", Generator)
    monkeypatch.setattr(cuda_tuning, "measure", lambda *given: measure(*given, clock_of(engine)))
    flags = ["--checkpoint", str(tmp_path / "net"), "--streams", "32", "--device", "cuda:0"]
    assert tune_cuda.main(flags) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].split() == ["streams", *cuda.KERNELS, "samples/s", "together"]
    assert [line.split() for line in lines[1:4]] == [
        ["8", "4,096", "2,048", "1,369", "stage_cluster"],
        ["16", "2,048", "4,096", "2,745", "stage_grid"],
        ["32", "-", "8,192", "5,520", "stage_grid"],
    ]
    assert str(cache) in lines[4]
    assert json.loads(cache.read_text()) == {
        "a card": [[8, "stage_cluster"], [16, "stage_grid"], [32, "stage_grid"]]
    }
    assert tune_cuda.main(["--streams", "0"]) == 1
    assert "--streams 0: must be from 1 to" in capsys.readouterr().err
