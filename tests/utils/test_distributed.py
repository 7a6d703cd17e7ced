"""What each of several processes takes of the work, without starting any: shares, draws, gradients."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from support.trainers import CONFIG, TRAINING

from wavenet.data.augmentation import Augmentation
from wavenet.data.batch import Segments
from wavenet.errors import ConfigError
from wavenet.training.step import accumulate_gradients
from wavenet.training.wavenet_objective import WaveNetObjective
from wavenet.utils.distributed import World, process_prefix

TOLD = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "1",
}


@pytest.fixture
def told(monkeypatch):
    """Set the environment as torchrun does, for the last of four processes on two machines."""
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_alone_without_an_environment(monkeypatch):
    for name in TOLD:
        monkeypatch.delenv(name, raising=False)
    world = World.from_environment()
    assert world == World() and world.is_main and process_prefix() == ""
    assert (
        world.run_main_first(lambda: 3) == 3
        and world.run_on_main(lambda: 2) is True
        and world.any_rank(False) is False
    )
    assert list(world.share(5)) == [0, 1, 2, 3, 4]


def test_the_environment_of_torchrun(told):
    assert World.from_environment() == World(3, 4, 1, 2)
    assert not World.from_environment().is_main and process_prefix() == "process 3: "


@pytest.mark.parametrize(
    ("name", "value"),
    [("RANK", "4"), ("RANK", "-1"), ("RANK", ""), ("WORLD_SIZE", "two"), ("LOCAL_RANK", "2")],
)
def test_an_environment_that_is_no_world(told, name, value):
    told.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name}.*torchrun"):
        World.from_environment()


def test_a_world_without_a_place_to_meet(told):
    told.delenv("MASTER_PORT")
    with pytest.raises(ConfigError, match="no MASTER_PORT"):
        World.from_environment().join(torch.device("cpu"))


@pytest.mark.parametrize(("count", "size"), [(10, 3), (3, 5), (1, 2), (1000, 7), (0, 2)])
def test_shares_are_fair_and_complete(count, size):
    shares = [World(rank, size).share(count) for rank in range(size)]
    assert [number for share in shares for number in share] == list(range(count))
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1


def test_every_process_has_a_gpu_of_its_own(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    found = [World(2 + rank, 4, rank, 2).device(torch.device("cuda")) for rank in range(2)]
    assert found == chosen == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert World(1, 2, 1, 2).device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"3 processes, but 2 CUDA devices.*start 2 processes"):
        World(2, 3, 2, 3).device(torch.device("cuda"))
    with pytest.raises(ConfigError, match="each process uses its own GPU; use cuda"):
        World(1, 2, 1, 2).device(torch.device("cuda:0"))


@pytest.mark.parametrize("weighed", [False, True])
def test_rows_of_a_draw_are_those_of_the_larger_batch(data, weighed):
    train = copy.copy(data.train)
    train.augmentation = Augmentation(12.0, True)
    if weighed:
        train.set_weights(lambda name: 2.0)
    whole = train.batch(7, 6, 50, 1)
    for first in (0, 2, 4):
        part = train.batch(7, 2, 50, 1, first)
        for found, expected in zip(part[:2], whole[:2], strict=True):
            assert torch.equal(found, expected[first : first + 2])
    assert len({tuple(row.tolist()) for row in whole[0]}) == 6


class Counting(World):
    """One of several processes that knows already how many targets they have together."""

    total = 0

    def count(self, number):
        return Counting.total

    def all_reduce_gradients(self, parameters, loss):
        return loss


@pytest.mark.parametrize(
    "settings", [{}, {"dropout": 0.4}, {"label_smoothing": 0.1, "dropout": 0.2}, {"precision": "bf16"}]
)
def test_gradients_of_processes_sum_to_those_of_one(settings):
    """Two processes of two batches each are one of four batches, where targets are few in some rows."""
    torch.manual_seed(0)
    training = dataclasses.replace(TRAINING, batch=2, **settings)
    inputs = torch.randint(0, 64, (8, CONFIG.receptive_field - 1 + 20))
    targets = torch.randint(0, 64, (8, 20))
    targets[1, 3:] = -1
    targets[4:6] = -1  # a whole batch of the second process
    model = WaveNetObjective(CONFIG, training).build()

    def gradients(rows, world, accumulate):
        model.zero_grad()
        changed = dataclasses.replace(training, accumulate=accumulate)
        segments = Segments(inputs[rows], targets[rows])
        objective = WaveNetObjective(CONFIG, changed)
        loss = accumulate_gradients(objective, model, changed, 3, segments, torch.device("cpu"), world)
        return loss, [parameter.grad.clone() for parameter in model.parameters()]

    loss, expected = gradients(slice(0, 8), World(), 4)
    Counting.total = int((targets >= 0).sum())
    parts = [gradients(slice(4 * rank, 4 * rank + 4), Counting(rank, 2), 2) for rank in range(2)]
    assert math.isclose(parts[0][0] + parts[1][0], loss, rel_tol=1e-6)
    for whole, *each in zip(expected, *(part[1] for part in parts), strict=True):
        assert np.allclose(sum(each), whole, rtol=1e-4, atol=1e-7)
        assert each[0].abs().sum() > 0 and not torch.equal(each[0], each[1])
