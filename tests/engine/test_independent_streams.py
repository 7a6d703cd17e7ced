"""Streams of different seeds, settings and conditioning in one batch equal the same streams alone."""

from __future__ import annotations

import pytest
import torch
from support.conditioned import config, network, tune
from support.engines import random_gate, random_model, random_state, same
from support.host_cuda import HostKernel, Stages, compiler

from wavenet.conditioning.score import ScoreSource
from wavenet.engine import registry
from wavenet.engine.packing_tiles import pack_tiles
from wavenet.engine.sampling import Sampling
from wavenet.engine.state import GeneratorState
from wavenet.errors import ConfigError
from wavenet.generation.generator import Generator
from wavenet.models.gate_bias import GateBias

SETTINGS = [Sampling(), Sampling(0.7, 5), Sampling(1.3, 0, 0.8), Sampling(0), Sampling(0.9, 9, 0.9)]
ENGINES = [("reference", "fp32"), ("numba", "fp32"), ("cpu", "fp32"), ("cpu", "bf16"), ("cpu", "int8")]


@pytest.fixture(params=ENGINES, ids="-".join)
def engine(request) -> Generator:
    name, precision = request.param
    reason = registry.report()[name]
    if reason is not None:
        pytest.skip(f"backend {name}: {reason}")
    return Generator(network(config("score")), name, threads=1, precision=precision)


def test_streams_join_and_leave_between_chunks(engine):
    """Five streams of different seed, settings, score and position; two leave, one joins."""
    providers, states = [], []
    for row, sampling in enumerate(SETTINGS):
        provider = engine.gate_bias_provider(ScoreSource(engine.config, tune(row, 1.0)), 1 + row / 4)
        primer = torch.randint(0, 32, (7 * row,), generator=torch.Generator().manual_seed(row))
        states.append(engine.prime(primer, 100 + row, row, provider, sampling, 5 * row))
        providers.append(provider)
    alone = [
        engine.generate(60, state.clone(), gate_bias=provider)[0]
        for state, provider in zip(states, providers, strict=True)
    ]
    together = GeneratorState.join(states[:4])
    first = engine.generate(23, together, gate_bias=providers[:4])
    others = together.remove([1])
    second = engine.generate(11, others, gate_bias=[providers[row] for row in (0, 2, 3)])
    left = GeneratorState.join([others.select([2, 0]), states[4]])
    third = engine.generate(26, left, gate_bias=[providers[row] for row in (3, 0, 4)])
    for row in range(4):
        assert torch.equal(first[row], alone[row][:23])
    for place, row in enumerate((0, 2, 3)):
        assert torch.equal(second[place], alone[row][23:34])
    for place, (row, begin) in enumerate(((3, 34), (0, 34), (4, 0))):
        assert torch.equal(third[place], alone[row][begin : begin + 26])


@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("stages", [None, Stages(tiles=2)], ids=["streams", "pipeline"])
def test_cuda_kernels_read_the_settings_of_each_stream(stages):
    shape, _, model = random_model(1, classes=33, kernel_size=2, stacks=2, layers_per_stack=2)
    batch, steps = 19, 12
    settings = [SETTINGS[row % len(SETTINGS)] for row in range(batch)]
    state, uniforms = random_state(shape, batch, 2).with_sampling(settings), torch.rand(batch, steps)
    gate = random_gate(shape, batch, linear=True)
    gate = GateBias(gate.values, gate.hop, torch.arange(batch) * 3 - 9, True)
    kernel = HostKernel(model, 8, packed=pack_tiles(model), stages=stages)
    whole = state.clone()
    together, _ = kernel.generate(whole, uniforms, gate)
    for row in range(batch):
        part = state.select([row])
        own, _ = kernel.generate(part, uniforms[[row]], gate.stream(row))
        assert torch.equal(own[0], together[row]) and same(part, whole.select([row]))


def test_a_saved_state_keeps_every_setting(tmp_path):
    _, _, model = random_model(3)
    engine = Generator(model, "reference")
    states = [engine.start(1, row, row, sampling=sampling) for row, sampling in enumerate(SETTINGS)]
    state = GeneratorState.join(states)
    state.conditioning_start += torch.arange(len(SETTINGS))
    state.save(tmp_path / "state")
    loaded = GeneratorState.load(tmp_path / "state")
    for name in vars(state):
        assert torch.equal(getattr(loaded, name), getattr(state, name))
    assert [loaded.sampling(row) for row in range(state.batch)] == SETTINGS


def test_states_of_two_networks_do_not_join():
    states = [Generator(random_model(seed)[2], "reference").start() for seed in (5, 6)]
    with pytest.raises(ConfigError, match="join states of one network"):
        GeneratorState.join(states)
