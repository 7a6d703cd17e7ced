"""What a step of training minimises, and how values are dropped on the way: both without any hidden state."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch

from wavenet.config import TrainingConfig
from wavenet.data.batch import IGNORED, Segments
from wavenet.data.clips import Clips
from wavenet.models.losses import cross_entropy, smoothed_cross_entropy
from wavenet.models.precision import autocast
from wavenet.models.wavenet import WaveNet
from wavenet.utils.distributed import ALONE, World

ADAPTED = 64
"""Segments whose frames a network sees before training begins."""


def parameter_groups(model: WaveNet, weight_decay: float) -> list[dict[str, Any]]:
    """Return an optimiser's groups of parameters: matrices decay, biases and embeddings do not."""
    decayed = [p for n, p in model.named_parameters() if p.dim() > 1 and "embedding" not in n]
    plain = [p for n, p in model.named_parameters() if p.dim() == 1 or "embedding" in n]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def fit_normalization(model: WaveNet, clips: Clips, segment: int, seed: int) -> None:
    """Show a network that is to be told something what it will be told, before its first step.

    In every process it is the same.
    """
    if model.conditioner is not None:
        frames = clips.batch(0, ADAPTED, segment, seed).frames
        assert frames is not None
        model.conditioner.fit_normalization(frames.values)


def add_gradients(
    model: WaveNet,
    training: TrainingConfig,
    step: int,
    segments: Segments,
    device: torch.device,
    world: World = ALONE,
) -> float:
    """Leave the gradient of a step's mean loss in the parameters, one batch after the other.

    With several processes it is the mean over the targets of all, as of one process that takes the batches of
    the first, then those of the second, and so on.

    Parameters
    ----------
    model : WaveNet
    training : TrainingConfig
    step : int
        Decides, with the seed, which values are dropped.
    segments : Segments
        accumulate * batch of them, on the CPU.
    device : torch.device
        Where the model is.
    world : World
        The processes that share the step.

    Returns
    -------
    float
        The mean loss in nats, without label smoothing, so that it compares with validation.
    """
    inputs, targets, frames = segments
    total, losses = world.count(int((targets != IGNORED).sum())), []
    first = world.rank * training.accumulate
    for number in range(len(inputs) // training.batch):
        some = slice(number * training.batch, (number + 1) * training.batch)
        given, wanted = inputs[some], targets[some]
        count = int((wanted != IGNORED).sum())
        if count == 0:
            continue
        if training.dropout:
            set_dropout(model, training.dropout, training.seed, step, first + number)
        with autocast(device, training.precision):
            gate_bias = model.gate_bias_for(frames and frames.rows(some, device))
            logits = model(given.to(device, non_blocking=True), gate_bias)
        wanted = wanted.to(device, non_blocking=True)
        objective = loss = cross_entropy(logits, wanted)
        if training.label_smoothing:
            objective = smoothed_cross_entropy(logits, wanted, training.label_smoothing) / count
        # By its share of the targets, so that the sum is the mean over them all.
        (objective * (count / total)).backward()
        losses.append((loss.detach(), count / total))
    # Asked for only now: a GPU would wait for each.
    nats = sum(float(loss) * share for loss, share in losses)
    return world.add_up(model.parameters(), nats) if total else nats


def set_dropout(model: WaveNet, probability: float, seed: int, *place: int) -> None:
    """Let every layer drop values at random, the same ones whenever `seed` and `place` are the same.

    Each layer's draw has a key of its own, so that a run that resumes, or a layer that is computed twice to
    save memory, drops the same values again.

    Parameters
    ----------
    model : WaveNet
    probability : float
        Of each value of a dilated convolution's input; the others are scaled up (Srivastava et al. 2014).
    seed, *place : int
        The run's seed, and what else tells one pass from another: the step, and the batch in the step.
    """
    for number, layer in enumerate(model.residual_layers):
        layer.dropout = _dropout(probability, _key(seed, *place, number))


def _key(*numbers: int) -> int:
    digest = hashlib.sha256(" ".join(map(str, numbers)).encode()).digest()
    # Torch's CPU generator looks at no more than 32 bits.
    return int.from_bytes(digest[:4], "little")


def _dropout(probability: float, key: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def drop(values: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator(values.device).manual_seed(key)
        kept = torch.empty_like(values).bernoulli_(1 - probability, generator=generator)
        return values * kept.div_(1 - probability)

    return drop
