"""How sure a network was of what it drew: against the parallel form in float64, and plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.conditioned import config, network, tune
from support.engines import random_model

from wavenet.conditioning.score import ScoreSource
from wavenet.engine.sampling import Sampling
from wavenet.generation import likelihood
from wavenet.generation.generator import Generator
from wavenet.generation.likelihood import EntropyStatistics, LikelihoodTracker, predictions


def expected(logits: torch.Tensor, samples: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    chances = torch.softmax(logits.double(), dim=1).numpy()
    entropy = -(chances * np.log2(chances)).sum(axis=1)
    came = np.take_along_axis(chances, samples.numpy()[:, None], axis=1)[:, 0]
    return entropy, -np.log2(came)


def test_entropy_and_surprisal_match_the_parallel_form(monkeypatch):
    _, _, model = random_model(4)
    generator = Generator(model, threads=1)
    state = generator.start(3, seed=2)
    samples = generator.generate(200, state.clone().with_sampling(Sampling(1.3, 5)))
    silence = torch.full((3, generator.config.receptive_field), generator.config.silence)
    wanted = expected(model(torch.cat([silence, samples], 1)[:, :-1]), samples)
    whole = predictions(generator, state.clone(), samples)
    monkeypatch.setattr(likelihood, "_MAX_LOGITS", 7 * 3 * generator.config.quantization_channels)
    parts = predictions(generator, state.clone(), samples)
    for found in (whole, parts):
        for one, other in zip(found, wanted, strict=True):
            assert one.shape == (3, 200) and np.allclose(one, other, atol=1e-4)
    assert all(each.shape == (3, 0) for each in predictions(generator, state.clone(), samples[:, :0]))


def test_predictions_depend_on_the_conditioning():
    settings = config("score")
    model = network(settings)
    generator = Generator(model, threads=1)
    source = ScoreSource(settings, tune(0, 1.0))
    state = generator.start(1, gate_bias=generator.gate_bias_provider(source))
    samples = generator.generate(400, state.clone(), gate_bias=generator.gate_bias_provider(source))
    tracker = LikelihoodTracker(generator, state, generator.gate_bias_provider(source))
    entropy = np.concatenate([tracker.add(part) for part in samples.split(123, dim=1)], axis=1)
    silence = torch.full((1, settings.receptive_field), settings.silence)
    bias = generator.gate_bias_provider(source).gate_bias(-settings.receptive_field, 400)
    logits = model(torch.cat([silence, samples], 1)[:, :-1], bias, position=0)
    assert np.allclose(entropy, expected(logits, samples)[0], atol=1e-3)
    assert state.position.item() == 0 and tracker.statistics[0].samples == 400


def test_entropy_statistics_equal_plain_numpy():
    random = np.random.default_rng(0)
    entropy = random.uniform(0, 8, 10_450).astype(np.float32)
    surprisal = random.exponential(4, 10_450).astype(np.float32)
    statistics = EntropyStatistics(4000, 256)
    for part in np.array_split(np.arange(len(entropy)), [1, 1, 3999, 4001, 9000]):
        statistics.add(entropy[part], surprisal[part])
    assert statistics.mean == pytest.approx(entropy.mean(), rel=1e-5)
    assert statistics.bits == pytest.approx(surprisal.mean(), rel=1e-5)
    for share in (5, 50, 95):
        assert statistics.percentile(share) == pytest.approx(np.percentile(entropy, share), abs=0.01)
    parts = [entropy[:4000].mean(), entropy[4000:8000].mean(), entropy[8000:].mean()]
    assert statistics.seconds() == pytest.approx(parts, rel=1e-5)
    told = statistics.as_dict()
    assert told["uniform"] == 8 and told["per_second"] == statistics.seconds()
    assert EntropyStatistics(4000, 256).seconds() == [] and EntropyStatistics(4000, 256).mean == 0
    certain = EntropyStatistics(4000, 2)
    certain.add(np.zeros(10), np.zeros(10))
    assert certain.percentile(50) < 0.01 and certain.uniform == math.log2(2)
