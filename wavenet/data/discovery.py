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

# Formats that libsndfile decodes from a single file, without: headerless data (raw, gsm, vox), which has no
# rate; sd2, whose header is a second file; mat, which is rarely audio; sds, whose reader prints to stdout.
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
        Reason by relative path for files and folders that could not be examined.
    """

    root: Path
    names: list[str]
    ignored: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


class _Search:
    """One walk over a tree; it visits each real folder and file once, under its own name if possible."""

    def __init__(self, root: str, exclude: Iterable[str | os.PathLike[str]]) -> None:
        self.root = root
        self.names: list[str] = []
        self.ignored: Counter[str] = Counter()
        self.unreadable: dict[str, str] = {}
        self.seen: set[tuple[int, int]] = set()
        self.links: list[str] = []
        for folder in exclude:
            with suppress(OSError):
                # The root is always searched, even if it is also excluded.
                if not os.path.samefile(folder, root):
                    self.is_new(os.stat(folder))

    def is_new(self, status: os.stat_result) -> bool:
        identity = (status.st_dev, status.st_ino)
        if status.st_ino and identity in self.seen:
            return False
        self.seen.add(identity)
        return True

    def walk(self) -> None:
        # Folders before links, so that an additional link does not rename any recording.
        pending = [""]
        while pending or self.links:
            if pending:
                self.visit_folder(pending.pop(), pending)
            else:
                links, self.links = sorted(self.links, key=os.fsencode), []
                for name in links:
                    self.visit_entry(name, pending)

    def visit_folder(self, name: str, pending: list[str]) -> None:
        try:
            if not self.is_new(os.stat(os.path.join(self.root, name))):
                return
            with os.scandir(os.path.join(self.root, name)) as entries:
                found = sorted(((entry.name, entry.is_symlink()) for entry in entries), key=_encoded_name)
        except OSError as error:
            self.unreadable[name or "."] = cause(error)
            return
        folders: list[str] = []
        for entry, link in found:
            child = f"{name}/{entry}" if name else entry
            if link:
                self.links.append(child)
            else:
                self.visit_entry(child, folders)
        pending.extend(reversed(folders))

    def visit_entry(self, name: str, pending: list[str]) -> None:
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
            # macOS stores metadata of name.wav in "._name.wav" on foreign disks.
            self.ignored[_extension(name)] += 1
        elif self.is_new(status):
            self.names.append(name)


def _encoded_name(entry: tuple[str, bool]) -> bytes:
    return os.fsencode(entry[0])


def _extension(name: str) -> str:
    return os.path.splitext(name)[1][1:].lower()


def find_audio(
    audio_dir: str | os.PathLike[str], exclude: Iterable[str | os.PathLike[str]] = ()
) -> FoundFiles:
    """Find the recordings below a folder; a single file counts as a folder that contains one.

    Only regular files are found, so pipes, sockets and devices are never opened. Links to folders are
    followed, each real folder once.

    Parameters
    ----------
    audio_dir : path
        The folder, or one file.
    exclude : paths
        Folders that are not searched, such as the folder of generated audio.

    Raises
    ------
    AudioError
        If it is missing, cannot be read, or contains no file with a known extension.
    """
    shown = printable(audio_dir)
    try:
        status = os.stat(audio_dir)
        if stat.S_ISREG(status.st_mode):
            path = Path(audio_dir)
            return FoundFiles(path.parent, [path.name])
        if not stat.S_ISDIR(status.st_mode):
            raise AudioError(f"{shown} is not a folder: name a folder of recordings")
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
        raise AudioError(_no_recordings(shown, search))
    return FoundFiles(
        Path(audio_dir), names, dict(sorted(search.ignored.items())), dict(sorted(search.unreadable.items()))
    )


def _no_recordings(shown: str, search: _Search) -> str:
    if search.unreadable:
        name, why = next(iter(search.unreadable.items()))
        return f"no recordings in {shown}: {printable(name)} could not be read ({why}); check its permissions"
    if not search.ignored:
        return f"the audio folder {shown} is empty: add recordings (wav, flac, ogg, mp3, aiff, ...)"
    kinds = ", ".join(
        f"{count} {printable(kind) or 'without extension'}" for kind, count in search.ignored.most_common(3)
    )
    return (
        f"no recordings in {shown}, only other files ({kinds}): "
        "unpack or convert them to wav, flac, ogg, opus, mp3 or aiff"
    )
