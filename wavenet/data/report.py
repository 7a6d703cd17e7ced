"""The report on a dataset that is printed before training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from wavenet.utils.files import printable

_NAMES_SHOWN = 3
_REASONS_SHOWN = 4


@dataclass(frozen=True)
class DataReport:
    """Facts and figures of a dataset; `str(report)` is the text printed before training.

    Attributes
    ----------
    audio_dir : str
        The folder or folders of the recordings, or those that the cache was made from.
    sample_rate, quantization_channels, normalization, silence_db
        Format of the audio, number of mu-law classes, and threshold of silence removal.
    found, used : int
        Recordings found, and those that contain usable audio.
    ignored : dict from str to int
        Other files by extension.
    skipped : dict from str to list of str
        Relative paths of unused recordings by reason; with several folders, after the folder.
    clipped : dict from str to int
        Recordings with samples beyond full scale that were clipped, and how many samples.
    split : str
        "files" if whole files are held out for validation, "ends" if the end of each file is, "folders" if
        validation has a separate folder.
    train_files, validation_files : int
        Recordings in each part.
    train_seconds, validation_seconds : float
        Audio in each part, after silence was removed.
    silence_seconds : float
        Audio removed as silence.
    train_clips, validation_clips : int
        Non-silent spans in each part.
    rates, channels : dict from int to int
        Number of recordings of each sample rate in Hz and each number of channels.
    peak_db : (float, float)
        Lowest and highest peak of a recording, in dB of full scale, before normalisation.
    train_unigram_bits, validation_unigram_bits : float
        Entropy of the single samples (unigram), in bits per sample.
    excluded : dict from str to int
        Number of recordings that each exclude pattern matched; `found` does not include them.
    """

    audio_dir: str
    sample_rate: int
    quantization_channels: int
    normalization: str
    silence_db: float | None
    found: int
    used: int
    ignored: dict[str, int]
    skipped: dict[str, list[str]]
    clipped: dict[str, int]
    split: str
    train_files: int
    validation_files: int
    train_seconds: float
    validation_seconds: float
    silence_seconds: float
    train_clips: int
    validation_clips: int
    rates: dict[int, int] = field(default_factory=dict)
    channels: dict[int, int] = field(default_factory=dict)
    peak_db: tuple[float, float] = (0.0, 0.0)
    train_unigram_bits: float = 0.0
    validation_unigram_bits: float = 0.0
    excluded: dict[str, int] = field(default_factory=dict)

    @property
    def uniform_bits(self) -> float:
        """Bits per sample of a uniform prediction: log2 of the number of classes."""
        return math.log2(self.quantization_channels)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON, with paths made printable."""
        values = asdict(self)
        values["uniform_bits"] = self.uniform_bits
        values["audio_dir"] = printable(self.audio_dir)
        values["skipped"] = {why: [printable(name) for name in names] for why, names in self.skipped.items()}
        values["excluded"] = {printable(glob): count for glob, count in self.excluded.items()}
        values["clipped"] = {printable(name): value for name, value in self.clipped.items()}
        return values

    def __str__(self) -> str:
        lines = [
            ("data", printable(self.audio_dir)),
            ("files", self._files()),
            ("audio", self._audio()),
            ("source", f"{_tally(self.rates, 'Hz')}; {_tally(self.channels, 'channel(s)')}"),
            ("becomes", f"{self.sample_rate} Hz mono, {self.quantization_channels} mu-law classes"),
            ("level", self._level()),
            ("silence", self._silence()),
        ]
        entropy = (
            f"unigram {self.train_unigram_bits:.2f} training, {self.validation_unigram_bits:.2f} validation"
        )
        lines.append(("bits/sample", f"uniform {self.uniform_bits:.2f}; {entropy}"))
        for glob in (glob for glob, count in self.excluded.items() if not count):
            lines.append(("warning", f"the exclude pattern {printable(glob)!r} matches no recording"))
        if self.clipped:
            shown = (f"{printable(name)} ({count} samples)" for name, count in self.clipped.items())
            named = _first(shown, _NAMES_SHOWN)
            lines.append(("warning", f"{len(self.clipped)} recording(s) beyond full scale, clipped: {named}"))
        if self.skipped:
            count = sum(map(len, self.skipped.values()))
            lines.append(("warning", f"{count} of {self.found} recordings skipped:"))
            lines += [("", f"  {text}") for text in reason_lines(self.skipped)]
        return "\n".join(f"{label:<12}{text}" for label, text in lines)

    def _files(self) -> str:
        text = f"{self.found} found, {self.used} used"
        if self.split != "ends":
            text += f" ({self.train_files} training, {self.validation_files} validation)"
        globs = [f"{count} by {printable(glob)!r}" for glob, count in self.excluded.items() if count]
        if globs:
            text += f"; excluded {', '.join(globs)}"
        if self.ignored:
            kinds = ", ".join(printable(kind) or "no extension" for kind in list(self.ignored)[:4])
            text += f"; {sum(self.ignored.values())} other files ignored ({kinds})"
        return text

    def _audio(self) -> str:
        text = f"{_duration(self.train_seconds)} training, {_duration(self.validation_seconds)} validation"
        clips = self.train_clips + self.validation_clips
        how = {
            "files": "whole files held out",
            "ends": "the end of each file held out: too few files",
            "folders": "from a separate folder",
        }[self.split]
        return f"{text} ({how}); {clips} clips"

    def _level(self) -> str:
        low, high = (f"{value:+.1f}" for value in self.peak_db)
        return (
            f"peaks {low} dB"
            + (f" to {high} dB" if low != high else "")
            + f"; normalization {self.normalization}"
        )

    def _silence(self) -> str:
        if self.silence_db is None:
            return "kept"
        removed = _duration(self.silence_seconds)
        return f"{removed} removed (over {self.silence_db:g} dB below the loudest part of its file)"


def by_reason(skipped: dict[str, str]) -> dict[str, list[str]]:
    """Return the names of skipped recordings by reason, the most common reason first."""
    reasons: dict[str, list[str]] = {}
    for name, why in sorted(skipped.items()):
        reasons.setdefault(why, []).append(name)
    return dict(sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0])))


def reason_lines(reasons: dict[str, list[str]]) -> list[str]:
    """Return a line for each of the first reasons, with its count and first names, and one for the rest."""
    lines = [
        f"{len(names)} {why}: {_first(map(printable, names), _NAMES_SHOWN)}"
        for why, names in list(reasons.items())[:_REASONS_SHOWN]
    ]
    if rest := [printable(name) for names in list(reasons.values())[_REASONS_SHOWN:] for name in names]:
        lines.append(f"{len(rest)} for other reasons: {_first(rest, 4 * _NAMES_SHOWN)}")
    return lines


def _first(texts: Iterable[str], count: int) -> str:
    """Return the first few texts, separated by commas, and the number of the others."""
    texts = list(texts)
    return ", ".join(texts[:count]) + (f", and {len(texts) - count} more" if len(texts) > count else "")


def _tally(counts: dict[int, int], unit: str) -> str:
    common = Counter(counts).most_common(4)
    if len(counts) == 1:
        return f"{common[0][0]} {unit}"
    shown = ", ".join(f"{value} ({count} files)" for value, count in common)
    return f"{shown}{', ...' if len(counts) > len(common) else ''} {unit}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
