"""Training: it learns, resumes to the bit, survives what goes wrong, and leaves whole files behind."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from support.trainers import CONFIG, TRAINING, equal, metrics, poison, said, trainer, weights

from wavenet.data.batch import Segments
from wavenet.errors import CheckpointError, WaveNetError
from wavenet.evaluation.scoring import bits_per_sample
from wavenet.models import locate
from wavenet.models.losses import cross_entropy
from wavenet.models.wavenet import WaveNet
from wavenet.training import checkpoint
from wavenet.training.schedules import learning_rate

# -- what is computed ---------------------------------------------------------------------------------


def test_cross_entropy_against_numpy():
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((2, 5, 7)), rng.integers(0, 5, (2, 7))
    targets[0, :3] = -1
    rows = logits.transpose(0, 2, 1) - np.log(np.exp(logits).sum(1))[:, :, None]
    kept = [rows[b, t, targets[b, t]] for b in range(2) for t in range(7) if targets[b, t] >= 0]
    found = cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets))
    assert float(found) == pytest.approx(-np.mean(kept), rel=1e-5)


def test_bits_per_sample_weights_windows_by_targets():
    class Fixed(torch.nn.Module):
        """Half the probability on class 0, the rest on classes 1 and 2 alike."""

        def gate_bias_for(self, frames):
            assert frames is None

        def forward(self, inputs, gate_bias=None):
            return torch.log(torch.tensor([0.5, 0.25, 0.25]))[None, :, None].expand(1, 3, inputs.shape[1])

    windows = [
        Segments(torch.zeros(1, 4, dtype=torch.int64), torch.tensor([[0, 0, -1, -1]])),
        Segments(torch.zeros(1, 4, dtype=torch.int64), torch.tensor([[1, 2, 1, 0]])),
    ]
    assert bits_per_sample(Fixed(), windows) == pytest.approx((1 * 3 + 2 * 3) / 6)
    assert math.isnan(bits_per_sample(Fixed(), []))


def test_one_step_is_adamw_on_the_clipped_gradient(data, tmp_path):
    """The first step against one taken by hand with plain torch."""
    subject = trainer(data, tmp_path)
    model = WaveNet(CONFIG)
    model.load_state_dict(subject.model.state_dict())
    inputs, targets, _ = data.train.batch(0, TRAINING.batch, 400, TRAINING.seed)
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


# -- what a run leaves --------------------------------------------------------------------------------


def test_files_of_a_run(data, tmp_path):
    training = dataclasses.replace(TRAINING, sample_every=6, sample_seconds=0.05, keep=1)
    subject = trainer(data, tmp_path / "run", training)
    assert subject.train()
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir() if path.name[0] != ".") == [
        "best",
        "effective.json",
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
    best = checkpoint.read_record(run / "best").progress.validation_bits
    assert best == min(line["validation_bits"] for line in validations)
    model = WaveNet.from_pretrained(run / "best")
    windows = data.validation.windows(400, max_samples=4000)
    assert bits_per_sample(model, windows) == pytest.approx(best, rel=1e-6)
    assert locate.find(run) == run / "step-00000012"
    assert equal(weights(run / "step-00000012"), subject.averaged.state_dict())


def test_finding_checkpoints(tmp_path):
    model = WaveNet(CONFIG)
    with pytest.raises(CheckpointError, match="does not exist"):
        locate.find(tmp_path / "none")
    with pytest.raises(CheckpointError, match="contains no checkpoint"):
        locate.find(tmp_path)
    model.save_pretrained(tmp_path / "best")
    assert locate.find(tmp_path) == tmp_path / "best"
    # Within a run the step decides, whatever the times; between runs the time.
    for number, (name, expected) in enumerate(
        [
            ("step-00000012", "step-00000012"),
            ("step-00000002", "step-00000012"),
            ("other/step-00000001", "other/step-00000001"),
        ]
    ):
        model.save_pretrained(tmp_path / name)
        os.utime(tmp_path / name / "model.safetensors", (10 + number, 10 + number))
        assert locate.find(tmp_path) == tmp_path / expected
    (tmp_path / "step-00000003").mkdir()
    (tmp_path / "step-00000003" / "config.json").write_text("{}")
    assert locate.find(tmp_path) == tmp_path / "other" / "step-00000001"


# -- what goes wrong ----------------------------------------------------------------------------------


def test_non_finite_steps_are_skipped_and_counted(data, tmp_path, monkeypatch):
    subject = trainer(data, tmp_path)
    poison(subject, {1, 2}, monkeypatch)
    subject.step()
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    subject.step()
    subject.step()
    assert equal(subject.model.state_dict(), before)
    assert subject.progress.skipped == 2
    subject.step()
    assert not equal(subject.model.state_dict(), before)
    assert all(torch.isfinite(tensor).all() for tensor in subject.model.state_dict().values())


def test_a_run_beyond_rescue_ends(data, tmp_path, monkeypatch):
    monkeypatch.setattr("wavenet.training.trainer.GIVE_UP_AFTER", 4)
    subject = trainer(data, tmp_path)
    poison(subject, set(range(100)), monkeypatch)
    with pytest.raises(WaveNetError, match="4 steps in a row"):
        subject.train()


def test_a_full_disk_does_not_end_training(data, tmp_path, monkeypatch):
    subject = trainer(data, tmp_path)
    plain = checkpoint.save

    def full(run, config, saved):
        if saved.record.progress.step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(run, config, saved)

    monkeypatch.setattr(checkpoint, "save", full)
    assert subject.train()
    assert "no checkpoint at step 4: no space left on device; training continues" in said(subject)
    assert [path.name for path in checkpoint.numbered(tmp_path)] == ["step-00000012", "step-00000008"]


def test_a_failed_write_keeps_the_old_checkpoint(data, tmp_path, monkeypatch):
    model = WaveNet(CONFIG)
    model.save_pretrained(tmp_path / "net")
    before = weights(tmp_path / "net")

    def fail(path, tensors):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("wavenet.models.serialization.save_tensors", fail)
    with pytest.raises(OSError, match="No space"):
        WaveNet(CONFIG).save_pretrained(tmp_path / "net")
    assert equal(weights(tmp_path / "net"), before)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


@pytest.mark.parametrize("failing", ["before", "between", "after"])
def test_an_interrupted_rename_leaves_a_network(tmp_path, monkeypatch, failing):
    WaveNet(CONFIG).save_pretrained(tmp_path / "net")
    before = weights(tmp_path / "net")
    rename, calls = Path.rename, []

    def interrupted(self, target):
        calls.append(target)
        if (failing, len(calls)) in (("before", 1), ("between", 2)):
            raise KeyboardInterrupt
        result = rename(self, target)
        if failing == "after" and len(calls) == 2:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Path, "rename", interrupted)
    torch.manual_seed(5)
    new = WaveNet(CONFIG)
    with pytest.raises(KeyboardInterrupt):
        new.save_pretrained(tmp_path / "net")
    monkeypatch.undo()
    assert equal(weights(tmp_path / "net"), new.state_dict() if failing == "after" else before)


def test_a_kill_between_renames_is_made_good(tmp_path):
    WaveNet(CONFIG).save_pretrained(tmp_path / "best")
    (tmp_path / "best").rename(tmp_path / ".best.abc123.old")
    assert locate.find(tmp_path) == tmp_path / "best"
    (tmp_path / "best").rename(tmp_path / ".best.abc123.old")
    checkpoint.prune(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_nan_validation_is_never_the_best(data, tmp_path, monkeypatch):
    scores = iter([math.nan, 3.0, 4.0])
    monkeypatch.setattr("wavenet.training.wavenet_objective.bits_per_sample", lambda *args: next(scores, 5.0))
    subject = trainer(data, tmp_path)
    subject.train()
    assert subject.progress.best_bits == 3.0 and "validation returned nan" in said(subject)
    assert [line["validation_bits"] for line in metrics(tmp_path) if "validation_bits" in line] == [
        None,
        3.0,
        4.0,
    ]


def test_no_better_than_the_unigram_is_reported(data, tmp_path):
    training = dataclasses.replace(TRAINING, warmup_steps=0, lr=1e-9)
    subject = trainer(data, tmp_path, training)
    subject.train()
    assert "not yet better than the unigram baseline" in said(subject)
