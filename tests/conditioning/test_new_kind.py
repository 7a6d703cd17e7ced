"""A new kind of conditioning is a class and a line of the registry; it trains and generates."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from support import conditioned
from support.audio_files import noise, save
from support.conditioned import RATE
from support.datasets import prepare_dataset

from wavenet.audio.decoding import load_audio
from wavenet.cli.generate_options import build_parser
from wavenet.conditioning import registry
from wavenet.conditioning.base import Input, Kind, as_tensor
from wavenet.conditioning.inputs import source_for
from wavenet.conditioning.segments import Conditions
from wavenet.config import ConditioningConfig, TrainingConfig
from wavenet.data.dataset import DataConfig
from wavenet.data.labels import attach_conditions
from wavenet.errors import ConfigError
from wavenet.generation.generator import Generator
from wavenet.training.trainer import Trainer
from wavenet.utils.console import Console

HOP = 50


def level(audio: np.ndarray, first: int, count: int) -> np.ndarray:
    """Return the mean magnitude of hops [first, first + count), float32 (1, count); 0 beyond the audio."""
    padded = np.zeros(count * HOP, dtype=np.float32)
    begin, end = max(first * HOP, 0), min((first + count) * HOP, len(audio))
    if end > begin:
        padded[begin - first * HOP : end - first * HOP] = audio[begin:end]
    return np.abs(padded).reshape(1, count, HOP).mean(axis=2)


class LevelSource:
    constant = False
    complete = True

    def __init__(self, audio: np.ndarray):
        self.audio = audio

    def read(self, first: int, count: int) -> torch.Tensor:
        return as_tensor(level(self.audio, first, count))


def from_recording(config, path):
    audio = load_audio(path, config.sample_rate, config.normalization)
    return LevelSource(audio), len(audio) / config.sample_rate


class LevelKind(Kind):
    name = "level"
    inputs = (Input("level_of", "recording with the level to follow", from_recording),)

    def channels(self, conditioning):
        return 1

    def audio_hops(self, conditioning):
        return 1

    def segment_frames(self, segment):
        return level(segment.audio, segment.first - segment.audio_frame, segment.stop - segment.first)


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(registry.FEATURE_KINDS, LevelKind.name, LevelKind())
    settings = ConditioningConfig(features="level", hop=HOP, conditioning_channels=8)
    return dataclasses.replace(conditioned.BASE, conditioning=settings)


def test_a_new_kind_trains_and_generates(config, tmp_path):
    for number in range(3):
        audio = noise(1.0, RATE, seed=number, amplitude=0.3) * np.repeat([1.0, 0.1, 0.6, 0.3], RATE // 4)
        save(tmp_path / "audio" / f"{number}.wav", audio.astype(np.float32), RATE)
    data = prepare_dataset(tmp_path / "audio", tmp_path / "cache", config, DataConfig(silence_db=None))
    attach_conditions(data, Conditions(config))
    training = TrainingConfig(
        batch=4, segment=0.1, precision="fp32", validate_every=0, checkpoint_every=0, sample_every=0
    )
    console = Console(io.StringIO())
    trainer = Trainer(config, training, data, tmp_path / "run", torch.device("cpu"), {}, console)
    losses = [trainer.step() for _ in range(3)]
    assert len(losses) == 3
    model = trainer.model.eval().requires_grad_(False)
    assert model.conditioner.projection.weight.any() and float(model.conditioner.centre) > 0

    path = tmp_path / "audio" / "0.wav"
    found = source_for(config, {"level_of": path, "midi": None}, seed=0)
    assert found.seconds == 1.0
    # Training and generation read the same frames.
    frames = data.whole.read(np.array([data.whole._starts[0]]), 1000).frames
    assert torch.equal(
        frames.values[:, :, -frames.first :], found.source.read(0, frames.values.shape[2] + frames.first)
    )
    generator = Generator(model, "reference")
    biases = generator.gate_bias_provider(found.source)
    state = generator.start(1, seed=1, gate_bias=biases)
    assert generator.generate(100, state, gate_bias=biases).shape == (1, 100)


def test_a_new_kind_is_refused_by_others(config, tmp_path):
    with pytest.raises(ConfigError, match="with level features: give level_of or features"):
        source_for(config, {}, seed=0)
    with pytest.raises(ConfigError, match="with level features, not with score features") as error:
        source_for(config, {"midi": tmp_path / "none.mid"}, seed=0)
    assert error.value.argument == "midi"
    with pytest.raises(ConfigError, match="with score features, not with level features"):
        source_for(conditioned.config("score"), {"level_of": tmp_path / "none.wav"}, seed=0)


def test_commands_get_the_flag_of_a_new_kind(config):
    options = build_parser("generate").parse_args(["--level-of", "take.wav", "out.wav"])
    assert str(options.level_of) == "take.wav"
