"""The compiled engine against a float64 convolution, and against itself in other company."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from support import naive
from support.engines import (
    INSTRUCTION_SETS,
    empty_state,
    model_of,
    needs_extension,
    random_model,
    random_state,
    use_instruction_set,
)

from wavenet.engine.cpu import NativeBackend
from wavenet.engine.sampling import Sampling
from wavenet.errors import BackendError
from wavenet.models.gate_bias import GateBias

pytestmark = needs_extension


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request, monkeypatch):
    use_instruction_set(request.param, monkeypatch)
    assert NativeBackend.instruction_set() == request.param
    return request.param


def relative_error(found: np.ndarray, exact: np.ndarray) -> float:
    """Largest error of a step's logits, relative to the largest of them."""
    return float((np.abs(found - exact).max(axis=-1) / np.abs(exact).max(axis=-1)).max())


def random_samples(shape: naive.Shape, steps: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, shape.classes, steps)


def chunk_lengths(total: int, chunk: int) -> list[int]:
    return [min(chunk, total - start) for start in range(0, total, chunk)]


@pytest.mark.parametrize("seed", range(12))
def test_logits_match_a_float64_convolution(instruction_set, seed):
    shape, weights, model = random_model(seed)
    field = shape.context + 1
    steps = shape.context + 2 * max(shape.dilations) * (shape.kernel_size - 1) + 40
    samples = random_samples(shape, steps + 1, seed)
    exact = naive.logits(shape, weights, samples[:-1])
    backend = NativeBackend(model)
    for chunk in (1, 7, max(1, field - 1), field, field + 1, steps):
        state = empty_state(shape, last_sample=int(samples[0]))
        given = torch.from_numpy(samples[1:])[None]
        parts = [backend.advance(state, part) for part in given.split(chunk, dim=1)]
        found = torch.cat(parts, dim=1)[0].numpy()
        assert relative_error(found[shape.context :], exact) <= 1e-5
        assert state.position.tolist() == [steps]
        assert state.last_sample.tolist() == [samples[-1]]


@pytest.mark.parametrize(
    ("residual", "dilation", "skip", "head", "classes"),
    [(5, 7, 9, 11, 16), (64, 64, 256, 64, 256), (48, 24, 80, 100, 300), (17, 33, 130, 65, 129)],
)
def test_every_block_width_is_right(instruction_set, residual, dilation, skip, head, classes):
    shape, weights, model = random_model(
        3,
        residual=residual,
        dilation=dilation,
        skip=skip,
        head=head,
        classes=classes,
        kernel_size=2,
        stacks=2,
        layers_per_stack=3,
    )
    samples = random_samples(shape, shape.context + 31, 4)
    exact = naive.logits(shape, weights, samples[:-1])
    state = empty_state(shape, last_sample=int(samples[0]))
    found = NativeBackend(model).advance(state, torch.from_numpy(samples[1:])[None])[0].numpy()
    assert relative_error(found[shape.context :], exact) <= 1e-5


def test_samples_after_endless_silence(instruction_set):
    shape, weights, model = random_model(21, kernel_size=3, stacks=2, layers_per_stack=3)
    silence, spoken = model.config.silence, random_samples(shape, 50, 5)
    fed = np.concatenate([np.full(shape.context + 1, silence), spoken])
    exact = naive.logits(shape, weights, fed)
    state = empty_state(shape, last_sample=silence)
    backend = NativeBackend(model)
    # Any amount of silence that fills the queues is endless silence.
    for quiet in (shape.context, 3):
        backend.advance(state, torch.full((1, quiet), silence))
    found = backend.advance(state, torch.from_numpy(spoken)[None])[0].numpy()
    assert relative_error(found, exact[: len(spoken)]) <= 1e-5


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(("frames", "hop", "start"), [(1, 1, 0), (4, 7, 0), (5, 3, 11), (6, 16, -29)])
def test_gate_bias(instruction_set, linear, frames, hop, start):
    shape, weights, model = random_model(8, kernel_size=3, stacks=2, layers_per_stack=2)
    samples = random_samples(shape, shape.context + 61, 6)
    values = np.random.default_rng(7).standard_normal((2, frames, len(shape.dilations), 2 * shape.dilation))
    values = values.astype(np.float32)
    gate = GateBias(torch.from_numpy(values), hop, start, linear)
    state = empty_state(shape, batch=2, last_sample=int(samples[0]))
    given = torch.from_numpy(samples[1:])[None].expand(2, -1)
    found = NativeBackend(model).advance(state, given, gate).numpy()
    for row in range(2):
        rows = naive.gate_rows(values[row], hop, start, linear, range(len(samples) - 1))
        exact = naive.logits(shape, weights, samples[:-1], rows)
        assert relative_error(found[row, shape.context :], exact) <= 1e-5


def test_one_gate_bias_for_all_streams_is_not_copied_wrongly():
    shape, _, model = random_model(8, stacks=2, layers_per_stack=2)
    values = torch.randn(1, 3, len(shape.dilations), 2 * shape.dilation)
    backend = NativeBackend(model)
    given = torch.from_numpy(random_samples(shape, 60, 1).reshape(3, 20))
    shared = GateBias(values.expand(3, *values.shape[1:]), 5)
    apart = GateBias(values.repeat(3, 1, 1, 1), 5)
    one, other = random_state(shape, 3, 2), random_state(shape, 3, 2)
    assert torch.equal(backend.advance(one, given, shared), backend.advance(other, given, apart))


def test_gate_nonlinearity_over_its_whole_range(instruction_set):
    """A network whose logits are its gate's outputs: tanh(a) * sigmoid(b) of the biases."""
    a = np.concatenate([10.0 ** np.arange(-9, 3.1, 0.25), np.linspace(0, 20, 127)])
    a = np.concatenate([a, -a]).astype(np.float32)
    b = np.random.default_rng(0).permutation(np.linspace(-80, 100, len(a))).astype(np.float32)
    width = len(a)
    shape = naive.Shape(width, 1, width, 2 * width, 2 * width, 2, 1, 1)
    weights = {
        name: np.zeros_like(value)
        for name, value in naive.random_weights(shape, np.random.default_rng(0)).items()
    }
    weights["layers.0.dilated.bias"] = np.concatenate([a, b])
    one = np.eye(width, dtype=np.float32)
    weights["skip.weight"] = np.concatenate([one, -one])
    weights["head1.weight"] = np.eye(2 * width, dtype=np.float32)
    weights["head2.weight"] = np.concatenate([one, -one], axis=1)
    state = empty_state(shape)
    found = NativeBackend(model_of(shape, weights)).advance(state, torch.zeros(1, 1, dtype=torch.int64))
    exact = np.tanh(a.astype(np.float64)) / (1 + np.exp(-b.astype(np.float64)))
    np.testing.assert_allclose(found[0, 0].numpy(), exact, rtol=5e-7, atol=1e-25)


@pytest.mark.parametrize("with_gate", [False, True])
def test_streams_do_not_depend_on_threads_batch_place_or_chunks(instruction_set, with_gate):
    shape, _, model = random_model(30, kernel_size=3, stacks=2, layers_per_stack=3)
    batch, steps = 5, 120
    gate = None
    if with_gate:
        gate = GateBias(torch.randn(batch, 4, len(shape.dilations), 2 * shape.dilation), 37, 100, True)
    uniforms = torch.rand(batch, steps)
    whole = random_state(shape, batch, 1)
    expected = NativeBackend(model, 1).generate(whole, uniforms, Sampling())
    expected_gated = expected
    if gate is not None:
        whole = random_state(shape, batch, 1)
        expected_gated = NativeBackend(model, 1).generate(whole, uniforms, Sampling(), gate)
        assert not torch.equal(expected, expected_gated)
    for threads in (1, 2, 5, 64):
        state = random_state(shape, batch, 1)
        found = NativeBackend(model, threads).generate(state, uniforms, Sampling(), gate)
        assert torch.equal(found, expected_gated)
        assert torch.equal(state.queues, whole.queues)
        assert torch.equal(state.position, whole.position)
    order = [3, 0, 4]
    state = random_state(shape, batch, 1).select(order)
    part = None if gate is None else GateBias(gate.values[order], gate.hop, gate.start, gate.linear)
    backend = NativeBackend(model, 2)
    pieces = [backend.generate(state, piece, Sampling(), part) for piece in uniforms[order].split(17, dim=1)]
    assert torch.equal(torch.cat(pieces, dim=1), expected_gated[order])
    assert torch.equal(state.queues, whole.queues[order])


def test_logits_are_the_same_bits_in_any_company(instruction_set):
    shape, _, model = random_model(31, stacks=2, layers_per_stack=3)
    given = torch.from_numpy(random_samples(shape, 7 * 50, 2).reshape(7, 50))
    together = NativeBackend(model, 3).advance(random_state(shape, 7, 4), given)
    for row in range(7):
        state = random_state(shape, 7, 4).select([row])
        parts = [NativeBackend(model).advance(state, part) for part in given[row : row + 1].split(9, dim=1)]
        assert torch.equal(torch.cat(parts, dim=1)[0], together[row])


def test_denormals_setting_of_the_caller_is_kept_and_does_not_matter(instruction_set):
    shape, weights, _ = random_model(32, kernel_size=2, stacks=1, layers_per_stack=2)
    # Large enough to lift a denormal old tap into sight: it would count, were it not taken for zero.
    weights["layers.1.dilated.weight"][:, : shape.residual] *= 1e38
    model = model_of(shape, weights)
    given = torch.from_numpy(random_samples(shape, 1, 2))[None]
    states = [random_state(shape, 1, 4) for _ in range(2)]
    for state in states:
        state.queues *= 1e-39
    tiny = torch.tensor(1e-40)
    first = NativeBackend(model).advance(states[0], given)
    assert float(tiny * 1) > 0
    torch.set_flush_denormal(True)
    try:
        second = NativeBackend(model).advance(states[1], given)
        assert float(tiny * 1) == 0
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(first, second)


def test_other_python_threads_run_meanwhile():
    shape, _, model = random_model(33, residual=64, dilation=64, skip=256, head=256, classes=256)
    backend = NativeBackend(model)
    ticks = [0]
    stop = threading.Event()

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


def test_backend_refuses_an_unknown_instruction_set(monkeypatch):
    _, _, model = random_model(34)
    monkeypatch.setenv("WAVENET_CPU", "mmx")
    assert NativeBackend.available() == (
        "WAVENET_CPU = mmx: not available on this machine; choose from: "
        + " ".join(NativeBackend.instruction_sets())
    )
    with pytest.raises(BackendError, match=r"WAVENET_CPU = mmx.*base"):
        NativeBackend(model)


@pytest.mark.parametrize("threads", [1, 3])
def test_non_finite_logits_name_sample_and_stream(instruction_set, threads):
    shape, weights, _ = random_model(
        35, residual=4, dilation=5, stacks=1, layers_per_stack=2, kernel_size=2, classes=8
    )
    weights["embedding.weight"][3] = np.nan
    backend = NativeBackend(model_of(shape, weights), threads)
    state = random_state(shape, 3, 5)
    state.position[:] = torch.tensor([7, 20, 31])
    state.last_sample[:] = 1
    given = torch.ones(3, 10, dtype=torch.int64)
    # Row 1, stream 11: the sample at position 24 is fed to predict the one at 25.
    given[1, 4] = 3
    with pytest.raises(
        BackendError, match=r"^the network produced non-finite logits at sample 25 of stream 11$"
    ):
        backend.advance(state, given)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize(
    "name", ["head2.bias", "skip.bias", "layers.0.dilated.bias", "layers.0.residual.weight"]
)
def test_non_finite_weights_are_found(instruction_set, name, value):
    shape, weights, _ = random_model(36, stacks=1, layers_per_stack=2, classes=19)
    weights[name].flat[-1] = value
    backend = NativeBackend(model_of(shape, weights))
    uniforms = torch.full((1, 20), 0.5)
    finite_anyway = name == "layers.0.dilated.bias" and not np.isnan(value)
    finite_anyway = finite_anyway or (name == "skip.bias" and value == -np.inf)
    if finite_anyway:
        # The gate saturates, or the rectifier cuts it off.
        samples = backend.generate(random_state(shape, 1, 0), uniforms, Sampling())
        assert 0 <= int(samples.min()) <= int(samples.max()) < shape.classes
    else:
        with pytest.raises(BackendError, match="non-finite logits"):
            backend.generate(random_state(shape, 1, 0), uniforms, Sampling())


def refused(backend: NativeBackend, state, samples) -> str:
    with pytest.raises(BackendError) as caught:
        backend.advance(state, samples)
    message = str(caught.value)
    assert "\n" not in message and ".cpp" not in message and "wavenet:" not in message
    return message


def test_what_the_engine_refuses_is_one_line_for_a_person():
    shape, _, model = random_model(37, classes=16)
    backend = NativeBackend(model)
    state, given = random_state(shape, 2, 0), torch.zeros(2, 3, dtype=torch.int64)
    assert refused(backend, state, given + 16) == "samples contains 16: must be 0 to 15"
    assert refused(backend, state, given[:1]) == "samples is (1, 3): must be (2, any)"
    assert refused(backend, state, given.float()) == "samples is Float: must be Long"
    backend.threads = 0
    assert refused(backend, state, given) == "threads = 0: must be at least 1"


@pytest.mark.parametrize(
    ("raised", "shown"),
    [
        ("wavenet:error: thread 9 could not be started", "thread 9 could not be started"),
        ("run, /src/csrc/a.cpp:3, wavenet:error: no memory\nframe #0: main", "no memory"),
        (
            "wavenet:nonfinite:123:1: any words at all\nframe #0: main",
            "the network produced non-finite logits at sample 123 of stream 11",
        ),
        ("out of luck\nframe #0: main", "backend 'cpu' failed: out of luck"),
        ("", "backend 'cpu' failed: RuntimeError"),
    ],
)
def test_only_the_mark_of_an_error_is_read(raised, shown, monkeypatch):
    shape, _, model = random_model(38)
    backend = NativeBackend(model)

    class Operators:
        @staticmethod
        def advance(*_):
            raise RuntimeError(raised)

    monkeypatch.setattr(torch.ops, "wavenet", Operators)
    assert refused(backend, random_state(shape, 2, 0), torch.zeros(2, 1, dtype=torch.int64)) == shown
