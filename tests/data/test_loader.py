"""Segments loaded ahead equal those loaded on request, and errors are raised."""

from __future__ import annotations

import dataclasses
import threading
import time

import pytest
import torch
from support.trainers import TRAINING, equal, metrics, trainer

from wavenet.data.batch import Segments
from wavenet.data.loader import Loader
from wavenet.errors import AudioError
from wavenet.training.metrics import TIMED
from wavenet.utils.console import Meter


def numbered(step: int) -> Segments:
    return Segments(torch.full((1, 4), step), torch.full((1, 2), step))


@pytest.mark.parametrize("ahead", [False, True])
def test_every_step_gets_its_own_segments(ahead):
    loader = Loader(numbered, ahead)
    for step in (0, 1, 2, 7, 8, 3, 3, 4):
        assert int(loader.take(step).inputs[0, 0]) == step
    loader.close()
    assert int(loader.take(5).inputs[0, 0]) == 5
    loader.close()


def test_the_next_step_is_made_ahead():
    made = []
    second = threading.Event()

    def make(step: int) -> Segments:
        made.append((step, threading.current_thread() is threading.main_thread()))
        if step == 1:
            second.set()
        return numbered(step)

    loader = Loader(make, ahead=True)
    loader.take(0)
    assert second.wait(10)
    loader.close()
    assert made == [(0, False), (1, False)]
    # On a CPU nothing is made before it is asked for.
    made.clear()
    Loader(make, ahead=False).take(0)
    assert made == [(0, True)]


@pytest.mark.parametrize("ahead", [False, True])
def test_errors_are_raised_by_take(ahead):
    def make(step: int) -> Segments:
        if step == 1:
            raise AudioError("the cached recording has gone")
        return numbered(step)

    loader = Loader(make, ahead)
    loader.take(0)
    with pytest.raises(AudioError, match="has gone"):
        loader.take(1)
    loader.close()


def test_loading_ahead_does_not_change_a_run(data, tmp_path):
    training = dataclasses.replace(TRAINING, augment_speed=0.1, augment_gain=6.0)
    plain, ahead = (trainer(data, tmp_path / name, training) for name in ("plain", "ahead"))
    ahead.loader = Loader(ahead._segments, ahead=True)
    assert plain.train() and ahead.train()
    assert equal(plain.model.state_dict(), ahead.model.state_dict())
    assert metrics(tmp_path / "plain") == metrics(tmp_path / "ahead")


def test_the_waiting_share_is_recorded(data, tmp_path, monkeypatch):
    import json

    subject = trainer(data, tmp_path, dataclasses.replace(TRAINING, steps=10))
    make = subject.loader.make

    def slow(step: int) -> Segments:
        time.sleep(0.2)
        return make(step)

    subject.loader.make = slow
    subject.train()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (waiting,) = (record["waiting"] for record in records if "waiting" in record)
    assert 0.1 < waiting <= 1 and set(TIMED) <= set(records[-1] | records[0] | records[1] | records[2])


def test_shares_count_from_the_last_record():
    meter = Meter()
    time.sleep(0.05)
    meter.count(1)
    assert 0.1 < meter.share(0.025) <= 0.5
    assert meter.share(5.0) == 1.0
