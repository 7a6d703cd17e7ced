"""The most typical of several takes."""

from __future__ import annotations

import pytest
import torch
from support.faulty_networks import NOISE, RATE, faulty_generator, sounding_state

from wavenet.audio import faults
from wavenet.errors import ConfigError
from wavenet.generation.best_of import BestOf, most_typical
from wavenet.generation.likelihood import predictions
from wavenet.generation.watchdog import SupervisedStream


def test_neither_extreme_is_chosen():
    bits = [0.1, 3.0, 4.0, 3.6, 7.5]
    assert most_typical(bits, [False] * 5, 3.9).row == 2
    assert most_typical(bits, [False] * 5, 0.0).row == 0
    choice = most_typical(bits, [False] * 5, None)
    assert (choice.row, choice.typical, choice.lowest, choice.highest) == (3, 3.6, 0.1, 7.5)
    # What has gone wrong is neither counted nor taken, unless all has.
    assert most_typical(bits, [False, False, True, True, False], 3.9).row == 1
    assert most_typical(bits, [False, False, False, True, True], None).row == 1
    assert most_typical(bits, [True] * 5, None).row == 3
    assert most_typical([2.0, 2.0], [False, False], None).row == 0
    assert most_typical([5.0], [True], None).row == 0


def test_each_take_is_its_most_typical_candidate():
    generator, steps = faulty_generator(NOISE[0]), 10 * RATE
    state = sounding_state(generator, 8)
    plain = generator.generate(steps, sounding_state(generator, 8))
    _, surprisal = predictions(generator, sounding_state(generator, 8), plain)
    wrong = [bool(faults.find_faults(generator.decode(row).numpy(), RATE)) for row in plain]
    assert any(wrong)
    expected = []
    for first in (0, 4):
        some = slice(first, first + 4)
        bits = [float(row.mean(dtype="float64")) for row in surprisal[some]]
        expected.append(first + most_typical(bits, wrong[some], 0.05).row)
    supervised = SupervisedStream(generator, state.clone(), steps, fault_policy=None, keep_history=True)
    best = BestOf(generator, state, supervised, 4, 0.05)
    chunks = list(best)
    assert [chunk.shape for chunk in chunks[:-1]] == [(2, 0)] * (len(chunks) - 1)
    assert best.rows == expected and torch.equal(chunks[-1], plain[expected])
    assert best.state_after().stream.tolist() == expected
    assert best.flush().shape == (2, 0)


def test_takes_that_were_broken_off_are_chosen_from():
    generator = faulty_generator(None)
    state = sounding_state(generator, 3)
    best = BestOf(generator, state, SupervisedStream(generator, state.clone(), 60 * RATE), 3, None)
    for _, _ in zip(best, range(20), strict=False):
        pass
    rest = best.flush()
    assert rest.shape == (1, best.generated) and len(best.choices) == 1
    assert torch.equal(rest, generator.generate(best.generated, sounding_state(generator, 3))[best.rows])


def test_more_than_can_be_kept_is_refused():
    generator = faulty_generator(None)
    state = sounding_state(generator, 2)
    with pytest.raises(ConfigError, match="fewer seconds"):
        BestOf(generator, state, SupervisedStream(generator, state.clone(), 1 << 30), 2, None)
