"""Reads scores from standard MIDI files."""

from __future__ import annotations

import io
import os
import re
import stat
from typing import Any

import numpy as np

from wavenet.errors import AudioError
from wavenet.music.score import Score
from wavenet.utils.files import cause, one_line, printable

DRUMS = 9  # Channel 10 as musicians count: its pitches are instruments.
_SUSTAIN, _ALL_SOUND_OFF, _RESET, _ALL_NOTES_OFF = 64, 120, 121, 123
_PEDAL_DOWN = 64
_DEFAULT_TEMPO = 500_000  # Microseconds per quarter note.
_MAX_BYTES = 1 << 21  # About five hours of dense piano, which mido reads within 15 s.
_MAX_SECONDS = 24 * 3600.0
# Numbers of the format have up to four bytes; mido reads longer ones in quadratic time.
_ENDLESS_NUMBER = re.compile(rb"[\x80-\xff]{4096}")


def read_midi(path: str | os.PathLike[str]) -> Score:
    """Read the notes of a standard MIDI file, of all tracks and channels except drums.

    A note ends when its key is released, or the sustain pedal of its channel if that is later, or when its
    pitch begins again on its channel; without any of these it ends with its track. Two simultaneous onsets of
    one pitch on one channel are one note, with the higher velocity.

    Parameters
    ----------
    path : path
        A file of format 0 or 1, timed in beats (tempo changes in any track) or by SMPTE.

    Returns
    -------
    Score
        Empty if the file contains no notes.

    Raises
    ------
    AudioError
        If the file is missing, is no MIDI file, is damaged, of format 2, longer than a day or larger than
        2 MiB, or mido is not installed.
    """
    file = _parse(path, _contents(path))
    if file.type == 2:
        raise _unusable(path, "format 2 (separate sequences)", "save it as format 0 or 1")
    if file.type not in (0, 1) or not file.tracks:
        raise _unusable(path, f"damaged: format {file.type}, {len(file.tracks)} tracks", "export it again")
    keys, tempos, ends = _Keys(), [(0, _DEFAULT_TEMPO)], []
    events, changes = [], []
    for number, track in enumerate(file.tracks):
        tick = 0
        for message in track:
            tick += message.time
            if message.type in ("note_on", "note_off", "control_change"):
                events.append((tick, number, message))
            elif message.type == "set_tempo":
                changes.append((tick, message.tempo))
        ends.append(tick)
    if max(ends) > 1 << 53:
        raise _unusable(path, "damaged: its length exceeds 2^53 ticks", "export it again")
    # The sort is stable: events of one tick keep the order of tracks, and of events within a track.
    for tick, number, message in sorted(events, key=lambda event: event[0]):
        keys.event(tick, number, message)
    tempos += sorted(changes, key=lambda change: change[0])
    notes = keys.finished(ends)
    onset, release = (_seconds(path, file.ticks_per_beat, tempos, notes[:, column]) for column in (0, 1))
    if release.max(initial=0) > _MAX_SECONDS:
        raise _unusable(path, f"lasts {release.max() / 3600:.0f} hours", "give one of at most 24")
    return Score(onset, release, notes[:, 2], notes[:, 3])


def _unusable(path: str | os.PathLike[str], reason: str, remedy: str) -> AudioError:
    return AudioError(f"{printable(path)}: {reason}; {remedy}")


def _contents(path: str | os.PathLike[str]) -> bytes:
    """Read a regular file; never blocks, and reads no more than the largest score."""

    def no_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    try:
        # Checked before opening: opening a device can have side effects.
        regular = stat.S_ISREG(os.stat(path).st_mode)
        if regular:
            with open(path, "rb", opener=no_waiting) as file:
                data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise _unusable(path, "does not exist", "check the path") from None
    except (OSError, ValueError) as error:
        why = cause(error) if isinstance(error, OSError) else str(error)
        raise _unusable(path, f"cannot be read ({why})", "check its permissions") from None
    if not regular:
        raise _unusable(path, "not a regular file", "give a MIDI file")
    if len(data) > _MAX_BYTES:
        raise _unusable(path, f"larger than {_MAX_BYTES >> 20} MiB, which no score is", "give a MIDI file")
    return data


def _parse(path: str | os.PathLike[str], data: bytes) -> Any:
    try:
        import mido
    except ImportError as error:
        raise AudioError(
            f"scores cannot be read without mido ({error}): pip install 'wavenet[midi]'"
        ) from None
    if not data.startswith(b"MThd"):
        raise _unusable(path, "not a MIDI file" if data else "empty file (0 bytes)", "give a MIDI file")
    if _ENDLESS_NUMBER.search(data):
        raise _unusable(path, "damaged: a number without end", "export it again")
    try:
        return mido.MidiFile(file=io.BytesIO(data))
    except EOFError:
        raise _unusable(path, "cut short", "get a whole copy of it") from None
    except Exception as error:  # mido raises many types for damaged files: IndexError, KeyError, ...
        why = one_line(str(error) or type(error).__name__)
        raise _unusable(path, f"damaged: {why}", "export it again") from None


class _Note:
    """One note: times in ticks, and the track in which it begins."""

    __slots__ = ("onset", "pitch", "release", "track", "velocity")

    def __init__(self, onset: int, track: int, pitch: int, velocity: int) -> None:
        self.onset, self.release = onset, onset
        self.track, self.pitch, self.velocity = track, pitch, velocity


class _Keys:
    """State of the keys and pedals of all channels while events are read in the order of their ticks."""

    def __init__(self) -> None:
        self.notes: list[_Note] = []
        self.sounding: list[dict[int, _Note]] = [{} for _ in range(16)]
        self.held: list[set[int]] = [set() for _ in range(16)]
        self.pedal = [False] * 16

    def event(self, tick: int, track: int, message: Any) -> None:
        channel = message.channel
        if channel == DRUMS:
            return
        if message.type == "control_change":
            self.control(tick, channel, message.control, message.value)
        elif message.type == "note_on" and message.velocity:
            self.press(tick, track, channel, message.note, message.velocity)
        else:
            self.lift(tick, track, channel, message.note)

    def press(self, tick: int, track: int, channel: int, pitch: int, velocity: int) -> None:
        older = self.sounding[channel].get(pitch)
        self.held[channel].discard(pitch)
        if older is not None and older.onset == tick:
            older.velocity = max(older.velocity, velocity)
            return
        self.end(tick, channel, pitch)
        note = _Note(tick, track, pitch, velocity)
        self.sounding[channel][pitch] = note
        self.notes.append(note)

    def lift(self, tick: int, track: int, channel: int, pitch: int) -> None:
        note = self.sounding[channel].get(pitch)
        # If another track releases the pitch at this note's onset, it releases an earlier note.
        if note is None or (note.onset == tick and note.track != track):
            return
        if self.pedal[channel]:
            note.release = tick
            self.held[channel].add(pitch)
        else:
            self.end(tick, channel, pitch)

    def end(self, tick: int, channel: int, pitch: int) -> None:
        note = self.sounding[channel].pop(pitch, None)
        self.held[channel].discard(pitch)
        if note is not None:
            note.release = tick

    def control(self, tick: int, channel: int, control: int, value: int) -> None:
        if control == _SUSTAIN:
            self.pedal[channel] = value >= _PEDAL_DOWN
        elif control == _RESET:
            self.pedal[channel] = False
        if control in (_ALL_NOTES_OFF, _ALL_SOUND_OFF):
            for pitch, note in list(self.sounding[channel].items()):
                if control == _ALL_SOUND_OFF:
                    self.end(tick, channel, pitch)
                else:
                    self.lift(tick, note.track, channel, pitch)
        if not self.pedal[channel]:
            for pitch in list(self.held[channel]):
                self.end(tick, channel, pitch)

    def finished(self, ends: list[int]) -> np.ndarray:
        """Return int64 rows of onset and release in ticks, pitch, velocity, given the ends of the tracks."""
        for channel in self.sounding:
            for note in channel.values():
                note.release = max(note.release, ends[note.track])
        rows = [(note.onset, note.release, note.pitch, note.velocity) for note in self.notes]
        return np.array(rows, dtype=np.int64).reshape(-1, 4)


def _seconds(
    path: str | os.PathLike[str], division: int, tempos: list[tuple[int, int]], ticks: np.ndarray
) -> np.ndarray:
    """Return ticks in seconds: `tempos` are sorted (tick, microseconds per quarter note), from tick 0."""
    units = division & 0xFF
    if division == 0 or (division < 0 and units == 0):
        raise _unusable(path, "damaged: no ticks per beat", "export it again")
    # SMPTE: the upper byte is minus the frames per second, the lower byte the ticks per frame.
    if division < 0:
        frames = 256 - (division >> 8 & 0xFF)
        return ticks / ((30000 / 1001 if frames == 29 else frames) * units)
    start = np.array([tick for tick, _ in tempos], dtype=np.float64)
    length = np.array([tempo for _, tempo in tempos]) / 1e6 / division
    begun = np.concatenate([[0.0], np.cumsum(np.diff(start) * length[:-1])])
    tempo = np.searchsorted(start, ticks, side="right") - 1
    return begun[tempo] + (ticks - start[tempo]) * length[tempo]
