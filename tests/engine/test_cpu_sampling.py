"""How the compiled engine draws: against an inverse cumulative distribution in float64, and statistically."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from support import naive
from support.engines import (
    INSTRUCTION_SETS,
    empty_state,
    model_of,
    needs_extension,
    random_model,
    random_state,
)
from support.engines import use_instruction_set as use

from wavenet.engine.cpu import NativeBackend
from wavenet.engine.sampling import Sampling, uniforms
from wavenet.engine.state import GeneratorState

pytestmark = needs_extension

NEARLY_ONE = 1 - 2**-24


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request, monkeypatch):
    use(request.param, monkeypatch)


def constant_model(logits: np.ndarray):
    """A network that always predicts the same distribution, whatever it has heard."""
    rng = np.random.default_rng(0)
    shape = naive.Shape(len(logits), 3, 3, 3, 3, 2, 1, 2)
    weights = {name: np.zeros_like(value) for name, value in naive.random_weights(shape, rng).items()}
    weights["head2.bias"] = logits.astype(np.float32)
    return shape, model_of(shape, weights)


def drawn_from(logits: np.ndarray, uniforms: np.ndarray, sampling: Sampling) -> list[int]:
    shape, model = constant_model(logits)
    given = torch.from_numpy(uniforms.astype(np.float32))[None]
    return NativeBackend(model).generate(empty_state(shape), given, sampling)[0].tolist()


def near(row: np.ndarray, uniform: float, options: dict) -> set[int]:
    """The classes that draws within float32 rounding of `uniform` may give."""
    moved = (min(max(uniform + step, 0), 1 - 1e-12) for step in (-1e-6, 0, 1e-6))
    return {naive.draw(row, each, **options) for each in moved}


@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**60 - 200),
    st.integers(0, 70),
    st.lists(st.tuples(st.integers(0, 2**60), st.integers(0, 2**60)), min_size=1, max_size=4),
)
def test_uniform_numbers_are_numpys(seed, position, steps, streams):
    """Of any number of streams at different positions, to the bit."""
    numbers = torch.tensor(streams)
    positions = position + torch.arange(len(streams))
    state = GeneratorState(
        torch.zeros(len(streams), 1, 1),
        positions,
        positions,
        numbers[:, 0].clone(),
        seed,
        numbers[:, 1].clone(),
    )
    assert torch.equal(NativeBackend.uniforms(state, steps), uniforms(state, steps))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0},
        {"temperature": 0.3},
        {"temperature": 2.5},
        {"temperature": 1e-4},
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
def test_draws_invert_the_cumulative_distribution(instruction_set, options):
    shape, _, model = random_model(40, classes=37, kernel_size=2, stacks=2, layers_per_stack=3)
    backend = NativeBackend(model)
    rng = np.random.default_rng(1)
    uniforms = rng.integers(0, 2**24, (2, 400)) * 2.0**-24
    uniforms[:, ::10] = 0
    uniforms[:, 5::10] = NEARLY_ONE
    given = torch.from_numpy(uniforms.astype(np.float32))
    samples = backend.generate(random_state(shape, 2, 3), given, Sampling(**options))
    logits = backend.advance(random_state(shape, 2, 3), samples).numpy()
    for row in range(2):
        for step in range(400):
            sample = int(samples[row, step])
            if sample != naive.draw(logits[row, step], uniforms[row, step], **options):
                assert sample in near(logits[row, step], uniforms[row, step], options)
    if options == {"top_k": 1} or options.get("temperature") == 0 or options.get("top_p") == 1e-9:
        assert torch.equal(samples, torch.from_numpy(logits.argmax(axis=-1)))


def test_ties_go_to_the_lower_class(instruction_set):
    logits = np.array([0.0, 2.0, 1.0, 2.0, 2.0, -1.0])
    uniforms = np.array([0.0, 0.49, 0.51, NEARLY_ONE])
    assert drawn_from(logits, uniforms, Sampling(temperature=0)) == [1, 1, 1, 1]
    assert drawn_from(logits, uniforms, Sampling(top_k=1)) == [1, 1, 1, 1]
    assert drawn_from(logits, uniforms, Sampling(top_k=2)) == [1, 1, 3, 3]
    assert drawn_from(np.zeros(256), uniforms, Sampling(top_p=0.5)) == [0, 62, 65, 127]
    assert drawn_from(np.zeros(256), uniforms, Sampling(top_p=1e-6)) == [0, 0, 0, 0]


def test_ends_of_the_unit_interval(instruction_set):
    ends = np.array([0.0, NEARLY_ONE])
    assert drawn_from(np.zeros(300), ends, Sampling()) == [0, 299]
    # The ends of the range are 10^87 times less likely than the middle; no uniform reaches them.
    peaked = np.full(300, -200.0)
    peaked[[7, 150]] = 0.0
    assert drawn_from(peaked, ends, Sampling()) == [7, 150]
    # Large logits must not overflow, nor far lower ones turn into NaN.
    assert drawn_from(np.array([3e38, -3e38, 0.0]), ends, Sampling()) == [0, 0]


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30, 1e30, 1e300])
def test_extreme_temperatures_reach_their_limits(instruction_set, temperature):
    logits = np.array([0.0, 1.0, 2.0, 1.0])
    found = drawn_from(logits, np.array([0.0, 0.3, 0.6, NEARLY_ONE]), Sampling(temperature))
    assert found == ([2, 2, 2, 2] if temperature < 1 else [0, 1, 2, 3])


@pytest.mark.parametrize("options", [{}, {"temperature": 1.6}, {"top_k": 20}, {"top_p": 0.8}], ids=str)
def test_frequencies_over_many_draws(options):
    rng = np.random.default_rng(2)
    logits = rng.standard_normal(64).astype(np.float32)
    count = 100_000
    uniforms = rng.integers(0, 2**24, count) * 2.0**-24
    found = np.bincount(drawn_from(logits, uniforms, Sampling(**options)), minlength=64)
    # The probabilities from first principles; top_p from the sorted list.
    weights = np.exp(logits.astype(np.float64) / options.get("temperature", 1))
    ranked = np.argsort(-weights)
    kept = ranked[: options.get("top_k", 64)]
    if "top_p" in options:
        mass = np.cumsum(weights[ranked]) / weights.sum()
        kept = ranked[: int(np.searchsorted(mass, options["top_p"])) + 1]
    expected = np.zeros(64)
    expected[kept] = weights[kept] / weights[kept].sum() * count
    assert found[expected == 0].sum() == 0
    assert stats.chisquare(found[kept], expected[kept]).pvalue > 1e-3
