"""Resuming: to the bit, past damage, and only what fits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil

import pytest
import torch
from support.trainers import CONFIG, TRAINING, equal, metrics, poison, said, trainer, weights

from wavenet.errors import CheckpointError
from wavenet.models.wavenet import WaveNet
from wavenet.training import checkpoint

# -- resuming -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("interrupted_at", [4, 7])
def test_resuming_equals_not_stopping(data, tmp_path, precision, interrupted_at, monkeypatch):
    monkeypatch.setattr("wavenet.training.trainer.LOG_EVERY", 3)
    training = dataclasses.replace(TRAINING, precision=precision)
    whole = trainer(data, tmp_path / "whole", training)
    assert whole.train()
    first = trainer(data, tmp_path / "parts", training)
    assert not first.train(lambda: first.progress.step >= interrupted_at)
    # Lines beyond the checkpoint are what a kill would leave.
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "train_bits": 0}\n{"step": 1')
    torch.manual_seed(999)
    second = trainer(data, tmp_path / "parts", training)
    second.restore(*checkpoint.load_latest(tmp_path / "parts", lambda text: None))
    assert second.progress.step == interrupted_at
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


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def emptied(content: bytes) -> bytes:
    return b""


def holed(content: bytes) -> bytes:
    """As a disk leaves a file whose blocks were never written: as long as it was, with zeros inside."""
    third = len(content) // 3
    return content[:-third] + bytes(third)


def flipped(content: bytes) -> bytes:
    """One bit, near the end, where numbers stand in every file."""
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


FILES = ("config.json", "model.safetensors", "training_state.safetensors", "training.json", "SHA256SUMS")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("finished")
    trainer(data, run).train()
    return run


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [cut, emptied, holed, flipped])
def test_after_damage_the_previous_checkpoint_is_used(finished, tmp_path, name, damage):
    run = shutil.copytree(finished, tmp_path / "run")
    latest, before = checkpoint.numbered(run)
    (latest / name).write_bytes(damage((latest / name).read_bytes()))
    told = []
    assert checkpoint.load_latest(run, told.append)[0] == before
    assert len(told) == 1 and str(latest) in told[0] and told[0].endswith("; trying the one before")


@pytest.mark.parametrize("name", FILES[:-1])
def test_a_file_that_is_missing_is_as_one_that_is_torn(finished, tmp_path, name):
    run = shutil.copytree(finished, tmp_path / "run")
    latest, before = checkpoint.numbered(run)
    (latest / name).unlink()
    told = []
    assert checkpoint.load_latest(run, told.append)[0] == before and name in told[0]


def test_checksums_are_those_of_any_other_tool(finished):
    latest = checkpoint.numbered(finished)[0]
    for line in (latest / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((latest / name).read_bytes()).hexdigest() == digest


def test_a_checkpoint_of_another_network_is_refused(data, tmp_path):
    trainer(data, tmp_path).train(lambda: True)
    path, moment = checkpoint.load_latest(tmp_path, lambda text: None)
    subject = trainer(data, tmp_path)
    subject.config = dataclasses.replace(CONFIG, skip_channels=33)
    subject.model = WaveNet(subject.config)
    with pytest.raises(CheckpointError, match=r"head1.*\(32, 32\).*\(32, 33\)"):
        subject.restore(path, moment)


def test_the_newest_checkpoint_is_not_deleted(data, tmp_path):
    training = dataclasses.replace(TRAINING, keep=1)
    trainer(data, tmp_path, dataclasses.replace(TRAINING, keep=2)).train()
    latest, before = checkpoint.numbered(tmp_path)
    (latest / "config.json").write_bytes(b"{")
    told = []
    subject = trainer(data, tmp_path, training)
    path, moment = checkpoint.load_latest(tmp_path, told.append)
    assert path == before and "config.json" in told[0]
    subject.restore(path, moment)
    subject.train(lambda: subject.progress.step >= 10)
    assert checkpoint.load_latest(tmp_path, told.append)[0].name == "step-00000010"
    assert (tmp_path / f"damaged-{latest.name}").is_dir()


def test_resuming_after_skipped_steps_is_exact(data, tmp_path, monkeypatch):
    def run(folder, stop_at):
        subject = trainer(data, folder)
        if checkpoint.numbered(folder):
            subject.restore(*checkpoint.load_latest(folder, lambda text: None))
        poison(subject, {0, 2, 6}, monkeypatch)
        subject.train(lambda: subject.progress.step >= stop_at)
        monkeypatch.undo()
        return subject

    whole = run(tmp_path / "whole", 99)
    for stop_at in (1, 3, 99):
        parts = run(tmp_path / "parts", stop_at)
    assert parts.progress == whole.progress and whole.progress.skipped == 3
    assert equal(parts.model.state_dict(), whole.model.state_dict())
    assert equal(parts.averaged.state_dict(), whole.averaged.state_dict())


def reshape(state):
    state["optimizer.exp_avg.skip.bias"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: m.state.pop("optimizer.step.skip.bias"), "'optimizer.step.skip.bias' is missing"),
        (lambda m: reshape(m.state), r"exp_avg.skip.bias' is torch.float32 \(1,\)"),
        (lambda m: m.state.update({"random.torch": torch.zeros(3)}), "random.torch"),
        (lambda m: m.state.update(extra=torch.zeros(3)), "unknown tensor 'extra'"),
    ],
)
def test_training_states_that_do_not_fit_are_one_line(data, tmp_path, damage, message):
    trainer(data, tmp_path).train(lambda: False)
    path, moment = checkpoint.load_latest(tmp_path, lambda text: None)
    damage(moment)
    subject = trainer(data, tmp_path)
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        subject.restore(path, moment)
    assert f"remove {path}" in str(caught.value)
    assert equal(subject.model.state_dict(), before) and subject.progress.step == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: r["progress"].update(step=-7), "step = -7"),
        (lambda r: r["progress"].update(step=True), "step = True"),
        (lambda r: r["progress"].update(skipped=1.5), "skipped = 1.5"),
        (lambda r: r["progress"].update(window_bits=None), "window_bits = None"),
        (lambda r: r["progress"].pop("best_bits"), "'best_bits' is missing"),
        (lambda r: r["training"].pop("schedule"), "'schedule' is missing"),
        (lambda r: r.update(source=[]), "source = "),
        (lambda r: r.update(extra=1), "unknown key 'extra'"),
    ],
)
def test_damaged_records_are_one_line(finished, tmp_path, damage, message):
    path = tmp_path / "training.json"
    record = json.loads((checkpoint.numbered(finished)[0] / "training.json").read_text())
    assert checkpoint.TrainingRecord.from_json(record).to_json() == record
    damage(record)
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read_record(tmp_path)


def test_changed_audio_resets_the_best(data, tmp_path):
    trainer(data, tmp_path).train()
    path, saved = checkpoint.load_latest(tmp_path, lambda text: None)
    subject = trainer(data, tmp_path)
    subject.restore(path, saved)
    assert subject.progress.best_bits is not None and "has changed" not in said(subject)
    saved.record = dataclasses.replace(saved.record, data="another")
    subject.restore(path, saved)
    assert subject.progress.best_bits is None and "the audio has changed" in said(subject)


def test_one_run_at_a_time(data, tmp_path):
    with checkpoint.lock(tmp_path), pytest.raises(CheckpointError, match="another training run"):
        trainer(data, tmp_path).train()
    assert trainer(data, tmp_path).train()
