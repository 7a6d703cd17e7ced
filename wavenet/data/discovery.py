"""Searches folders for recordings."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from wavenet.errors import AudioError
from wavenet.utils.files import cause, printable

# What libsndfile decodes from a single file. Left out: headerless data (raw, gsm, vox), which has no rate;
# sd2, whose header is a second file; mat, which is rarely sound; sds, whose reader prints to standard output.
_KINDS = (
    "wav wave bwf rf64 w64 flac ogg oga opus mp3 mp2 mp1 aif aiff aifc afc au snd caf voc sf ircam paf fap "
    "pvf svx 8svx iff avr xi nist sph htk mpc wve"
)


EXTENSIONS = frozenset(_KINDS.split())


@dataclass(frozen=True)
class FoundFiles:
    """The recordings below a folder.

    Attributes
    ----------
    root : Path
        The folder.
    names : list of str
        Paths relative to `root` with "/" between parts, sorted by their bytes.
    ignored : dict from str to int
        Number of files of each other extension (lower case, without the dot).
    unreadable : dict from str to str
        Relative paths that could not be looked at, and why.
    """

    root: Path
    names: list[str]
    ignored: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


class _Search:
    """One walk over a tree; every real folder and file is taken once, by its own name if it has one."""

    def __init__(self, root: str, exclude: Iterable[str | os.PathLike[str]]) -> None:
        self.root = root
        self.names: list[str] = []
        self.ignored: Counter[str] = Counter()
        self.unreadable: dict[str, str] = {}
        self.seen: set[tuple[int, int]] = set()
        self.links: list[str] = []
        for folder in exclude:
            with suppress(OSError):
                # The folder itself was asked for, whatever else it is used for.
                if not os.path.samefile(folder, root):
                    self.first_time(os.stat(folder))

    def first_time(self, status: os.stat_result) -> bool:
        identity = (status.st_dev, status.st_ino)
        if status.st_ino and identity in self.seen:
            return False
        self.seen.add(identity)
        return True

    def walk(self) -> None:
        # Real folders before links, so that adding a link renames nothing that was found without it.
        pending = [""]
        while pending or self.links:
            if pending:
                self.folder(pending.pop(), pending)
            else:
                links, self.links = sorted(self.links, key=os.fsencode), []
                for name in links:
                    self.entry(name, pending)

    def folder(self, name: str, pending: list[str]) -> None:
        try:
            if not self.first_time(os.stat(os.path.join(self.root, name))):
                return
            with os.scandir(os.path.join(self.root, name)) as entries:
                found = sorted(((entry.name, entry.is_symlink()) for entry in entries), key=_by_bytes)
        except OSError as error:
            self.unreadable[name or "."] = cause(error)
            return
        folders: list[str] = []
        for entry, link in found:
            child = f"{name}/{entry}" if name else entry
            if link:
                self.links.append(child)
            else:
                self.entry(child, folders)
        pending.extend(reversed(folders))

    def entry(self, name: str, pending: list[str]) -> None:
        try:
            status = os.stat(os.path.join(self.root, name))
        except OSError as error:
            if _extension(name) in EXTENSIONS:
                self.unreadable[name] = cause(error)
            return
        if stat.S_ISDIR(status.st_mode):
            pending.append(name)
        elif not stat.S_ISREG(status.st_mode):
            self.ignored["(not a file)"] += 1
        elif _extension(name) not in EXTENSIONS or name.rpartition("/")[2].startswith("._"):
            # "._name.wav" is what macOS leaves beside name.wav on foreign disks: no recording.
            self.ignored[_extension(name)] += 1
        elif self.first_time(status):
            self.names.append(name)


def _by_bytes(entry: tuple[str, bool]) -> bytes:
    return os.fsencode(entry[0])


def _extension(name: str) -> str:
    return os.path.splitext(name)[1][1:].lower()


def find_audio(
    audio_dir: str | os.PathLike[str], exclude: Iterable[str | os.PathLike[str]] = ()
) -> FoundFiles:
    """Find the recordings below a folder, or take a single file as a folder of one.

    Only regular files are taken, so pipes, sockets and devices are never opened; links to folders are
    followed, each real folder once.

    Parameters
    ----------
    audio_dir : path
        The folder, or one file.
    exclude : paths
        Folders that are not searched, such as the one that generated audio is written to.

    Raises
    ------
    AudioError
        If it is missing, cannot be read, or holds no file with a known extension.
    """
    shown = printable(audio_dir)
    try:
        status = os.stat(audio_dir)
        if stat.S_ISREG(status.st_mode):
            path = Path(audio_dir)
            return FoundFiles(path.parent, [path.name])
        if not stat.S_ISDIR(status.st_mode):
            raise AudioError(f"{shown} is not a folder: --audio-dir takes a folder of recordings")
        os.scandir(audio_dir).close()
    except FileNotFoundError:
        raise AudioError(f"the audio folder {shown} does not exist: check the path") from None
    except (OSError, ValueError) as error:
        why = cause(error) if isinstance(error, OSError) else str(error)
        raise AudioError(f"the audio folder {shown} cannot be read ({why}): check its permissions") from None
    search = _Search(os.fspath(audio_dir), exclude)
    search.walk()
    names = sorted(search.names, key=os.fsencode)
    if not names:
        raise AudioError(_nothing_found(shown, search))
    return FoundFiles(
        Path(audio_dir), names, dict(sorted(search.ignored.items())), dict(sorted(search.unreadable.items()))
    )


def _nothing_found(shown: str, search: _Search) -> str:
    if search.unreadable:
        name, why = next(iter(search.unreadable.items()))
        return f"no recordings in {shown}: {printable(name)} could not be read ({why}); check its permissions"
    if not search.ignored:
        return f"the audio folder {shown} is empty: put recordings into it (wav, flac, ogg, mp3, aiff, ...)"
    kinds = ", ".join(
        f"{count} {printable(kind) or 'without extension'}" for kind, count in search.ignored.most_common(3)
    )
    return (
        f"no recordings in {shown}, only other files ({kinds}): "
        "unpack or convert them to wav, flac, ogg, opus, mp3 or aiff"
    )
