"""Warnings of a run: each sign of trouble is reported once, with advice."""

from __future__ import annotations

import dataclasses
import errno
import math

import pytest
from support.trainers import TRAINING, metrics, said, trainer

from wavenet.training import checkpoint
from wavenet.training.checkpoint import read_record
from wavenet.training.monitor import CLIP_WINDOW, STALE_LIMIT, Monitor
from wavenet.training.progress import TrainingProgress


def monitor(**settings):
    """A monitor of a run that is past its warm-up, and the list of its reports."""
    reports = []
    training = dataclasses.replace(TRAINING, warmup_steps=3, **settings)
    return Monitor(training, TrainingProgress(step=1000), reports.append), reports


def validations(subject, *bits):
    best = []
    for each in bits:
        subject.progress.step += 100
        best.append(subject.validation(each, 7.0))
        if best[-1]:
            subject.new_best(each)
    return best


def test_the_best_is_the_lowest_finite_score():
    subject, _ = monitor()
    assert validations(subject, math.nan, 5.0, 5.0, 4.0, 4.5, math.inf, 3.0) == [
        False, True, False, True, False, False, True,
    ]  # fmt: skip
    assert (subject.progress.best_bits, subject.progress.best_step) == (3.0, 1700)


def test_a_long_rise_is_reported_once():
    subject, reports = monitor()
    validations(subject, 5.0, 4.0, *[4.2 + 0.1 * number for number in range(3 * STALE_LIMIT)])
    assert len(reports) == 1
    assert "from 4.000 to 4.600" in reports[0] and "the best, of step 1200, is kept in best/" in reports[0]
    # After a new best, another rise is reported again.
    validations(subject, 3.0, *[3.5] * STALE_LIMIT)
    assert len(reports) == 2 and "from 3.000" in reports[1]


def test_a_plateau_is_not_a_rise():
    subject, reports = monitor()
    validations(subject, 4.0, *[4.01] * 50)
    assert not reports and subject.progress.stale_validations == 50


def test_scores_above_unigram_after_the_warm_up():
    subject, reports = monitor()
    subject.progress.step = 0
    subject.validation(7.5, 7.0)
    assert not reports
    subject.progress.step = 7
    subject.validation(7.5, 7.0)
    assert "not yet better than the unigram baseline" in reports[0]


def norms(subject, values):
    for value in values:
        subject.progress.step += 1
        subject.step(value)


def test_heavy_clipping_is_reported_once():
    subject, reports = monitor(clip_norm=0.5)
    norms(subject, ([3.0] * 19 + [0.1]) * (CLIP_WINDOW // 20))
    assert len(reports) == 1
    assert "95% of the last 200 steps" in reports[0] and "raise clip_norm (now 0.5)" in reports[0]
    norms(subject, [3.0] * 5 * CLIP_WINDOW)
    assert len(reports) == 1


@pytest.mark.parametrize(
    "values", [[1.5] * 20, [3.0] * 17 + [0.5] * 3], ids=["clipped a little", "clipped at times"]
)
def test_healthy_clipping_is_not_reported(values):
    subject, reports = monitor(clip_norm=1.0)
    norms(subject, values * (CLIP_WINDOW // 2))
    assert not reports


def test_clipping_during_the_warm_up_does_not_count():
    subject, reports = monitor(clip_norm=1.0)
    subject.progress.step = 6 - 5 * CLIP_WINDOW
    norms(subject, [9.0] * 5 * CLIP_WINDOW)
    assert not reports and subject.progress.clip_steps == 0


# -- in a run -----------------------------------------------------------------------------------------


def scores(monkeypatch, *bits):
    """Replace the scores of validations, and the final score by the last of them."""
    left = list(bits)
    monkeypatch.setattr(
        "wavenet.training.wavenet_objective.bits_per_sample",
        lambda *args: left.pop(0) if len(left) > 1 else left[0],
    )


def test_patience_ends_a_run_and_keeps_the_best(data, tmp_path, monkeypatch):
    training = dataclasses.replace(TRAINING, steps=40, patience=3)
    scores(monkeypatch, 5.0, 4.0, 4.5, 4.4, 4.3, 4.2)
    subject = trainer(data, tmp_path, training)
    assert subject.train() and subject.progress.step == 20
    assert "step 20: no better validation in the last 3" in said(subject)
    assert "the best, 4.000 of step 8, is in best/" in said(subject)
    assert read_record(tmp_path / "best").progress.step == 8
    assert checkpoint.numbered(tmp_path)[0].name == "step-00000020"
    # Resumed with the same patience, it has already ended; without patience it continues.
    for patience, expected in ((3, 20), (0, 40)):
        again = trainer(data, tmp_path, dataclasses.replace(training, patience=patience))
        again.restore(*checkpoint.load_latest(tmp_path, pytest.fail))
        assert again.train() and again.progress.step == expected


def test_patience_counts_across_a_resume(data, tmp_path, monkeypatch):
    training = dataclasses.replace(TRAINING, steps=40, patience=3)
    scores(monkeypatch, 4.0, 4.5, 4.4, 4.3)
    first = trainer(data, tmp_path, training)
    first.train(lambda: first.progress.step >= 9)
    second = trainer(data, tmp_path, training)
    second.restore(*checkpoint.load_latest(tmp_path, pytest.fail))
    assert second.train() and second.progress.step == 16


def test_an_unsaved_network_is_not_the_best(data, tmp_path, monkeypatch):
    plain, calls = checkpoint.save_best, []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(*arguments)

    monkeypatch.setattr(checkpoint, "save_best", full)
    scores(monkeypatch, 3.0, 4.0, 5.0)
    subject = trainer(data, tmp_path)
    subject.train()
    assert "the best network could not be saved: no space left" in said(subject)
    assert read_record(tmp_path / "best").progress.validation_bits == 4.0
    assert subject.progress.best_bits == 4.0


def test_validation_records_contain_the_baselines(data, tmp_path):
    trainer(data, tmp_path).train()
    lines = [line for line in metrics(tmp_path) if "validation_bits" in line]
    assert all(line["uniform_bits"] == 6.0 for line in lines)
    assert all(line["unigram_bits"] == data.report.validation_unigram_bits for line in lines)
