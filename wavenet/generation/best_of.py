"""Selects the most typical of several takes.

A take that decays into a tone or silence is too predictable, noise is too unpredictable, so the likelihood
alone selects badly. The typical take is selected: the one whose bits per sample are nearest to what the
network needs for the held-out recordings. Where that number is unknown or does not apply (the streams are
conditioned, or continue a recording), the median of the candidates takes its place.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from wavenet.audio import faults
from wavenet.engine.state import GeneratorState
from wavenet.errors import ConfigError
from wavenet.generation.generator import Bias, Generator
from wavenet.generation.likelihood import LikelihoodTracker
from wavenet.generation.watchdog import SupervisedStream

MAX_SAMPLES = 1 << 30
"""Of all candidates together, which are kept in memory until one is selected."""


@dataclass(frozen=True)
class Choice:
    """The candidate selected for a take.

    Attributes
    ----------
    row : int
        Among the candidates.
    bits : float
        Its bits per sample.
    typical : float
        The number of bits per sample that the candidates were compared with.
    lowest, highest : float
        Extremes of the candidates' bits per sample.
    """

    row: int
    bits: float
    typical: float
    lowest: float
    highest: float


def most_typical(bits: Sequence[float], faulty: Sequence[bool], typical: float | None) -> Choice:
    """Select one of several candidates; of several equally near, the first.

    Parameters
    ----------
    bits : sequence of float
        Bits per sample of each.
    faulty : sequence of bool
        Which of them have faults: they are selected only if all have.
    typical : float or None
        The bits per sample to be near to; None for the median of the candidates without faults.
    """
    good = [row for row, bad in enumerate(faulty) if not bad] or list(range(len(bits)))
    target = statistics.median(bits[row] for row in good) if typical is None else typical
    row = min(good, key=lambda row: (abs(bits[row] - target), row))
    return Choice(row, bits[row], target, min(bits), max(bits))


class BestOf:
    """Generates several candidates of each take and yields the most typical one.

    Parameters
    ----------
    generator : Generator
    state : GeneratorState
        Takes times candidates streams; the candidates of a take follow each other.
    supervised : SupervisedStream
        Generates them; for a limited number of steps.
    candidates : int
        Of each take.
    typical : float or None
        See `most_typical`.
    gate_bias : GateBias or GateBiasProvider, optional
    reject_faulty : bool
        Whether candidates with faults are rejected; not where the conditioning may ask for silence.

    Attributes
    ----------
    choices : list of Choice
        One for each take, once they are selected.

    Raises
    ------
    ConfigError
        If there would be too many samples to keep in memory.
    """

    def __init__(
        self,
        generator: Generator,
        state: GeneratorState,
        supervised: SupervisedStream,
        candidates: int,
        typical: float | None,
        gate_bias: Bias | None = None,
        reject_faulty: bool = True,
    ):
        if supervised.steps is None or supervised.steps * state.batch > MAX_SAMPLES:
            raise ConfigError(
                f"candidates = {candidates}: all candidates are kept in memory, at most {MAX_SAMPLES:,} "
                "samples; generate fewer seconds, fewer takes, or fewer candidates"
            )
        self.generator = generator
        self.supervised = supervised
        self.candidates = candidates
        self.typical = typical
        self.reject_faulty = reject_faulty
        self.choices: list[Choice] = []
        self._tracker = LikelihoodTracker(generator, state, gate_bias)
        self._chunks: list[torch.Tensor] = []

    @property
    def generated(self) -> int:
        """Samples of every stream generated so far."""
        return self.supervised.generated

    @property
    def rows(self) -> list[int]:
        """Rows of the streams selected."""
        return [take * self.candidates + choice.row for take, choice in enumerate(self.choices)]

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield empty chunks, int64 (takes, 0), during generation, and then the takes selected."""
        empty = torch.empty(len(self._tracker.statistics) // self.candidates, 0, dtype=torch.int64)
        for chunk in self.supervised:
            self._add(chunk)
            yield empty
        yield self._select()

    def flush(self) -> torch.Tensor:
        """Select from candidates whose generation was interrupted."""
        if self.choices:
            return torch.empty(len(self.choices), 0, dtype=torch.int64)
        self._add(self.supervised.flush())
        return self._select()

    def state_after(self, samples: int | None = None) -> GeneratorState:
        """Return the selected streams at their end, or after a number of samples."""
        return self.supervised.state_after(samples).select(self.rows)

    def _add(self, chunk: torch.Tensor) -> None:
        if chunk.shape[1]:
            # An interrupt between the two lines leaves a chunk without statistics, never the reverse.
            self._chunks.append(chunk.to(torch.int32))
            self._tracker.add(chunk)

    def _select(self) -> torch.Tensor:
        whole = torch.cat(self._chunks, dim=1) if self._chunks else torch.empty(0, 0, dtype=torch.int32)
        rate = self.generator.config.sample_rate
        bits = [each.bits if each.samples else math.inf for each in self._tracker.statistics]
        for first in range(0, len(whole), self.candidates):
            some = slice(first, first + self.candidates)
            audio = [self.generator.decode(row.to(torch.int64)).numpy() for row in whole[some]]
            faulty = [self.reject_faulty and bool(faults.find_faults(each, rate)) for each in audio]
            self.choices.append(most_typical(bits[some], faulty, self.typical))
        return whole[self.rows].to(torch.int64)
