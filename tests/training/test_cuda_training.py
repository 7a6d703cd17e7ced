"""Training on a GPU: the losses are those of the CPU, and what is saved serves anywhere."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.trainers import TRAINING, trainer

from wavenet.generation.generator import Generator
from wavenet.models.wavenet import WaveNet
from wavenet.training import checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 2e-2)])
def test_losses_are_those_of_the_cpu(data, tmp_path, precision, tolerance):
    expected = trainer(data, tmp_path / "cpu")
    found = trainer(data, tmp_path / "gpu", dataclasses.replace(TRAINING, precision=precision), DEVICE)
    for _ in range(TRAINING.steps):
        assert found.step()[0] == pytest.approx(expected.step()[0], rel=tolerance)
    assert all(parameter.device.type == DEVICE for parameter in found.model.parameters())


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(data, tmp_path):
    training = dataclasses.replace(TRAINING, steps=3, validate_every=0)
    plain = trainer(data, tmp_path / "plain", training, DEVICE)
    compiled = trainer(data, tmp_path / "compiled", dataclasses.replace(training, compile=True), DEVICE)
    for _ in range(3):
        assert compiled.step() == pytest.approx(plain.step(), rel=1e-3)


def test_a_run_resumes_and_its_network_is_portable(data, tmp_path):
    first = trainer(data, tmp_path, TRAINING, DEVICE)
    assert not first.train(lambda: first.progress.step >= 5)
    again = trainer(data, tmp_path, TRAINING, DEVICE)
    again.restore(*checkpoint.load_latest(tmp_path, pytest.fail))
    assert again.progress.step == 5 and again.train()
    model = WaveNet.from_pretrained(tmp_path / checkpoint.step_name(TRAINING.steps))
    assert Generator(model, "reference").generate(20).shape == (1, 20)
