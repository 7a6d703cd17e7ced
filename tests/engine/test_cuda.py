"""The CUDA engine: on a device against float64 and the CPU; anywhere, how it is chosen and checked."""

from __future__ import annotations

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

from wavenet import extension
from wavenet.engine import cuda, registry
from wavenet.engine.cpu import CpuBackend
from wavenet.engine.cuda import CudaBackend
from wavenet.engine.sampling import Sampling
from wavenet.errors import BackendError
from wavenet.generation.generator import Generator
from wavenet.models.wavenet import WaveNet

UNAVAILABLE = CudaBackend.available()
gpu = pytest.mark.gpu
needs_device = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
DEVICE = torch.device("cuda", 0)
SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.0),
    Sampling(temperature=0.8, top_k=9),
    Sampling(top_p=0.9),
    Sampling(temperature=1.2, top_k=20, top_p=0.7),
]


@gpu
@needs_device
@pytest.mark.parametrize("seed", range(8))
def test_half_precision_is_close_to_float64(seed):
    shape, weights, _ = random_model(seed, classes=[2, 33, 256, 1024][seed % 4])
    if seed == 7:
        # Beyond the range of fp16; what follows makes it small again.
        weights["head1.weight"] *= np.float32(2**17)
        weights["head1.bias"] *= np.float32(2**17)
        weights["head2.weight"] *= np.float32(2**-17)
    steps = shape.context + 300
    samples = np.random.default_rng(seed).integers(0, shape.classes, steps + 1)
    state = empty_state(shape, last_sample=int(samples[0])).to(DEVICE)
    backend = CudaBackend(model_of(shape, weights), precision="fp16")
    found = backend.advance(state, torch.from_numpy(samples[1:])[None].to(DEVICE))[0]
    exact = naive.logits(shape, weights, samples[:-1])
    error = np.abs(found[shape.context :].cpu().numpy() - exact).max(axis=-1) / np.abs(exact).max(axis=-1)
    assert np.median(error) <= (3e-2 if seed == 7 else 4e-3)


@gpu
@needs_device
@needs_extension
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("seed", range(4))
def test_draws_are_what_the_cpu_would_draw(seed, sampling):
    torch.manual_seed(seed)
    shape, _, model = random_model(seed, classes=[20, 256, 300, 1024][seed])
    state, uniforms = random_state(shape, 11, seed), torch.rand(11, 50)
    gate = random_gate(shape, 11, linear=bool(seed % 2))
    on_device = state.to(DEVICE)
    drawn = CudaBackend(model).generate(on_device.with_sampling(sampling), uniforms.to(DEVICE), gate).cpu()
    logits = CpuBackend(model).advance(state, drawn, gate)
    assert state.position.tolist() == on_device.position.tolist()
    assert torch.allclose(state.queues, on_device.queues.cpu(), rtol=1e-4, atol=1e-5)
    options = (sampling.temperature, sampling.top_k, sampling.top_p)
    for row in range(11):
        for step in range(50):
            uniform = float(uniforms[row, step])
            edges = (uniform, max(0.0, uniform - 1e-5), min(1 - 1e-7, uniform + 1e-5))
            expected = {naive.draw(logits[row, step].numpy(), edge, *options) for edge in edges}
            assert int(drawn[row, step]) in expected


@gpu
@needs_device
@pytest.mark.parametrize("precision", CudaBackend.precisions)
@pytest.mark.parametrize("batch", [1, 3, 8, 33, 256])
def test_a_stream_depends_on_nothing_but_itself(batch, precision):
    torch.manual_seed(0)
    shape, _, model = random_model(3, residual=40, classes=256)
    backend, sampling = CudaBackend(model, precision=precision), Sampling(temperature=0.9, top_p=0.95)
    # As many as need the largest tile.
    most = 40 * torch.cuda.get_device_properties(DEVICE).multi_processor_count
    state, uniforms = random_state(shape, most, 1).to(DEVICE), torch.rand(most, 64, device=DEVICE)
    whole = state.clone()
    expected = backend.generate(whole.with_sampling(sampling), uniforms)
    rows = torch.randperm(most)[:batch].tolist()
    part = state.select(rows)
    chunks = [
        backend.generate(part.with_sampling(sampling), chunk) for chunk in uniforms[rows].split(23, dim=1)
    ]
    assert torch.equal(torch.cat(chunks, dim=1), expected[rows]) and same(part, whole.select(rows))


@gpu
@needs_device
def test_a_state_primed_on_the_cpu_continues():
    _, _, model = random_model(5, classes=64)
    generator = Generator(model, device="cuda")
    assert generator.backend.name == "cuda"
    primer = torch.randint(0, 64, (2, 100))
    samples = generator.generate(50, generator.prime(primer, seed=3, sampling=Sampling(0)))
    other = Generator(model, "reference")
    assert torch.equal(samples.cpu(), other.generate(50, other.prime(primer, seed=3, sampling=Sampling(0))))


@gpu
@needs_device
def test_two_torch_streams_at_once():
    shape, _, model = random_model(6, classes=256)
    backend = CudaBackend(model)
    states = [random_state(shape, 40, each).to(DEVICE) for each in range(2)]
    uniforms = torch.rand(2, 40, 256, device=DEVICE)
    expected = [backend.generate(states[each].clone(), uniforms[each]) for each in range(2)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    found = []
    for each in range(2):
        with torch.cuda.stream(streams[each]):
            found.append(backend.generate(states[each], uniforms[each]))
    torch.cuda.synchronize()
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@gpu
@needs_device
def test_what_is_refused_moves_nothing():
    shape, weights, model = random_model(7, classes=16)
    backend = CudaBackend(model)
    state = random_state(shape, 3, 0).to(DEVICE)
    before = state.clone()
    uniforms = torch.rand(3, 4, device=DEVICE)
    uniforms[1, 2] = 1.0
    with pytest.raises(BackendError, match=r"uniforms contains 1\.0*: must be in"):
        backend.generate(state, uniforms)
    with pytest.raises(BackendError, match="samples contains 16: must be 0 to 15"):
        backend.advance(state, torch.full((3, 4), 16, device=DEVICE))
    with pytest.raises(BackendError, match="uniforms is not on the device of the queues"):
        backend.generate(state, uniforms.cpu())
    with pytest.raises(BackendError, match="queues is not on a CUDA device"):
        backend.generate(state.to("cpu"), torch.rand(3, 4))
    assert same(state, before)
    weights["embedding.weight"][3] = np.nan
    state.last_sample[:] = torch.tensor([0, 3, 0])
    message = f"non-finite logits at sample {int(state.position[1])} of stream 11$"
    with pytest.raises(BackendError, match=message):
        CudaBackend(model_of(shape, weights)).advance(
            state, torch.zeros(3, 2, dtype=torch.int64, device=DEVICE)
        )


@gpu
@needs_device
def test_memory_does_not_grow():
    shape, _, model = random_model(8, classes=256)
    backend, state = CudaBackend(model), random_state(shape, 16, 0).to(DEVICE)
    uniforms = torch.rand(16, 256, device=DEVICE)
    taken = []
    for _ in range(4):
        backend.generate(state, uniforms)
        taken.append(torch.cuda.memory_allocated(DEVICE))
    assert taken[1:] == taken[:-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_without_a_device_there_is_a_reason():
    assert str(UNAVAILABLE).startswith("no CUDA device")
    _, _, model = random_model(0)
    for name in ("auto", "cuda", *(f"cuda:{kernel}" for kernel in cuda.KERNELS)):
        with pytest.raises(BackendError, match=r"no CUDA device.*try device 'cpu'$"):
            registry.create(model, name, "cuda")


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("cuda", "cpu", "backend 'cuda' does not generate on device 'cpu': use device 'cuda'"),
        ("cpu", "cuda", "backend 'cpu' does not generate on device 'cuda': use device 'cpu'"),
        ("numba:fast", "cpu", "backend 'numba' has no kernel 'fast'"),
        ("auto", "tpu", "no backend generates on device 'tpu'"),
    ],
)
def test_what_does_not_go_together(name, device, message):
    with pytest.raises(BackendError, match=message):
        registry.create(random_model(0)[2], name, device)


def test_an_unknown_kernel_is_named():
    with pytest.raises(
        BackendError, match="unknown kernel 'fast' of backend 'cuda': choose from stage_cluster, "
    ):
        CudaBackend(random_model(0)[2], kernel="fast")


def test_an_extension_without_cuda_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "load_extension", lambda: None)
    monkeypatch.setattr(torch.ops, "wavenet", object())
    (tmp_path / "_build_info.json").write_text('{"extension": true, "reason": null, "cuda": "no nvcc"}')
    monkeypatch.setattr(extension, "_PACKAGE", tmp_path)
    assert CudaBackend.available() == "the extension was built without CUDA: no nvcc"


@pytest.fixture
def engine_on_the_cpu(monkeypatch):
    """The backend as it is on a device, but that the operators run on the CPU."""
    monkeypatch.setattr(CudaBackend, "available", staticmethod(lambda: None))
    monkeypatch.setattr(cuda, "_device_named", lambda name: torch.device("cpu"))
    monkeypatch.setattr(cuda, "_multiprocessors", lambda device: 1)
    monkeypatch.setattr(CudaBackend, "identity", lambda self: "the CPU in a device's place")
    monkeypatch.setattr(cuda, "_checked", set())
    told = {name: "serves" if name == "stream_cta" else "no: not here" for name in cuda.KERNELS}
    monkeypatch.setattr(CudaBackend, "kernels", lambda *_: told)
    call = CudaBackend._call

    def without_kernel(self, *given):
        self.kernel = ""
        return call(self, *given)

    monkeypatch.setattr(CudaBackend, "_call", without_kernel)


@needs_extension
def test_the_check_passes_a_right_engine_once(engine_on_the_cpu, monkeypatch):
    checks = []
    real = cuda.check
    monkeypatch.setattr(cuda, "check", lambda *given: checks.append(given) or real(*given))
    model = random_model(0)[2]
    before = torch.random.get_rng_state()
    for _ in range(2):
        CudaBackend(model)
    assert len(checks) == 1
    assert torch.equal(torch.random.get_rng_state(), before)


@needs_extension
@pytest.mark.parametrize("name", ["layers.2.dilated.weight", "head2.bias"])
def test_the_check_finds_small_errors_of_weights(engine_on_the_cpu, monkeypatch, name):
    real = cuda.pack

    def a_little_off(model: WaveNet):
        model.get_parameter(name).view(-1)[0] += 0.05
        packed = real(model)
        model.get_parameter(name).view(-1)[0] -= 0.05
        return packed

    monkeypatch.setattr(cuda, "pack", a_little_off)
    for _ in range(2):
        with pytest.raises(
            BackendError, match=r"^the CUDA engine differs from the reference .* logits are off"
        ):
            CudaBackend(random_model(0, stacks=2, layers_per_stack=3)[2])


@needs_extension
def test_the_check_stops_wrong_draws(engine_on_the_cpu, monkeypatch):
    real = CudaBackend.generate

    def off_by_one(self, state, uniforms, gate_bias=None):
        return (real(self, state, uniforms, gate_bias) + 1) % 40

    monkeypatch.setattr(CudaBackend, "generate", off_by_one)
    with pytest.raises(BackendError, match="sample 0 of row 0 is wrong; use device cpu"):
        CudaBackend(random_model(0)[2])


@needs_extension
def test_the_check_stops_a_tile_that_is_wrong(engine_on_the_cpu, monkeypatch):
    real = CudaBackend.generate

    def one_wrong_in_a_large_batch(self, state, uniforms, gate_bias=None):
        drawn = real(self, state, uniforms, gate_bias)
        if len(drawn) > 17:
            drawn[16, 5] += 1
        return drawn

    monkeypatch.setattr(CudaBackend, "generate", one_wrong_in_a_large_batch)
    with pytest.raises(BackendError, match="streams in tiles of 64 differ"):
        CudaBackend(random_model(0)[2])
