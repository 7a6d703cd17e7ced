"""Clips of PCM as one long timeline from which training and validation read their segments."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from wavenet.audio import mulaw, pcm
from wavenet.conditioning.segments import Conditions
from wavenet.data.augmentation import Augmentation, resampled_segment
from wavenet.data.batch import IGNORED, Segments
from wavenet.errors import AudioError
from wavenet.utils.files import printable
from wavenet.utils.statistics import entropy

# Each open map holds a file descriptor, of which a process may have as few as 256.
_OPEN_MAPS = 64
_CHUNK = 1 << 18

START_SHARE = 1 / 16
"""Share of training segments that begin with a clip.

Every generated stream starts from the silence before a clip. Long recordings contain so few clip beginnings
that a network would otherwise hardly learn to start.
"""


@dataclass(frozen=True)
class Clip:
    """A non-silent span of a recording: `length` samples of 16-bit PCM from byte `offset` of a cache file.

    `name` is the relative path of the recording; the clip begins at its sample `start`.
    """

    path: Path
    offset: int
    length: int
    name: str = ""
    start: int = 0


class Clips:
    """All clips of one part of the data, end to end on one timeline.

    Each clip is preceded by a gap: `receptive_field` samples of silence (amplitude 0) that serve as context
    only; their targets are -1. So a network sees the start of a clip from the same state in which generation
    starts, and a clip may have any length. Samples become mu-law classes when a batch is made.

    Parameters
    ----------
    clips : sequence of Clip
        In the order of the timeline; empty ones are left out.
    receptive_field : int
        Past samples that a prediction depends on.
    quantization_channels : int
        Number of mu-law classes of the batches.

    Attributes
    ----------
    samples : int
        Real samples, without the gaps.
    names : list of str
        The recordings that the clips belong to, in the order of the timeline.
    augmentation : Augmentation or None
        Applied to the segments of `batch`; initially None, for no change.
    conditions : Conditions or None
        Makes the conditioning frames of every segment; initially None, for no frames.
    """

    def __init__(self, clips: Sequence[Clip], receptive_field: int, quantization_channels: int) -> None:
        self.clips = [clip for clip in clips if clip.length > 0]
        self.receptive_field = receptive_field
        self.quantization_channels = quantization_channels
        lengths = np.array([clip.length for clip in self.clips], dtype=np.int64)
        self._ends = np.cumsum(lengths + receptive_field)
        self._starts = self._ends - lengths
        self._total = int(self._ends[-1]) if len(lengths) else 0
        self.samples = int(lengths.sum())
        self.names = list(dict.fromkeys(clip.name for clip in self.clips))
        numbers = {name: number for number, name in enumerate(self.names)}
        self._recordings = np.array([numbers[clip.name] for clip in self.clips], dtype=np.int64)
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()
        # A training thread may read ahead while another thread reads for a validation.
        self._map_lock = threading.Lock()
        self.augmentation: Augmentation | None = None
        self.conditions: Conditions | None = None
        self._weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, step: int, batch: int, segment: int, seed: int, first: int = 0) -> Segments:
        """Return segments at random positions; equal `step` and `seed` give equal segments.

        A share `START_SHARE` of the segments begins where a clip begins. For the others the timeline is a
        ring, and positions are drawn uniformly among those whose segment contains a real sample, so that
        every real sample is equally likely to be a target. `set_weights` changes these odds.

        Parameters
        ----------
        step, seed : int
            Key of the draw, not negative.
        batch : int
            Number of segments.
        segment : int
            Targets per segment, in samples.
        first : int
            Segments of the draw to skip, for processes that share a larger batch.

        Raises
        ------
        AudioError
            If there are no clips, or a cache file is missing.
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
            scaled = self.augmentation.apply([audio for audio, _ in rows], step, seed, first)
            rows = [(audio, real) for audio, (_, real) in zip(scaled, rows, strict=True)]
        return self._segments(rows, starts, segment, key, speeds)

    def set_weights(self, weight_of: Callable[[str], float]) -> None:
        """Draw segments from recordings in proportion to length times weight.

        `weight_of` is called with each of `names` and returns a number above 0; only the ratios matter.
        """
        weights = {name: weight_of(name) for name in self.names}
        self._weights = np.array([weights[clip.name] for clip in self.clips], dtype=np.float64)

    def _drawn(self, pairs: Iterable[tuple[int, int]], segment: int) -> Iterator[int]:
        """Yield the positions of segments, each determined by two words of 64 random bits."""
        # In a gap longer than the segment, only positions whose segment reaches the clip count.
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
            # Rounding may give a position outside the clip.
            before_end = math.ceil((ends[clip] - place) / weights[clip])
            yield int(self._ends[clip]) - min(max(before_end, 1), int(sizes[clip]))

    def windows(self, segment: int, max_samples: int | None = None, batch: int = 1) -> Iterator[Segments]:
        """Yield the timeline in order: each real sample once as a target, with its full context.

        Parameters
        ----------
        segment : int
            Targets per window, in samples.
        max_samples : int, optional
            Yield only about as many windows as contain this many targets (at least one), evenly spread.
        batch : int
            Windows per yield; the last may have fewer.
        """
        places = self.places(segment, max_samples)
        for first in range(0, len(places), batch):
            yield self.read(places[first : first + batch], segment)

    def places(self, segment: int, max_samples: int | None = None) -> np.ndarray:
        """Return the positions of the windows of `windows` on the timeline, int64 (windows,)."""
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
        """Return the windows at the given positions."""
        starts = [int(start) for start in places]
        return self._segments([self._read(start, segment) for start in starts], starts, segment)

    def recordings(self, places: np.ndarray, segment: int) -> np.ndarray:
        """Return the index into `names` of each target of `read`, int64 (windows, segment).

        The value is arbitrary where the target is -1.
        """
        positions = places[:, None] + np.arange(segment)
        clips = np.searchsorted(self._ends, positions, side="right")
        return self._recordings[np.minimum(clips, len(self.clips) - 1)]

    def histogram(self) -> np.ndarray:
        """Return how often each mu-law class occurs, int64 (quantization_channels,)."""
        counts = np.zeros(1 << 16, dtype=np.int64)
        for index, clip in enumerate(self.clips):
            for start in range(0, clip.length, _CHUNK):
                block = self.pcm(index)[start : start + _CHUNK]
                counts += np.bincount(block.view("<u2"), minlength=len(counts))
        levels = np.arange(1 << 16, dtype="<u2").view(pcm.DTYPE)
        found = np.zeros(self.quantization_channels, dtype=np.int64)
        np.add.at(found, self._encode(pcm.to_float(levels)), counts)
        return found

    @property
    def unigram_bits(self) -> float:
        """Entropy of single samples in bits: the score of a model that knows only the histogram."""
        return entropy(self.histogram().tolist())

    def audio(self, first: int, count: int, ring: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return a stretch of the timeline.

        Parameters
        ----------
        first : int
            Position of the first sample.
        count : int
            Number of samples.
        ring : bool
            Whether the timeline repeats past both of its ends; otherwise there is silence.

        Returns
        -------
        float32 array (count,)
            Amplitudes in [-1, 1), 0 between clips.
        bool array (count,)
            Which of them are real.
        """
        values = np.zeros(count, dtype=np.float32)
        real = np.zeros(count, dtype=bool)
        position, done = first, 0
        while done < count:
            if ring:
                position %= self._total
            # Silence follows the end of the timeline, unless it is a ring.
            length = min(count - done, self._total - position) if ring else count - done
            self._fill(position, values[done : done + length], real[done : done + length])
            position, done = position + length, done + length
        return values, real

    def spans(self, first: int, stop: int, ring: bool) -> Iterator[tuple[int, int, int, int]]:
        """Yield the clips that overlap [first, stop) of the timeline.

        Each as its number, its begin and end on the timeline, and its first sample within its recording. As
        a ring the timeline repeats past both of its ends.
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
        """Return the number of the clip that contains each position, or whose gap contains it."""
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
        """Encode rows, as `_read` returns them, into inputs and targets, and add their frames."""
        audio, real = (np.stack(part) for part in zip(*rows, strict=True))
        frames, before = None, self.receptive_field
        if self.conditions is not None:
            before, _ = self.conditions.audio_window(segment)
            frames = self.conditions.frames(self, starts, audio, segment, key, speeds)
        cut = slice(before - self.receptive_field, before + segment)
        values = self._encode(audio[:, cut])
        targets = np.where(real[:, cut], values, IGNORED)[:, self.receptive_field :]
        return Segments(torch.from_numpy(values[:, :-1].copy()), torch.from_numpy(targets), frames)

    def _encode(self, audio: np.ndarray) -> np.ndarray:
        return mulaw.encode(audio, self.quantization_channels)

    def _read(
        self, start: int, segment: int, ring: bool = False, speed: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the audio of a segment whose targets begin at `start`, and which of it is real.

        It extends from `receptive_field` samples before `start` to the segment's end, or further if the
        conditioning needs more. At another speed it covers `speed` times as much of the timeline.
        """
        before, after = self.receptive_field, segment
        if self.conditions is not None:
            before, after = self.conditions.audio_window(segment)
        if speed == 1:
            return self.audio(start - before, before + after, ring)
        return resampled_segment(partial(self.audio, ring=ring), start, before, after, speed)

    def _fill(self, start: int, values: np.ndarray, real: np.ndarray) -> None:
        stop = start + len(values)
        index = int(np.searchsorted(self._ends, start, side="right"))
        while index < len(self.clips) and self._starts[index] < stop:
            first = max(start, int(self._starts[index]))
            last = min(stop, int(self._ends[index]))
            offset = int(self._starts[index])
            block = self.pcm(index)[first - offset : last - offset]
            values[first - start : last - start] = pcm.to_float(block)
            real[first - start : last - start] = True
            index += 1

    def pcm(self, index: int) -> np.ndarray:
        """Return the samples of one of `clips`, int16 (length,), mapped from its file.

        Raises `AudioError` if the file is missing.
        """
        with self._map_lock:
            if index in self._maps:
                self._maps.move_to_end(index)
                return self._maps[index]
        clip = self.clips[index]
        try:
            mapped = np.memmap(clip.path, dtype=pcm.DTYPE, mode="r", offset=clip.offset, shape=(clip.length,))
        except (OSError, ValueError):
            raise AudioError(
                f"the cached recording {printable(clip.path)} is missing: "
                "prepare the folder of recordings again"
            ) from None
        with self._map_lock:
            self._maps[index] = mapped
            if len(self._maps) > _OPEN_MAPS:
                self._maps.popitem(last=False)
        return mapped
