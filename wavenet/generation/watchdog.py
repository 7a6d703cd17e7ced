"""Monitors streams during generation and regenerates faulty passages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from wavenet.audio import faults
from wavenet.audio.faults import KINDS, NOISE, SILENCE, TONE, WINDOWS, AudioStatistics
from wavenet.conditioning.base import CombinedSource, FrameSource
from wavenet.conditioning.classes import Classes
from wavenet.conditioning.score import ScoreSource
from wavenet.engine.state import GeneratorState
from wavenet.generation.generator import Bias, Generator
from wavenet.generation.likelihood import predictions

HELD_BLOCKS = 16
"""Blocks (4 s) that are held back, so that they can be regenerated."""

LIVE_SHARE = 4
"""In live mode one block in so many is held back, up to `HELD_BLOCKS`."""

PROBE = 64
"""Samples at the beginning of each block whose entropy is computed: less than 2 % of the work at 16 kHz."""

MARGIN = 2
"""Blocks to go back before the fault; as many more with every further attempt at the same place."""

MAX_ATTEMPTS = 4
"""After these the original passage is kept, and faults of its kind are ignored until it has ended."""

MAX_ATTEMPTS_FROM_START = 1
"""The same for noise or a tone since the first sample: twice in a row, that is the network and not chance."""

FaultPolicy = Callable[[int, int], Collection[str]]
"""The kinds of fault to look for in the samples [first, stop), counted from the conditioning's beginning."""


def fault_policy(source: FrameSource | None, sample_rate: int) -> FaultPolicy:
    """Return which kinds of fault are looked for under some conditioning.

    Silence requested by the conditioning is not a fault. With a score, only silence during notes counts, and
    no tone, which the score may ask for; between classes, no silence; with spectra and other frames, nothing.

    Parameters
    ----------
    source : FrameSource or None
    sample_rate : int
        In Hz.
    """
    if source is None or source.constant:
        return lambda first, stop: KINDS
    if isinstance(source, Classes):
        return lambda first, stop: (NOISE, TONE)
    if isinstance(source, ScoreSource):
        onsets = np.asarray(source.score.onset)

        def of_notes(first: int, stop: int) -> Collection[str]:
            # Notes that begin early enough to be audible in the passage.
            early = (onsets >= first / sample_rate) & (onsets < stop / sample_rate - 0.5)
            return (NOISE, SILENCE) if early.any() else (NOISE,)

        return of_notes
    if isinstance(source, CombinedSource):
        parts = [fault_policy(part, sample_rate) for part in source.parts]
        return lambda first, stop: [
            kind for kind in KINDS if all(kind in part(first, stop) for part in parts)
        ]
    return lambda first, stop: ()


@dataclass(frozen=True)
class Rewind:
    """A fault, and what was done about it.

    Attributes
    ----------
    row : int
        Of the batch.
    kind : str
        Of the fault.
    at : int
        Sample, counted from the beginning of the take, from which it was regenerated.
    regenerated : bool
        False where the passage was kept, because every attempt had the same kind of fault.
    """

    row: int
    kind: str
    at: int
    regenerated: bool = True


@dataclass(frozen=True)
class _Original:
    """A stream before the attempts to regenerate it; `since` is the first block that they replace."""

    since: int
    blocks: int
    samples: list[torch.Tensor]
    statistics: list[AudioStatistics]
    snapshots: list[tuple[int, GeneratorState]]
    state: GeneratorState


@dataclass
class _Row:
    """The history of one stream.

    Attributes
    ----------
    blocks : int
        Blocks generated.
    first : int
        The earliest block whose samples are kept.
    samples : list of tensors (samples,)
        The blocks from there on.
    statistics : list of AudioStatistics
        Of the latest blocks.
    snapshots : list of (blocks, state)
        One or two, `HELD_BLOCKS` apart, from which any later state can be recomputed.
    attempts : int
        Number of attempts at about the same place, which is before block `fault_at`.
    original : _Original or None
        The stream before the first of these attempts.
    ignored : set of str
        Kinds of fault that no attempt has ended.
    """

    snapshots: list[tuple[int, GeneratorState]]
    blocks: int = 0
    first: int = 0
    samples: list[torch.Tensor] = field(default_factory=list)
    statistics: list[AudioStatistics] = field(default_factory=list)
    attempts: int = 0
    fault_at: int = -HELD_BLOCKS
    original: _Original | None = None
    ignored: set[str] = field(default_factory=set)

    def between(self, first: int, stop: int) -> torch.Tensor:
        """Return the samples of blocks [first, stop), int64 (samples,)."""
        some = self.samples[first - self.first : stop - self.first]
        return torch.cat([*some, torch.empty(0, dtype=torch.int32)]).to(torch.int64)

    def discard_before(self, released: int) -> None:
        """Drop the history that is not needed once `released` blocks have been yielded."""
        first = min(released, self.snapshots[0][0]) if self.snapshots else released
        del self.samples[: first - self.first], self.statistics[: -max(WINDOWS.values())]
        self.first = first

    def discard_from(self, block: int) -> None:
        """Drop all blocks from a number on."""
        dropped = self.blocks - block
        del self.samples[block - self.first :], self.statistics[max(0, len(self.statistics) - dropped) :]
        self.snapshots = [each for each in self.snapshots if each[0] <= block]
        self.blocks = block


class SupervisedStream:
    """Draws streams as `Generator.stream` does, and regenerates passages of silence, noise or a stuck tone.

    Streams are generated in blocks of a quarter of a second. Each block's audio is analysed (`faults`),
    together with the entropy of the network's predictions at its beginning. A faulty stream goes back to
    somewhat before the fault and continues with the random numbers of its next substream, so its samples
    still depend on its own state only. The last 4 s are held back for this; in live mode they are saved up
    gradually, a quarter of all blocks, so that the first block is yielded at once. Samples that were yielded
    do not change.

    Two earlier states of every stream and at most 8 s of samples are kept in memory.

    Parameters
    ----------
    generator : Generator
    state : GeneratorState
        Changed in place; not to be used until the end. A stream whose sampling settings are deterministic
        (temperature 0, top_k 1) is never regenerated, as the same samples would result.
    steps : int or None
        Samples per stream; None is endless.
    gate_bias : GateBias or GateBiasProvider, optional
        For all streams, batch 1.
    fault_policy : FaultPolicy, optional
        By default all kinds of fault are looked for; see the function `fault_policy`. None looks for nothing
        and holds nothing back.
    live : bool
        Whether a listener waits for the first samples.
    keep_history : bool
        Whether `state_after` will be called although nothing is looked for.

    Attributes
    ----------
    rewinds : list of Rewind
    """

    def __init__(
        self,
        generator: Generator,
        state: GeneratorState,
        steps: int | None,
        gate_bias: Bias | None = None,
        fault_policy: FaultPolicy | None = lambda first, stop: KINDS,
        live: bool = False,
        keep_history: bool = False,
    ):
        self.generator = generator
        self.state = state
        self.steps = steps
        self.gate_bias = gate_bias
        self._random = [not state.sampling(row).deterministic for row in range(state.batch)]
        self.fault_policy = fault_policy if any(self._random) else None
        self.live = live
        self.keep_history = keep_history or self.fault_policy is not None
        self.rewinds: list[Rewind] = []
        self._released = 0
        self._consistent = True
        self._size = faults.block_samples(generator.config.sample_rate)
        self._start = (state.position - state.conditioning_start).tolist()
        self._rows = [
            _Row([(0, state.select([row]))] if self.keep_history else []) for row in range(state.batch)
        ]

    @property
    def generated(self) -> int:
        """Samples of every stream generated so far, those held back included."""
        return self._samples(self._complete_blocks())

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield new samples, int64 (batch, some), the same number of every stream.

        An empty chunk gives the caller the opportunity to check for an interrupt.
        """
        while not self._done():
            self._advance()
            yield self._release(self._releasable_blocks())

    def flush(self) -> torch.Tensor:
        """Return the samples held back, also after an interrupt."""
        return self._release(self._complete_blocks())

    @property
    def rows(self) -> list[int]:
        """Rows of the streams yielded: all."""
        return list(range(self.state.batch))

    def state_after(self, samples: int | None = None) -> GeneratorState:
        """Return the streams as they are after the samples yielded, or without the last chunk of them.

        Parameters
        ----------
        samples : int, optional
            Number of samples that count as yielded: an interrupt may have discarded the last chunk.
        """
        blocks = self._released if samples is None else -(-samples // self._size)
        if self._consistent and all(row.blocks == blocks for row in self._rows):
            return self.state
        return GeneratorState.join([self._recomputed(row, blocks) for row in range(self.state.batch)])

    def _complete_blocks(self) -> int:
        return min(row.blocks for row in self._rows)

    def _done(self) -> bool:
        return self.steps is not None and self.generated >= self.steps

    def _samples(self, blocks: int) -> int:
        return blocks * self._size if self.steps is None else min(blocks * self._size, self.steps)

    def _releasable_blocks(self) -> int:
        blocks = self._complete_blocks()
        if self.fault_policy is None or self._done():
            return blocks
        held = min(HELD_BLOCKS, blocks // LIVE_SHARE) if self.live else HELD_BLOCKS
        return max(self._released, blocks - held)

    def _release(self, blocks: int) -> torch.Tensor:
        parts = [row.between(self._released, blocks) for row in self._rows]
        for row in self._rows:
            # The chunk returned here is kept until the next call, as an interrupt may discard it.
            row.discard_before(self._released)
        self._released = blocks
        return torch.stack(parts)

    def _advance(self) -> None:
        """Generate a block of all streams, or of those that are behind."""
        low = self._complete_blocks()
        numbers = [number for number, row in enumerate(self._rows) if row.blocks == low]
        whole = len(numbers) == len(self._rows)
        state = self.state if whole else self.state.select(numbers)
        steps = self._samples(low + 1) - self._samples(low)
        # The last block may be too short to be analysed.
        before = state.clone() if self.fault_policy is not None and steps == self._size else None
        self._consistent = False
        drawn = torch.cat(list(self.generator.stream(state, steps, gate_bias=self.gate_bias)), dim=1)
        if not whole:
            self.state.put(numbers, state)
        statistics = None if before is None else self._analyse(before, drawn)
        for place, number in enumerate(numbers):
            row = self._rows[number]
            row.samples.append(drawn[place].to("cpu", torch.int32))
            row.blocks += 1
            if statistics is not None:
                row.statistics.append(statistics.stream(place))
                if self._random[number]:
                    self._check_for_faults(number)
            if self.keep_history and row.blocks - row.snapshots[-1][0] >= HELD_BLOCKS:
                row.snapshots = [row.snapshots[-1], (row.blocks, self.state.select([number]))]
        self._consistent = True

    def _analyse(self, before: GeneratorState, drawn: torch.Tensor) -> AudioStatistics:
        config = self.generator.config
        entropy, _ = predictions(self.generator, before, drawn[:, :PROBE], self.gate_bias)
        audio = self.generator.decode(drawn).numpy()
        return faults.measure_block(
            audio, config.sample_rate, entropy.mean(axis=1), config.quantization_channels
        )

    def _fault(self, number: int) -> str | None:
        """Return the kind of fault in the latest blocks of a stream, or None."""
        assert self.fault_policy is not None
        row = self._rows[number]
        stop = self._start[number] + row.blocks * self._size
        kinds = [
            kind
            for kind, blocks in WINDOWS.items()
            if len(row.statistics) >= blocks and kind in self.fault_policy(stop - blocks * self._size, stop)
        ]
        row.ignored = {kind for kind in row.ignored if faults.detect_fault(row.statistics, [kind])}
        return faults.detect_fault(row.statistics, [kind for kind in kinds if kind not in row.ignored])

    def _check_for_faults(self, number: int) -> None:
        """Go back if a stream is faulty, or return to the original after the last attempt."""
        row, kind = self._rows[number], self._fault(number)
        if kind is None:
            if row.blocks > row.fault_at + HELD_BLOCKS:
                row.original = None
            return
        row.attempts = row.attempts + 1 if row.blocks <= row.fault_at + WINDOWS[kind] else 1
        row.fault_at = row.blocks
        target = max(row.blocks - WINDOWS[kind] - MARGIN * row.attempts, row.snapshots[0][0], self._released)
        # A stream may well begin with silence, so that gets the usual number of attempts.
        from_start = row.blocks == WINDOWS[kind] and kind != SILENCE
        attempts = MAX_ATTEMPTS_FROM_START if from_start else MAX_ATTEMPTS
        if row.attempts > attempts or target >= row.blocks:
            at = self._samples(self._restore_original(number, target))
            self.rewinds.append(Rewind(number, kind, at, False))
            row.ignored.add(kind)
            row.attempts = 0
            return
        self._keep_original(number, target)
        state = self._recomputed(number, target)
        state.substream += 1
        self.state.put([number], state)
        row.discard_from(target)
        self.rewinds.append(Rewind(number, kind, self._samples(target)))

    def _keep_original(self, number: int, target: int) -> None:
        """Before the blocks from `target` on are dropped, keep those that no attempt has replaced yet."""
        row = self._rows[number]
        if row.attempts == 1:
            state = self.state.select([number])
            row.original = _Original(
                target,
                row.blocks,
                row.samples[target - row.first :],
                [*row.statistics],
                [*row.snapshots],
                state,
            )
        elif row.original is not None and target < row.original.since:
            original = row.original
            before = row.samples[target - row.first : original.since - row.first]
            row.original = dataclasses.replace(original, since=target, samples=[*before, *original.samples])

    def _restore_original(self, number: int, block: int) -> int:
        """Put back a stream as it was before any attempt; return the block from which it is the original.

        If blocks that were replaced have been yielded, the stream stays as it is, and `block` is returned.
        """
        row = self._rows[number]
        original, row.original = row.original, None
        if original is None or self._released > original.since:
            return block
        snapshots = [each for each in original.snapshots if each[0] >= row.first]
        if not snapshots or snapshots[0][0] > self._released:
            return block
        row.discard_from(original.since)
        row.samples += original.samples
        row.blocks, row.statistics, row.snapshots = original.blocks, original.statistics, snapshots
        self.state.put([number], original.state)
        return original.since

    def _recomputed(self, number: int, block: int) -> GeneratorState:
        """Return the state of one stream after so many blocks, by feeding its samples to a snapshot."""
        row = self._rows[number]
        begun, state = next(each for each in reversed(row.snapshots) if each[0] <= block)
        state = state.clone()
        for samples in row.between(begun, block)[None].split(self._size, dim=1):
            if samples.shape[1]:
                self.generator.advance(state, samples, self.gate_bias)
        state.substream = self.state.substream[[number]]
        return state
