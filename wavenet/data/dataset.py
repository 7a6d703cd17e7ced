"""Folders of recordings as training and validation clips, decoded once and cached as 16-bit PCM."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wavenet.audio import pcm
from wavenet.conditioning.base import Frames
from wavenet.config import AudioFormat
from wavenet.data.cache import CacheSettings, Entry, Index
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
from wavenet.data.report import DataReport, by_reason, reason_lines
from wavenet.errors import AudioError
from wavenet.utils.files import printable

__all__ = ["Clips", "DataConfig", "DataReport", "Dataset", "held_out", "prepare"]

# Share of clipped samples from which a recording is reported; loud masters stay below it.
_CLIPPED_SHARE = 1e-3


@dataclass(frozen=True)
class DataConfig:
    """How recordings are divided into clips and parts; the network determines the audio format.

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
class Dataset:
    """Recordings prepared for training.

    Attributes
    ----------
    train, validation : Clips
        The two parts.
    report : DataReport
        Facts and figures about them.
    whole : Clips
        All clips together, with no file divided.
    seconds : dict from str to float
        Length of each recording, with its silence.
    audio_format : AudioFormat
        Format of all clips.
    """

    train: Clips
    validation: Clips
    report: DataReport
    whole: Clips
    seconds: dict[str, float]
    audio_format: AudioFormat

    def first_frames(self, steps: int) -> Frames | None:
        """Return the conditioning frames of the first samples of validation (of training if it is empty)."""
        clips = self.validation if self.validation.samples else self.train
        return clips.read(clips.places(steps)[:1], steps).frames


def held_out(name: str, validation_fraction: float) -> bool:
    """Whether a recording belongs to validation, from a hash of its relative path ("/" between parts)."""
    digest = hashlib.sha256(os.fsencode(name)).digest()
    return int.from_bytes(digest[:8], "little") < validation_fraction * 2**64


def prepare(
    audio_dir: PathLike | Sequence[PathLike] | None,
    cache_dir: PathLike,
    audio_format: AudioFormat,
    receptive_field: int,
    quantization_channels: int,
    data: DataConfig | None = None,
    progress: Progress | None = None,
    exclude: Iterable[PathLike] = (),
    val_dir: PathLike | None = None,
    patterns: Iterable[str] = (),
) -> Dataset:
    """Find and decode recordings, or read them from the cache, and divide them into two parts.

    An unusable file is skipped and named in the report. Several files are decoded at once, one per core; the
    result does not depend on the order in which they finish, and an interrupt loses only unfinished files.
    Memory does not grow with the length of the recordings. The cache takes two bytes per sample, and
    temporarily four more per sample of the recordings that are being decoded. It does not depend on the last
    two of the network's settings, so networks of one audio format share it.

    Parameters
    ----------
    audio_dir : path, sequence of paths, or None
        Folder or folders of recordings, searched recursively. None reads what `cache_dir` contains in this
        format, without the recordings and without the libraries that decode them.
    cache_dir : path
        Created if missing. Several runs may share it, also at the same time.
    audio_format : AudioFormat
        Sample rate and normalisation.
    receptive_field : int
        Length of the silence before each clip, in samples; see `Clips`.
    quantization_channels : int
        Number of mu-law classes of the batches and of the report.
    data : DataConfig, optional
        Silence removal and split.
    progress : callable, optional
        Called with (files done, files in all, printable relative path) after each file.
    exclude : paths
        Folders below `audio_dir` that are not searched.
    val_dir : path, optional
        Folder of the validation recordings; those of `audio_dir` are then all for training.
    patterns : strings
        Globs of relative paths to leave out, such as "drafts/*" or "*.mp3".

    Raises
    ------
    AudioError
        If no usable recording is found, or the cache cannot be read or written.
    """
    data = data or DataConfig()
    cache_dir = Path(cache_dir)
    settings = CacheSettings(audio_format, None if data.silence_db is None else float(data.silence_db))
    if isinstance(patterns, str):
        raise TypeError(f"patterns = {patterns!r}: must be several strings")
    if audio_dir is None:
        if val_dir is not None:
            raise AudioError(
                f"{printable(val_dir)}: there are no training recordings beside it; give a folder of them",
                argument="val_dir",
            )
        index, entries = from_cache(cache_dir, settings, tuple(patterns), progress)
    else:
        folders = (audio_dir,) if isinstance(audio_dir, str | os.PathLike) else tuple(audio_dir)
        sources = Sources(folders, val_dir, tuple(patterns), tuple(exclude))
        index, entries = from_folders(sources, cache_dir, settings, progress)
    names = Names(index.folders)
    usable = [entry for entry in entries if entry.clips]
    skipped = {names.shown(name): why for name, why in index.skipped.items()}
    skipped.update(
        {names.shown(entry.name): entry.metadata["skipped"] for entry in entries if not entry.clips}
    )
    if not usable:
        raise AudioError(_all_skipped(index.audio_dir, skipped))
    _check_parts(usable, names)
    parts, split = _split(usable, names, receptive_field, data)
    train, validation, whole = (Clips(part, receptive_field, quantization_channels) for part in parts)
    if not train.samples or not validation.samples:
        raise AudioError(
            f"{printable(index.audio_dir)} contains {train.samples + validation.samples} sample(s) of sound: "
            "too few to train on; add recordings"
        )
    report = _report(index, usable, names, skipped, train, validation, split, data)
    rate = audio_format.sample_rate
    seconds = {names.shown(entry.name): entry.metadata["samples"] / rate for entry in usable}
    return Dataset(train, validation, report, whole, seconds, audio_format)


def _all_skipped(audio_dir: str, skipped: dict[str, str]) -> str:
    shown = "; ".join(reason_lines(by_reason(skipped)))
    return f"none of the {len(skipped)} recording(s) in {printable(audio_dir)} can be used ({shown})"


def _check_parts(usable: list[Entry], names: Names) -> None:
    """Raise `AudioError` if a part that has folders of its own is empty."""
    parts = {names.part(entry.name) for entry in usable}
    for path, part in names.folders:
        if part and part not in parts:
            raise AudioError(
                f"{printable(path)}: no recording in this folder can be used; add others",
                argument="val_dir" if part == VALIDATION else "audio_dir",
            )


def _split(
    usable: list[Entry], names: Names, receptive_field: int, data: DataConfig
) -> tuple[tuple[list[Clip], list[Clip], list[Clip]], str]:
    """Divide the recordings by folder, by file, or, if a part would be empty, at the end of every file.

    Returns the clips of training, of validation, and of both undivided; and the kind of split.
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
            # Scores need at least a receptive field of audio; training keeps at least half of each file.
            wanted = max(round(samples * data.validation_fraction), receptive_field + 1)
            border = samples - min(wanted, samples // 2)
        position = 0
        for length, first in zip(entry.clips, entry.starts, strict=True):
            before = min(max(border - position, 0), length)
            for part, start, stop in zip(parts, (0, before, 0), (before, length, length), strict=True):
                offset = entry.offset + (position + start) * pcm.DTYPE.itemsize
                name = names.shown(entry.name)
                part.append(Clip(entry.path, offset, stop - start, name, first + start))
            position += length
    return parts, split


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
    facts = {names.shown(entry.name): entry.metadata for entry in usable}
    files = [len({clip.path for clip in part.clips}) for part in (train, validation)]
    audio_format, rate = index.settings.audio_format, index.settings.audio_format.sample_rate
    peaks = [20 * math.log10(fact["peak"]) for fact in facts.values()]
    removed = sum(fact["samples"] for fact in facts.values()) - train.samples - validation.samples
    return DataReport(
        audio_dir=index.audio_dir,
        sample_rate=rate,
        quantization_channels=train.quantization_channels,
        normalization=audio_format.normalization,
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
