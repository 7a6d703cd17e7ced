"""Conditioning on classes: weights of named classes, constant or changing over time."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from wavenet.conditioning.base import Input, Kind, TrainingSegment, as_tensor, require_conditioning
from wavenet.config import ConditioningConfig, WaveNetConfig
from wavenet.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch

Weights = Mapping[str, float]


def mixture(names: Sequence[str], weights: Weights) -> np.ndarray:
    """Return class weights in the order of `names`, float32 (classes,).

    Raises `ConfigError` for an unknown name, listing the known ones.
    """
    import numpy as np

    for name in weights:
        if name not in names:
            known = ", ".join(names) if names else "none: it was trained without classes"
            raise ConfigError(f"class {name!r}: unknown; this network has the classes {known}")
    return np.array([weights.get(name, 0.0) for name in names], dtype=np.float32)


class Classes:
    """Weights of the classes: linear in time between break points and constant beyond them.

    Parameters
    ----------
    config : WaveNetConfig
    points : sequence of (seconds, weights)
        In order of time; a single one is constant. Weights by class name; those not named are 0.

    Raises
    ------
    ConfigError
        If a name is unknown, a weight is not finite, or the points are not in order.
    """

    complete = True

    def __init__(self, config: WaveNetConfig, points: Sequence[tuple[float, Weights]]):
        import numpy as np

        conditioning = require_conditioning(config)
        if not points:
            raise ConfigError("no class is named: give one, or a mixture as piano:0.7,cello:0.3")
        self.seconds = np.array([seconds for seconds, _ in points], dtype=np.float64)
        self.weights = np.stack([mixture(conditioning.class_names, each) for _, each in points])
        if not np.isfinite(self.weights).all():
            raise ConfigError("a class weight is not finite: give plain numbers, as piano:0.7,cello:0.3")
        if not np.isfinite(self.seconds).all() or (np.diff(self.seconds) <= 0).any():
            raise ConfigError(f"classes at {self.seconds.tolist()} seconds: times must increase")
        self.frame = conditioning.hop / config.sample_rate
        self.constant = len(points) == 1

    def read(self, first: int, count: int) -> torch.Tensor:
        """Return the weights at the beginning of each frame; see `FrameSource`."""
        import numpy as np

        times = (first + np.arange(count)) * self.frame
        rows = [np.interp(times, self.seconds, each) for each in self.weights.T]
        return as_tensor(np.stack(rows).astype(np.float32))


class ClassKind(Kind):
    """Named classes. Their weights bypass the convolutions over frames and are not normalized."""

    name = "classes"
    context_frames = 0

    def channels(self, conditioning: ConditioningConfig) -> int:
        """Return the number of classes."""
        return len(conditioning.class_names)

    def segment_frames(self, segment: TrainingSegment) -> np.ndarray:
        """Return one-hot weights, float32 (classes, frames); annotations are numbers of classes."""
        import numpy as np

        offsets = np.floor(
            segment.speed * segment.conditioning.hop * np.arange(segment.first, segment.stop)
        ).astype(np.int64)
        owners = segment.timeline.owners(segment.place + offsets, segment.ring)
        labels = np.asarray(segment.annotations, dtype=np.int64)[owners]
        return (labels == np.arange(self.channels(segment.conditioning))[:, None]).astype(np.float32)


def class_points(text: str) -> list[tuple[float, dict[str, float]]]:
    """Return the break points in a text, for `Classes`.

    "cello" and "piano:0.7,cello:0.3" are constant; "0:piano 2.5:piano:0.2,cello:0.8" moves from the first
    mixture to the second in 2.5 s. A name without a weight has weight 1.

    Raises `ConfigError` if it is not of this form.
    """
    parts = text.split()
    if len(parts) == 1 and not _TIMED.match(parts[0]):
        return [(0.0, _weights(parts[0], text))]
    points = []
    for part in parts:
        timed = _TIMED.match(part)
        if timed is None:
            raise ConfigError(f"class {text!r}: {part!r} has no time; write '0:piano 2:cello'")
        points.append((float(timed[1]), _weights(timed[2], text)))
    return points


_TIMED = re.compile(r"(\d+(?:\.\d*)?):([^\d.].*)$")


def _weights(part: str, text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for each in part.split(","):
        name, colon, weight = each.partition(":")
        try:
            value = float(weight) if colon else 1.0
        except ValueError:
            value = math.nan
        if not name or not math.isfinite(value) or name in found:
            raise ConfigError(
                f"class {text!r}: {each!r} is not NAME or NAME:WEIGHT; a mixture is piano:0.7,cello:0.3"
            )
        found[name] = value
    return found


def _from_text(config: WaveNetConfig, text: str) -> tuple[Classes, None]:
    return Classes(config, class_points(text)), None


ClassKind.inputs = (Input("class", "class, mixture of classes, or mixtures over time", _from_text),)
