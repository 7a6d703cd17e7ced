"""The gradient of one training step, over batches and processes."""

from __future__ import annotations

import torch
from torch import nn

from wavenet.config import TrainingConfig
from wavenet.data.batch import IGNORED, Segments
from wavenet.training.objective import Objective
from wavenet.utils.distributed import ALONE, World


def accumulate_gradients(
    objective: Objective,
    model: nn.Module,
    training: TrainingConfig,
    step: int,
    segments: Segments,
    device: torch.device,
    world: World = ALONE,
) -> float:
    """Add the gradient of a step's mean loss to the parameters, one batch after the other.

    With several processes it is the mean over the targets of all, equal to that of one process that computes
    the batches of the first, then those of the second, and so on.

    Parameters
    ----------
    objective : Objective
    model : nn.Module
    training : TrainingConfig
    step : int
        Part of the key of all randomness.
    segments : Segments
        `accumulate * batch` of them, on the CPU.
    device : torch.device
        The device of the model.
    world : World
        The processes that share the step.

    Returns
    -------
    float
        The mean cross-entropy in nats, without regularisation, so that it is comparable with validation.
    """
    targets = segments.targets
    total, losses = world.count(int((targets != IGNORED).sum())), []
    first = world.rank * training.accumulate
    for number in range(len(targets) // training.batch):
        rows = slice(number * training.batch, (number + 1) * training.batch)
        count = int((targets[rows] != IGNORED).sum())
        if count == 0:
            continue
        key = (training.seed, step, first + number)
        found = objective.losses(model, segments.rows(rows), count, device, key)
        # Weighted by the batch's share of the targets, so that the sum is the mean over all targets.
        (found.objective * (count / total)).backward()
        losses.append((found.cross_entropy.detach(), count / total))
    # Read only now: each value makes the CPU wait for a GPU.
    nats = sum(float(loss) * share for loss, share in losses)
    return world.all_reduce_gradients(model.parameters(), nats) if total else nats
