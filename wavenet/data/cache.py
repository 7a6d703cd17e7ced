"""Recordings as 16-bit PCM on disk, one file each, so that each recording is decoded once."""

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

from wavenet.audio import pcm
from wavenet.audio.decoding import Decoder, UnusableAudio, check_levels
from wavenet.audio.levels import Signal, non_silent_spans
from wavenet.config import AudioFormat
from wavenet.errors import AudioError, ConfigError
from wavenet.utils.files import atomic_output, cause, printable

# Increase this whenever the same recording and settings give other samples or another layout.
VERSION = 5
_MAGIC = b"wavenetP"
# magic, version, CRC-32 of the metadata, CRC-32 of the samples, bytes of metadata, number of samples
_HEADER = struct.Struct("<8sIIIIQ")
_MAX_METADATA = 1 << 28
_FINGERPRINT_BYTES = 1 << 14
_MEMORY_SAMPLES = 1 << 22
_CHUNK = 1 << 20
_STALE_SECONDS = 24 * 3600

Check = Callable[[], object]


@dataclass(frozen=True)
class CacheSettings:
    """Everything besides the recording itself that determines its cached samples.

    Attributes
    ----------
    audio_format : AudioFormat
        Rate, channels and normalisation.
    silence_db : float or None
        Parts this many dB below the loudest part of their recording are removed; None keeps them.
    version : int
        Version of the cache format.
    """

    audio_format: AudioFormat
    silence_db: float | None
    version: int = VERSION

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> CacheSettings:
        """Build the settings from their JSON form."""
        return cls(**{**values, "audio_format": AudioFormat.from_json(values["audio_format"])})


@dataclass(frozen=True)
class Entry:
    """One cached recording.

    Attributes
    ----------
    name : str
        Path of the recording relative to the folder, with "/" between parts.
    path : Path
        The cache file; its samples begin at byte `offset`.
    clips : tuple of int
        Lengths of the non-silent spans, in samples, stored one after another.
    metadata : dict
        Facts about the source; contains "skipped" with the reason if there are no samples.
    starts : tuple of int
        First sample of each clip within the recording, at the rate of the cache.
    """

    name: str
    path: Path
    offset: int
    clips: tuple[int, ...]
    metadata: dict[str, Any]
    starts: tuple[int, ...] = ()


class _SignalBuffer:
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
            # An unnamed file leaves nothing behind, however the process ends.
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
        # Read, not mapped: the pages of a map would count as this process's memory.
        self.file.seek(4 * start)
        return np.frombuffer(self.file.read(4 * (stop - start)), dtype="<f4")

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def key_of(path: Path, settings: CacheSettings) -> str:
    """Return the cache key of a recording: a hash of path, size, time, some of its bytes, and settings.

    Raises `OSError` if the recording cannot be read.
    """
    digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode())
    digest.update(os.fsencode(os.path.realpath(path)) + b"\0")
    with open(path, "rb") as stream:
        status = os.fstat(stream.fileno())
        digest.update(struct.pack("<QQ", status.st_size, status.st_mtime_ns & (2**64 - 1)))
        # Tools that preserve times (rsync, archives) can replace a file by one of the same size and time.
        for start in (0, status.st_size // 2, max(0, status.st_size - _FINGERPRINT_BYTES)):
            stream.seek(start)
            digest.update(stream.read(_FINGERPRINT_BYTES))
    return digest.hexdigest()[:40]


def load_or_build(
    source: Path, name: str, cache_dir: Path, settings: CacheSettings, check: Check = lambda: None
) -> Entry | str:
    """Return the cache entry of a recording; build it if no intact entry exists.

    A recording with unusable contents has an entry too, without clips. For one that cannot be read at this
    time the result is the reason, and nothing is stored.

    Parameters
    ----------
    source : Path
        The recording.
    name : str
        Its relative path.
    cache_dir : Path
        An existing folder.
    settings : CacheSettings
    check : callable
        Called every few milliseconds. An exception that it raises stops the work and leaves no file behind.

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
    entry = load(path, name, key)
    if entry is not None:
        return entry
    try:
        _build(source, path, key, settings, check)
    except UnusableAudio as error:
        return error.reason
    entry = load(path, name, key)
    if entry is None:
        raise AudioError(f"the cache file {printable(path)} does not read back as written: check the disk")
    return entry


def load(path: Path, name: str, key: str) -> Entry | None:
    """Return the entry in a cache file; None if it is missing, truncated, damaged, or has another key."""
    try:
        with open(path, "rb") as stream:
            header = stream.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return None
            magic, version, metadata_crc, samples_crc, metadata_bytes, samples = _HEADER.unpack(header)
            if magic != _MAGIC or version != VERSION or metadata_bytes > _MAX_METADATA:
                return None
            offset = _offset(metadata_bytes)
            if os.fstat(stream.fileno()).st_size != offset + samples * pcm.DTYPE.itemsize:
                return None
            text = stream.read(metadata_bytes)
            if zlib.crc32(text) != metadata_crc:
                return None
            metadata = json.loads(text)
            stream.seek(offset)
            crc = 0
            while chunk := stream.read(_CHUNK):
                crc = zlib.crc32(chunk, crc)
    except (OSError, ValueError):
        return None
    clips = tuple(metadata.get("clips", ()))
    starts = tuple(metadata.get("starts", ()))
    whole = sum(clips) == samples and len(starts) == len(clips)
    if crc != samples_crc or metadata.get("key") != key or not whole:
        return None
    return Entry(name, path, offset, clips, metadata, starts)


def _offset(metadata_bytes: int) -> int:
    # Memory maps are fastest where samples start at a multiple of 64 bytes.
    return -(-(_HEADER.size + metadata_bytes) // 64) * 64


def _build(source: Path, path: Path, key: str, settings: CacheSettings, check: Check) -> None:
    signal = _SignalBuffer(path.parent)
    audio_format = settings.audio_format
    try:
        decoder = Decoder(source, audio_format.sample_rate)
        try:
            for block in decoder.blocks():
                check()
                signal.append(block)
            levels, gain = check_levels(signal, decoder, audio_format.normalization)
            if np.ptp(pcm.from_float(np.array([levels.low, levels.high]) * gain)) == 0:
                raise UnusableAudio(source, "too quiet: all samples round to the same 16-bit value")
        except UnusableAudio as error:
            if error.temporary:
                raise
            _write(path, {"key": key, "skipped": error.reason, "clips": [], "starts": []}, iter(()))
            return
        kept = non_silent_spans(levels, len(signal), audio_format.sample_rate, settings.silence_db)
        metadata = {
            "key": key,
            "clips": [stop - start for start, stop in kept],
            "starts": [start for start, _ in kept],
            "samples": len(signal),
            "rate": decoder.source_rate,
            "channels": decoder.channels,
            "format": decoder.format,
            "over": levels.over if audio_format.normalization == "none" else 0,
            "peak": decoder.peak,
            "gain": gain,
        }
        _write(path, metadata, _pcm_blocks(signal, kept, gain, check))
    except OSError as error:
        raise AudioError(
            f"cannot write to the cache {printable(path.parent)}: {cause(error)}; "
            "free some space or choose another folder",
            argument="cache_dir",
        ) from None
    finally:
        signal.close()


def _pcm_blocks(signal: Signal, kept: list[tuple[int, int]], gain: float, check: Check) -> Iterator[bytes]:
    for first, last in kept:
        for start in range(first, last, _CHUNK):
            check()
            block = signal[start : min(start + _CHUNK, last)] * np.float32(gain)
            yield pcm.from_float(block).tobytes()


def _write(path: Path, metadata: dict[str, Any], samples: Iterator[bytes]) -> None:
    text = json.dumps(metadata).encode()
    with atomic_output(path) as stream:
        stream.seek(_offset(len(text)))
        crc = count = 0
        for chunk in samples:
            crc = zlib.crc32(chunk, crc)
            count += len(chunk)
            stream.write(chunk)
        stream.truncate(_offset(len(text)) + count)
        stream.seek(0)
        number = count // pcm.DTYPE.itemsize
        stream.write(_HEADER.pack(_MAGIC, VERSION, zlib.crc32(text), crc, len(text), number) + text)


@dataclass(frozen=True)
class Index:
    """The result of one search of the folders: enough to train again without them.

    Attributes
    ----------
    audio_dir : str
        The folder or folders, as shown to the user.
    settings : CacheSettings
        Settings of the cached recordings.
    cached : dict from str to str
        Key of each recording's cache file by relative path.
    skipped : dict from str to str
        Reason by relative path for the recordings without a cache file.
    ignored : dict from str to int
        Number of other files by extension.
    created : int
        Nanoseconds since 1970.
    folders : list of [str, str]
        With several folders, the path and part ("", "train" or "validation") of each. Every relative path
        above then begins with the number of its folder in this list.
    excluded : dict from str to int
        Number of recordings that each exclude pattern matched.
    """

    audio_dir: str
    settings: CacheSettings
    cached: dict[str, str]
    skipped: dict[str, str]
    ignored: dict[str, int]
    created: int
    folders: list[list[str]] = field(default_factory=list)
    excluded: dict[str, int] = field(default_factory=dict)


def save_index(cache_dir: Path, index: Index) -> None:
    """Write an index; it replaces an earlier one of the same folders and settings."""
    name = hashlib.sha256(
        repr((index.audio_dir, index.settings)).encode("utf-8", "surrogatepass")
    ).hexdigest()
    with atomic_output(cache_dir / f"index-{name[:16]}.json") as stream:
        stream.write(json.dumps({"format": _MAGIC.decode(), **asdict(index)}, indent=1).encode())


def read_indexes(cache_dir: Path) -> list[Index]:
    """Return the indexes in a cache folder that can be read, newest first."""
    found = []
    for path in cache_dir.glob("index-*.json"):
        # A damaged index is ignored; the next run with the folder writes it again.
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, ConfigError):
            values = json.loads(path.read_bytes())
            if values.pop("format") == _MAGIC.decode():
                found.append(Index(**{**values, "settings": CacheSettings.from_json(values["settings"])}))
    return sorted(found, key=lambda index: index.created, reverse=True)


def remove_stale(cache_dir: Path) -> None:
    """Delete cache files that no index mentions and that are over a day old.

    Newer ones may belong to a run that has not written its index yet.
    """
    wanted = {f"{key}.clips" for index in read_indexes(cache_dir) for key in index.cached.values()}
    for path in [*cache_dir.glob("*.clips"), *cache_dir.glob(".wavenet-*.tmp")]:
        with suppress(OSError):
            if path.name not in wanted and time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
