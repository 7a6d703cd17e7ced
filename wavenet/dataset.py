"""A folder of recordings as training and validation clips, quantised once and cached on disk."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from wavenet.cache import Entry, Index, Settings, load, obtain, read_indexes, remove_stale, save_index
from wavenet.clips import Clip, Clips
from wavenet.config import WaveNetConfig
from wavenet.errors import AudioError
from wavenet.files import cause, find_audio, printable
from wavenet.report import DataReport, by_reason, reasons_told

__all__ = ["Clips", "DataConfig", "DataReport", "Prepared", "held_out", "prepare"]

Progress = Callable[[int, int, str], None]
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
    """The data ready for training: two parts, both as one with no file divided, and a report about them."""

    train: Clips
    validation: Clips
    report: DataReport
    whole: Clips


def held_out(name: str, validation_fraction: float) -> bool:
    """Whether a recording belongs to validation, decided by its relative path ("/" between parts) alone."""
    digest = hashlib.sha256(os.fsencode(name)).digest()
    return int.from_bytes(digest[:8], "little") < validation_fraction * 2**64


def prepare(
    audio_dir: str | os.PathLike[str] | None,
    cache_dir: str | os.PathLike[str],
    config: WaveNetConfig,
    data: DataConfig | None = None,
    progress: Progress | None = None,
    exclude: Iterable[str | os.PathLike[str]] = (),
) -> Prepared:
    """Find, decode and quantise recordings, or take them from the cache, and split them.

    A file that cannot be used is skipped, and named in the report. Memory does not grow with the length of
    the recordings; the cache takes one byte per sample (two above 256 classes), and for a while four per
    sample of the longest recording.

    Parameters
    ----------
    audio_dir : path or None
        Folder of recordings, searched recursively. None takes what `cache_dir` holds in this format, without
        looking at any recording and without needing a library that reads them.
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

    Raises
    ------
    AudioError
        If no usable recording is found, or the cache cannot be read or written.
    """
    data = data or DataConfig()
    cache_dir = Path(cache_dir)
    silence_db = None if data.silence_db is None else float(data.silence_db)
    settings = Settings(config.sample_rate, config.quantization_channels, config.normalization, silence_db)
    if audio_dir is None:
        index, entries = _from_cache(cache_dir, settings, progress)
    else:
        index, entries = _from_folder(audio_dir, cache_dir, settings, progress, exclude)
    usable = [entry for entry in entries if entry.clips]
    skipped = dict(index.skipped)
    skipped.update({entry.name: entry.facts["skipped"] for entry in entries if not entry.clips})
    if not usable:
        raise AudioError(_all_skipped(index.audio_dir, skipped))
    train, validation, whole, split = _split(usable, config, data, settings)
    if not train.samples or not validation.samples:
        raise AudioError(
            f"{printable(index.audio_dir)} holds {train.samples + validation.samples} sample(s) of sound: "
            "too little to train on; add recordings"
        )
    report = _report(index, usable, skipped, train, validation, split, data)
    return Prepared(train, validation, report, whole)


def _from_folder(
    audio_dir: str | os.PathLike[str],
    cache_dir: Path,
    settings: Settings,
    progress: Progress | None,
    exclude: Iterable[str | os.PathLike[str]],
) -> tuple[Index, list[Entry]]:
    found = find_audio(audio_dir, exclude)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AudioError(
            f"cannot make the cache folder {printable(cache_dir)} ({cause(error)}): "
            "choose another with --cache-dir"
        ) from None
    entries, skipped = [], {name: f"cannot be read ({why})" for name, why in found.unreadable.items()}
    for number, name in enumerate(found.names, 1):
        result = obtain(found.root / name, name, cache_dir, settings)
        if isinstance(result, str):
            skipped[name] = result
        else:
            entries.append(result)
        if progress is not None:
            progress(number, len(found.names), printable(name))
    index = Index(
        audio_dir=os.path.realpath(audio_dir),
        settings=settings,
        cached={entry.name: entry.path.stem for entry in entries},
        skipped=skipped,
        ignored=found.ignored,
        created=time.time_ns(),
    )
    save_index(cache_dir, index)
    remove_stale(cache_dir)
    return index, entries


def _from_cache(cache_dir: Path, settings: Settings, progress: Progress | None) -> tuple[Index, list[Entry]]:
    shown = printable(cache_dir)
    indexes = read_indexes(cache_dir)
    fitting = [index for index in indexes if index.settings == settings]
    if not indexes:
        raise AudioError(f"no prepared audio in {shown}: name the folder of recordings with --audio-dir")
    if not fitting:
        held = indexes[0].settings
        raise AudioError(
            f"the audio prepared in {shown} has another format ({held.sample_rate} Hz, "
            f"{held.quantization_channels} classes, normalization {held.normalization}, "
            f"silence_db {held.silence_db}): use these or name the folder of recordings with --audio-dir"
        )
    index, entries = fitting[0], []
    for number, (name, key) in enumerate(index.cached.items(), 1):
        entry = load(cache_dir / f"{key}.clips", name, key, settings)
        if entry is None:
            raise AudioError(
                f"the cached form of {printable(name)} in {shown} is missing or damaged: "
                "run once with --audio-dir to make it anew"
            )
        entries.append(entry)
        if progress is not None:
            progress(number, len(index.cached), printable(name))
    return index, entries


def _all_skipped(audio_dir: str, skipped: dict[str, str]) -> str:
    shown = "; ".join(reasons_told(by_reason(skipped)))
    return f"none of the {len(skipped)} recording(s) in {printable(audio_dir)} can be used ({shown})"


def _split(
    usable: list[Entry], config: WaveNetConfig, data: DataConfig, settings: Settings
) -> tuple[Clips, Clips, Clips, str]:
    """Divide by file or, where a part would be empty, hold out the end of every file.

    Returns the training part, the validation part, all of it undivided, and the way of division.
    """
    parts: tuple[list[Clip], list[Clip], list[Clip]] = ([], [], [])
    sides = [held_out(entry.name, data.validation_fraction) for entry in usable]
    split = "files" if any(sides) and not all(sides) else "ends"
    for entry, side in zip(usable, sides, strict=True):
        samples = sum(entry.clips)
        if split == "files":
            border = 0 if side else samples
        else:
            # With less than a receptive field there is little to score; but never more than half of a file.
            wanted = max(round(samples * data.validation_fraction), config.receptive_field + 1)
            border = samples - min(wanted, samples // 2)
        position = 0
        for length in entry.clips:
            before = min(max(border - position, 0), length)
            for part, start, stop in zip(parts, (0, before, 0), (before, length, length), strict=True):
                offset = entry.offset + (position + start) * settings.dtype.itemsize
                part.append(Clip(entry.path, offset, stop - start, settings.dtype, entry.name))
            position += length
    made = [
        Clips(part, config.receptive_field, config.quantization_channels, config.silence) for part in parts
    ]
    return made[0], made[1], made[2], split


def _report(
    index: Index,
    usable: list[Entry],
    skipped: dict[str, str],
    train: Clips,
    validation: Clips,
    split: str,
    data: DataConfig,
) -> DataReport:
    facts = {entry.name: entry.facts for entry in usable}
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
    )
