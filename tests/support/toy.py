"""A second kind of network, in which the logits of a sample depend on the previous sample only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from wavenet.data.batch import IGNORED
from wavenet.models.registry import Architecture
from wavenet.training.objective import Losses
from wavenet.utils.json_config import JsonConfig

ENTRY = Architecture(
    config="support.toy:ToyConfig",
    network="support.toy:Toy",
    objective="support.toy:ToyObjective",
    generator="support.toy:ToyObjective",
)


@dataclass(frozen=True)
class ToyConfig(JsonConfig):
    sample_rate: int = 4000
    classes: int = 64


class Toy(nn.Module):
    def __init__(self, config: ToyConfig):
        super().__init__()
        self.logits = nn.Embedding(config.classes, config.classes)
        self.scale = nn.Buffer(torch.ones(()))

    def forward(self, inputs, steps):
        return (self.logits(inputs[:, -steps:]) * self.scale).transpose(1, 2)


class ToyObjective:
    """Its loss uses dropout, so that resuming has to restore the random numbers."""

    def __init__(self, config, training):
        self.config, self.training = config, training

    def settings(self):
        return self.config.to_json()

    def build(self):
        return Toy(self.config)

    def fit_normalization(self, model, draw):
        model.scale.fill_(float((draw(3).targets != IGNORED).float().mean()))

    def losses(self, model, segments, count, device, key):
        torch.manual_seed(sum(key))
        logits = F.dropout(model(segments.inputs, segments.targets.shape[1]), 0.1)
        loss = F.cross_entropy(logits, segments.targets, ignore_index=IGNORED)
        return Losses(loss, loss)

    @torch.no_grad()
    def score(self, model, windows, device, sums):
        nats = count = 0
        for inputs, targets, _ in windows:
            logits = model(inputs, targets.shape[1])
            nats += float(F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum"))
            count += int((targets != IGNORED).sum())
        nats, count = sums(nats, count)
        return nats / count / torch.log(torch.tensor(2.0)).item()

    def sample(self, model, data, steps, seed, stop):
        return None if stop() else torch.zeros(steps)
