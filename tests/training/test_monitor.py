"""What a run notices of itself: each sign once, in words that say what to do."""

from __future__ import annotations

import dataclasses
import errno
import json
import math

import pytest
from support.trainers import TRAINING, metrics, said, trainer

from wavenet.training import checkpoint, resume
from wavenet.training.monitor import CLIP_WINDOW, COUNTERS, RISEN_AFTER, Watch


def watch(**settings):
    """A watch over a run that is past its warm-up, and what it tells."""
    told = []
    counters = {**resume.COUNTERS, **COUNTERS, "step": 1000}
    training = dataclasses.replace(TRAINING, warmup_steps=3, **settings)
    return Watch(training, counters, told.append), told


def validations(subject, *bits):
    best = []
    for each in bits:
        subject.counters["step"] += 100
        best.append(subject.validation(each, 7.0))
        if best[-1]:
            subject.new_best(each)
    return best


def test_the_best_is_the_lowest_and_never_what_is_no_number():
    subject, _ = watch()
    assert validations(subject, math.nan, 5.0, 5.0, 4.0, 4.5, math.inf, 3.0) == [
        False, True, False, True, False, False, True,
    ]  # fmt: skip
    assert (subject.counters["best_bits"], subject.counters["best_step"]) == (3.0, 1700)


def test_a_long_rise_is_told_once_with_the_step_of_the_best():
    subject, told = watch()
    validations(subject, 5.0, 4.0, *[4.2 + 0.1 * number for number in range(3 * RISEN_AFTER)])
    assert len(told) == 1
    assert "from 4.000 to 4.600" in told[0] and "the best, of step 1200, is kept in best/" in told[0]
    # After another best another rise is news again.
    validations(subject, 3.0, *[3.5] * RISEN_AFTER)
    assert len(told) == 2 and "from 3.000" in told[1]


def test_what_levels_off_has_not_risen():
    subject, told = watch()
    validations(subject, 4.0, *[4.01] * 50)
    assert not told and subject.counters["stale"] == 50


def test_no_better_than_counting_is_told_after_the_warm_up():
    subject, told = watch()
    subject.counters["step"] = 0
    subject.validation(7.5, 7.0)
    assert not told
    subject.counters["step"] = 7
    subject.validation(7.5, 7.0)
    assert "no better yet than counting classes" in told[0]


def norms(subject, values):
    for value in values:
        subject.counters["step"] += 1
        subject.step(value)


def test_gradients_that_are_mostly_lost_to_clipping_are_told_once_with_the_flag():
    subject, told = watch(clip_norm=0.5)
    norms(subject, ([3.0] * 19 + [0.1]) * (CLIP_WINDOW // 20))
    assert len(told) == 1
    assert "95% of the last 200 steps" in told[0] and "raise --clip-norm (now 0.5)" in told[0]
    norms(subject, [3.0] * 5 * CLIP_WINDOW)
    assert len(told) == 1


@pytest.mark.parametrize(
    "values", [[1.5] * 20, [3.0] * 17 + [0.5] * 3], ids=["clipped a little", "clipped at times"]
)
def test_clipping_that_is_healthy_is_not_told(values):
    subject, told = watch(clip_norm=1.0)
    norms(subject, values * (CLIP_WINDOW // 2))
    assert not told


def test_clipping_during_the_warm_up_does_not_count():
    subject, told = watch(clip_norm=1.0)
    subject.counters["step"] = -10 * CLIP_WINDOW
    norms(subject, [9.0] * 5 * CLIP_WINDOW)
    assert not told and subject.counters["clip_steps"] == 0


# -- in a run -----------------------------------------------------------------------------------------


def scores(monkeypatch, *bits):
    """Let validations come out as given, and the final score as the last of them."""
    left = list(bits)
    monkeypatch.setattr(
        "wavenet.training.trainer.bits_per_sample", lambda *args: left.pop(0) if len(left) > 1 else left[0]
    )


def test_patience_ends_a_run_and_keeps_the_best(data, tmp_path, monkeypatch):
    training = dataclasses.replace(TRAINING, steps=40, patience=3)
    scores(monkeypatch, 5.0, 4.0, 4.5, 4.4, 4.3, 4.2)
    subject = trainer(data, tmp_path, training)
    assert subject.train() and subject.counters["step"] == 20
    assert "step 20: no better validation in the last 3" in said(subject)
    assert "the best, 4.000 of step 8, is in best/" in said(subject)
    assert json.loads((tmp_path / "best" / "training.json").read_text())["step"] == 8
    assert checkpoint.numbered(tmp_path)[0].name == "step-00000020"
    # Resumed as it is, it has ended already; without patience it goes on.
    for patience, expected in ((3, 20), (0, 40)):
        again = trainer(data, tmp_path, dataclasses.replace(training, patience=patience))
        again.restore(*checkpoint.load_latest(tmp_path, pytest.fail))
        assert again.train() and again.counters["step"] == expected


def test_patience_counts_across_a_resume(data, tmp_path, monkeypatch):
    training = dataclasses.replace(TRAINING, steps=40, patience=3)
    scores(monkeypatch, 4.0, 4.5, 4.4, 4.3)
    first = trainer(data, tmp_path, training)
    first.train(lambda: first.counters["step"] >= 9)
    second = trainer(data, tmp_path, training)
    second.restore(*checkpoint.load_latest(tmp_path, pytest.fail))
    assert second.train() and second.counters["step"] == 16


def test_a_best_network_that_could_not_be_saved_is_not_taken_for_the_best(data, tmp_path, monkeypatch):
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
    assert json.loads((tmp_path / "best" / "training.json").read_text())["validation_bits"] == 4.0
    assert subject.counters["best_bits"] == 4.0


def test_validations_are_noted_beside_what_they_compare_with(data, tmp_path):
    trainer(data, tmp_path).train()
    lines = [line for line in metrics(tmp_path) if "validation_bits" in line]
    assert all(line["uniform_bits"] == 6.0 for line in lines)
    assert all(line["unigram_bits"] == data.report.validation_unigram_bits for line in lines)
