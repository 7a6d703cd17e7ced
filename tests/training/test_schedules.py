"""Learning rates against closed forms."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from support.trainers import TRAINING

from wavenet.errors import ConfigError
from wavenet.training.schedules import ema_decay, learning_rate


def rates(schedule, **settings):
    training = dataclasses.replace(
        TRAINING, schedule=schedule, steps=1000, warmup_steps=100, lr=1.0, final_lr_fraction=0.1
    )
    training = dataclasses.replace(training, **settings)
    return [learning_rate(training, step) for step in range(1001)]


def test_learning_rate_rises_then_falls_along_a_cosine():
    found = rates("cosine")
    assert found[0] == pytest.approx(0.01) and int(np.argmax(found)) in range(95, 101)
    assert found[500] == pytest.approx(0.55) and found[999] == pytest.approx(0.1, abs=1e-4)
    assert all(a > b for a, b in itertools.pairwise(found[101:]))


def test_exponential_decay_ends_at_the_fraction():
    found = rates("exponential")
    assert found[1000] == pytest.approx(0.1) and found[500] == pytest.approx(0.1**0.5)
    ratios = np.array(found[101:]) / np.array(found[100:-1])
    assert np.allclose(ratios, 10 ** (-1 / 1000))
    with pytest.raises(ConfigError, match="final_lr_fraction = 0"):
        rates("exponential", final_lr_fraction=0.0)


def test_a_constant_rate_is_so_after_its_rise():
    found = rates("constant")
    assert found[49] == pytest.approx(0.5) and set(found[99:]) == {1.0}


def test_average_forgets_the_start():
    # A constant after the first value: the average must come to it, and early.
    average = 100.0
    for update in range(1000):
        average += (1.0 - average) * (1 - ema_decay(TRAINING, update))
    assert average == pytest.approx(1.0, abs=0.01)
    assert ema_decay(TRAINING, 10**6) == TRAINING.ema_decay
