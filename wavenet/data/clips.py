"""Quantised clips as one long timeline from which training and validation cut their segments."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wavenet.conditioning.segments import Conditions
from wavenet.data.augmentation import Augmentation, played
from wavenet.data.batch import IGNORED, Segments
from wavenet.errors import AudioError
from wavenet.utils.files import printable
from wavenet.utils.statistics import entropy

# Each open map holds a file descriptor, of which a process may have as few as 256.
_OPEN_MAPS = 64
_CHUNK = 1 << 20

START_SHARE = 1 / 16
"""Share of training segments that begin with a clip.

Every generated stream begins in the silence before a clip; long recordings have so few beginnings that a
network would otherwise hardly learn to leave it.
"""


@dataclass(frozen=True)
class Clip:
    """A stretch of sound in a cache file: `length` classes of type `dtype`, from byte `offset` on.

    `name` is the relative path of the recording that it was cut from, from sample `start` on.
    """

    path: Path
    offset: int
    length: int
    dtype: np.dtype[Any]
    name: str = ""
    start: int = 0


class Clips:
    """All clips of one part of the data, packed end to end.

    Each clip is preceded by `receptive_field` samples of silence that are context only: their targets are
    -1. So a network sees the start of a clip from the state in which generation starts, and a clip may be of
    any length.

    Parameters
    ----------
    clips : sequence of Clip
        In the order of the timeline; empty ones are left out.
    receptive_field : int
        Past samples that a prediction depends on.
    quantization_channels : int
        Number of classes.
    silence : int
        The class of silence.

    Attributes
    ----------
    samples : int
        Real samples, without the gaps.
    names : list of str
        The recordings that the clips were cut from, in the order of the timeline.
    augmentation : Augmentation or None
        What is done to the segments of `batch`; None, as at first, leaves them as they are.
    conditions : Conditions or None
        What comes with every segment; None, as at first, for nothing.
    """

    def __init__(
        self, clips: Sequence[Clip], receptive_field: int, quantization_channels: int, silence: int
    ) -> None:
        self.clips = [clip for clip in clips if clip.length > 0]
        self.receptive_field = receptive_field
        self.quantization_channels = quantization_channels
        self.silence = silence
        lengths = np.array([clip.length for clip in self.clips], dtype=np.int64)
        self._ends = np.cumsum(lengths + receptive_field)
        self._starts = self._ends - lengths
        self._total = int(self._ends[-1]) if len(lengths) else 0
        self.samples = int(lengths.sum())
        self.names = list(dict.fromkeys(clip.name for clip in self.clips))
        numbers = {name: number for number, name in enumerate(self.names)}
        self._recordings = np.array([numbers[clip.name] for clip in self.clips], dtype=np.int64)
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()
        # Training may read segments ahead while something else is read for a sample.
        self._mapping = threading.Lock()
        self.augmentation: Augmentation | None = None
        self.conditions: Conditions | None = None
        self._weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, step: int, batch: int, segment: int, seed: int, first: int = 0) -> Segments:
        """Return segments at random places, the same ones whenever `step` and `seed` are the same.

        A share `START_SHARE` of the segments begins where some clip begins. For the others the timeline is
        taken as a ring and places are drawn uniformly among those whose segment holds a real sample, so that
        every real sample is equally likely to be a target. `weigh` makes some more likely than others.

        Parameters
        ----------
        step, seed : int
            Key of the draw, not negative.
        batch : int
            Number of segments.
        segment : int
            Targets per segment, in samples.
        first : int
            Segments of the draw to pass over: those of a larger batch that others take.
        """
        if not self.clips:
            raise AudioError("no audio to draw segments from: add recordings")
        raw = np.random.Philox(key=np.array([seed, step], dtype=np.uint64)).random_raw(2 * (first + batch))
        raw = raw[2 * first :]
        pairs = zip(raw[::2].tolist(), raw[1::2].tolist(), strict=True)
        starts = list(self._drawn(pairs, segment))
        key, speeds = (seed, step, first), [1.0] * batch
        if self.augmentation is not None:
            speeds = self.augmentation.speeds(step, first + batch, seed)[first:].tolist()
        rows = [
            self._read(start, segment, ring=True, speed=speed)
            for start, speed in zip(starts, speeds, strict=True)
        ]
        if self.augmentation is not None:
            rows = self.augmentation.apply(rows, step, seed, first)
        return self._segments(rows, starts, segment, key, speeds)

    def weigh(self, weight_of: Callable[[str], float]) -> None:
        """Draw segments from some recordings more or less often than their length alone would have it.

        `weight_of` is asked for each of `names`; only the ratios of its answers, all above 0, count.
        """
        weights = {name: weight_of(name) for name in self.names}
        self._weights = np.array([weights[clip.name] for clip in self.clips], dtype=np.float64)

    def _drawn(self, pairs: Iterable[tuple[int, int]], segment: int) -> Iterator[int]:
        """Yield where segments begin, each decided by two words of 64 random bits."""
        # Of a gap longer than the segment only the part counts from which a segment reaches the clip.
        gap = min(self.receptive_field, segment - 1)
        sizes = self._ends - self._starts + gap
        if self._weights is not None:
            yield from self._drawn_by_weight(pairs, sizes, self._weights)
            return
        ends = np.cumsum(sizes)
        total = int(ends[-1])
        for word, chance in pairs:
            if chance < START_SHARE * 2**64:
                yield int(self._starts[(word * len(self.clips)) >> 64])
                continue
            place = (word * total) >> 64
            clip = int(np.searchsorted(ends, place, side="right"))
            yield int(self._ends[clip]) - (int(ends[clip]) - place)

    def _drawn_by_weight(
        self, pairs: Iterable[tuple[int, int]], sizes: np.ndarray, weights: np.ndarray
    ) -> Iterator[int]:
        beginnings, ends = np.cumsum(weights), np.cumsum(sizes * weights)
        last = len(self.clips) - 1
        for word, chance in pairs:
            share = word / 2**64
            if chance < START_SHARE * 2**64:
                clip = int(np.searchsorted(beginnings, share * beginnings[-1], side="right"))
                yield int(self._starts[min(clip, last)])
                continue
            place = share * ends[-1]
            clip = min(int(np.searchsorted(ends, place, side="right")), last)
            # Rounding may reach past either end of the clip's places.
            before_end = math.ceil((ends[clip] - place) / weights[clip])
            yield int(self._ends[clip]) - min(max(before_end, 1), int(sizes[clip]))

    def windows(self, segment: int, max_samples: int | None = None, batch: int = 1) -> Iterator[Segments]:
        """Yield the timeline in order, each real sample once as a target, always with its whole context.

        Parameters
        ----------
        segment : int
            Targets per window, in samples.
        max_samples : int, optional
            Only so many windows as hold about this many targets (at least one), evenly spread.
        batch : int
            Windows per yield; the last may have fewer.
        """
        places = self.places(segment, max_samples)
        for first in range(0, len(places), batch):
            yield self.read(places[first : first + batch], segment)

    def places(self, segment: int, max_samples: int | None = None) -> np.ndarray:
        """Return where the windows of `windows` begin on the timeline, int64 (windows,)."""
        count = -(-(self._total - self.receptive_field) // segment)
        used = np.zeros(max(count, 0), dtype=bool)
        for start, end in zip(
            self._starts - self.receptive_field, self._ends - self.receptive_field, strict=True
        ):
            used[start // segment : (end - 1) // segment + 1] = True
        places = np.flatnonzero(used)
        if max_samples is not None and len(places):
            wanted = min(len(places), max(1, max_samples // segment))
            places = places[((2 * np.arange(wanted) + 1) * len(places)) // (2 * wanted)]
        return places * segment + self.receptive_field

    def read(self, places: np.ndarray, segment: int) -> Segments:
        """Return the windows that begin at some `places`."""
        starts = [int(start) for start in places]
        return self._segments([self._read(start, segment) for start in starts], starts, segment)

    def recordings(self, places: np.ndarray, segment: int) -> np.ndarray:
        """Return which of `names` each target of `read` is of, int64 (windows, segment).

        Where nothing is to be predicted it is any of them.
        """
        positions = places[:, None] + np.arange(segment)
        clips = np.searchsorted(self._ends, positions, side="right")
        return self._recordings[np.minimum(clips, len(self.clips) - 1)]

    def histogram(self) -> np.ndarray:
        """Return how often each class occurs, int64 (quantization_channels,)."""
        counts = np.zeros(self.quantization_channels, dtype=np.int64)
        for index, clip in enumerate(self.clips):
            for start in range(0, clip.length, _CHUNK):
                block = self.mapped(index)[start : start + _CHUNK]
                counts += np.bincount(block, minlength=self.quantization_channels)
        return counts

    @property
    def unigram_bits(self) -> float:
        """Entropy of single samples in bits: the score of a model that knows only the histogram."""
        return entropy(self.histogram().tolist())

    def spans(self, first: int, stop: int, ring: bool) -> Iterator[tuple[int, int, int, int]]:
        """Yield the clips that touch [first, stop) of the timeline.

        Each as its number, where it begins and ends, and which sample of its recording it begins with. As a
        ring the timeline goes on past both of its ends.
        """
        laps = range(first // self._total, (stop - 1) // self._total + 1) if ring else range(1)
        for lap in laps:
            offset = lap * self._total
            index = int(np.searchsorted(self._ends, first - offset, side="right"))
            while index < len(self.clips) and self._starts[index] + offset < stop:
                begin, end = int(self._starts[index]) + offset, int(self._ends[index]) + offset
                yield index, begin, end, self.clips[index].start
                index += 1

    def owners(self, places: np.ndarray, ring: bool) -> np.ndarray:
        """Return the number of the clip that each place belongs to, itself or as the gap before it."""
        places = places % self._total if ring else places
        return np.minimum(np.searchsorted(self._ends, places, side="right"), len(self.clips) - 1)

    def _segments(
        self,
        rows: list[tuple[np.ndarray, np.ndarray]],
        starts: list[int],
        segment: int,
        key: tuple[int, int, int] | None = None,
        speeds: list[float] | None = None,
    ) -> Segments:
        """Cut rows, as `_read` returns them, into inputs and targets, and add what comes with them."""
        values, real = (np.stack(part) for part in zip(*rows, strict=True))
        frames, before = None, self.receptive_field
        if self.conditions is not None:
            before, _ = self.conditions.audio_window(segment)
            frames = self.conditions.frames(self, starts, values, real, segment, key, speeds)
        cut = slice(before - self.receptive_field, before + segment)
        values, real = values[:, cut], real[:, cut]
        targets = np.where(real, values, IGNORED)[:, self.receptive_field :]
        return Segments(torch.from_numpy(values[:, :-1].copy()), torch.from_numpy(targets), frames)

    def _read(
        self, start: int, segment: int, ring: bool = False, speed: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the classes about a segment that begins at `start`, and which of them are real.

        They reach from `receptive_field` before it to its end, or further as its conditions need; played
        `speed` times as fast, they are of so many times as much of the timeline.
        """
        before, after = self.receptive_field, segment
        if self.conditions is not None:
            before, after = self.conditions.audio_window(segment)
        if speed == 1:
            return self._cut(start - before, before + after, ring)
        cut, classes = partial(self._cut, ring=ring), self.quantization_channels
        return played(cut, start, before, after, speed, classes, self.silence)

    def _cut(self, first: int, length: int, ring: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return a stretch of the timeline, and which of it is real."""
        values = np.full(length, self.silence, dtype=np.int64)
        real = np.zeros(length, dtype=bool)
        position, done = first, 0
        while done < length:
            if ring:
                position %= self._total
            # Past the end of the timeline lies silence, unless it is a ring.
            count = min(length - done, self._total - position) if ring else length - done
            self._fill(position, values[done : done + count], real[done : done + count])
            position, done = position + count, done + count
        return values, real

    def _fill(self, start: int, values: np.ndarray, real: np.ndarray) -> None:
        stop = start + len(values)
        index = int(np.searchsorted(self._ends, start, side="right"))
        while index < len(self.clips) and self._starts[index] < stop:
            first = max(start, int(self._starts[index]))
            last = min(stop, int(self._ends[index]))
            offset = int(self._starts[index])
            values[first - start : last - start] = self.mapped(index)[first - offset : last - offset]
            real[first - start : last - start] = True
            index += 1

    def mapped(self, index: int) -> np.ndarray:
        """Return the classes of one of `clips`, mapped from its file."""
        with self._mapping:
            if index in self._maps:
                self._maps.move_to_end(index)
                return self._maps[index]
        clip = self.clips[index]
        try:
            mapped = np.memmap(
                clip.path, dtype=clip.dtype, mode="r", offset=clip.offset, shape=(clip.length,)
            )
        except (OSError, ValueError):
            raise AudioError(
                f"the cached recording {printable(clip.path)} has gone: "
                "run again with --audio-dir to make it anew"
            ) from None
        with self._mapping:
            self._maps[index] = mapped
            if len(self._maps) > _OPEN_MAPS:
                self._maps.popitem(last=False)
        return mapped
