"""Every kernel on a device: against float64, the CPU, itself in other company, and the other kernels.

Inputs are new in every run; the seed is printed where a test fails.
"""

from __future__ import annotations

import secrets
import threading

import numpy as np
import pytest
import torch
from support import naive
from support.engines import (
    empty_state,
    model_of,
    needs_extension,
    random_gate,
    random_model,
    random_state,
    same,
)

from wavenet.engine import cuda_tuning
from wavenet.engine.cpu import CpuBackend
from wavenet.engine.cuda import KERNELS, CudaBackend
from wavenet.engine.sampling import Sampling
from wavenet.engine.state import GeneratorState
from wavenet.errors import BackendError
from wavenet.generation.generator import Generator
from wavenet.models.gate_bias import GateBias
from wavenet.models.wavenet import WaveNet

UNAVAILABLE = CudaBackend.available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))]
DEVICE = torch.device("cuda", 0)
ALL = [("stream_cta", "fp32"), *((kernel, "fp16") for kernel in KERNELS)]
WIDTHS = [32, 64, 128]
BATCHES = [1, 3, 8, 33, 256]
SAMPLING = Sampling(temperature=0.9, top_k=100, top_p=0.95)


@pytest.fixture
def seed() -> int:
    found = secrets.randbelow(2**31)
    print(f"seed {found}")
    torch.manual_seed(found)
    return found


def wide(seed: int, width: int, **changes: int):
    sizes = {"residual": width, "dilation": width, "skip": 2 * width, "head": 2 * width, "classes": 256}
    return random_model(seed, **{**sizes, "stacks": 2, "layers_per_stack": 5, "kernel_size": 2, **changes})


def backend_of(model: WaveNet, kernel: str, precision: str = "fp16", batch: int = 1) -> CudaBackend:
    """Return the backend with a kernel, or skip the test where that does not serve."""
    told = CudaBackend(model, precision=precision, kernel="stream_cta").kernels(batch)[kernel]
    if told.startswith("no: "):
        pytest.skip(f"{kernel} does not serve here: {told[4:]}")
    return CudaBackend(model, precision=precision, kernel=kernel)


def poison() -> None:
    """Leave noise in the memory that torch hands out next."""
    rest = [torch.full((2**size,), torch.nan, device=DEVICE) for size in range(6, 25)]
    del rest


@pytest.mark.parametrize(("kernel", "precision"), ALL)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kernel_size", [2, 3])
def test_logits_match_a_float64_convolution(kernel, precision, width, kernel_size, seed):
    shape, weights, model = wide(seed, width, kernel_size=kernel_size)
    steps = shape.context + 300
    samples = np.random.default_rng(seed).integers(0, shape.classes, steps + 1)
    state = empty_state(shape, last_sample=int(samples[0])).to(DEVICE)
    backend = backend_of(model, kernel, precision)
    poison()
    found = backend.advance(state, torch.from_numpy(samples[1:])[None].to(DEVICE))[0]
    exact = naive.logits(shape, weights, samples[:-1])
    error = np.abs(found[shape.context :].cpu().numpy() - exact).max() / np.abs(exact).max()
    assert error <= (1e-5 if precision == "fp32" else 2e-3)


@needs_extension
@pytest.mark.parametrize("width", WIDTHS)
def test_a_free_run_in_fp32_is_that_of_the_cpu(width, seed):
    shape, _, model = wide(seed, width)
    state, uniforms = random_state(shape, 5, seed), torch.rand(5, 400)
    on_device = state.to(DEVICE)
    drawn = CudaBackend(model).generate(on_device, uniforms.to(DEVICE)).cpu()
    expected = CpuBackend(model).generate(state.clone(), uniforms)
    logits = CpuBackend(model).advance(state, drawn)
    for row in range(5):
        differing = torch.nonzero(drawn[row] != expected[row])
        if not len(differing):
            continue
        # The first is where a uniform number falls on an edge of the distribution; the rest follow from it.
        step = int(differing[0])
        edges = [float(uniforms[row, step]) + shift for shift in (-1e-6, 1e-6)]
        assert int(drawn[row, step]) in {naive.draw(logits[row, step].numpy(), max(0.0, e)) for e in edges}


@pytest.mark.parametrize(("kernel", "precision"), ALL)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_stream_depends_on_nothing_but_itself(kernel, precision, width, seed):
    shape, _, model = wide(seed, width)
    state, uniforms = random_state(shape, 256, seed).to(DEVICE), torch.rand(256, 64, device=DEVICE)
    gate, whole = random_gate(shape, 256, linear=True), state.clone()
    anchor = CudaBackend(model, precision=precision, kernel="stream_cta")
    expected = anchor.generate(whole.with_sampling(SAMPLING), uniforms, gate)
    served = 0
    for batch in BATCHES:
        if anchor.kernels(batch)[kernel].startswith("no: "):
            continue
        served += 1
        rows = torch.randperm(256)[:batch].tolist()
        backend = CudaBackend(model, precision=precision, kernel=kernel)
        part, told = (
            state.select(rows).with_sampling(SAMPLING),
            GateBias(gate.values[rows], gate.hop, gate.start, gate.linear),
        )
        poison()
        chunks = [
            backend.generate(part.with_sampling(SAMPLING), chunk, told)
            for chunk in uniforms[rows].split(23, dim=1)
        ]
        assert torch.equal(torch.cat(chunks, dim=1), expected[rows]) and same(part, whole.select(rows))
    if not served:
        pytest.skip(f"{kernel} does not serve here: {anchor.kernels(1)[kernel][4:]}")


@pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "stream_cta"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kernel_size", [2, 3, 4])
def test_kernels_agree_and_continue_each_other(kernel, width, kernel_size, seed):
    shape, _, model = wide(seed, width, kernel_size=kernel_size)
    other, anchor = backend_of(model, kernel, batch=19), CudaBackend(model, 1, "fp16", kernel="stream_cta")
    state, uniforms = random_state(shape, 19, seed).to(DEVICE), torch.rand(19, 300, device=DEVICE)
    gate, whole = random_gate(shape, 19, linear=False), state.clone()
    expected = anchor.generate(whole.with_sampling(SAMPLING), uniforms, gate)
    takes = zip((anchor, other, other, anchor), uniforms.split([60, 100, 40, 100], dim=1), strict=True)
    drawn = [backend.generate(state.with_sampling(SAMPLING), part, gate) for backend, part in takes]
    assert torch.equal(torch.cat(drawn, dim=1), expected) and same(state, whole)
    logits = [backend.advance(whole.clone(), expected, gate) for backend in (anchor, other)]
    assert torch.equal(*logits)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_state_primed_on_the_cpu_continues(kernel, seed):
    _, _, model = wide(seed, 64)
    backend_of(model, kernel)
    primer = torch.randint(0, 256, (2, 100))
    generator = Generator(model, f"cuda:{kernel}", device="cuda", precision="fp16")
    state = generator.prime(primer, seed=3, sampling=Sampling(0))
    again = CudaBackend(model, precision="fp16", kernel="stream_cta")
    expected = again.generate(
        state.clone().with_sampling(Sampling(temperature=0.0)), torch.zeros(2, 50, device=DEVICE)
    )
    assert torch.equal(generator.generate(50, state).cpu(), expected.cpu())


@pytest.mark.parametrize("kernel", KERNELS)
def test_two_torch_streams_at_once(kernel, seed):
    shape, _, model = wide(seed, 64)
    backend = backend_of(model, kernel, batch=16)
    states = [random_state(shape, 16, each).to(DEVICE) for each in range(2)]
    uniforms = torch.rand(2, 16, 256, device=DEVICE)
    expected = [
        backend.generate(states[each].clone().with_sampling(SAMPLING), uniforms[each]) for each in range(2)
    ]
    torch.cuda.synchronize()
    streams, found = [torch.cuda.Stream() for _ in range(2)], []
    for each in range(2):
        with torch.cuda.stream(streams[each]):
            found.append(backend.generate(states[each], uniforms[each]))
    torch.cuda.synchronize()
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_refused_moves_nothing(kernel, seed):
    shape, weights, model = wide(seed, 32)
    backend = backend_of(model, kernel)
    state, uniforms = random_state(shape, 3, 0).to(DEVICE), torch.rand(3, 4, device=DEVICE)
    before = state.clone()
    uniforms[1, 2] = 1.0
    with pytest.raises(BackendError, match=r"uniforms contains 1\.0*: must be in"):
        backend.generate(state, uniforms)
    assert same(state, before)
    weights["embedding.weight"][3] = np.nan
    state.last_sample[:] = torch.tensor([0, 3, 0])
    message = f"non-finite logits at sample {int(state.position[1])} of stream 11$"
    with pytest.raises(BackendError, match=message):
        backend_of(model_of(shape, weights), kernel).advance(
            state, torch.zeros(3, 2, dtype=torch.int64, device=DEVICE)
        )


@pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "stream_cta"])
@pytest.mark.parametrize("step", [0, 20])
def test_a_lost_message_is_an_error(kernel, step, seed):
    shape, _, model = wide(seed, 32)
    backend = backend_of(model, kernel, batch=17)
    state, uniforms = random_state(shape, 17, seed).to(DEVICE), torch.rand(17, 40, device=DEVICE)
    spoiled, told = state.clone(), []

    def lose() -> None:
        try:
            torch.ops.wavenet.cuda_drop_step(
                backend.packed.data,
                backend.packed.geometry,
                spoiled.queues,
                spoiled.position,
                spoiled.last_sample,
                uniforms,
                kernel,
                step,
            )
        except RuntimeError as error:
            told.append(str(error))

    # In a thread of its own, so that a kernel that hangs fails the test.
    losing = threading.Thread(target=lose, daemon=True)
    losing.start()
    losing.join(timeout=120)
    assert not losing.is_alive(), "the kernel hangs"
    assert len(told) == 1 and f"{kernel} timed out: block " in told[0]
    expected = CudaBackend(model, precision="fp16", kernel="stream_cta").generate(state.clone(), uniforms)
    assert torch.equal(backend.generate(state, uniforms), expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_memory_does_not_grow_with_conditioned_audio(kernel, seed):
    shape, _, model = wide(seed, 32)
    backend, state = backend_of(model, kernel), random_state(shape, 2, seed).to(DEVICE)
    values = torch.randn(2, 60 * 16000 // 256 + 1, len(shape.dilations), 2 * shape.dilation, device=DEVICE)
    gate, taken = GateBias(values, hop=256, start=0, linear=True), []
    for _ in range(60):
        backend.generate(state.with_sampling(SAMPLING), torch.rand(2, 16000, device=DEVICE), gate)
        taken.append(torch.cuda.memory_allocated(DEVICE))
    assert taken[1:] == taken[:-1]


def test_memory_is_weights_streams_and_two_chunks(seed):
    """4,096 streams of the network with 20 layers and 64 channels."""
    shape, _, model = wide(seed, 64, layers_per_stack=10)
    batch, steps = 4096, 256
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(DEVICE)
    backend = CudaBackend(model, precision="fp16", kernel="stream_cta")
    zeros = torch.zeros(batch, dtype=torch.int64, device=DEVICE)
    queues = torch.zeros(batch, sum(shape.dilations), shape.residual, device=DEVICE)
    state = GeneratorState(queues, zeros, zeros.clone(), torch.arange(batch))
    uniforms = torch.rand(batch, steps, device=DEVICE)
    torch.cuda.reset_peak_memory_stats(DEVICE)
    backend.generate(state.with_sampling(SAMPLING), uniforms)
    taken = torch.cuda.max_memory_allocated(DEVICE) - before
    # A chunk holds a float32 and an int64 for each sample; a little more for tables and the report.
    assert taken <= backend.packed.data.nbytes + queues.nbytes + 2 * 12 * batch * steps + 2**22
    assert taken < 4e9


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("kernel", KERNELS)
def test_another_device_gives_the_same(kernel, seed):
    shape, _, model = wide(seed, 64)
    state, uniforms = random_state(shape, 9, seed), torch.rand(9, 64)
    here = torch.cuda.current_device()
    drawn = []
    for number in range(2):
        device = torch.device("cuda", number)
        backend_of(model, kernel, batch=9)
        backend = CudaBackend(model, precision="fp16", device=str(device), kernel=kernel)
        drawn.append(backend.generate(state.to(device).with_sampling(SAMPLING), uniforms.to(device)).cpu())
        assert torch.cuda.current_device() == here
    assert torch.equal(*drawn)


def test_what_the_device_can_do_is_measured():
    data = torch.zeros(2**20, dtype=torch.uint8, device=DEVICE)
    found = {what: torch.ops.wavenet.cuda_rate(data, what) for what in ("reads", "fp16", "fp32")}
    assert 1e9 < found["reads"] < 1e15 and 1e9 < found["fp32"] < found["fp16"] < 1e18
    layers = [torch.ops.wavenet.cuda_rate(data, f"layer_{width}") for width in (16, 32, 64)]
    assert 1e-8 < layers[0] < layers[2] < 1e-3
    with pytest.raises(RuntimeError, match="what = more: choose from reads, fp16"):
        torch.ops.wavenet.cuda_rate(data, "more")


@pytest.mark.parametrize("precision", CudaBackend.precisions)
def test_the_fastest_kernel_is_measured_and_used(precision, seed, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shape, _, model = wide(seed, 32)
    generator = Generator(model, "cuda", device="cuda", precision=precision)
    assert isinstance(generator.backend, CudaBackend)
    found = list(cuda_tuning.measure(generator.backend, generator.start, 32))
    assert [streams for streams, _ in found] == [8, 16, 32] and all(
        "stream_cta" in rates for _, rates in found
    )
    slowest = [(streams, min(rates, key=lambda name: rates[name])) for streams, rates in found]
    state, uniforms = random_state(shape, 16, seed).to(DEVICE), torch.rand(16, 40, device=DEVICE)
    expected = generator.backend.generate(state.clone().with_sampling(SAMPLING), uniforms)
    # Any choice gives the same.
    cuda_tuning.remember(generator.backend.identity(), slowest)
    other = CudaBackend(model, precision=precision)
    assert other.serving(16) == dict(slowest)[16]
    assert torch.equal(other.generate(state.with_sampling(SAMPLING), uniforms), expected)


@pytest.mark.parametrize(("kernel", "precision"), ALL)
def test_a_short_run(kernel, precision, seed):
    """What csrc/checks/sanitize_cuda.sh watches: several tiles under way, a few steps, conditioning."""
    shape, _, model = wide(seed, 32, layers_per_stack=3)
    backend = backend_of(model, kernel, precision, batch=17)
    state, uniforms = random_state(shape, 17, seed).to(DEVICE), torch.rand(17, 6, device=DEVICE)
    drawn = backend.generate(state, uniforms, SAMPLING, random_gate(shape, 17, linear=True))
    assert int(drawn.min()) >= 0 and int(drawn.max()) < 256
