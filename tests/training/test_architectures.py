"""The registry of architectures, and a second architecture that trains with the same trainer."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest
import torch
from support.toy import ENTRY, ToyConfig
from support.trainers import CONFIG, TRAINING, metrics

from wavenet.config import WaveNetConfig
from wavenet.errors import CheckpointError, ConfigError
from wavenet.models import locate, registry
from wavenet.models.serialization import read_config, read_network_config, read_tensors
from wavenet.models.wavenet import WaveNet
from wavenet.training import checkpoint
from wavenet.training.optimizers import adamw
from wavenet.training.trainer import Trainer
from wavenet.utils.console import Console


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(registry.ARCHITECTURES, "toy", ENTRY)


def momentum(model, training):
    return torch.optim.SGD(model.parameters(), lr=training.lr, momentum=0.9)


def toy_trainer(data, run, optimizer=adamw):
    training = dataclasses.replace(TRAINING, sample_every=6, sample_seconds=0.05)
    console = Console(io.StringIO())
    return Trainer(ToyConfig(), training, data, run, torch.device("cpu"), {}, console, optimizer=optimizer)


@pytest.mark.parametrize("optimizer", [adamw, momentum])
def test_a_second_architecture_resumes_to_the_bit(data, tmp_path, optimizer):
    whole = toy_trainer(data, tmp_path / "whole", optimizer)
    assert whole.train()
    first = toy_trainer(data, tmp_path / "parts", optimizer)
    assert not first.train(lambda: first.progress.step >= 7)
    second = toy_trainer(data, tmp_path / "parts", optimizer)
    second.restore(*checkpoint.load_latest(tmp_path / "parts", pytest.fail))
    assert second.train()
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    last = checkpoint.step_name(TRAINING.steps)
    for name in ("config.json", "model.safetensors", "training_state.safetensors"):
        parts, expected = (tmp_path / run / last / name for run in ("parts", "whole"))
        assert parts.read_bytes() == expected.read_bytes()


def test_a_second_architecture_learns_and_is_saved(data, tmp_path):
    subject = toy_trainer(data, tmp_path)
    before = subject.objective.score(subject.averaged, data.validation.windows(400), None, lambda *sums: sums)
    assert subject.train()
    assert subject.progress.best_bits < before
    assert json.loads((tmp_path / "effective.json").read_text())["classes"] == 64
    assert (tmp_path / "samples" / "step-00000012.wav").is_file()
    directory = locate.find(tmp_path)
    assert read_network_config(directory) == ToyConfig()
    assert set(read_tensors(directory / "model.safetensors")) == {"logits.weight", "scale"}
    with pytest.raises(CheckpointError, match="architecture 'toy' cannot be used here"):
        WaveNet.from_pretrained(directory)


def test_all_parts_of_wavenet_can_be_imported():
    entry = registry.architecture("wavenet")
    assert entry.load("config") is WaveNetConfig and entry.load("network") is WaveNet
    assert entry.load("objective").__name__ == "WaveNetObjective"
    assert entry.load("generator").__name__ == "Generator"


def test_a_checkpoint_names_its_architecture(tmp_path):
    WaveNet(CONFIG).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    assert next(iter(values.items())) == ("architecture", "wavenet")
    for name, message in (
        ("lstm", "config.json: unknown architecture 'lstm': this version reads wavenet, toy"),
        (None, "config.json: unknown architecture None"),
        (..., "config.json: key 'architecture' is missing"),
    ):
        changed = {**values, "architecture": name}
        if name is ...:
            del changed["architecture"]
        path.write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=message):
            read_config(tmp_path)


def test_an_unregistered_configuration_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Other(ToyConfig):
        pass

    with pytest.raises(ConfigError, match="not the configuration of a registered architecture"):
        registry.architecture_name(Other())
