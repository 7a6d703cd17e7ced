"""The engine that numba compiles: against a float64 convolution, the other engines, and itself in company."""

from __future__ import annotations

import sys
import threading
import time

import numpy as np
import pytest
import torch
from support import naive
from support.engines import empty_state, model_of, needs_extension, random_model, random_state

from wavenet.engine import numba as numba_backend
from wavenet.engine import registry
from wavenet.engine.cpu import NativeBackend
from wavenet.engine.numba import NumbaBackend
from wavenet.engine.reference import ReferenceBackend
from wavenet.engine.sampling import Sampling
from wavenet.errors import BackendError
from wavenet.models.gate_bias import GateBias

NEARLY_ONE = 1 - 2**-24


def relative_error(found: np.ndarray, exact: np.ndarray) -> float:
    """Largest error of a step's logits, relative to the largest of them."""
    return float((np.abs(found - exact).max(axis=-1) / np.abs(exact).max(axis=-1)).max())


def random_samples(shape: naive.Shape, steps: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, shape.classes, steps)


def random_gate(shape: naive.Shape, batch: int, frames: int, **settings) -> GateBias:
    torch.manual_seed(frames)
    return GateBias(torch.randn(batch, frames, len(shape.dilations), 2 * shape.dilation), **settings)


# -- logits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_logits_match_a_float64_convolution(seed):
    shape, weights, model = random_model(seed)
    field = shape.context + 1
    steps = shape.context + 2 * max(shape.dilations) * (shape.kernel_size - 1) + 40
    samples = random_samples(shape, steps + 1, seed)
    exact = naive.logits(shape, weights, samples[:-1])
    backend = NumbaBackend(model)
    given = torch.from_numpy(samples[1:])[None]
    for chunk in (1, 7, max(1, field - 1), field + 1, steps):
        state = empty_state(shape, last_sample=int(samples[0]))
        found = torch.cat([backend.advance(state, part) for part in given.split(chunk, dim=1)], dim=1)
        assert relative_error(found[0, shape.context :].numpy(), exact) <= 1e-5
        assert state.position.tolist() == [steps]
        assert state.last_sample.tolist() == [samples[-1]]


@pytest.mark.parametrize("kernel_size", [2, 3])
@pytest.mark.parametrize(
    ("residual", "dilation", "skip", "head", "classes"),
    [(5, 7, 9, 11, 16), (64, 64, 256, 64, 256), (48, 24, 80, 100, 300), (17, 33, 130, 65, 129)],
)
def test_every_block_width_is_right(residual, dilation, skip, head, classes, kernel_size):
    widths = dict(residual=residual, dilation=dilation, skip=skip, head=head, classes=classes)
    shape, weights, model = random_model(3, **widths, kernel_size=kernel_size, stacks=2, layers_per_stack=3)
    samples = random_samples(shape, shape.context + 31, 4)
    exact = naive.logits(shape, weights, samples[:-1])
    state = empty_state(shape, last_sample=int(samples[0]))
    found = NumbaBackend(model).advance(state, torch.from_numpy(samples[1:])[None])[0].numpy()
    assert relative_error(found[shape.context :], exact) <= 1e-5


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(("frames", "hop", "start"), [(1, 1, 0), (4, 7, 0), (5, 3, 11), (6, 16, -29)])
def test_gate_bias(linear, frames, hop, start):
    shape, weights, model = random_model(8, kernel_size=3, stacks=2, layers_per_stack=2)
    samples = random_samples(shape, shape.context + 61, 6)
    gate = random_gate(shape, 2, frames, hop=hop, start=start, linear=linear)
    state = empty_state(shape, batch=2, last_sample=int(samples[0]))
    given = torch.from_numpy(samples[1:])[None].expand(2, -1)
    found = NumbaBackend(model).advance(state, given, gate).numpy()
    for row in range(2):
        rows = naive.gate_rows(gate.values[row].numpy(), hop, start, linear, range(len(samples) - 1))
        exact = naive.logits(shape, weights, samples[:-1], rows)
        assert relative_error(found[row, shape.context :], exact) <= 1e-5


def test_one_gate_bias_for_all_streams():
    shape, _, model = random_model(8, stacks=2, layers_per_stack=2)
    values = random_gate(shape, 1, 3, hop=5).values
    given = torch.from_numpy(random_samples(shape, 60, 1).reshape(3, 20))
    found = []
    for each in (values.expand(3, *values.shape[1:]), values.repeat(3, 1, 1, 1)):
        found.append(NumbaBackend(model).advance(random_state(shape, 3, 2), given, GateBias(each, 5)))
    assert torch.equal(*found)


def test_gate_nonlinearity_over_its_whole_range():
    """A network whose logits are its gate's outputs: tanh(a) * sigmoid(b) of the biases."""
    a = np.concatenate([10.0 ** np.arange(-9, 3.1, 0.25), np.linspace(0, 20, 127)])
    a = np.concatenate([a, -a]).astype(np.float32)
    b = np.random.default_rng(0).permutation(np.linspace(-80, 100, len(a))).astype(np.float32)
    width = len(a)
    shape = naive.Shape(width, 1, width, 2 * width, 2 * width, 2, 1, 1)
    weights = naive.random_weights(shape, np.random.default_rng(0))
    weights = {name: np.zeros_like(value) for name, value in weights.items()}
    weights["layers.0.dilated.bias"] = np.concatenate([a, b])
    one = np.eye(width, dtype=np.float32)
    weights["skip.weight"] = np.concatenate([one, -one])
    weights["head1.weight"] = np.eye(2 * width, dtype=np.float32)
    weights["head2.weight"] = np.concatenate([one, -one], axis=1)
    given = torch.zeros(1, 1, dtype=torch.int64)
    found = NumbaBackend(model_of(shape, weights)).advance(empty_state(shape), given)
    exact = np.tanh(a.astype(np.float64)) / (1 + np.exp(-b.astype(np.float64)))
    np.testing.assert_allclose(found[0, 0].numpy(), exact, rtol=5e-7, atol=1e-25)


# -- company ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_gate", [False, True])
def test_streams_do_not_depend_on_threads_batch_place_or_chunks(with_gate):
    shape, _, model = random_model(30, kernel_size=3, stacks=2, layers_per_stack=3)
    batch, steps = 5, 120
    gate = random_gate(shape, batch, 4, hop=37, start=100, linear=True) if with_gate else None
    torch.manual_seed(0)
    uniforms = torch.rand(batch, steps)
    whole = random_state(shape, batch, 1)
    expected = NumbaBackend(model, 1).generate(whole, uniforms, Sampling(), gate)
    for threads in (2, 5, 64):
        state = random_state(shape, batch, 1)
        assert torch.equal(NumbaBackend(model, threads).generate(state, uniforms, Sampling(), gate), expected)
        assert torch.equal(state.queues, whole.queues)
        assert torch.equal(state.position, whole.position)
    order = [3, 0, 4]
    state = random_state(shape, batch, 1).select(order)
    part = None if gate is None else GateBias(gate.values[order], gate.hop, gate.start, gate.linear)
    backend = NumbaBackend(model, 2)
    pieces = [backend.generate(state, piece, Sampling(), part) for piece in uniforms[order].split(17, dim=1)]
    assert torch.equal(torch.cat(pieces, dim=1), expected[order])
    assert torch.equal(state.queues, whole.queues[order])


def test_logits_are_the_same_bits_in_any_company():
    shape, _, model = random_model(31, stacks=2, layers_per_stack=3)
    given = torch.from_numpy(random_samples(shape, 7 * 50, 2).reshape(7, 50))
    together = NumbaBackend(model, 3).advance(random_state(shape, 7, 4), given)
    for row in range(7):
        state = random_state(shape, 7, 4).select([row])
        parts = [NumbaBackend(model).advance(state, part) for part in given[row : row + 1].split(9, dim=1)]
        assert torch.equal(torch.cat(parts, dim=1)[0], together[row])


@pytest.mark.parametrize(
    "other", [ReferenceBackend, pytest.param(NativeBackend, marks=needs_extension)], ids=["reference", "cpu"]
)
def test_a_state_goes_to_and_fro_between_engines(other):
    shape, _, model = random_model(32, classes=24, kernel_size=2, stacks=2, layers_per_stack=3)
    engines = [NumbaBackend(model), other(model)]
    gate = random_gate(shape, 2, 3, hop=50, start=-20, linear=True)
    torch.manual_seed(1)
    pieces = torch.rand(2, 120).split(30, dim=1)
    found, queues = [], []
    for places in ((0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 0, 1), (1, 0, 1, 0)):
        state = random_state(shape, 2, 6)
        drawn = [
            engines[place].generate(state, piece, Sampling(0.9, 20, 0.97), gate)
            for place, piece in zip(places, pieces, strict=True)
        ]
        found.append(torch.cat(drawn, dim=1))
        queues.append(state.queues)
    assert all(torch.equal(each, found[0]) for each in found)
    assert all(torch.allclose(each, queues[0], rtol=1e-4, atol=1e-4) for each in queues)


def test_other_python_threads_run_meanwhile():
    shape, _, model = random_model(33, residual=64, dilation=64, skip=256, head=256, classes=256)
    backend = NumbaBackend(model)
    ticks, stop = [0], threading.Event()

    def tick() -> None:
        while not stop.is_set():
            time.sleep(0.001)
            ticks[0] += 1

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        most = 0
        for attempt in range(20):
            uniforms = torch.full((1, 1000 * (attempt + 1)), 0.5)
            state, before = random_state(shape, 1, attempt), ticks[0]
            backend.generate(state, uniforms, Sampling())
            most = max(most, ticks[0] - before)
            if most >= 5:
                break
    finally:
        stop.set()
        thread.join()
    # With the lock held it would tick once at the most, between the reading and the call.
    assert most >= 5


# -- drawing ------------------------------------------------------------------------------------------


def drawn_from(logits: np.ndarray, uniforms: np.ndarray, sampling: Sampling) -> list[int]:
    """Draw from a network that always predicts the same."""
    shape = naive.Shape(len(logits), 3, 3, 3, 3, 2, 1, 2)
    weights = naive.random_weights(shape, np.random.default_rng(0))
    weights = {name: np.zeros_like(value) for name, value in weights.items()}
    weights["head2.bias"] = logits.astype(np.float32)
    given = torch.from_numpy(uniforms.astype(np.float32))[None]
    backend = NumbaBackend(model_of(shape, weights))
    return backend.generate(empty_state(shape), given, sampling)[0].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0},
        {"temperature": 0.3},
        {"temperature": 1e4},
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 10_000},
        {"top_p": 0.5},
        {"top_p": 1e-9},
        {"top_p": 0.999999},
        {"temperature": 1.7, "top_k": 6, "top_p": 0.7},
    ],
    ids=str,
)
def test_draws_invert_the_cumulative_distribution(options):
    shape, _, model = random_model(40, classes=37, kernel_size=2, stacks=2, layers_per_stack=3)
    backend = NumbaBackend(model)
    uniforms = np.random.default_rng(1).integers(0, 2**24, (2, 300)) * 2.0**-24
    uniforms[:, ::10] = 0
    uniforms[:, 5::10] = NEARLY_ONE
    given = torch.from_numpy(uniforms.astype(np.float32))
    samples = backend.generate(random_state(shape, 2, 3), given, Sampling(**options))
    logits = backend.advance(random_state(shape, 2, 3), samples).numpy()
    for row, step in np.ndindex(2, 300):
        # Draws within float32 rounding of the edge between two classes may fall on either side.
        moved = [min(max(uniforms[row, step] + by, 0), 1 - 1e-12) for by in (0, -1e-6, 1e-6)]
        allowed = (naive.draw(logits[row, step], each, **options) for each in moved)
        assert int(samples[row, step]) in allowed


def test_ties_go_to_the_lower_class():
    logits = np.array([0.0, 2.0, 1.0, 2.0, 2.0, -1.0])
    uniforms = np.array([0.0, 0.49, 0.51, NEARLY_ONE])
    assert drawn_from(logits, uniforms, Sampling(temperature=0)) == [1, 1, 1, 1]
    assert drawn_from(logits, uniforms, Sampling(top_k=1)) == [1, 1, 1, 1]
    assert drawn_from(logits, uniforms, Sampling(top_k=2)) == [1, 1, 3, 3]
    assert drawn_from(np.zeros(256), uniforms, Sampling(top_p=0.5)) == [0, 62, 65, 127]
    assert drawn_from(np.zeros(256), uniforms, Sampling(top_k=100, top_p=0.5)) == [0, 24, 25, 49]


def test_ends_of_the_unit_interval_and_of_the_logits():
    ends = np.array([0.0, NEARLY_ONE])
    assert drawn_from(np.zeros(300), ends, Sampling()) == [0, 299]
    peaked = np.full(300, -200.0)
    peaked[[7, 150]] = 0.0
    assert drawn_from(peaked, ends, Sampling()) == [7, 150]
    assert drawn_from(np.array([3e38, -3e38, 0.0]), ends, Sampling()) == [0, 0]


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e30, 1e300])
def test_extreme_temperatures_reach_their_limits(temperature):
    logits = np.array([0.0, 1.0, 2.0, 1.0])
    found = drawn_from(logits, np.array([0.0, 0.3, 0.6, NEARLY_ONE]), Sampling(temperature))
    assert found == ([2, 2, 2, 2] if temperature < 1 else [0, 1, 2, 3])


# -- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_non_finite_logits_name_sample_and_stream(threads):
    widths = dict(residual=4, dilation=5, stacks=1, layers_per_stack=2, kernel_size=2, classes=8)
    shape, weights, _ = random_model(35, **widths)
    weights["embedding.weight"][3] = np.nan
    backend = NumbaBackend(model_of(shape, weights), threads)
    state = random_state(shape, 3, 5)
    state.position[:] = torch.tensor([7, 20, 31])
    state.last_sample[:] = 1
    given = torch.ones(3, 10, dtype=torch.int64)
    # Row 1, stream 11: the sample at position 24 is fed to predict the one at 25.
    given[1, 4] = 3
    message = r"^the network produced non-finite logits at sample 25 of stream 11$"
    with pytest.raises(BackendError, match=message):
        backend.advance(state, given)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", ["head2.bias", "layers.0.residual.weight"])
def test_non_finite_weights_are_found(name, value):
    shape, weights, _ = random_model(36, stacks=1, layers_per_stack=2, classes=19)
    weights[name].flat[-1] = value
    backend = NumbaBackend(model_of(shape, weights))
    with pytest.raises(BackendError, match="non-finite logits"):
        backend.generate(random_state(shape, 1, 0), torch.full((1, 20), 0.5), Sampling())


def test_what_the_engine_refuses_is_one_line():
    shape, _, model = random_model(37, classes=16)
    backend = NumbaBackend(model)
    state, given = random_state(shape, 2, 0), torch.zeros(2, 3, dtype=torch.int64)
    gate = random_gate(shape, 3, 1, hop=1)
    for call, message in (
        (lambda: backend.advance(state, given + 16), "samples contains 16: must be 0 to 15"),
        (lambda: backend.advance(state, given - 1), "samples contains -1: must be 0 to 15"),
        (lambda: backend.advance(state, given[:1]), r"samples is \(1, 3\): must be \(2, any\)"),
        (lambda: backend.advance(state, given.float()), "samples is torch.float32: must be torch.int64"),
        (lambda: backend.advance(state, given, gate), r"gate_bias is \(3, 1, .*\): must be \(2, any, "),
        (lambda: backend.advance(state.select([]), given), r"samples is \(2, 3\): must be \(0, any\)"),
    ):
        with pytest.raises(BackendError, match=f"^{message}"):
            call()


# -- numba itself -------------------------------------------------------------------------------------


@pytest.fixture
def looked_at_anew():
    """Forget what is known about numba before and after a test."""
    numba_backend._unusable.cache_clear()
    yield
    numba_backend._unusable.cache_clear()


def test_where_numba_is_missing_the_reason_is_told(looked_at_anew, monkeypatch):
    _, _, model = random_model(38)
    for name in [name for name in sys.modules if name == "numba" or name.startswith("numba.")]:
        monkeypatch.setitem(sys.modules, name, None)
    reason = NumbaBackend.available()
    assert reason is not None and reason.startswith("numba cannot be loaded: ") and "\n" not in reason
    with pytest.raises(BackendError, match=r"^backend 'numba' cannot run here: numba cannot be loaded: "):
        registry.create(model, "numba")
    monkeypatch.setattr(NativeBackend, "available", staticmethod(lambda: "not built"))
    assert registry.create(model).name == "reference"


def test_an_interpreter_is_no_engine(looked_at_anew, monkeypatch):
    from numba.core import config

    monkeypatch.setattr(config, "DISABLE_JIT", 1)
    assert NumbaBackend.available() == "NUMBA_DISABLE_JIT is set: nothing would be compiled"


def test_it_comes_after_the_engine_in_cpp_and_is_not_loaded_beside_it(monkeypatch):
    _, _, model = random_model(38)
    monkeypatch.setattr(NativeBackend, "available", staticmethod(lambda: "not built"))
    assert registry.create(model).name == "numba"
    monkeypatch.undo()
    if NativeBackend.available() is None:
        monkeypatch.setattr(NumbaBackend, "available", staticmethod(lambda: pytest.fail("looked at")))
        assert registry.create(model).name == "cpu"


@pytest.fixture
def small_kernel(monkeypatch):
    """A kernel that is quickly compiled, from a source beside which and for which nothing can be kept."""
    from numba import types

    from wavenet.engine import numba_kernel

    names: dict = {}
    exec(compile("def kernel(values):\n    values[0] = 3\n", "/dev/null/kernel.py", "exec"), names)
    monkeypatch.setattr(numba_kernel, "_run", names["kernel"])
    monkeypatch.setattr(numba_kernel, "_SIGNATURE", types.void(types.Array(types.int64, 1, "C")))
    numba_kernel.compiled.cache_clear()
    yield numba_kernel
    numba_kernel.compiled.cache_clear()


def test_without_a_folder_to_keep_it_in_it_is_compiled_all_the_same(small_kernel):
    from numba import njit

    with pytest.raises(RuntimeError, match="no locator available"):
        njit(small_kernel._SIGNATURE, cache=True)(small_kernel._run)
    values = np.zeros(1, np.int64)
    small_kernel.compiled()(values)
    assert values.tolist() == [3]


def test_what_is_compiled_is_kept_for_the_user_and_not_in_the_package(small_kernel, tmp_path, monkeypatch):
    from numba.core import config

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(config, "CACHE_DIR", "")
    source = tmp_path / "package" / "kernel.py"
    source.parent.mkdir()
    source.write_text("def kernel(values):\n    values[0] = 3\n")
    names: dict = {}
    exec(compile(source.read_text(), str(source), "exec"), names)
    monkeypatch.setattr(small_kernel, "_run", names["kernel"])
    _, _, model = random_model(38)
    NumbaBackend(model)
    assert list((tmp_path / "cache" / "wavenet" / "numba").rglob("*.nbi"))
    assert list(source.parent.iterdir()) == [source] and config.CACHE_DIR == ""


def test_an_interrupt_of_the_compilation_leaves_no_trace(small_kernel, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(small_kernel, "njit", interrupted)
        small_kernel.compiled()
    values = np.zeros(1, np.int64)
    small_kernel.compiled()(values)
    assert values.tolist() == [3]


def test_a_failing_compilation_is_one_line(small_kernel, monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("no such target\nat all")

    _, _, model = random_model(38)
    monkeypatch.setattr(small_kernel, "njit", failing)
    message = "^backend 'numba' failed to compile: no such target; try --backend reference$"
    with pytest.raises(BackendError, match=message):
        NumbaBackend(model)
