"""A folder of recordings as training and validation clips, quantised once and cached on disk."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wavenet.conditioning.base import Frames
from wavenet.config import WaveNetConfig
from wavenet.data.cache import Entry, Index, Settings
from wavenet.data.clips import Clip, Clips
from wavenet.data.preparation import (
    VALIDATION,
    Names,
    PathLike,
    Progress,
    Sources,
    from_cache,
    from_folders,
)
from wavenet.data.report import DataReport, by_reason, reasons_told
from wavenet.errors import AudioError
from wavenet.utils.files import printable

__all__ = ["Clips", "DataConfig", "DataReport", "Prepared", "held_out", "prepare"]

# A recording is reported as clipped from this share of its samples on; less happens to any loud master.
_CLIPPED_SHARE = 1e-3


@dataclass(frozen=True)
class DataConfig:
    """How recordings become clips, besides the audio format that the network fixes.

    Attributes
    ----------
    silence_db : float or None
        Parts this many dB below the loudest part of their recording are removed; None keeps them.
    validation_fraction : float
        Share of the files held out.
    """

    silence_db: float | None = 40.0
    validation_fraction: float = 0.1


@dataclass(frozen=True)
class Prepared:
    """The data ready for training.

    Attributes
    ----------
    train, validation : Clips
        The two parts.
    report : DataReport
        About them.
    whole : Clips
        Both as one, with no file divided.
    seconds : dict from str to float
        How long each recording is, with its silence.
    """

    train: Clips
    validation: Clips
    report: DataReport
    whole: Clips
    seconds: dict[str, float]

    def beginning(self, steps: int) -> Frames | None:
        """Return what the first samples of the validation part (or else of training's) come with."""
        clips = self.validation if self.validation.samples else self.train
        return clips.read(clips.places(steps)[:1], steps).frames


def held_out(name: str, validation_fraction: float) -> bool:
    """Whether a recording belongs to validation, decided by its relative path ("/" between parts) alone."""
    digest = hashlib.sha256(os.fsencode(name)).digest()
    return int.from_bytes(digest[:8], "little") < validation_fraction * 2**64


def prepare(
    audio_dir: PathLike | Sequence[PathLike] | None,
    cache_dir: PathLike,
    config: WaveNetConfig,
    data: DataConfig | None = None,
    progress: Progress | None = None,
    exclude: Iterable[PathLike] = (),
    val_dir: PathLike | None = None,
    patterns: Iterable[str] = (),
) -> Prepared:
    """Find, decode and quantise recordings, or take them from the cache, and split them.

    A file that cannot be used is skipped, and named in the report. Several files are prepared at once, one
    per core; what comes of it does not depend on which is done first, and an interrupt loses only those at
    hand. Memory does not grow with the length of the recordings; the cache takes one byte per sample (two
    above 256 classes), and for a while four per sample of the recordings at hand.

    Parameters
    ----------
    audio_dir : path, sequence of paths, or None
        Folder or folders of recordings, searched recursively. None takes what `cache_dir` holds in this
        format, without looking at any recording and without needing a library that reads them.
    cache_dir : path
        Made if missing. Several runs may share it, also at the same time.
    config : WaveNetConfig
        For the audio format and the receptive field.
    data : DataConfig, optional
        Silence removal and split.
    progress : callable, optional
        Called with (files done, files in all, printable relative path) after each file.
    exclude : paths
        Folders below `audio_dir` that are not searched.
    val_dir : path, optional
        Folder of the recordings for validation; those of `audio_dir` are then all for training.
    patterns : strings
        Globs of relative paths to leave out, as "drafts/*" or "*.mp3".

    Raises
    ------
    AudioError
        If no usable recording is found, or the cache cannot be read or written.
    """
    data = data or DataConfig()
    cache_dir = Path(cache_dir)
    silence_db = None if data.silence_db is None else float(data.silence_db)
    settings = Settings(config.sample_rate, config.quantization_channels, config.normalization, silence_db)
    if isinstance(patterns, str):
        raise TypeError(f"patterns = {patterns!r}: must be several strings")
    if audio_dir is None:
        if val_dir is not None:
            raise AudioError(
                f"--val-dir {printable(val_dir)}: needs --audio-dir for what is to be trained on"
            )
        index, entries = from_cache(cache_dir, settings, tuple(patterns), progress)
    else:
        folders = (audio_dir,) if isinstance(audio_dir, str | os.PathLike) else tuple(audio_dir)
        sources = Sources(folders, val_dir, tuple(patterns), tuple(exclude))
        index, entries = from_folders(sources, cache_dir, settings, progress)
    names = Names(index.folders)
    usable = [entry for entry in entries if entry.clips]
    skipped = {names.shown(name): why for name, why in index.skipped.items()}
    skipped.update({names.shown(entry.name): entry.facts["skipped"] for entry in entries if not entry.clips})
    if not usable:
        raise AudioError(_all_skipped(index.audio_dir, skipped))
    _check_parts(usable, names)
    train, validation, whole, split = _split(usable, names, config, data, settings)
    if not train.samples or not validation.samples:
        raise AudioError(
            f"{printable(index.audio_dir)} holds {train.samples + validation.samples} sample(s) of sound: "
            "too little to train on; add recordings"
        )
    report = _report(index, usable, names, skipped, train, validation, split, data)
    rate = config.sample_rate
    seconds = {names.shown(entry.name): entry.facts["samples"] / rate for entry in usable}
    return Prepared(train, validation, report, whole, seconds)


def _all_skipped(audio_dir: str, skipped: dict[str, str]) -> str:
    shown = "; ".join(reasons_told(by_reason(skipped)))
    return f"none of the {len(skipped)} recording(s) in {printable(audio_dir)} can be used ({shown})"


def _check_parts(usable: list[Entry], names: Names) -> None:
    """Raise `AudioError` if a part that has folders of its own is empty."""
    parts = {names.part(entry.name) for entry in usable}
    for path, part in names.folders:
        if part and part not in parts:
            flag = "--val-dir" if part == VALIDATION else "--audio-dir"
            raise AudioError(f"{flag} {printable(path)}: no recording in it can be used; add others")


def _split(
    usable: list[Entry], names: Names, config: WaveNetConfig, data: DataConfig, settings: Settings
) -> tuple[Clips, Clips, Clips, str]:
    """Divide as the folders say, or by file or, where a part would be empty, hold out the end of every file.

    Returns the training part, the validation part, all of it undivided, and the way of division.
    """
    parts: tuple[list[Clip], list[Clip], list[Clip]] = ([], [], [])
    given = [names.part(entry.name) for entry in usable]
    if any(given):
        sides, split = [part == VALIDATION for part in given], "folders"
    else:
        sides = [held_out(names.relative(entry.name), data.validation_fraction) for entry in usable]
        split = "files" if any(sides) and not all(sides) else "ends"
    for entry, side in zip(usable, sides, strict=True):
        samples = sum(entry.clips)
        if split != "ends":
            border = 0 if side else samples
        else:
            # With less than a receptive field there is little to score; but never more than half of a file.
            wanted = max(round(samples * data.validation_fraction), config.receptive_field + 1)
            border = samples - min(wanted, samples // 2)
        position = 0
        for length, first in zip(entry.clips, entry.starts, strict=True):
            before = min(max(border - position, 0), length)
            for part, start, stop in zip(parts, (0, before, 0), (before, length, length), strict=True):
                offset = entry.offset + (position + start) * settings.dtype.itemsize
                name = names.shown(entry.name)
                part.append(Clip(entry.path, offset, stop - start, settings.dtype, name, first + start))
            position += length
    made = [
        Clips(part, config.receptive_field, config.quantization_channels, config.silence) for part in parts
    ]
    return made[0], made[1], made[2], split


def _report(
    index: Index,
    usable: list[Entry],
    names: Names,
    skipped: dict[str, str],
    train: Clips,
    validation: Clips,
    split: str,
    data: DataConfig,
) -> DataReport:
    facts = {names.shown(entry.name): entry.facts for entry in usable}
    files = [len({clip.path for clip in part.clips}) for part in (train, validation)]
    settings, rate = index.settings, index.settings.sample_rate
    peaks = [20 * math.log10(fact["peak"]) for fact in facts.values()]
    removed = sum(fact["samples"] for fact in facts.values()) - train.samples - validation.samples
    return DataReport(
        audio_dir=index.audio_dir,
        sample_rate=rate,
        quantization_channels=settings.quantization_channels,
        normalization=settings.normalization,
        silence_db=data.silence_db,
        found=len(index.cached) + len(index.skipped),
        used=len(usable),
        ignored=index.ignored,
        skipped=by_reason(skipped),
        clipped={
            name: fact["over"]
            for name, fact in facts.items()
            if fact["over"] >= max(1, _CLIPPED_SHARE * fact["samples"])
        },
        split=split,
        train_files=files[0],
        validation_files=files[1],
        train_seconds=train.samples / rate,
        validation_seconds=validation.samples / rate,
        silence_seconds=removed / rate,
        train_clips=len(train),
        validation_clips=len(validation),
        rates=dict(Counter(fact["rate"] for fact in facts.values())),
        channels=dict(Counter(fact["channels"] for fact in facts.values())),
        peak_db=(min(peaks), max(peaks)),
        train_unigram_bits=train.unigram_bits,
        validation_unigram_bits=validation.unigram_bits,
        excluded=index.excluded,
    )
