"""Checkpointed layers are recomputed in the backward pass: equal losses, gradients and runs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.trainers import CONFIG, TRAINING, equal, metrics, trainer, weights

from wavenet.config import WaveNetConfig
from wavenet.models import native_layers
from wavenet.models.gate_bias import GateBias
from wavenet.models.precision import autocast
from wavenet.models.wavenet import WaveNet
from wavenet.training import checkpoint

DEEP = WaveNetConfig(
    sample_rate=4000, quantization_channels=32, layers=6, stacks=2, kernel_size=3, residual_channels=12,
    dilation_channels=8, skip_channels=20, head_channels=16,
)  # fmt: skip


def gradients(config, recompute, precision="fp32", dropout=0.0, linear=None):
    """Logits and all gradients, those of a gate bias included if `linear` says how it is interpolated."""
    torch.manual_seed(3)
    model = WaveNet(config, checkpoint_layers=recompute, dropout=dropout)
    samples = torch.randint(0, config.quantization_channels, (2, config.receptive_field + 40))
    found = list(model.parameters())
    bias = None
    if linear is not None:
        values = torch.randn(2, 5, config.layers, 2 * config.dilation_channels).requires_grad_()
        bias = GateBias(values, hop=16, start=-20, linear=linear)
        found.append(values)
    torch.manual_seed(7)
    with autocast(torch.device("cpu"), precision):
        logits = model(samples, bias, position=9)
    weight = torch.linspace(-1, 1, logits.numel()).reshape(logits.shape)
    (logits.float() * weight).mean().backward()
    return [logits.detach().float(), *(each.grad for each in found)]


def errors(found, expected):
    pairs = zip(found, expected, strict=True)
    return [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]


@pytest.mark.parametrize("config", [CONFIG, DEEP], ids=["plain", "deep"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("linear", [None, False, True])
def test_gradients_are_equal_up_to_rounding(config, dropout, linear):
    expected = gradients(config, False, dropout=dropout, linear=linear)
    found = gradients(config, True, dropout=dropout, linear=linear)
    assert all(bool(each.abs().max() > 0) for each in expected)
    assert max(errors(found, expected)) < 2e-6


def test_bfloat16_gradients_are_as_accurate(monkeypatch):
    truth = gradients(DEEP, False, linear=True)
    # Against the same operators, each layer computed once.
    monkeypatch.setattr(native_layers, "usable", lambda hidden: False)
    plain = errors(gradients(DEEP, False, "bf16", linear=True), truth)
    found = errors(gradients(DEEP, True, "bf16", linear=True), truth)
    assert all(0 < a < 2 * b for a, b in zip(found, plain, strict=True))


def test_logits_without_gradients_are_equal():
    torch.manual_seed(0)
    model = WaveNet(DEEP).eval()
    samples = torch.randint(0, 32, (2, DEEP.receptive_field + 10))
    with torch.no_grad():
        expected = model(samples)
        model.checkpoint_layers = True
        assert torch.allclose(model(samples), expected, atol=1e-6)


def test_a_run_has_the_same_losses(data, tmp_path):
    settings = dict(dropout=0.2, accumulate=2, label_smoothing=0.1)
    plain = trainer(data, tmp_path / "plain", dataclasses.replace(TRAINING, **settings))
    frugal = trainer(
        data, tmp_path / "frugal", dataclasses.replace(TRAINING, checkpoint_layers=True, **settings)
    )
    assert frugal.model.checkpoint_layers and frugal.averaged.checkpoint_layers
    for _ in range(5):
        assert frugal.step() == pytest.approx(plain.step(), rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resuming_equals_not_stopping(data, tmp_path, precision):
    training = dataclasses.replace(TRAINING, precision=precision, dropout=0.2, checkpoint_layers=True)
    whole = trainer(data, tmp_path / "whole", training)
    assert whole.train()
    first = trainer(data, tmp_path / "parts", training)
    assert not first.train(lambda: first.progress.step >= 7)
    second = trainer(data, tmp_path / "parts", training)
    second.restore(*checkpoint.load_latest(tmp_path / "parts", lambda text: None))
    assert second.train()
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert equal(weights(tmp_path / "parts" / "best"), weights(tmp_path / "whole" / "best"))
