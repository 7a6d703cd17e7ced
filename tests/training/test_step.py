"""What a step minimises: accumulation, dropout and smoothing against plain computations."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from support.trainers import CONFIG, TRAINING, equal, trainer

from wavenet.data.batch import Segments
from wavenet.models.losses import smoothed_cross_entropy
from wavenet.models.wavenet import WaveNet
from wavenet.training import checkpoint
from wavenet.training.optimizers import parameter_groups
from wavenet.training.wavenet_objective import WaveNetObjective


def after(data, folder, steps=3, **settings):
    subject = trainer(data, folder, dataclasses.replace(TRAINING, **settings))
    told = [subject.step() for _ in range(steps)]
    return subject, told


def test_accumulated_batches_equal_one_large_batch(data, tmp_path):
    whole, expected = after(data, tmp_path, batch=6)
    parts, found = after(data, tmp_path, batch=2, accumulate=3)
    assert np.allclose(found, expected, rtol=1e-4)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        # Adam's first steps magnify rounding where a gradient is all but zero.
        assert torch.allclose(a, b, atol=1e-4)
    other, _ = after(data, tmp_path, batch=2)
    assert not equal(other.model.state_dict(), parts.model.state_dict())


def test_batches_count_by_their_targets(data, tmp_path, monkeypatch):
    """Of two batches one has a single target: the mean must be over targets, not over batches."""
    torch.manual_seed(0)
    inputs = torch.randint(0, 64, (2, CONFIG.receptive_field - 1 + 20))
    targets = torch.randint(0, 64, (2, 20))
    targets[1, 1:] = -1
    monkeypatch.setattr(data.train, "batch", lambda *arguments: Segments(inputs, targets))
    model = WaveNet(CONFIG)
    subject = trainer(data, tmp_path, dataclasses.replace(TRAINING, batch=1, accumulate=2))
    model.load_state_dict(subject.model.state_dict())
    logits = model(inputs).transpose(1, 2).reshape(-1, 64)
    loss = torch.nn.functional.cross_entropy(logits, targets.reshape(-1), ignore_index=-1)
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    assert subject.step() == pytest.approx((float(loss.detach()) / math.log(2), norm), rel=1e-4)


def test_smoothing_against_numpy():
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((2, 5, 7)), rng.integers(0, 5, (2, 7))
    targets[0, :3] = -1
    rows = logits.transpose(0, 2, 1) - np.log(np.exp(logits).sum(1))[:, :, None]
    expected = 0.0
    for b, t in zip(*np.nonzero(targets >= 0), strict=True):
        wanted = np.full(5, 0.1 / 5)
        wanted[targets[b, t]] += 0.9
        expected -= float(wanted @ rows[b, t])
    found = smoothed_cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets), 0.1)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_smoothing_does_not_change_reported_bits(data, tmp_path):
    plain, told = after(data, tmp_path, steps=1)
    smooth, found = after(data, tmp_path, steps=1, label_smoothing=0.2)
    assert found[0][0] == told[0][0] and found[0][1] != told[0][1]
    assert not equal(plain.model.state_dict(), smooth.model.state_dict())


def test_dropout_of_the_dilated_layers_inputs():
    """Half of the values fall away, the rest are doubled; the residual path goes on undisturbed."""
    torch.manual_seed(0)
    layer = WaveNet(CONFIG, dropout=0.5).residual_layers[0]
    seen = []
    layer.dilated.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    hidden = torch.randn(2, 500, CONFIG.residual_channels)
    with torch.no_grad():
        activation, output = layer(hidden)
        residual = output - layer.residual(activation)
    assert torch.allclose(residual, hidden[:, layer.context :], atol=1e-6)
    taps = torch.cat([hidden[:, :-1], hidden[:, 1:]], dim=-1)
    dropped = seen[0] == 0
    assert 0.48 < float(dropped.float().mean()) < 0.52
    assert torch.equal(seen[0], torch.where(dropped, 0.0, 2 * taps))
    # One value is dropped for both taps that read it.
    channels = CONFIG.residual_channels
    assert torch.equal(dropped[:, 1:, :channels], dropped[:, :-1, channels:])


def test_dropout_depends_on_the_key_alone():
    training = dataclasses.replace(TRAINING, dropout=0.5)
    objective = WaveNetObjective(CONFIG, training)
    torch.manual_seed(0)
    model = objective.build()
    inputs = torch.randint(0, 64, (1, CONFIG.receptive_field - 1 + 20))
    segments = Segments(inputs, inputs[:, -20:].clone())

    def loss(*key):
        torch.rand(3)
        return float(objective.losses(model, segments, 20, torch.device("cpu"), key).objective.detach())

    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    found = [loss(*key) for key in keys]
    assert found == [loss(*key) for key in keys] and len(set(found)) == len(keys)


def test_dropout_is_off_in_validation_and_averages(data, tmp_path):
    plain = trainer(data, tmp_path / "plain")
    subject = trainer(data, tmp_path / "dropping", dataclasses.replace(TRAINING, dropout=0.5))
    before = copy.deepcopy(plain.averaged.state_dict())
    subject.step()
    assert not subject.averaged.training
    subject.averaged.load_state_dict(before)
    assert subject.validate() == plain.validate()
    assert equal(WaveNet.from_pretrained(tmp_path / "dropping" / "best").state_dict(), before)


@pytest.mark.parametrize("settings", [{"dropout": 0.3, "accumulate": 2}, {"label_smoothing": 0.1}])
def test_resuming_with_them_is_to_the_bit(data, tmp_path, settings):
    training = dataclasses.replace(TRAINING, **settings)
    whole = trainer(data, tmp_path / "whole", training)
    whole.train()
    first = trainer(data, tmp_path / "parts", training)
    first.train(lambda: first.progress.step >= 5)
    torch.manual_seed(999)
    second = trainer(data, tmp_path / "parts", training)
    second.restore(*checkpoint.load_latest(tmp_path / "parts", lambda text: None))
    second.train()
    assert equal(second.model.state_dict(), whole.model.state_dict())


def test_weight_decay_applies_to_matrices_only():
    model = WaveNet(CONFIG)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model, 0.1))
    assert "embedding.weight" in plain and "embedding.weight" not in decayed
    assert {name for name in names.values() if name.endswith(".bias")} <= plain
    assert decayed == {name for name in names.values() if name.endswith(".weight")} - {"embedding.weight"}
    assert [group["weight_decay"] for group in parameter_groups(model, 0.1)] == [0.1, 0.0]
