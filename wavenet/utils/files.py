"""Files on disk: which recordings a folder holds, names that print safely, output that is whole or absent."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import BinaryIO

from wavenet.errors import AudioError

# What libsndfile decodes from a single file. Left out: headerless data (raw, gsm, vox), which has no rate;
# sd2, whose header is a second file; mat, which is rarely sound; sds, whose reader prints to standard output.
_KINDS = (
    "wav wave bwf rf64 w64 flac ogg oga opus mp3 mp2 mp1 aif aiff aifc afc au snd caf voc sf ircam paf fap "
    "pvf svx 8svx iff avr xi nist sph htk mpc wve"
)
EXTENSIONS = frozenset(_KINDS.split())
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def one_line(text: str) -> str:
    """Return a text as one line that any terminal can show: controls and bytes that are not UTF-8 escaped."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    # os.fsdecode leaves bytes that are not UTF-8 as these surrogates.
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def printable(path: str | bytes | os.PathLike[str]) -> str:
    """Return a path as one line that any terminal can show."""
    return one_line(os.fsdecode(path))


def free_name(path: Path, word: str) -> Path:
    """Return a path that nothing stands at, beside another: for out.wav out-word.wav, out-word-1.wav, ..."""
    names = (f"{path.stem}-{word}{f'-{number}' if number else ''}{path.suffix}" for number in count())
    return next(each for name in names if not os.path.lexists(each := path.with_name(name)))


def user_cache() -> Path:
    """Return the folder for what can be made anew: `wavenet` under the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "wavenet"


def cause(error: OSError) -> str:
    """Return the operating system's reason in lower case, for use inside a sentence."""
    return (error.strerror or str(error) or type(error).__name__).lower()


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


@contextmanager
def atomic_output(
    path: str | os.PathLike[str], rename: Callable[[], str | os.PathLike[str]] | None = None
) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name only when the block ends without an exception.

    The bytes go to a temporary file in the same folder, which is flushed to the disk and then renamed over
    `path`; on any failure it is removed and what stood at `path` stays. A device or pipe at `path` is written
    directly.

    Parameters
    ----------
    path : path
    rename : callable, optional
        Asked at the end for the name to take, in the same folder, instead of `path`.

    Raises
    ------
    AudioError
        If the folder is missing or not writable, `path` is a folder, or the disk is full.
    """
    import secrets  # It loads a cryptographic library, and commands answer --help without one.

    shown = printable(path)
    target = os.path.realpath(path)
    temporary = os.path.join(os.path.dirname(target), f".wavenet-{secrets.token_hex(8)}.tmp")
    try:
        mode = _mode(target)
        if stat.S_ISDIR(mode):
            raise AudioError(f"cannot write {shown}: it is a folder; give the name of a file")
        special = mode != 0 and not stat.S_ISREG(mode)
        stream = open(target, "wb") if special else open(temporary, "xb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        raise AudioError(f"cannot write {shown}: its folder does not exist; create it first") from None
    except OSError as error:
        raise AudioError(f"cannot write {shown}: {cause(error)}; choose another place") from None
    try:
        with stream:
            yield stream
            stream.flush()
            if not special:
                os.fsync(stream.fileno())
        if not special:
            os.replace(temporary, target if rename is None else os.path.realpath(rename()))
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise AudioError(
            f"cannot write {shown}: {cause(error)}; free space or choose another place"
        ) from None
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def _mode(path: str) -> int:
    """Return the kind and permissions of what stands at a path, 0 if nothing does."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return 0
