"""Recordings as quantised samples on disk, one file each, so that each is decoded once."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wavenet.audio import mulaw
from wavenet.audio.decoding import Decoder, Unusable, settle
from wavenet.audio.levels import Signal, sounding
from wavenet.errors import AudioError
from wavenet.utils.files import atomic_output, cause, printable

# Raise this whenever the same recording and settings would give other samples or another layout.
VERSION = 4
_MAGIC = b"wavenetQ"
# magic, version, CRC-32 of the description, CRC-32 of the samples, description bytes, number of samples
_HEADER = struct.Struct("<8sIIIIQ")
_MAX_DESCRIPTION = 1 << 28
_FINGERPRINT_BYTES = 1 << 14
_MEMORY_SAMPLES = 1 << 22
_CHUNK = 1 << 20
_STALE_SECONDS = 24 * 3600

Check = Callable[[], object]


@dataclass(frozen=True)
class Settings:
    """Everything besides the recording itself that decides its quantised samples."""

    sample_rate: int
    quantization_channels: int
    normalization: str
    silence_db: float | None
    version: int = VERSION

    @property
    def dtype(self) -> np.dtype[Any]:
        """How a class is stored: one byte, or two where there are more than 256."""
        return np.dtype("u1" if self.quantization_channels <= 256 else "<u2")


@dataclass(frozen=True)
class Entry:
    """One cached recording.

    Attributes
    ----------
    name : str
        Path of the recording relative to the folder, with "/" between parts.
    path : Path
        The cache file; samples start `offset` bytes into it.
    clips : tuple of int
        Lengths of the stretches of sound, which lie one after another.
    starts : tuple of int
        Where each of them begins in the recording, in samples at the rate of the cache.
    facts : dict
        What is known of the source; holds "skipped" with the reason if there are no samples.
    """

    name: str
    path: Path
    offset: int
    clips: tuple[int, ...]
    facts: dict[str, Any]
    starts: tuple[int, ...] = ()


class _Spill:
    """A growing signal, moved from memory to an unnamed file on disk when it becomes long."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts: list[np.ndarray] = []
        self.held = self.length = 0
        self.file: Any = None

    def append(self, block: np.ndarray) -> None:
        self.parts.append(block)
        self.held += len(block)
        self.length += len(block)
        if self.held > _MEMORY_SAMPLES:
            self._flush()

    def _flush(self) -> None:
        if self.file is None:
            # Without a name, so that nothing is left behind whatever ends the process.
            self.file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - closed by close()
        self.file.seek(0, os.SEEK_END)
        for part in self.parts:
            self.file.write(part.astype("<f4", copy=False).tobytes())
        self.parts, self.held = [], 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(self.length)
        if self.file is None:
            self.parts = [np.concatenate(self.parts)] if len(self.parts) > 1 else self.parts
            return self.parts[0][start:stop]
        if self.parts:
            self._flush()
        # Read rather than mapped: the pages of a map would count as this process's memory.
        self.file.seek(4 * start)
        return np.frombuffer(self.file.read(4 * (stop - start)), dtype="<f4")

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def key_of(path: Path, settings: Settings) -> str:
    """Return the cache key of a recording: its place, size, time, a few of its bytes, and the settings.

    Raises `OSError` if it cannot be read.
    """
    digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode())
    digest.update(os.fsencode(os.path.realpath(path)) + b"\0")
    with open(path, "rb") as stream:
        status = os.fstat(stream.fileno())
        digest.update(struct.pack("<QQ", status.st_size, status.st_mtime_ns & (2**64 - 1)))
        # Tools that keep times (rsync, archives) can replace a file by another of the same size and time.
        for start in (0, status.st_size // 2, max(0, status.st_size - _FINGERPRINT_BYTES)):
            stream.seek(start)
            digest.update(stream.read(_FINGERPRINT_BYTES))
    return digest.hexdigest()[:40]


def obtain(
    source: Path, name: str, cache_dir: Path, settings: Settings, check: Check = lambda: None
) -> Entry | str:
    """Return the cached form of a recording, made anew unless a whole and fitting one exists.

    A recording whose bytes are unusable has an entry as well, without clips; one that cannot be read at this
    time has none, and the reason is returned instead. `check` is called every few milliseconds; what it
    raises ends the work and leaves nothing behind.

    Raises
    ------
    AudioError
        If the cache cannot be written.
    """
    try:
        key = key_of(source, settings)
    except OSError as error:
        return f"cannot be read ({cause(error)})"
    path = cache_dir / f"{key}.clips"
    entry = load(path, name, key, settings)
    if entry is not None:
        return entry
    try:
        _build(source, path, key, settings, check)
    except Unusable as error:
        return error.reason
    entry = load(path, name, key, settings)
    if entry is None:
        raise AudioError(f"the cache file {printable(path)} does not read back as written: check the disk")
    return entry


def load(path: Path, name: str, key: str, settings: Settings) -> Entry | None:
    """Return the entry in a cache file, or None if it is missing, torn, damaged, or of something else."""
    try:
        with open(path, "rb") as stream:
            header = stream.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return None
            magic, version, facts_crc, samples_crc, facts_bytes, samples = _HEADER.unpack(header)
            if magic != _MAGIC or version != VERSION or facts_bytes > _MAX_DESCRIPTION:
                return None
            offset = _offset(facts_bytes)
            if os.fstat(stream.fileno()).st_size != offset + samples * settings.dtype.itemsize:
                return None
            text = stream.read(facts_bytes)
            if zlib.crc32(text) != facts_crc:
                return None
            facts = json.loads(text)
            stream.seek(offset)
            crc = 0
            while chunk := stream.read(_CHUNK):
                crc = zlib.crc32(chunk, crc)
    except (OSError, ValueError):
        return None
    clips = tuple(facts.get("clips", ()))
    starts = tuple(facts.get("starts", ()))
    whole = sum(clips) == samples and len(starts) == len(clips)
    if crc != samples_crc or facts.get("key") != key or not whole:
        return None
    return Entry(name, path, offset, clips, facts, starts)


def _offset(facts_bytes: int) -> int:
    # Samples start at a multiple of 64 bytes, as memory maps like it.
    return -(-(_HEADER.size + facts_bytes) // 64) * 64


def _build(source: Path, path: Path, key: str, settings: Settings, check: Check) -> None:
    signal = _Spill(path.parent)
    try:
        decoder = Decoder(source, settings.sample_rate)
        try:
            for block in decoder.blocks():
                check()
                signal.append(block)
            levels, factor = settle(signal, decoder, settings.normalization)
            extremes = np.array([levels.low, levels.high]) * factor
            if np.ptp(mulaw.encode(extremes, settings.quantization_channels)) == 0:
                raise Unusable(
                    source, f"too quiet: all of it falls into one of {settings.quantization_channels} classes"
                )
        except Unusable as error:
            if error.passing:
                raise
            _write(path, {"key": key, "skipped": error.reason, "clips": [], "starts": []}, iter(()), settings)
            return
        kept = sounding(levels, len(signal), settings.sample_rate, settings.silence_db)
        facts = {
            "key": key,
            "clips": [stop - start for start, stop in kept],
            "starts": [start for start, _ in kept],
            "samples": len(signal),
            "rate": decoder.source_rate,
            "channels": decoder.channels,
            "format": decoder.format,
            "over": levels.over if settings.normalization == "none" else 0,
            "peak": decoder.peak,
            "gain": factor,
        }
        _write(path, facts, _quantised(signal, kept, factor, settings, check), settings)
    except OSError as error:
        raise AudioError(
            f"cannot write to the cache {printable(path.parent)}: {cause(error)}; "
            "free some space or choose another with --cache-dir"
        ) from None
    finally:
        signal.close()


def _quantised(
    signal: Signal, kept: list[tuple[int, int]], factor: float, settings: Settings, check: Check
) -> Iterator[bytes]:
    for first, last in kept:
        for start in range(first, last, _CHUNK):
            check()
            block = signal[start : min(start + _CHUNK, last)] * np.float32(factor)
            yield mulaw.encode(block, settings.quantization_channels).astype(settings.dtype).tobytes()


def _write(path: Path, facts: dict[str, Any], samples: Iterator[bytes], settings: Settings) -> None:
    text = json.dumps(facts).encode()
    with atomic_output(path) as stream:
        stream.seek(_offset(len(text)))
        crc = count = 0
        for chunk in samples:
            crc = zlib.crc32(chunk, crc)
            count += len(chunk)
            stream.write(chunk)
        stream.truncate(_offset(len(text)) + count)
        stream.seek(0)
        number = count // settings.dtype.itemsize
        stream.write(_HEADER.pack(_MAGIC, VERSION, zlib.crc32(text), crc, len(text), number) + text)


@dataclass(frozen=True)
class Index:
    """What one look at a folder found, enough to train again without the folder.

    Attributes
    ----------
    audio_dir : str
        The folder.
    settings : Settings
        How it was quantised.
    cached : dict from str to str
        Key of each recording's cache file by relative path.
    skipped : dict from str to str
        Reasons for the recordings that have no cache file.
    ignored : dict from str to int
        Number of other files by extension.
    created : int
        Nanoseconds since 1970.
    folders : list of [str, str]
        Where there are several: each one's path and part ("", "train" or "validation"), and every relative
        path above begins with the number of its folder here.
    excluded : dict from str to int
        Number of recordings that each exclude pattern matched.
    """

    audio_dir: str
    settings: Settings
    cached: dict[str, str]
    skipped: dict[str, str]
    ignored: dict[str, int]
    created: int
    folders: list[list[str]] = field(default_factory=list)
    excluded: dict[str, int] = field(default_factory=dict)


def save_index(cache_dir: Path, index: Index) -> None:
    """Write an index, in place of an earlier one of the same folder and settings."""
    name = hashlib.sha256(
        repr((index.audio_dir, index.settings)).encode("utf-8", "surrogatepass")
    ).hexdigest()
    with atomic_output(cache_dir / f"index-{name[:16]}.json") as stream:
        stream.write(json.dumps({"format": _MAGIC.decode(), **asdict(index)}, indent=1).encode())


def read_indexes(cache_dir: Path) -> list[Index]:
    """Return the indexes in a cache folder that can be read, newest first."""
    found = []
    for path in cache_dir.glob("index-*.json"):
        # Whatever is wrong with one of them, it is no index; a run with the folder writes it anew.
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            values = json.loads(path.read_bytes())
            if values.pop("format") == _MAGIC.decode():
                found.append(Index(**{**values, "settings": Settings(**values["settings"])}))
    return sorted(found, key=lambda index: index.created, reverse=True)


def remove_stale(cache_dir: Path) -> None:
    """Delete cache files that no index mentions, once they are a day old (another run may be about to)."""
    wanted = {f"{key}.clips" for index in read_indexes(cache_dir) for key in index.cached.values()}
    for path in [*cache_dir.glob("*.clips"), *cache_dir.glob(".wavenet-*.tmp")]:
        with suppress(OSError):
            if path.name not in wanted and time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
