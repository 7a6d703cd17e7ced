"""Streams that are listened to while they are made: what goes wrong is taken back and made once more."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from wavenet.audio import faults
from wavenet.audio.faults import KINDS, NOISE, SILENCE, TONE, WINDOWS, Heard
from wavenet.conditioning.base import CombinedSource, FrameSource
from wavenet.conditioning.classes import Classes
from wavenet.conditioning.score import ScoreSource
from wavenet.engine.sampling import Sampling
from wavenet.engine.state import GeneratorState
from wavenet.generation.generator import Bias, Generator
from wavenet.generation.likelihood import predictions

LOOK_AHEAD = 16
"""Blocks (4 s) that are held back, so that they can be taken back."""

LIVE_SHARE = 4
"""Live, one block of so many is held back until there are `LOOK_AHEAD`."""

PROBE = 64
"""Samples at the beginning of each block whose entropy is asked for: less than 2 % of the work at 16 kHz."""

MARGIN = 2
"""Blocks before the trouble to go back; for every further attempt at the same place as many more."""

ATTEMPTS = 4
"""After these what was made first stays, and the trouble's kind is let pass until it has ended."""

ATTEMPTS_FROM_NOTHING = 1
"""Where noise or a tone has been all there is from the beginning, twice: no network does that by chance."""

Judged = Callable[[int, int], Collection[str]]
"""The kinds of trouble to look for in the positions [first, stop) of a stream."""


def judged_by(source: FrameSource | None, sample_rate: int, start: int = 0) -> Judged:
    """Return what may be called trouble in streams that are told something.

    Nobody who is told to be silent is blamed for it: of a score only silence in which notes are struck is
    looked for, and no tone, which it may ask for; of a way from class to class no silence; of spectra and
    other frames nothing.

    Parameters
    ----------
    source : FrameSource or None
    sample_rate : int
        In Hz.
    start : int
        Position at which frame 0 begins.
    """
    if source is None or source.constant:
        return lambda first, stop: KINDS
    if isinstance(source, Classes):
        return lambda first, stop: (NOISE, TONE)
    if isinstance(source, ScoreSource):
        onsets = np.asarray(source.score.onset)

        def of_notes(first: int, stop: int) -> Collection[str]:
            # Struck early enough to be heard in the stretch.
            struck = (onsets >= (first - start) / sample_rate) & (onsets < (stop - start) / sample_rate - 0.5)
            return (NOISE, SILENCE) if struck.any() else (NOISE,)

        return of_notes
    if isinstance(source, CombinedSource):
        parts = [judged_by(part, sample_rate, start) for part in source.parts]
        return lambda first, stop: [
            kind for kind in KINDS if all(kind in part(first, stop) for part in parts)
        ]
    return lambda first, stop: ()


@dataclass(frozen=True)
class Rewind:
    """Something taken back.

    Attributes
    ----------
    row : int
        Of the batch.
    kind : str
        What was wrong.
    at : int
        Sample, counted from the beginning of the take, from which it was made once more.
    helped : bool
        False where nothing was taken back: what was made stays, as it goes wrong again and again.
    """

    row: int
    kind: str
    at: int
    helped: bool = True


@dataclass(frozen=True)
class _Kept:
    """A stream as it was, should no attempt to mend it help; `since` is the first block that was replaced."""

    since: int
    blocks: int
    samples: list[torch.Tensor]
    heard: list[Heard]
    snapshots: list[tuple[int, GeneratorState]]
    state: GeneratorState


@dataclass
class _Row:
    """What is kept of one stream.

    Attributes
    ----------
    blocks : int
        Blocks made.
    first : int
        The earliest block whose samples are kept.
    samples : list of tensors (samples,)
        The blocks from there on.
    heard : list of Heard
        The latest blocks.
    snapshots : list of (blocks, state)
        One or two, `LOOK_AHEAD` apart, from which any state since can be found again.
    attempts : int
        Times that it went back to about the same place, which is before block `trouble_at`.
    original : _Kept or None
        What was made before the first of these attempts.
    muted : set of str
        Kinds of trouble that no attempt has ended.
    """

    snapshots: list[tuple[int, GeneratorState]]
    blocks: int = 0
    first: int = 0
    samples: list[torch.Tensor] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    attempts: int = 0
    trouble_at: int = -LOOK_AHEAD
    original: _Kept | None = None
    muted: set[str] = field(default_factory=set)

    def between(self, first: int, stop: int) -> torch.Tensor:
        """Return the samples of blocks [first, stop), int64 (samples,)."""
        some = self.samples[first - self.first : stop - self.first]
        return torch.cat([*some, torch.empty(0, dtype=torch.int32)]).to(torch.int64)

    def forget(self, given: int) -> None:
        """Drop what no longer can be asked for, once `given` blocks were given out."""
        first = min(given, self.snapshots[0][0]) if self.snapshots else given
        del self.samples[: first - self.first], self.heard[: -max(WINDOWS.values())]
        self.first = first

    def back(self, block: int) -> None:
        """Take back all blocks from a number on."""
        lost = self.blocks - block
        del self.samples[block - self.first :], self.heard[max(0, len(self.heard) - lost) :]
        self.snapshots = [each for each in self.snapshots if each[0] <= block]
        self.blocks = block


class Watched:
    """Draws streams as `Generator.stream` does, and goes back where one falls silent, into noise, or sticks.

    Streams are made in blocks of a quarter of a second, which are heard (`faults`) together with the
    entropy of the network's predictions at their beginning. A stream in trouble goes back to somewhat before
    that began, and on with the random numbers of its next sub-stream; so what it sounds like still depends on
    its seed and number only. 4 s are held back for this; live, they are saved up little by little, a quarter
    of all that was made, so that the first block is given out at once. What was given out stays.

    Of every stream two earlier states are kept, and 8 s of samples at most.

    Parameters
    ----------
    generator : Generator
    state : GeneratorState
        Changed in place, but not to be used until the end.
    steps : int or None
        Samples per stream; None for ever.
    sampling : Sampling
        If it leaves nothing to chance (temperature 0, top-k 1), going back gains nothing and is not done.
    gate_bias : GateBias or Steering, optional
        One row for all streams.
    judged : Judged, optional
        By default everything is looked for; see `judged_by`. None looks for nothing and holds nothing back.
    live : bool
        Whether somebody waits for the beginning.
    keep : bool
        Whether `state_given` will be asked although nothing is looked for.

    Attributes
    ----------
    rewinds : list of Rewind
    """

    def __init__(
        self,
        generator: Generator,
        state: GeneratorState,
        steps: int | None,
        sampling: Sampling | None = None,
        gate_bias: Bias | None = None,
        judged: Judged | None = lambda first, stop: KINDS,
        live: bool = False,
        keep: bool = False,
    ):
        self.generator = generator
        self.state = state
        self.steps = steps
        self.sampling = sampling or Sampling()
        self.gate_bias = gate_bias
        self.judged = judged
        if self.sampling.temperature == 0 or self.sampling.top_k == 1:
            self.judged = None
        self.live = live
        self.keep = keep or self.judged is not None
        self.rewinds: list[Rewind] = []
        self._given = 0
        self._settled = True
        self._size = faults.block_samples(generator.config.sample_rate)
        self._start = state.position.tolist()
        self._rows = [_Row([(0, state.select([row]))] if self.keep else []) for row in range(state.batch)]

    @property
    def made(self) -> int:
        """Samples of every stream that are there, given out or held back."""
        return self._samples(self._least())

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield new samples, int64 (batch, some), the same number of every stream.

        There may be none yet: then it is time to look at the outside world.
        """
        while not self._over():
            self._advance()
            yield self._give(self._ready())

    def rest(self) -> torch.Tensor:
        """Give out what is held back; after an interrupt, too."""
        return self._give(self._least())

    @property
    def rows(self) -> list[int]:
        """Rows of the streams given out: all."""
        return list(range(self.state.batch))

    def state_given(self, samples: int | None = None) -> GeneratorState:
        """Return the streams as they stand after what was given out, or all of it but the last time.

        Parameters
        ----------
        samples : int, optional
            Those that count as given out: an interrupt may have come between.
        """
        blocks = self._given if samples is None else -(-samples // self._size)
        if self._settled and all(row.blocks == blocks for row in self._rows):
            return self.state
        return GeneratorState.join([self._found(row, blocks) for row in range(self.state.batch)])

    def _least(self) -> int:
        return min(row.blocks for row in self._rows)

    def _over(self) -> bool:
        return self.steps is not None and self.made >= self.steps

    def _samples(self, blocks: int) -> int:
        return blocks * self._size if self.steps is None else min(blocks * self._size, self.steps)

    def _ready(self) -> int:
        """Return how many blocks may have been given out by now."""
        blocks = self._least()
        if self.judged is None or self._over():
            return blocks
        held = min(LOOK_AHEAD, blocks // LIVE_SHARE) if self.live else LOOK_AHEAD
        return max(self._given, blocks - held)

    def _give(self, blocks: int) -> torch.Tensor:
        parts = [row.between(self._given, blocks) for row in self._rows]
        for row in self._rows:
            # Not yet what is given out now, which an interrupt may keep from arriving.
            row.forget(self._given)
        self._given = blocks
        return torch.stack(parts)

    def _advance(self) -> None:
        """Make a block of those streams that are behind, or of all."""
        low = self._least()
        numbers = [number for number, row in enumerate(self._rows) if row.blocks == low]
        whole = len(numbers) == len(self._rows)
        state = self.state if whole else self.state.select(numbers)
        steps = self._samples(low + 1) - self._samples(low)
        # The last block may be too short to be judged.
        probe = state.clone() if self.judged is not None and steps == self._size else None
        self._settled = False
        options = (self.sampling.temperature, self.sampling.top_k, self.sampling.top_p)
        drawn = torch.cat(list(self.generator.stream(state, steps, None, *options, self.gate_bias)), dim=1)
        if not whole:
            for place, number in enumerate(numbers):
                self._put(number, state.select([place]))
        heard = None if probe is None else self._hear(probe, drawn)
        for place, number in enumerate(numbers):
            row = self._rows[number]
            row.samples.append(drawn[place].to("cpu", torch.int32))
            row.blocks += 1
            if heard is not None:
                row.heard.append(heard.stream(place))
                self._judge(number)
            if self.keep and row.blocks - row.snapshots[-1][0] >= LOOK_AHEAD:
                row.snapshots = [row.snapshots[-1], (row.blocks, self.state.select([number]))]
        self._settled = True

    def _hear(self, before: GeneratorState, drawn: torch.Tensor) -> Heard:
        config = self.generator.config
        entropy, _ = predictions(self.generator, before, drawn[:, :PROBE], self.gate_bias)
        audio = self.generator.decode(drawn).numpy()
        return faults.hear(audio, config.sample_rate, entropy.mean(axis=1), config.quantization_channels)

    def _judge(self, number: int) -> None:
        """Take back what is wrong with one stream."""
        assert self.judged is not None
        row = self._rows[number]
        stop = self._start[number] + row.blocks * self._size
        kinds = [
            kind
            for kind, blocks in WINDOWS.items()
            if len(row.heard) >= blocks and kind in self.judged(stop - blocks * self._size, stop)
        ]
        row.muted = {kind for kind in row.muted if faults.judge(row.heard, [kind])}
        kind = faults.judge(row.heard, [kind for kind in kinds if kind not in row.muted])
        if kind is None:
            if row.blocks > row.trouble_at + LOOK_AHEAD:
                row.original = None
            return
        row.attempts = row.attempts + 1 if row.blocks <= row.trouble_at + WINDOWS[kind] else 1
        row.trouble_at = row.blocks
        target = max(row.blocks - WINDOWS[kind] - MARGIN * row.attempts, row.snapshots[0][0], self._given)
        # A stream that begins with silence may well begin later.
        nothing = row.blocks == WINDOWS[kind] and kind != SILENCE
        attempts = ATTEMPTS_FROM_NOTHING if nothing else ATTEMPTS
        if row.attempts > attempts or target >= row.blocks:
            self.rewinds.append(Rewind(number, kind, self._samples(self._restored(number, target)), False))
            row.muted.add(kind)
            row.attempts = 0
            return
        if row.attempts == 1:
            state = self.state.select([number])
            row.original = _Kept(
                target, row.blocks, row.samples[target - row.first :], [*row.heard], [*row.snapshots], state
            )
        elif row.original is not None and target < row.original.since:
            kept = row.original
            before = row.samples[target - row.first : kept.since - row.first]
            row.original = dataclasses.replace(kept, since=target, samples=[*before, *kept.samples])
        state = self._found(number, target)
        state.substream += 1
        self._put(number, state)
        row.back(target)
        self.rewinds.append(Rewind(number, kind, self._samples(target)))

    def _restored(self, number: int, block: int) -> int:
        """Put back what was made of a stream before any attempt; return the block from which it is that.

        What was given out since is not taken back: then all stays as it is, and `block` is returned.
        """
        row = self._rows[number]
        kept, row.original = row.original, None
        if kept is None or self._given > kept.since:
            return block
        snapshots = [each for each in kept.snapshots if each[0] >= row.first]
        if not snapshots or snapshots[0][0] > self._given:
            return block
        row.back(kept.since)
        row.samples += kept.samples
        row.blocks, row.heard, row.snapshots = kept.blocks, kept.heard, snapshots
        self._put(number, kept.state)
        return kept.since

    def _found(self, number: int, block: int) -> GeneratorState:
        """Return the state of one stream after so many blocks: a snapshot that is fed what came then."""
        row = self._rows[number]
        begun, state = next(each for each in reversed(row.snapshots) if each[0] <= block)
        state = state.clone()
        for samples in row.between(begun, block)[None].split(self._size, dim=1):
            if samples.shape[1]:
                self.generator.advance(state, samples, self.gate_bias)
        state.substream = self.state.substream[[number]]
        return state

    @torch.inference_mode()
    def _put(self, number: int, state: GeneratorState) -> None:
        """Write one stream into the batch."""
        for name in ("queues", "position", "last_sample", "substream"):
            getattr(self.state, name)[number] = getattr(state, name)[0]
