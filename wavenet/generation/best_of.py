"""The best of several takes: the one that is as predictable as it should be, neither extreme.

A take that rings on or falls silent is too easy to predict, noise is too hard. So likelihood alone chooses
badly, and the typical take is taken: that whose bits per sample come nearest to what the network needed for
the recordings that training held out, or, where these bits are not known or say little (the streams are told
what to play, or go on from a recording), to the median of the takes at hand.
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
from wavenet.generation.likelihood import Follower
from wavenet.generation.watchdog import Watched

MAX_SAMPLES = 1 << 30
"""Of all candidates together, as they are kept until one is chosen."""


@dataclass(frozen=True)
class Choice:
    """The take chosen of several.

    Attributes
    ----------
    row : int
        Of the candidates.
    bits : float
        Its bits per sample.
    typical : float
        What they were compared with.
    lowest, highest : float
        Bits per sample of the extremes among the candidates.
    """

    row: int
    bits: float
    typical: float
    lowest: float
    highest: float


def most_typical(bits: Sequence[float], troubled: Sequence[bool], typical: float | None) -> Choice:
    """Choose among candidates.

    Parameters
    ----------
    bits : sequence of float
        Bits per sample of each.
    troubled : sequence of bool
        Which of them have gone wrong: they are taken only if all have.
    typical : float or None
        The bits per sample to come near to; None for the median of those that are well.

    The first of several that are equally near is chosen.
    """
    well = [row for row, bad in enumerate(troubled) if not bad] or list(range(len(bits)))
    aim = statistics.median(bits[row] for row in well) if typical is None else typical
    row = min(well, key=lambda row: (abs(bits[row] - aim), row))
    return Choice(row, bits[row], aim, min(bits), max(bits))


class BestOf:
    """Makes several candidates of each take together and gives out the most typical one.

    Parameters
    ----------
    generator : Generator
    state : GeneratorState
        Takes times candidates streams: those of a take stand together.
    watched : Watched
        Makes them; for a bounded number of steps.
    candidates : int
        Of each take.
    typical : float or None
        See `most_typical`.
    gate_bias : GateBias or Steering, optional
    listen : bool
        Whether takes that have gone wrong are passed over. Who is told to be silent is not blamed for it.

    Attributes
    ----------
    choices : list of Choice
        One for each take, once they are chosen.

    Raises
    ------
    ConfigError
        If there would be too many samples to keep.
    """

    def __init__(
        self,
        generator: Generator,
        state: GeneratorState,
        watched: Watched,
        candidates: int,
        typical: float | None,
        gate_bias: Bias | None = None,
        listen: bool = True,
    ):
        if watched.steps is None or watched.steps * state.batch > MAX_SAMPLES:
            raise ConfigError(
                f"--best-of {candidates}: all takes are kept until one is chosen, at most {MAX_SAMPLES:,} "
                "samples; give fewer --seconds, a smaller --batch, or fewer to choose from"
            )
        self.generator = generator
        self.watched = watched
        self.candidates = candidates
        self.typical = typical
        self.listen = listen
        self.choices: list[Choice] = []
        self._follower = Follower(generator, state, gate_bias)
        self._chunks: list[torch.Tensor] = []

    @property
    def made(self) -> int:
        """Samples of every stream that are there."""
        return self.watched.made

    @property
    def rows(self) -> list[int]:
        """Rows of the streams chosen."""
        return [take * self.candidates + choice.row for take, choice in enumerate(self.choices)]

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield nothing, int64 (faults, 0), while takes are made, and then those that are chosen."""
        nothing = torch.empty(len(self._follower.accounts) // self.candidates, 0, dtype=torch.int64)
        for chunk in self.watched:
            self._take(chunk)
            yield nothing
        yield self._chosen()

    def rest(self) -> torch.Tensor:
        """Choose among takes that were broken off."""
        if self.choices:
            return torch.empty(len(self.choices), 0, dtype=torch.int64)
        self._take(self.watched.rest())
        return self._chosen()

    def state_given(self, samples: int | None = None) -> GeneratorState:
        """Return the chosen streams as they stand at the end, or after so many samples."""
        return self.watched.state_given(samples).select(self.rows)

    def _take(self, chunk: torch.Tensor) -> None:
        if chunk.shape[1]:
            # An interrupt in between leaves a chunk that was not followed, never the other way round.
            self._chunks.append(chunk.to(torch.int32))
            self._follower.follow(chunk)

    def _chosen(self) -> torch.Tensor:
        whole = torch.cat(self._chunks, dim=1) if self._chunks else torch.empty(0, 0, dtype=torch.int32)
        rate = self.generator.config.sample_rate
        bits = [account.bits if account.samples else math.inf for account in self._follower.accounts]
        for first in range(0, len(whole), self.candidates):
            some = slice(first, first + self.candidates)
            audio = [self.generator.decode(row.to(torch.int64)).numpy() for row in whole[some]]
            troubled = [self.listen and bool(faults.troubles(each, rate)) for each in audio]
            self.choices.append(most_typical(bits[some], troubled, self.typical))
        return whole[self.rows].to(torch.int64)
