"""Guidance scales the effect of the conditioning."""

import dataclasses
import itertools

import pytest
import torch
from support.conditioned import ENGINES, config, engine, network, tune

from wavenet.conditioning.classes import Classes, class_points
from wavenet.conditioning.score import ScoreSource
from wavenet.errors import ConfigError
from wavenet.generation.generator import Generator
from wavenet.models.gate_bias import GateBias
from wavenet.models.wavenet import WaveNet


def drawn(generator: Generator, guidance: float, steps: int = 120) -> torch.Tensor:
    notes = ScoreSource(generator.config, tune(0, 0.3))
    steering = generator.gate_bias_provider(notes, guidance=guidance)
    return generator.generate(steps, generator.start(seed=2, gate_bias=steering), gate_bias=steering)


def untold(model: WaveNet) -> WaveNet:
    """The same network without its conditioner."""
    plain = WaveNet(dataclasses.replace(model.config, conditioning=None))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("conditioner")})
    return plain.eval().requires_grad_(False)


@pytest.mark.parametrize("backend", ENGINES)
def test_guidance_of_zero_and_of_one(backend):
    model = network(config("score"))
    generator = engine(model, backend)
    plain = engine(untold(model), backend)
    assert torch.equal(drawn(generator, 0.0), plain.generate(120, plain.start(seed=2)))
    notes = ScoreSource(model.config, tune(0, 0.3))
    steering = generator.gate_bias_provider(notes)
    usual = generator.generate(120, generator.start(seed=2, gate_bias=steering), gate_bias=steering)
    assert torch.equal(drawn(generator, 1.0), usual)
    takes = [drawn(generator, guidance) for guidance in (0.0, 1.0, 3.0)]
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(takes))


def test_it_is_a_mixture_of_logits_to_first_order():
    """What it falls short of Ho and Salimans by shrinks with the square of the bias, where the step itself
    shrinks with the bias."""
    model = network(config("score")).double()
    samples = torch.randint(32, (1, model.config.receptive_field + 40), generator=torch.manual_seed(0))
    whole = model.gate_bias_for(generator_frames(model))
    guidance, found = 2.5, []

    def logits(factor: float) -> torch.Tensor:
        # The bias is of single precision by contract; a factor of a power of two is exact.
        return model(samples, Doubled(whole.values * factor, whole.hop, linear=whole.linear))

    nothing = logits(0.0)
    for size in (2.0**-16, 2.0**-17):
        mixed = nothing + guidance * (logits(size) - nothing)
        found.append(((logits(guidance * size) - mixed).norm(), (mixed - nothing).norm()))
    (far, far_step), (near, near_step) = found
    assert float(far / near) == pytest.approx(4, rel=0.1)
    assert float(far_step / near_step) == pytest.approx(2, rel=0.1)
    assert far < 0.1 * far_step


class Doubled(GateBias):
    """A bias that is added in double precision."""

    def at(self, position, steps, layer, dtype=torch.float64):
        return super().at(position, steps, layer, torch.float64)


def generator_frames(model: WaveNet):
    from wavenet.conditioning.base import Frames

    model.conditioner.float()
    return Frames(ScoreSource(model.config, tune(0, 0.3)).read(-10, 40))


def test_a_mixture_of_classes_with_emphasis():
    model = network(config("class"))
    generator = engine(model, "reference")
    source = Classes(model.config, class_points("cello:0.5,piano:0.5"))
    once, twice = (
        generator.gate_bias_provider(source, guidance=g).gate_bias(0, 10).values for g in (1.0, 2.0)
    )
    assert torch.equal(2 * once, twice) and once.any()


@pytest.mark.parametrize("guidance", [-0.1, float("nan"), float("inf")])
def test_guidance_that_means_nothing(guidance):
    generator = engine(network(config("score")), "reference")
    with pytest.raises(ConfigError, match="must be 0 or more; 1 is as trained"):
        drawn(generator, guidance)
