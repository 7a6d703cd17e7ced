"""The logic of the CUDA kernels, run on the host, against float64 and against itself in other company."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import naive
from support.engines import (
    chain_model,
    empty_state,
    model_of,
    random_gate,
    random_model,
    random_state,
    same,
)
from support.host_cuda import NONE, TILES, HostKernel, Stages, compiler

from wavenet.engine import cuda
from wavenet.engine.cuda import CudaBackend
from wavenet.engine.packing_tiles import TileLayout, pack_tiles
from wavenet.engine.sampling import Sampling
from wavenet.errors import BackendError
from wavenet.models.gate_bias import GateBias

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")

# (residual, dilation, skip, head, classes, kernel_size): odd widths, several blocks of weights, all sizes.
SHAPES = [
    (5, 7, 9, 11, 2, 2),
    (16, 3, 70, 20, 33, 3),
    (17, 35, 66, 65, 129, 4),
    (8, 16, 64, 32, 256, 2),
    (3, 5, 20, 40, 1000, 3),
    (4, 4, 16, 16, 1024, 2),
]


def shaped(index: int, **changes: int):
    names = ("residual", "dilation", "skip", "head", "classes", "kernel_size")
    sizes = dict(zip(names, SHAPES[index], strict=True))
    return random_model(index, **{**sizes, "stacks": 1 + index % 2, "layers_per_stack": 3, **changes})


def relative_error(found: np.ndarray, exact: np.ndarray) -> float:
    """Largest error of a step's logits, relative to the largest of them."""
    return float((np.abs(found - exact).max(axis=-1) / np.abs(exact).max(axis=-1)).max())


def good(report: np.ndarray) -> bool:
    return bool((report == NONE).all())


@pytest.mark.parametrize("index", range(len(SHAPES)))
@pytest.mark.parametrize("conditioned", ["", "repeat", "linear"])
def test_logits_match_a_float64_convolution(index, conditioned):
    torch.manual_seed(index)
    shape, weights, model = shaped(index)
    steps, batch = shape.context + 25, 3
    samples = np.random.default_rng(index).integers(0, shape.classes, (batch, steps + 1))
    gate = random_gate(shape, batch, conditioned == "linear") if conditioned else None
    state = empty_state(shape, batch)
    state.last_sample[:] = torch.from_numpy(samples[:, 0])
    kernel = HostKernel(model, TILES[index % len(TILES)])
    parts = [kernel.advance(state, part, gate) for part in torch.from_numpy(samples[:, 1:]).split(17, dim=1)]
    assert all(good(report) for _, report in parts)
    found = torch.cat([logits for logits, _ in parts], dim=1).numpy()
    for row in range(batch):
        rows = None
        if gate is not None:
            values = gate.values[row].numpy()
            rows = naive.gate_rows(values, gate.hop, gate.start, gate.linear, range(steps))
        exact = naive.logits(shape, weights, samples[row, :-1], rows)
        assert relative_error(found[row, shape.context :], exact) <= 1e-5
    assert state.position.tolist() == [steps] * batch
    assert state.last_sample.tolist() == samples[:, -1].tolist()


SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.0),
    Sampling(temperature=0.7, top_k=5),
    Sampling(temperature=1.3, top_p=0.8),
    Sampling(top_k=7, top_p=0.6),
    Sampling(top_p=1e-9),
]


@pytest.mark.parametrize("index", range(len(SHAPES)))
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_draws_follow_the_definition(index, sampling):
    torch.manual_seed(index)
    shape, _, model = shaped(index)
    kernel = HostKernel(model, TILES[index % len(TILES)])
    state = random_state(shape, 3, index)
    before = state.clone()
    uniforms = torch.rand(3, 20)
    drawn, report = kernel.generate(state.with_sampling(sampling), uniforms)
    assert good(report)
    # Fed what it drew, the kernel tells from which logits.
    logits, _ = kernel.advance(before, drawn)
    assert same(state, before)
    options = (sampling.temperature, sampling.top_k, sampling.top_p)
    for row in range(3):
        for step in range(20):
            uniform = float(uniforms[row, step])
            expected = {
                naive.draw(logits[row, step].numpy(), edge, *options)
                for edge in (uniform, max(0.0, uniform - 1e-6), min(1 - 1e-7, uniform + 1e-6))
            }
            assert int(drawn[row, step]) in expected


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, top_k=9, top_p=0.9)])
def test_a_stream_does_not_depend_on_the_others(sampling):
    torch.manual_seed(1)
    shape, _, model = shaped(1)
    batch, steps = 70, 12
    state, uniforms = random_state(shape, batch, 2), torch.rand(batch, steps)
    gate = random_gate(shape, batch, linear=True)
    whole = state.clone()
    expected, report = HostKernel(model, 8).generate(whole.with_sampling(sampling), uniforms, gate)
    assert good(report)
    for streams in TILES[1:]:
        again = state.clone()
        found, _ = HostKernel(model, streams).generate(again.with_sampling(sampling), uniforms, gate)
        assert torch.equal(found, expected) and same(again, whole)
    for rows in ([0], [69, 3, 41], list(range(30, 63))):
        part, values = state.select(rows), GateBias(gate.values[rows], gate.hop, gate.start, gate.linear)
        found, _ = HostKernel(model, 16).generate(part.with_sampling(sampling), uniforms[rows], values)
        assert torch.equal(found, expected[rows]) and same(part, whole.select(rows))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_chunks_are_one_launch(index):
    shape, _, model = shaped(index, layers_per_stack=1 + index, stacks=1)
    kernel, uniforms = HostKernel(model, 16), torch.rand(5, 30)
    state = random_state(shape, 5, index).with_sampling(Sampling(top_p=0.95))
    whole = state.clone()
    expected, _ = kernel.generate(whole, uniforms)
    parts = [kernel.generate(state, part)[0] for part in uniforms.split(7, dim=1)]
    assert torch.equal(torch.cat(parts, dim=1), expected) and same(state, whole)


@pytest.mark.parametrize("index", range(len(SHAPES)))
@pytest.mark.parametrize("streams", TILES)
def test_no_phase_depends_on_the_order_of_its_threads(index, streams):
    shape, _, model = shaped(index)
    uniforms, sampling = torch.rand(11, 6), Sampling(top_k=20, top_p=0.9)
    gate = random_gate(shape, 11, linear=False)
    results = []
    for backward in (False, True):
        state = random_state(shape, 11, index).with_sampling(sampling)
        drawn, report = HostKernel(model, streams, backward).generate(
            state.with_sampling(sampling), uniforms, gate
        )
        assert good(report)
        results.append((drawn, state))
    assert torch.equal(results[0][0], results[1][0]) and same(results[0][1], results[1][1])


def test_every_network_of_a_random_lot():
    for seed in range(20):
        shape, weights, model = random_model(100 + seed)
        samples = np.random.default_rng(seed).integers(0, shape.classes, shape.context + 20)
        state = empty_state(shape, last_sample=int(samples[0]))
        given = torch.from_numpy(samples[1:])[None]
        found, report = HostKernel(model, TILES[seed % len(TILES)]).advance(state, given)
        assert good(report)
        exact = naive.logits(shape, weights, samples[:-1])
        assert relative_error(found[0, shape.context :].numpy(), exact) <= 1e-5


def test_tiles_have_the_layout_of_the_instruction():
    matrices = torch.randn(2, 20, 3 * 11)
    layout = TileLayout(torch.float16)
    layout.dilated(11, *matrices)
    numbers = layout.data().view(torch.float16).reshape(-1, 32, 8)
    # Two branches of 32 outputs; inputs of 22 and 11 channels, in two tiles and one.
    assert len(numbers) == 4 * 3
    whole = torch.zeros(64, 48, dtype=torch.float16)
    for number, tile in enumerate(numbers):
        for lane in range(32):
            for i in range(8):
                # As the PTX ISA gives it for a0 to a7.
                row = lane // 4 + (8 if i in (2, 3, 6, 7) else 0)
                column = lane % 4 * 2 + (i & 1) + (8 if i >= 4 else 0)
                whole[number // 3 * 16 + row, number % 3 * 16 + column] = tile[lane, i]
    for branch in range(2):
        expected = matrices[branch].half()
        found = whole[32 * branch : 32 * branch + 32]
        assert torch.equal(found[:20, :22], expected[:, :22]) and torch.equal(
            found[:20, 32:43], expected[:, 22:]
        )
    assert (whole != 0).sum() == (matrices.half() != 0).sum()


def test_only_weights_beyond_fp16_take_bf16():
    shape, weights, model = shaped(2)
    assert pack_tiles(model).geometry[0] == 4
    weights["head1.weight"][0, 0] = 7e4
    assert pack_tiles(model_of(shape, weights)).geometry[0] == 5


@pytest.mark.parametrize("index", range(len(SHAPES)))
@pytest.mark.parametrize("streams", TILES)
@pytest.mark.parametrize("beyond", [False, True])
def test_tiles_match_a_float64_convolution(index, streams, beyond):
    """But for the rounding of weights and inputs: that they were rounded so is part of the truth."""
    shape, weights, _ = shaped(index)
    if beyond:
        # Made large and then small again, so that the range is needed and nothing overflows.
        weights["head1.weight"] *= np.float32(2**17)
        weights["head1.bias"] *= np.float32(2**17)
        weights["head2.weight"] *= np.float32(2**-17)
    model = model_of(shape, weights)
    packed = pack_tiles(model)
    assert packed.geometry[0] == (5 if beyond else 4)
    kind = torch.bfloat16 if beyond else torch.float16
    rounded = {
        name: torch.from_numpy(value).to(kind).float().numpy()
        if name.endswith("weight") and name != "embedding.weight"
        else value
        for name, value in weights.items()
    }
    samples = np.random.default_rng(index).integers(0, shape.classes, shape.context + 15)
    state = empty_state(shape, last_sample=int(samples[0]))
    kernel = HostKernel(model, streams, packed=packed)
    found, report = kernel.advance(state, torch.from_numpy(samples[1:])[None])
    assert good(report)
    exact = naive.logits(shape, rounded, samples[:-1])
    errors = np.abs(found[0, shape.context :].numpy() - exact) / np.abs(exact).max(axis=-1, keepdims=True)
    assert errors.max() <= (2e-2 if beyond else 3e-3)
    # Exact arithmetic in another place would not be as far off as a rounding.
    assert errors.max() >= (1e-4 if beyond else 1e-5)


def test_a_stream_does_not_depend_on_its_tile():
    shape, _, model = shaped(2)
    packed, sampling = pack_tiles(model), Sampling(temperature=0.9, top_p=0.95)
    state, uniforms = random_state(shape, 70, 2).with_sampling(sampling), torch.rand(70, 8)
    gate = random_gate(shape, 70, linear=True)
    whole = state.clone()
    expected, report = HostKernel(model, 8, packed=packed).generate(
        whole.with_sampling(sampling), uniforms, gate
    )
    assert good(report)
    for streams in TILES:
        part, values = (
            state.select([5, 69, 12]),
            GateBias(gate.values[[5, 69, 12]], gate.hop, gate.start, True),
        )
        kernel = HostKernel(model, streams, backward=True, packed=packed)
        found, _ = kernel.generate(part, uniforms[[5, 69, 12]], values)
        assert torch.equal(found, expected[[5, 69, 12]]) and same(part, whole.select([5, 69, 12]))


def test_ties_go_to_the_lower_class():
    model = chain_model([[0.0, 2.0, 2.0, 1.0, 2.0], *[[0.0] * 5] * 4])
    uniforms = torch.tensor([[0.01], [0.4], [0.6], [0.99]])
    for sampling, expected in [
        (Sampling(temperature=0), [1, 1, 1, 1]),
        (Sampling(top_k=1), [1, 1, 1, 1]),
        (Sampling(top_k=2), [1, 1, 2, 2]),
        (Sampling(top_k=3, top_p=0.5), [1, 1, 2, 2]),
        (Sampling(top_k=3, top_p=0.3), [1, 1, 1, 1]),
    ]:
        state = empty_state(naive.Shape(5, 5, 5, 5, 5, 2, 1, 1), 4)
        drawn, _ = HostKernel(model).generate(state.with_sampling(sampling), uniforms)
        assert drawn[:, 0].tolist() == expected


def test_a_failed_stream_does_not_stop_the_others():
    shape, weights, _ = shaped(0)
    weights["embedding.weight"][1] = np.nan
    kernel = HostKernel(model_of(shape, weights))
    state = random_state(shape, 3, 0)
    state.position[:] = torch.tensor([5, 6, 7])
    state.last_sample[:] = 0
    given = torch.zeros(3, 6, dtype=torch.int64)
    given[1, 2] = 1
    logits, report = kernel.advance(state, given)
    assert report.tolist() == [NONE] * 5 + [9] + [NONE]
    assert state.position.tolist() == [11, 9, 13] and state.last_sample.tolist() == [0, 1, 0]
    assert torch.isfinite(logits[[0, 2]]).all() and torch.isfinite(logits[1, :3]).all()
    assert torch.isnan(logits[1, 3:]).all()


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [("position", -1, 0), ("position", 2**60, 0), ("last_sample", 2, 1), ("last_sample", -1, 1)],
)
def test_a_state_out_of_range_moves_nothing(name, value, refused):
    shape, _, model = shaped(0)
    state = random_state(shape, 12, 0)
    getattr(state, name)[9] = value
    before = state.clone()
    _, report = HostKernel(model).generate(state, torch.rand(12, 4))
    assert report[refused] == 9 and (np.delete(report, refused) == NONE).all()
    assert same(state, before)


def test_inputs_out_of_range_move_nothing():
    shape, _, model = shaped(0)
    state = random_state(shape, 2, 0)
    before = state.clone()
    for bad in (1.0, -0.1, float("nan")):
        uniforms = torch.rand(2, 4)
        uniforms[1, 1] = uniforms[1, 3] = bad
        _, report = HostKernel(model).generate(state, uniforms)
        assert report[2] == 5 and same(state, before)
    for bad in (2, -1):
        given = torch.zeros(2, 4, dtype=torch.int64)
        given[0, 3] = bad
        _, report = HostKernel(model).advance(state, given)
        assert report[2] == 3 and same(state, before)


def test_blocks_of_common_networks_fit_their_devices():
    widths = {"stacks": 3, "layers_per_stack": 10, "kernel_size": 2}
    _, _, model = random_model(0, residual=64, dilation=64, skip=256, head=256, classes=256, **widths)
    shared = [HostKernel(model, streams).shared_bytes() for streams in TILES]
    # 64 KiB per block on compute capability 7.5, 163 on 8.0, 227 on 9.0.
    assert shared[0] <= 65536 and shared[2] <= 163 * 1024 and shared[3] <= 227 * 1024


@pytest.fixture
def host_for_device(monkeypatch):
    """The backend with the host in the device's place; the list of the kernels and tiles that were used."""
    monkeypatch.setattr(CudaBackend, "available", staticmethod(lambda: None))
    monkeypatch.setattr(cuda, "_device_named", lambda name: torch.device("cpu"))
    everything = {(torch.device("cpu"), each, name) for each in cuda.CHECK_TOLERANCE for name in cuda.KERNELS}
    monkeypatch.setattr(cuda, "_checked", everything)
    monkeypatch.setattr(cuda, "_multiprocessors", lambda device: 1)
    monkeypatch.setattr(CudaBackend, "identity", lambda self: "the CPU in a device's place")
    monkeypatch.setattr(CudaBackend, "kernels", lambda *_: dict.fromkeys(cuda.KERNELS, "serves"))
    used = []

    def kernel(backend: CudaBackend, batch: int) -> HostKernel:
        tile = next(streams for streams in cuda.TILES if streams >= batch)
        used.append(tile if backend.kernel == "stream_cta" else backend.kernel)
        model = cuda._small_network(torch.Generator().manual_seed(0))
        stages = None if backend.kernel == "stream_cta" else Stages(tiles=2, blocks=4)
        return HostKernel(model, tile, packed=backend.packed, stages=stages)

    def generate(self, state, uniforms, *given):
        return kernel(self, len(uniforms)).generate(state, uniforms, *given)[0]

    def advance(self, state, samples, *given):
        return kernel(self, len(samples)).advance(state, samples, *given)[0]

    monkeypatch.setattr(CudaBackend, "generate", generate)
    monkeypatch.setattr(CudaBackend, "advance", advance)
    return used


@pytest.mark.parametrize("stored", ["fp32", "fp16", "bf16"])
def test_a_right_engine_is_well_within_what_is_checked(stored, monkeypatch, host_for_device):
    """The check of a device, with the host in its place and a fifth of the tolerance."""
    monkeypatch.setitem(cuda.CHECK_TOLERANCE, stored, cuda.CHECK_TOLERANCE[stored] / 5)
    cuda.check(torch.device("cpu"), stored)
    assert host_for_device == [8, 8, 16, 32, 64] and cuda.TILES == TILES


@pytest.mark.parametrize("stored", ["fp16", "bf16"])
def test_the_other_kernels_are_compared_with_the_first(stored, host_for_device):
    cuda.check_alike(torch.device("cpu"), stored, "stage_grid")
    assert host_for_device == [8, "stage_grid", 64, "stage_grid"]


def test_a_kernel_that_is_a_little_off_is_found(monkeypatch, host_for_device):
    generate = CudaBackend.generate

    def a_little_off(self, state, *given):
        drawn = generate(self, state, *given)
        if self.kernel == "stage_cluster":
            state.queues[-1, 3, 1] *= 1 + 2**-20
        return drawn

    monkeypatch.setattr(CudaBackend, "generate", a_little_off)
    message = "the CUDA kernel stage_cluster differs from stream_cta on cpu in fp16; use backend"
    with pytest.raises(BackendError, match=message):
        cuda.check_alike(torch.device("cpu"), "fp16", "stage_cluster")


def test_a_kernel_that_does_not_serve_says_why(monkeypatch, host_for_device):
    told = dict.fromkeys(cuda.KERNELS, "no: it needs another device")
    monkeypatch.setattr(CudaBackend, "kernels", lambda *_: told)
    with pytest.raises(BackendError, match="'stage_grid' does not serve this network here: it needs another"):
        CudaBackend(shaped(0)[2], kernel="stage_grid")
