"""How every engine draws: against an inverse cumulative distribution in float64, and statistically."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from support import naive
from support.engines import (
    COMPILED,
    FP32,
    NEARLY_ONE,
    Engine,
    constant_model,
    empty_state,
    on,
    random_model,
    random_state,
)

from wavenet.engine.reference import draw
from wavenet.engine.sampling import Sampling


def draws(engine: Engine, logits: np.ndarray, uniforms: np.ndarray, sampling: Sampling) -> list[int]:
    """Return the samples of a network that always predicts `logits`."""
    shape, model = constant_model(logits)
    numbers = torch.from_numpy(uniforms.astype(np.float32))[None]
    return engine.run(model).generate(empty_state(shape).with_sampling(sampling), numbers)[0].tolist()


def possible(row: np.ndarray, uniform: float, options: dict) -> set[int]:
    """Return the classes that a number within float32 rounding of `uniform` may give."""
    moved = (min(max(uniform + by, 0), 1 - 1e-12) for by in (-1e-6, 0, 1e-6))
    return {naive.draw(row, each, **options) for each in moved}


@on(FP32)
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
def test_draws_invert_the_cumulative_distribution(engine, options):
    shape, _, model = random_model(40, classes=37, kernel_size=2, stacks=2, layers_per_stack=3)
    runner = engine.run(model)
    steps = 50 if engine.slow else 400
    uniforms = np.random.default_rng(1).integers(0, 2**24, (2, steps)) * 2.0**-24
    uniforms[:, ::10] = 0
    uniforms[:, 5::10] = NEARLY_ONE
    numbers = torch.from_numpy(uniforms.astype(np.float32))
    samples = runner.generate(random_state(shape, 2, 3).with_sampling(Sampling(**options)), numbers)
    logits = runner.advance(random_state(shape, 2, 3), samples).numpy()
    for row, step in np.ndindex(*uniforms.shape):
        sample, uniform = int(samples[row, step]), uniforms[row, step]
        if sample != naive.draw(logits[row, step], uniform, **options):
            assert sample in possible(logits[row, step], uniform, options)
    if options == {"top_k": 1} or options.get("temperature") == 0 or options.get("top_p") == 1e-9:
        assert torch.equal(samples, torch.from_numpy(logits.argmax(axis=-1)))


@on(FP32)
def test_ties_go_to_the_lower_class(engine):
    logits = np.array([0.0, 2.0, 1.0, 2.0, 2.0, -1.0])
    equal = np.zeros(256)
    uniforms = np.array([0.0, 0.49, 0.51, NEARLY_ONE])
    assert draws(engine, logits, uniforms, Sampling(temperature=0)) == [1, 1, 1, 1]
    assert draws(engine, logits, uniforms, Sampling(top_k=1)) == [1, 1, 1, 1]
    assert draws(engine, logits, uniforms, Sampling(top_k=2)) == [1, 1, 3, 3]
    assert draws(engine, equal, uniforms, Sampling(top_p=0.5)) == [0, 62, 65, 127]
    assert draws(engine, equal, uniforms, Sampling(top_p=1e-6)) == [0, 0, 0, 0]
    assert draws(engine, equal, uniforms, Sampling(top_k=100, top_p=0.5)) == [0, 24, 25, 49]


@on(FP32)
def test_draws_at_the_ends_of_the_unit_interval(engine):
    ends = np.array([0.0, NEARLY_ONE])
    assert draws(engine, np.zeros(300), ends, Sampling()) == [0, 299]
    # The ends of the range are 10^87 times less likely than the middle; no uniform reaches them.
    peaked = np.full(300, -200.0)
    peaked[[7, 150]] = 0.0
    assert draws(engine, peaked, ends, Sampling()) == [7, 150]
    # Large logits must not overflow, and far lower ones must not give NaN.
    assert draws(engine, np.array([3e38, -3e38, 0.0]), ends, Sampling()) == [0, 0]


@on(FP32)
@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30, 1e30, 1e300])
def test_extreme_temperatures_reach_their_limits(engine, temperature):
    logits = np.array([0.0, 1.0, 2.0, 1.0])
    found = draws(engine, logits, np.array([0.0, 0.3, 0.6, NEARLY_ONE]), Sampling(temperature))
    assert found == ([2, 2, 2, 2] if temperature < 1 else [0, 1, 2, 3])


@on(COMPILED)
@pytest.mark.parametrize("options", [{}, {"temperature": 1.6}, {"top_k": 20}, {"top_p": 0.8}], ids=str)
def test_frequencies_over_many_draws(engine, options):
    rng = np.random.default_rng(2)
    logits = rng.standard_normal(64).astype(np.float32)
    count = 100_000
    uniforms = rng.integers(0, 2**24, count) * 2.0**-24
    found = np.bincount(draws(engine, logits, uniforms, Sampling(**options)), minlength=64)
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


def test_reference_draw_over_100_000_draws():
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0])
    values = np.random.default_rng(0).random(100_000)
    counts = np.bincount([draw(logits, float(u), Sampling(temperature=1.5)) for u in values], minlength=4)
    expected = np.exp(logits.numpy() / 1.5)
    assert stats.chisquare(counts, expected / expected.sum() * 100_000).pvalue > 1e-3


@on(FP32)
@pytest.mark.parametrize("uniform", [0.0, 2**-24, 0.5, NEARLY_ONE])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0},
        {"temperature": 1e-4},
        {"temperature": 1e4},
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 99},
        {"top_p": 1e-9},
        {"top_p": 0.6},
        {"temperature": 0.7, "top_k": 4, "top_p": 0.8},
    ],
    ids=str,
)
def test_draws_of_unusual_logits(engine, uniform, options):
    # Ties, a class whose probability underflows, and the largest logits in the middle.
    logits = np.array([1.0, 0.5, 1.0, -300.0, 3.0, 3.0, 0.0, -2.0])
    found = draws(engine, logits, np.full(3, uniform), Sampling(**options))
    assert found == [naive.draw(logits, uniform, **options)] * 3
