"""Bits per sample: the cost of audio in an ideal compressor that uses a network's predictions.

Training's validation and `wavenet-evaluate` both score windows of `dataset.Clips` with a `Scorer`:
the parallel form of a network, the sample loop of a generator, or a baseline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import numpy as np
import torch

from wavenet.conditioning.base import Frames
from wavenet.config import WaveNetConfig
from wavenet.data.batch import IGNORED, Segments
from wavenet.data.clips import Clips
from wavenet.errors import BackendError
from wavenet.evaluation.results import Evaluation, Sums
from wavenet.generation.generator import Generator
from wavenet.models.losses import cross_entropy
from wavenet.models.native_layers import cross_entropy_per_target
from wavenet.models.precision import autocast
from wavenet.models.wavenet import WaveNet
from wavenet.utils.files import printable

BATCH = 16
"""Windows scored together; the streams of the sample loop read its weights once per step."""

_LOOP_LOGITS = 1 << 22
_PASS_BYTES = 1 << 28


class Scorer(Protocol):
    """A model that assigns a probability to every class, given the samples before it."""

    def nats(self, inputs: torch.Tensor, targets: torch.Tensor, frames: Frames | None = None) -> np.ndarray:
        """Return -ln of the probability of each target, float (batch, time), 0 where it is `IGNORED`.

        Parameters
        ----------
        inputs : int64 tensor (batch, receptive_field - 1 + time)
        targets : int64 tensor (batch, time)
        frames : Frames, optional
            As `Clips.windows` yields them.
        """
        ...


class Parallel:
    """Scores with the parallel form of a network.

    Parameters
    ----------
    model : WaveNet
    device : torch.device, optional
        Where the model is; by default the CPU.
    precision : str
        "fp32" or "bf16" (matrix products by autocast).
    rows : int, optional
        Maximum number of windows in one pass; by default all.
    """

    def __init__(
        self,
        model: WaveNet,
        device: torch.device | None = None,
        precision: str = "fp32",
        rows: int | None = None,
    ):
        self.model = model
        self.device = device or torch.device("cpu")
        self.precision = precision
        self.rows = rows

    @torch.no_grad()
    def nats(self, inputs: torch.Tensor, targets: torch.Tensor, frames: Frames | None = None) -> np.ndarray:
        """Return the cost of each target; see `Scorer`."""
        rows, found = self.rows or len(inputs), []
        for first in range(0, len(inputs), rows):
            some = slice(first, first + rows)
            with autocast(self.device, self.precision):
                gate_bias = self.model.gate_bias_for(frames and frames.rows(some, self.device))
                logits = self.model(inputs[some].to(self.device), gate_bias)
            found.append(
                cross_entropy(logits, targets[some].to(self.device), "none", cross_entropy_per_target).cpu()
            )
        return torch.cat(found).numpy()


class Loop:
    """Scores with the sample loop of a generator, which reads the audio instead of drawing samples.

    Every window is a separate stream, primed with the window's context. Only a part of its logits is in
    memory at any time.

    Parameters
    ----------
    generator : Generator
        Its backend and precision are scored.
    """

    def __init__(self, generator: Generator):
        self.generator = generator

    def nats(self, inputs: torch.Tensor, targets: torch.Tensor, frames: Frames | None = None) -> np.ndarray:
        """Return the cost of each target; see `Scorer`."""
        config = self.generator.config
        context = config.receptive_field
        # Beyond the end of a recording nothing is scored: any class is valid input.
        last = targets[:, -1:].where(targets[:, -1:] != IGNORED, config.silence)
        fed = torch.cat([inputs[:, context:], last], dim=1)
        gate_bias = self.generator.gate_bias(frames, context)
        state = self.generator.prime(inputs[:, :context], gate_bias=gate_bias)
        steps = max(1, _LOOP_LOGITS // (len(inputs) * config.quantization_channels))
        found = []
        for samples, wanted in zip(fed.split(steps, dim=1), targets.split(steps, dim=1), strict=True):
            logits = self.generator.advance(state, samples, gate_bias).cpu()
            found.append(cross_entropy(logits, wanted, "none", cross_entropy_per_target))
        return torch.cat(found, dim=1).numpy()


def rows_per_pass(config: WaveNetConfig, segment: int) -> int:
    """Return how many windows of `segment` samples the parallel form takes at once in bounded memory."""
    # The gates of all layers are stored twice, as parts and concatenated.
    channels = 2 * config.layers * config.dilation_channels + 4 * config.residual_channels
    channels += config.skip_channels + config.head_channels + 3 * config.quantization_channels
    return max(1, min(BATCH, _PASS_BYTES // (4 * channels * (segment + config.receptive_field))))


def bits_per_sample(
    model: WaveNet,
    windows: Iterable[Segments],
    device: torch.device | None = None,
    precision: str = "fp32",
    sums: Callable[[float, float], tuple[float, ...]] = lambda nats, count: (nats, count),
) -> float:
    """Return the mean negative log2-likelihood per sample; NaN if there is nothing to score.

    Parameters
    ----------
    model : WaveNet
    windows : Segments
        As `wavenet.data.dataset.Clips.windows` yields them.
    device, precision
        As in `Parallel`.
    sums : callable
        Takes nats and samples of these windows, and returns those of all processes.
    """
    scorer = Parallel(model, device, precision)
    nats, count = 0.0, 0
    for segments in windows:
        targets = segments.targets
        nats += float(scorer.nats(*segments).sum(dtype=np.float64))
        count += int((targets != IGNORED).sum())
    nats, count = sums(nats, count)
    return nats / count / math.log(2) if count else math.nan


def evaluate(
    clips: Clips,
    scorers: Mapping[str, Scorer],
    segment: int,
    max_samples: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score the same samples with each of several scorers.

    Parameters
    ----------
    clips : Clips
        Every real sample is scored once, with its complete context.
    scorers : dict of Scorer
        By the names of their scores.
    segment : int
        Samples per window. It limits memory and changes only rounding, except for a baseline that is fitted
        to windows.
    max_samples : int, optional
        Approximate number of samples to score, in evenly spread windows; by default all.
    progress : callable, optional
        Called with (windows done, windows in total).

    Raises
    ------
    BackendError
        If a probability is not a number.
    """
    if max_samples is not None:
        segment = max(1, min(segment, max_samples))
    places = clips.places(segment, max_samples)
    samples = np.zeros(len(clips.names), dtype=np.int64)
    window_samples = np.zeros(len(places), dtype=np.int64)
    histogram = np.zeros(clips.quantization_channels, dtype=np.int64)
    sums = {name: Sums(np.zeros(len(samples)), np.zeros(len(places))) for name in scorers}
    for first in range(0, len(places), BATCH):
        some = slice(first, min(first + BATCH, len(places)))
        segments = clips.read(places[some], segment)
        targets = segments.targets
        real = targets.numpy() != IGNORED
        owners = clips.recordings(places[some], segment)[real]
        samples += np.bincount(owners, minlength=len(samples))
        window_samples[some] = real.sum(axis=1)
        histogram += np.bincount(targets.numpy()[real], minlength=len(histogram))
        for name, scorer in scorers.items():
            bits = scorer.nats(*segments).astype(np.float64) / math.log(2)
            added = np.bincount(owners, bits[real], len(samples))
            if not np.isfinite(added).all():
                wrong = clips.names[int(np.flatnonzero(~np.isfinite(added))[0])]
                raise BackendError(
                    f"{name}: the network's probabilities in {printable(wrong)} are not finite: "
                    "use another checkpoint"
                )
            sums[name].recordings[:] += added
            sums[name].windows[some] = bits.sum(axis=1)
        progress(some.stop, len(places))
    return Evaluation(clips.names, samples, window_samples, histogram, sums)
