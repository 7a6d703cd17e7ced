"""TensorBoard's view of a run, through a writer that only notes what it is given."""

from __future__ import annotations

import dataclasses
import errno
import subprocess
import sys
import types

import pytest
from support.commands import NETWORK_FLAGS, assert_one_line_error, environment, make_audio
from support.trainers import TRAINING, equal, metrics, said, trainer

from wavenet.training import checkpoint


class Writer:
    """Stands for TensorBoard's SummaryWriter."""

    made: list[Writer] = []  # noqa: RUF012

    def __init__(self, log_dir, purge_step):
        self.log_dir, self.purge_step, self.calls = log_dir, purge_step, []
        self.made.append(self)

    def __getattr__(self, name):
        return lambda *arguments, **settings: self.calls.append((name, *arguments))

    def scalars(self, tag):
        return [(step, value) for name, *rest in self.calls if name == "add_scalar"
                for found, value, step in [rest] if found == tag]  # fmt: skip


@pytest.fixture
def writers(monkeypatch):
    monkeypatch.setattr(Writer, "made", [])
    module = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return Writer.made


SOUNDING = dataclasses.replace(TRAINING, sample_every=6, sample_seconds=0.25)


def test_a_run_is_written_as_its_account_has_it(data, tmp_path, writers, monkeypatch):
    monkeypatch.setattr("wavenet.training.trainer.LOG_EVERY", 3)
    subject = trainer(data, tmp_path, SOUNDING)
    assert subject.train(tensorboard=True)
    (writer,) = writers
    assert writer.log_dir == str(tmp_path / "tensorboard") and writer.purge_step == 1
    records = metrics(tmp_path)
    for key, tag in (
        ("train_bits", "bits/train"), ("validation_bits", "bits/validation"), ("lr", "step/learning rate"),
        ("gradient_norm", "step/gradient norm"), ("final_validation_bits", "bits/final validation"),
        ("unigram_bits", "bits/unigram"),
    ):  # fmt: skip
        expected = [(record["step"], record[key]) for record in records if key in record]
        assert expected and writer.scalars(tag) == expected
    assert len(writer.scalars("step/samples per second")) == 4
    audio = [call for call in writer.calls if call[0] == "add_audio"]
    assert [(tuple(sound.shape), step) for _, _, sound, step in audio] == [((1, 1000), 6), ((1, 1000), 12)]
    images = [call for call in writer.calls if call[0] == "add_image"]
    assert [step for *_, step in images] == [6, 12]
    assert writer.calls[-1] == ("close",)


def test_tensorboard_continues_with_a_resumed_run(data, tmp_path, writers):
    plain = trainer(data, tmp_path / "plain", SOUNDING)
    plain.train()
    assert not writers and not (tmp_path / "plain" / "tensorboard").exists()
    first = trainer(data, tmp_path / "parts", SOUNDING)
    first.train(lambda: first.progress.step >= 7, tensorboard=True)
    second = trainer(data, tmp_path / "parts", SOUNDING)
    second.restore(*checkpoint.load_latest(tmp_path / "parts", pytest.fail))
    second.train(tensorboard=True)
    assert [writer.purge_step for writer in writers] == [1, 8]
    assert equal(second.model.state_dict(), plain.model.state_dict())


def test_a_full_disk_is_reported_once(data, tmp_path, writers, monkeypatch):
    def full(self, *arguments, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Writer, "add_scalar", full, raising=False)
    subject = trainer(data, tmp_path)
    assert subject.train(tensorboard=True)
    assert said(subject).count("no space left on device; training continues") == 1


def test_missing_tensorboard_names_the_extra(tmp_path):
    make_audio(tmp_path / "audio")
    code = (
        "import sys; sys.modules['tensorboard'] = None\n"
        "from wavenet.cli.train import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["--audio-dir", "audio", "--out-dir", "run", "--tensorboard", *NETWORK_FLAGS]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert_one_line_error(result, "tensorboard is not installed", "pip install 'wavenet[tensorboard]'")
    assert "found" not in result.stderr and not (tmp_path / "run").exists()
