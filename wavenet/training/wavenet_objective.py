"""The objective of WaveNet: cross-entropy of the next sample's class, with dropout and label smoothing."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch

from wavenet.config import TrainingConfig, WaveNetConfig, flat
from wavenet.data.batch import Segments
from wavenet.data.dataset import Dataset
from wavenet.evaluation.scoring import bits_per_sample
from wavenet.generation.generator import Generator
from wavenet.models.losses import cross_entropy, smoothed_cross_entropy
from wavenet.models.native_layers import cross_entropy_per_target
from wavenet.models.precision import autocast
from wavenet.models.wavenet import WaveNet
from wavenet.training.objective import Losses

NORMALIZATION_SEGMENTS = 64
"""Training segments to which the normalisation of conditioning features is fitted."""


class WaveNetObjective:
    """Trains WaveNet; see `wavenet.training.objective.Objective`.

    Parameters
    ----------
    config : WaveNetConfig
    training : TrainingConfig
        With its precision resolved to "fp32" or "bf16".
    """

    def __init__(self, config: WaveNetConfig, training: TrainingConfig):
        self.config = config
        self.training = training

    def settings(self) -> dict[str, Any]:
        """Return the network's settings by the names of their arguments."""
        return flat(self.config)

    def build(self) -> WaveNet:
        """Return a network with random weights."""
        return WaveNet(self.config, self.training.checkpoint_layers, self.training.dropout)

    def fit_normalization(self, model: WaveNet, draw: Callable[[int], Segments]) -> None:
        """Set mean and scale of the conditioning features."""
        if model.conditioner is not None:
            frames = draw(NORMALIZATION_SEGMENTS).frames
            assert frames is not None
            model.conditioner.fit_normalization(frames.values)

    def losses(
        self, model: WaveNet, segments: Segments, count: int, device: torch.device, key: tuple[int, ...]
    ) -> Losses:
        """Return the cross-entropy of a batch, with and without label smoothing."""
        training = self.training
        if training.dropout:
            # Dropout depends on the key alone: a resumed run, and the same batches divided among processes,
            # drop the same values.
            torch.manual_seed(generator_seed(*key))
        frames = segments.frames
        with autocast(device, training.precision):
            gate_bias = model.gate_bias_for(frames and frames.rows(slice(None), device))
            logits = model(segments.inputs.to(device, non_blocking=True), gate_bias)
        targets = segments.targets.to(device, non_blocking=True)
        loss = cross_entropy(logits, targets, per_target=cross_entropy_per_target)
        if not training.label_smoothing:
            return Losses(loss, loss)
        smoothed = smoothed_cross_entropy(logits, targets, training.label_smoothing)
        return Losses(smoothed / count, loss)

    def score(
        self,
        model: WaveNet,
        windows: Iterable[Segments],
        device: torch.device,
        sums: Callable[[float, float], tuple[float, ...]],
    ) -> float:
        """Return the mean negative log2-likelihood per sample."""
        return bits_per_sample(model, windows, device, self.training.precision, sums)

    def sample(
        self, model: WaveNet, data: Dataset, steps: int, seed: int, stop: Callable[[], bool]
    ) -> torch.Tensor | None:
        """Generate audio with the conditioning of the first validation samples."""
        generator = Generator(model)
        bias = generator.gate_bias(data.first_frames(steps))
        chunks = generator.stream(generator.start(1, seed, 0, bias), steps, gate_bias=bias)
        chunks = list(itertools.takewhile(lambda chunk: not stop(), chunks))
        return None if stop() else generator.decode(torch.cat(chunks, dim=1)[0])


def generator_seed(*key: int) -> int:
    """Return the seed of torch's generator for a key of whole numbers."""
    digest = hashlib.sha256(" ".join(map(str, key)).encode()).digest()
    # Torch's CPU generator uses no more than 32 bits.
    return int.from_bytes(digest[:4], "little")
