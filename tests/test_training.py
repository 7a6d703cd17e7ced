"""Training: it learns, resumes to the bit, survives what goes wrong, and leaves whole files behind."""

from __future__ import annotations

import dataclasses
import errno
import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from wavenet import checkpoint
from wavenet.audio import write_wav
from wavenet.config import TrainingConfig, WaveNetConfig
from wavenet.dataset import DataConfig, prepare
from wavenet.errors import CheckpointError, WaveNetError
from wavenet.evaluation import bits_per_sample, cross_entropy
from wavenet.model import WaveNet
from wavenet.progress import Console
from wavenet.training import Trainer, ema_decay, learning_rate

CONFIG = WaveNetConfig(
    sample_rate=4000, quantization_channels=64, layers=8, stacks=1, residual_channels=16,
    dilation_channels=16, skip_channels=32, head_channels=32,
)  # fmt: skip
TRAINING = TrainingConfig(
    steps=12, batch=2, segment=0.1, warmup_steps=3, precision="fp32", validate_every=4, checkpoint_every=4,
    sample_every=0, validation_seconds=1.0, silence_db=None,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two seconds of a three-note chord."""
    folder = tmp_path_factory.mktemp("audio")
    time = np.arange(8000) / 4000
    chord = sum(np.sin(2 * np.pi * hz * time) for hz in (220, 277, 330)) * 0.25
    write_wav(folder / "chord.wav", chord.astype(np.float32), 4000)
    return prepare(folder, tmp_path_factory.mktemp("cache"), CONFIG, DataConfig(silence_db=None))


def trainer(data, run: Path, training: TrainingConfig = TRAINING) -> Trainer:
    console = Console(io.StringIO())
    return Trainer(
        CONFIG, training, data, run, torch.device("cpu"), {"audio_dir": None, "cache_dir": "x"}, console
    )


def said(trainer: Trainer) -> str:
    return trainer.console.stream.getvalue()


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return WaveNet.from_pretrained(directory).state_dict()


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# -- what is computed ---------------------------------------------------------------------------------


def test_cross_entropy_against_numpy():
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((2, 5, 7)), rng.integers(0, 5, (2, 7))
    targets[0, :3] = -1
    rows = logits.transpose(0, 2, 1) - np.log(np.exp(logits).sum(1))[:, :, None]
    kept = [rows[b, t, targets[b, t]] for b in range(2) for t in range(7) if targets[b, t] >= 0]
    found = cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets))
    assert float(found) == pytest.approx(-np.mean(kept), rel=1e-5)


def test_bits_per_sample_weighs_windows_by_their_targets():
    class Fixed(torch.nn.Module):
        """Half the probability on class 0, the rest on classes 1 and 2 alike."""

        def forward(self, inputs):
            return torch.log(torch.tensor([0.5, 0.25, 0.25]))[None, :, None].expand(1, 3, inputs.shape[1])

    windows = [
        (torch.zeros(1, 4, dtype=torch.int64), torch.tensor([[0, 0, -1, -1]])),
        (torch.zeros(1, 4, dtype=torch.int64), torch.tensor([[1, 2, 1, 0]])),
    ]
    assert bits_per_sample(Fixed(), windows) == pytest.approx((1 * 3 + 2 * 3) / 6)
    assert math.isnan(bits_per_sample(Fixed(), []))


def test_learning_rate_rises_then_falls_along_a_cosine():
    training = dataclasses.replace(TRAINING, steps=1000, warmup_steps=100, lr=1.0, final_lr_fraction=0.1)
    rates = [learning_rate(training, step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01) and int(np.argmax(rates)) in range(95, 101)
    assert rates[500] == pytest.approx(0.55) and rates[999] == pytest.approx(0.1, abs=1e-4)
    assert all(a > b for a, b in itertools.pairwise(rates[101:]))


def test_average_forgets_the_start():
    # A constant after the first value: the average must come to it, and early.
    average = 100.0
    for update in range(1000):
        average += (1.0 - average) * (1 - ema_decay(TRAINING, update))
    assert average == pytest.approx(1.0, abs=0.01)
    assert ema_decay(TRAINING, 10**6) == TRAINING.ema_decay


def test_one_step_is_adamw_on_the_clipped_gradient(data, tmp_path):
    """The first step against one taken by hand with plain torch."""
    subject = trainer(data, tmp_path)
    model = WaveNet(CONFIG)
    model.load_state_dict(subject.model.state_dict())
    inputs, targets = data.train.batch(0, TRAINING.batch, 400, TRAINING.seed)
    loss = torch.nn.functional.cross_entropy(model(inputs), targets, ignore_index=-1)
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    bits, found = subject.step()
    assert bits == pytest.approx(float(loss.detach()) / math.log(2), rel=1e-5)
    assert found == pytest.approx(norm, rel=1e-4)
    # Adam's first step moves each weight by the learning rate along its gradient's sign.
    rate = learning_rate(TRAINING, 0)
    for (name, before), after in zip(model.named_parameters(), subject.model.parameters(), strict=True):
        decay = TRAINING.weight_decay if before.dim() > 1 and "embedding" not in name else 0.0
        gradient = before.grad * min(1, 1 / norm)
        expected = before * (1 - rate * decay) - rate * gradient / (gradient.abs() + 1e-8)
        assert torch.allclose(after, expected, atol=rate * 1e-2)


def test_one_chord_is_learnt_by_heart(data, tmp_path):
    """2 s of a periodic chord have nearly no entropy: after 300 steps well under a fifth of the unigram's."""
    training = dataclasses.replace(
        TRAINING, steps=300, segment=0.25, lr=1e-2, validate_every=0, checkpoint_every=0, ema_decay=0.9
    )
    subject = trainer(data, tmp_path / "run", training)
    assert subject.train()
    bits = bits_per_sample(subject.averaged, data.train.windows(1000))
    assert data.report.train_unigram_bits > 4.5
    assert bits < 0.9


# -- resuming -----------------------------------------------------------------------------------------


def metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "samples_per_second"} for line in lines]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("interrupted_at", [4, 7])
def test_resuming_equals_not_stopping(data, tmp_path, precision, interrupted_at, monkeypatch):
    monkeypatch.setattr("wavenet.training.LOG_EVERY", 3)
    training = dataclasses.replace(TRAINING, precision=precision)
    whole = trainer(data, tmp_path / "whole", training)
    assert whole.train()
    first = trainer(data, tmp_path / "parts", training)
    assert not first.train(lambda: first.counters["step"] >= interrupted_at)
    # Lines beyond the checkpoint are what a kill would leave.
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "train_bits": 0}\n{"step": 1')
    torch.manual_seed(999)
    second = trainer(data, tmp_path / "parts", training)
    second.restore(*checkpoint.load_latest(tmp_path / "parts", lambda text: None))
    assert second.counters["step"] == interrupted_at
    assert second.train()
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert equal(weights(tmp_path / "parts" / "best"), weights(tmp_path / "whole" / "best"))
    last = checkpoint.step_name(TRAINING.steps)
    for name in ("model.safetensors", "training_state.safetensors"):
        assert (tmp_path / "parts" / last / name).read_bytes() == (
            tmp_path / "whole" / last / name
        ).read_bytes()


def test_a_torn_checkpoint_is_passed_over(data, tmp_path):
    subject = trainer(data, tmp_path)
    subject.train()
    latest, before = checkpoint.numbered(tmp_path)
    file = latest / "training_state.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    told = []
    path, _ = checkpoint.load_latest(tmp_path, told.append)
    assert path == before and "training_state.safetensors: is damaged" in told[0]
    for name in ("model.safetensors", "training.json"):
        (before / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        checkpoint.load_latest(tmp_path, told.append)


def test_a_checkpoint_of_another_network_is_refused(data, tmp_path):
    trainer(data, tmp_path).train(lambda: True)
    path, moment = checkpoint.load_latest(tmp_path, lambda text: None)
    subject = trainer(data, tmp_path)
    subject.config = dataclasses.replace(CONFIG, skip_channels=33)
    subject.model = WaveNet(subject.config)
    with pytest.raises(CheckpointError, match=r"head1.*\(32, 32\).*\(32, 33\)"):
        subject.restore(path, moment)


# -- what a run leaves --------------------------------------------------------------------------------


def test_files_of_a_run(data, tmp_path):
    training = dataclasses.replace(TRAINING, sample_every=6, sample_seconds=0.05, keep=1)
    subject = trainer(data, tmp_path / "run", training)
    assert subject.train()
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        "best",
        "metrics.jsonl",
        "samples",
        "step-00000012",
    ]
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        "step-00000006.wav",
        "step-00000012.wav",
    ]
    import soundfile

    audio, rate = soundfile.read(run / "samples" / "step-00000012.wav")
    assert (len(audio), rate) == (200, 4000)
    validations = [line for line in metrics(run) if "validation_bits" in line]
    assert [line["step"] for line in validations] == [4, 8, 12]
    best = json.loads((run / "best" / "training.json").read_text())
    assert best["validation_bits"] == min(line["validation_bits"] for line in validations)
    model = WaveNet.from_pretrained(run / "best")
    windows = data.validation.windows(400, max_samples=4000)
    assert bits_per_sample(model, windows) == pytest.approx(best["validation_bits"], rel=1e-6)
    assert checkpoint.find(run) == run / "step-00000012"
    assert equal(weights(run / "step-00000012"), subject.averaged.state_dict())


def test_finding_checkpoints(tmp_path):
    model = WaveNet(CONFIG)
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.find(tmp_path / "none")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoint.find(tmp_path)
    model.save_pretrained(tmp_path / "best")
    assert checkpoint.find(tmp_path) == tmp_path / "best"
    for number, name in enumerate(["step-00000002", "other/step-00000001"]):
        model.save_pretrained(tmp_path / name)
        import os

        os.utime(tmp_path / name / "model.safetensors", (10 + number, 10 + number))
        assert checkpoint.find(tmp_path) == tmp_path / name
    (tmp_path / "step-00000003").mkdir()
    (tmp_path / "step-00000003" / "config.json").write_text("{}")
    assert checkpoint.find(tmp_path) == tmp_path / "other" / "step-00000001"


# -- what goes wrong ----------------------------------------------------------------------------------


def poison(subject: Trainer, steps: set[int], monkeypatch) -> None:
    """Make the loss of some steps infinite."""
    plain = cross_entropy

    def poisoned(logits, targets, reduction="mean"):
        loss = plain(logits, targets, reduction)
        return loss * math.inf if reduction == "mean" and subject.counters["step"] in steps else loss

    monkeypatch.setattr("wavenet.training.cross_entropy", poisoned)


def test_non_finite_steps_change_nothing_and_are_counted(data, tmp_path, monkeypatch):
    subject = trainer(data, tmp_path)
    poison(subject, {1, 2}, monkeypatch)
    subject.step()
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    subject.step()
    subject.step()
    assert equal(subject.model.state_dict(), before)
    assert subject.counters["skipped"] == 2
    subject.step()
    assert not equal(subject.model.state_dict(), before)
    assert all(torch.isfinite(tensor).all() for tensor in subject.model.state_dict().values())


def test_a_run_beyond_rescue_ends(data, tmp_path, monkeypatch):
    monkeypatch.setattr("wavenet.training.GIVE_UP_AFTER", 4)
    subject = trainer(data, tmp_path)
    poison(subject, set(range(100)), monkeypatch)
    with pytest.raises(WaveNetError, match="4 steps in a row"):
        subject.train()


def test_a_full_disk_does_not_end_training(data, tmp_path, monkeypatch):
    subject = trainer(data, tmp_path)
    plain = checkpoint.save

    def full(run, config, moment):
        if moment.progress["step"] == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(run, config, moment)

    monkeypatch.setattr(checkpoint, "save", full)
    assert subject.train()
    assert "no checkpoint at step 4: No space left on device; training goes on" in said(subject)
    assert [path.name for path in checkpoint.numbered(tmp_path)] == ["step-00000012", "step-00000008"]


def test_a_failed_write_leaves_the_old_checkpoint_whole(data, tmp_path, monkeypatch):
    model = WaveNet(CONFIG)
    model.save_pretrained(tmp_path / "net")
    before = weights(tmp_path / "net")

    def fail(path, tensors):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("wavenet.weights.save_tensors", fail)
    with pytest.raises(OSError, match="No space"):
        WaveNet(CONFIG).save_pretrained(tmp_path / "net")
    assert equal(weights(tmp_path / "net"), before)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_no_better_than_counting_is_told(data, tmp_path):
    training = dataclasses.replace(TRAINING, warmup_steps=0, lr=1e-9)
    subject = trainer(data, tmp_path, training)
    subject.train()
    assert "no better yet than counting classes" in said(subject)
