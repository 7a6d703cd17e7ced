"""Finds recordings in one or several folders and decodes them into the cache, with several threads."""

from __future__ import annotations

import fnmatch
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue

from wavenet.audio.decoder_stderr import unmuted_stderr
from wavenet.data.cache import (
    CacheSettings,
    Entry,
    Index,
    load,
    load_or_build,
    read_indexes,
    remove_stale,
    save_index,
)
from wavenet.data.discovery import FoundFiles, find_audio
from wavenet.errors import AudioError
from wavenet.utils.files import cause, printable

Progress = Callable[[int, int, str], None]
PathLike = str | os.PathLike[str]

TRAIN, VALIDATION = "train", "validation"

MAX_WORKERS = 8
"""Recordings decoded at once: each takes up to 80 MB, and with more the disk is the limit."""

MIN_WEIGHT = 1e-3

# On systems other than POSIX an interrupt does not end a wait.
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Sources:
    """The folders to search, and what to leave out.

    Attributes
    ----------
    audio_dirs : tuple of paths
        Folders searched recursively.
    val_dir : path or None
        Folder of all validation recordings; the others are then all for training.
    patterns : tuple of str
        Recordings whose relative path matches one of these globs are left out; "*" matches "/" too.
    exclude : tuple of paths
        Folders that are not searched.
    """

    audio_dirs: tuple[PathLike, ...]
    val_dir: PathLike | None = None
    patterns: tuple[str, ...] = ()
    exclude: tuple[PathLike, ...] = ()


class Names:
    """Resolves the relative paths of an index; with several folders each path begins with a number.

    Parameters
    ----------
    folders : sequence of (path, part)
        As in an index: empty for a single folder.
    """

    def __init__(self, folders: Sequence[Sequence[str]]) -> None:
        self.folders = folders
        bases = [os.path.basename(path) for path, _ in self.folders]
        distinct = len(set(bases)) == len(bases) and all(bases)
        self.labels = bases if distinct else [path for path, _ in self.folders]

    def _parts(self, name: str) -> tuple[int, str]:
        number, _, rest = name.partition("/")
        return int(number), rest

    def relative(self, name: str) -> str:
        """Return the path within its folder."""
        return self._parts(name)[1] if self.folders else name

    def part(self, name: str) -> str:
        """Return "train", "validation", or "" if the split decides."""
        return self.folders[self._parts(name)[0]][1] if self.folders else ""

    def shown(self, name: str) -> str:
        """Return the path with a label of its folder, if there are several."""
        if not self.folders:
            return name
        number, rest = self._parts(name)
        return f"{self.labels[number]}/{rest}"


def match_globs(names: Iterable[str], patterns: Iterable[str]) -> dict[str, set[str]]:
    """Return the relative paths that each glob matches; a glob that ends with "/" matches all below it."""
    names = list(names)
    found = {}
    for pattern in patterns:
        glob = f"{pattern}*" if pattern.endswith("/") else pattern
        found[pattern] = {name for name in names if fnmatch.fnmatchcase(name, glob)}
    return found


def weights(names: Iterable[str], requests: Iterable[str]) -> Callable[[str], float]:
    """Return a function from a recording's name to its weight, by default 1.

    Parameters
    ----------
    names : strings
        Names of recordings, as in `Clips.names`.
    requests : strings
        "FOLDER=W" each: weight W for the names below FOLDER; the deepest matching folder counts.

    Raises
    ------
    AudioError
        If a request has another form, or its folder contains no recording.
    """
    names, found = list(names), {}
    for text in requests:
        folder, _, value = text.rpartition("=")
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        if not folder or not MIN_WEIGHT <= weight <= 1 / MIN_WEIGHT:
            raise AudioError(
                f"{printable(text)}: must be FOLDER=W with W from {MIN_WEIGHT:g} to "
                f"{1 / MIN_WEIGHT:g}, such as studio=2",
                argument="weight",
            )
        prefix = folder.rstrip("/") + "/"
        if not any(name.startswith(prefix) for name in names):
            folders = sorted({name.partition("/")[0] for name in names if "/" in name.lstrip("/")})
            known = ", ".join(map(printable, folders[:8])) if folders else "none"
            raise AudioError(
                f"{printable(text)}: the training recordings have no such folder; folders: {known}",
                argument="weight",
            )
        found[prefix] = weight
    deepest = sorted(found, key=len, reverse=True)
    return lambda name: next((found[prefix] for prefix in deepest if name.startswith(prefix)), 1.0)


def workers() -> int:
    """Return how many recordings are decoded at once: one per core that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, MAX_WORKERS))


class _Stopped(Exception):
    """Stops the work of a thread whose result is no longer needed."""


def load_or_build_all(
    files: Mapping[str, Path],
    cache_dir: Path,
    settings: CacheSettings,
    progress: Progress | None,
    shown: Callable[[str], str] = str,
) -> dict[str, Entry | str]:
    """Return the result of `load_or_build` for each file, by name and in the given order.

    Threads suffice, as decoding, resampling and arithmetic release the interpreter lock. An interrupt or an
    error stops all threads within milliseconds; finished entries stay in the cache.

    Parameters
    ----------
    files : mapping from str to Path
    cache_dir, settings
        As for `load_or_build`.
    progress : callable, optional
        Called in the caller's thread with (files done, files in all, printable name), as they finish.
    shown : callable, optional
        Returns the form of a name for `progress`.
    """
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise _Stopped

    def work(name: str, source: Path) -> tuple[str, Entry | str]:
        check()
        return name, load_or_build(source, name, cache_dir, settings, check)

    finished: SimpleQueue[Future[tuple[str, Entry | str]]] = SimpleQueue()
    results: dict[str, Entry | str] = {}
    pool = ThreadPoolExecutor(workers(), "wavenet-prepare")
    try:
        for name, source in files.items():
            pool.submit(work, name, source).add_done_callback(finished.put)
        while len(results) < len(files):
            try:
                name, result = finished.get(timeout=_POLL_SECONDS).result()
            except Empty:
                continue
            results[name] = result
            if progress is not None:
                with unmuted_stderr():
                    progress(len(results), len(files), printable(shown(name)))
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    return {name: results[name] for name in files}


def from_folders(
    sources: Sources, cache_dir: Path, settings: CacheSettings, progress: Progress | None
) -> tuple[Index, list[Entry]]:
    """Find and decode the recordings of all folders; save their index, and return it and the entries."""
    folders, found = _find(sources)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AudioError(
            f"cannot create the cache folder {printable(cache_dir)} ({cause(error)}): choose another",
            argument="cache_dir",
        ) from None
    files: dict[str, Path] = {}
    skipped: dict[str, str] = {}
    ignored: Counter[str] = Counter()
    excluded = dict.fromkeys(sources.patterns, 0)
    several = folders if len(folders) > 1 else []
    for number, each in enumerate(found):
        prefix = f"{number}/" if several else ""
        out = match_globs([*each.names, *each.unreadable], sources.patterns)
        for pattern, names in out.items():
            excluded[pattern] += len(names)
        left_out = set().union(*out.values())
        files.update({prefix + name: each.root / name for name in each.names if name not in left_out})
        skipped.update(
            {
                prefix + name: f"cannot be read ({why})"
                for name, why in each.unreadable.items()
                if name not in left_out
            }
        )
        ignored.update(each.ignored)
    if not files and any(excluded.values()):
        raise AudioError(
            f"the patterns exclude every recording in {_listed(folders)}: give fewer patterns",
            argument="exclude",
        )
    results = load_or_build_all(files, cache_dir, settings, progress, Names(several).shown)
    entries = [result for result in results.values() if isinstance(result, Entry)]
    skipped.update({name: result for name, result in results.items() if isinstance(result, str)})
    index = Index(
        audio_dir=_listed(folders),
        settings=settings,
        cached={entry.name: entry.path.stem for entry in entries},
        skipped=skipped,
        ignored=dict(sorted(ignored.items())),
        created=time.time_ns(),
        folders=several,
        excluded=excluded,
    )
    save_index(cache_dir, index)
    remove_stale(cache_dir)
    return index, entries


def _listed(folders: Sequence[Sequence[str]]) -> str:
    listed = ", ".join(path for path, part in folders if part != VALIDATION)
    return listed + "".join(f"; validation {path}" for path, part in folders if part == VALIDATION)


def _find(sources: Sources) -> tuple[list[list[str]], list[FoundFiles]]:
    """Return each folder's real path and part, and the recordings that no other folder contains.

    A recording in two of the folders is used once: for validation, otherwise from the first folder.
    """
    part = "" if sources.val_dir is None else TRAIN
    wanted: dict[str, tuple[PathLike, str]] = {}
    for path in sources.audio_dirs:
        wanted.setdefault(os.path.realpath(path), (path, part))
    if sources.val_dir is not None:
        if os.path.realpath(sources.val_dir) in wanted:
            raise AudioError(
                f"{printable(sources.val_dir)} is also a training folder: give another folder, "
                "or none to hold out a share of the recordings",
                argument="val_dir",
            )
        wanted[os.path.realpath(sources.val_dir)] = (sources.val_dir, VALIDATION)
    found = {real: find_audio(path, sources.exclude) for real, (path, _) in wanted.items()}
    if len(found) > 1:
        taken: set[str] = set()
        for real in sorted(found, key=lambda real: wanted[real][1] != VALIDATION):
            names = found[real].names
            own = {name: os.path.realpath(found[real].root / name) for name in names}
            names[:] = [name for name in names if own[name] not in taken]
            taken.update(own.values())
    return [[real, part] for real, (_, part) in wanted.items()], list(found.values())


def from_cache(
    cache_dir: Path, settings: CacheSettings, patterns: Sequence[str], progress: Progress | None
) -> tuple[Index, list[Entry]]:
    """Return the newest index of this format in a cache, and its recordings, without reading the folders."""
    shown = printable(cache_dir)
    indexes = read_indexes(cache_dir)
    matching_indexes = [index for index in indexes if index.settings == settings]
    if not indexes:
        raise AudioError(f"no prepared audio in {shown}: name the folder of recordings", argument="audio_dir")
    if not matching_indexes:
        found, silence_db = indexes[0].settings.audio_format, indexes[0].settings.silence_db
        raise AudioError(
            f"the audio prepared in {shown} has another format ({found.sample_rate} Hz, normalization "
            f"{found.normalization}, silence_db {silence_db}): use it or name the folder of recordings",
            argument="audio_dir",
        )
    index, entries = _without(matching_indexes[0], patterns), []
    names = Names(index.folders)
    for number, (name, key) in enumerate(index.cached.items(), 1):
        entry = load(cache_dir / f"{key}.clips", name, key)
        if entry is None:
            raise AudioError(
                f"the cache entry of {printable(names.shown(name))} in {shown} is missing or damaged: "
                "name the folder of recordings to rebuild it",
                argument="audio_dir",
            )
        entries.append(entry)
        if progress is not None:
            progress(number, len(index.cached), printable(names.shown(name)))
    return index, entries


def _without(index: Index, patterns: Sequence[str]) -> Index:
    """Return an index without the recordings that match one of some globs."""
    if not patterns:
        return index
    names, excluded, out = Names(index.folders), dict(index.excluded), set()
    own = {name: names.relative(name) for name in (*index.cached, *index.skipped)}
    for pattern, matched in match_globs(own.values(), patterns).items():
        left_out = {name for name, relative in own.items() if relative in matched}
        # Recordings that the index excludes already are counted in it.
        excluded[pattern] = excluded.get(pattern, 0) + len(left_out)
        out |= left_out
    cached = {name: key for name, key in index.cached.items() if name not in out}
    skipped = {name: why for name, why in index.skipped.items() if name not in out}
    if not cached:
        raise AudioError(
            "the patterns exclude every prepared recording: give fewer patterns", argument="exclude"
        )
    return replace(index, cached=cached, skipped=skipped, excluded=excluded)
