"""The compiled engines on a network of full size (30 layers, 64 and 256 channels), over many steps."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest
import torch
from support import naive
from support.engines import model_of

from wavenet.engine import registry
from wavenet.engine.sampling import uniforms
from wavenet.engine.state import GeneratorState
from wavenet.generation.generator import Generator
from wavenet.models.wavenet import WaveNet

FULL = naive.Shape(256, 64, 64, 256, 256, kernel_size=2, stacks=3, layers_per_stack=10)
STRADDLE = 1e-6
"""Two cumulative distributions may lie this far apart on either side of a draw."""


@functools.cache
def network() -> tuple[dict[str, np.ndarray], WaveNet]:
    weights = naive.random_weights(FULL, np.random.default_rng(7))
    # A flatter distribution than random weights give, in which every step has many likely outcomes.
    weights["head2.weight"] *= np.float32(0.3)
    return weights, model_of(FULL, weights)


@pytest.fixture(params=["cpu", "numba"])
def engine(request) -> Generator:
    reason = registry.report()[request.param]
    if reason is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return Generator(network()[1], request.param, threads=1)


def gap(probabilities: np.ndarray, sample: int, uniform: float) -> float:
    """Return how far a draw lies outside a class's part of the cumulative distribution, 0 if inside."""
    edges = np.concatenate([[0.0], np.cumsum(probabilities)]) / probabilities.sum()
    return max(edges[sample] - uniform, uniform - edges[sample + 1], 0.0)


def softmax(rows: np.ndarray) -> np.ndarray:
    weights = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_5000_steps_against_float64(engine):
    """What was drawn is what a float64 convolution over it gives, and so are the logits in feeding it."""
    steps = 5000
    state = engine.start(seed=3)
    draws = uniforms(state, steps)[0].numpy().astype(np.float64)
    drawn = engine.generate(steps, state.clone())[0].numpy()
    silence = np.full(FULL.context + 1, engine.config.silence)
    exact = naive.logits(FULL, network()[0], np.concatenate([silence, drawn[:-1]]))
    fed = engine.advance(state, torch.from_numpy(drawn)[None])[0].T.numpy()
    assert np.abs(fed - exact).max() <= 1e-5 * np.abs(exact).max()
    outside = [gap(row, *pair) for row, *pair in zip(softmax(exact), drawn, draws, strict=True)]
    assert max(outside) <= STRADDLE
    # The draws have something to tell: no class takes nearly all.
    assert len(set(drawn.tolist())) > 100


@pytest.mark.slow
def test_20000_samples_are_those_of_the_reference(engine):
    """Equal but where the draw falls between two cumulative distributions; there both begin anew."""
    if engine.backend.name == "numba" and registry.report()["cpu"] is None:
        pytest.skip("the C++ engine is compared; numba is where there is none")
    reference = Generator(network()[1], "reference", threads=1)
    steps = 20_000
    start = engine.start(seed=5)
    draws = uniforms(start.clone(), steps)
    # The sampling of the reference in one call; what the engine makes of it piece by piece.
    wanted = reference.backend.generate(reference.start(seed=5), draws)[0]
    state, done = start, 0
    while done < steps:
        before = state.clone()
        drawn = engine.backend.generate(state, draws[:, done:])[0]
        different = torch.nonzero(drawn != wanted[done:])
        if not len(different):
            return
        same = int(different[0])
        common, sample = wanted[done : done + same], wanted[done + same]
        assert straddles(engine, before, common, sample, float(draws[0, done + same]))
        warnings.warn(f"sample {done + same} was drawn between two distributions", stacklevel=1)
        state = before
        engine.advance(state, wanted[None, done : done + same + 1])
        done += same + 1


def straddles(
    engine: Generator, state: GeneratorState, common: torch.Tensor, sample: torch.Tensor, uniform: float
) -> bool:
    """Whether the engine's distribution after the common samples all but gives this sample."""
    logits = engine.advance(state.clone(), torch.cat([common, sample[None]])[None])[0, :, -1]
    return gap(softmax(logits.double().numpy()), int(sample), uniform) <= STRADDLE
