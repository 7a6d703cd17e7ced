"""Properties of the C++ engine only; tests/engine/test_engines.py tests those of all engines."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.engines import (
    INSTRUCTION_SETS,
    model_of,
    needs_extension,
    random_model,
    random_samples,
    random_state,
    use_instruction_set,
)

from wavenet.engine.cpu import CpuBackend
from wavenet.engine.sampling import uniforms
from wavenet.engine.state import GeneratorState
from wavenet.errors import BackendError

pytestmark = needs_extension


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request, monkeypatch):
    use_instruction_set(request.param, monkeypatch)
    assert CpuBackend.instruction_set() == request.param
    return request.param


def test_flush_to_zero_of_the_caller_has_no_effect(instruction_set):
    shape, weights, _ = random_model(32, kernel_size=2, stacks=1, layers_per_stack=2)
    # Large enough for a denormal value in the queues to count, if the engine did not flush it to zero.
    weights["layers.1.dilated.weight"][:, : shape.residual] *= 1e38
    model = model_of(shape, weights)
    samples = random_samples(shape, 1, 1, 2)
    states = [random_state(shape, 1, 4) for _ in range(2)]
    for state in states:
        state.queues *= 1e-39
    tiny = torch.tensor(1e-40)
    first = CpuBackend(model).advance(states[0], samples)
    assert float(tiny * 1) > 0
    torch.set_flush_denormal(True)
    try:
        second = CpuBackend(model).advance(states[1], samples)
        assert float(tiny * 1) == 0
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(first, second)


def test_an_unknown_instruction_set_is_an_error(monkeypatch):
    _, _, model = random_model(34)
    monkeypatch.setenv("WAVENET_CPU", "mmx")
    assert CpuBackend.available() == (
        "WAVENET_CPU = mmx: not available on this machine; choose from: "
        + " ".join(CpuBackend.instruction_sets())
    )
    with pytest.raises(BackendError, match=r"WAVENET_CPU = mmx.*base"):
        CpuBackend(model)


def message_of(backend: CpuBackend, state, samples) -> str:
    with pytest.raises(BackendError) as caught:
        backend.advance(state, samples)
    message = str(caught.value)
    assert "\n" not in message and ".cpp" not in message and "wavenet:" not in message
    return message


def test_invalid_arguments_give_one_line():
    shape, _, model = random_model(37, classes=16)
    backend = CpuBackend(model)
    state, samples = random_state(shape, 2, 0), torch.zeros(2, 3, dtype=torch.int64)
    assert message_of(backend, state, samples + 16) == "samples contains 16: must be 0 to 15"
    assert message_of(backend, state, samples[:1]) == "samples is (1, 3): must be (2, any)"
    assert message_of(backend, state, samples.float()) == "samples is Float: must be Long"
    backend.threads = 0
    assert message_of(backend, state, samples) == "threads = 0: must be at least 1"


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
def test_errors_of_operators_are_translated(raised, shown, monkeypatch):
    shape, _, model = random_model(38)
    backend = CpuBackend(model)

    class Operators:
        @staticmethod
        def advance(*_):
            raise RuntimeError(raised)

    monkeypatch.setattr(torch.ops, "wavenet", Operators)
    assert message_of(backend, random_state(shape, 2, 0), torch.zeros(2, 1, dtype=torch.int64)) == shown


@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**60 - 200),
    st.integers(0, 70),
    st.lists(st.tuples(st.integers(0, 2**60), st.integers(0, 2**60)), min_size=1, max_size=4),
)
def test_uniforms_are_those_of_numpy(seed, position, steps, streams):
    """For any number of streams at different positions, to the bit."""
    numbers = torch.tensor(streams)
    positions = position + torch.arange(len(streams))
    state = GeneratorState(
        torch.zeros(len(streams), 1, 1),
        positions,
        positions,
        numbers[:, 0].clone(),
        torch.full_like(positions, seed),
        numbers[:, 1].clone(),
    )
    assert torch.equal(CpuBackend.uniforms(state, steps), uniforms(state, steps))
