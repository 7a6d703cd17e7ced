"""MIDI scores: which note begins when, how loud, and how long it sounds; as rows of frames for a network."""

from __future__ import annotations

import io
import os
import re
import stat
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from wavenet.errors import AudioError, ConfigError
from wavenet.utils.files import cause, one_line, printable

PITCHES = 128
ROLL_CHANNELS = 3 * PITCHES
"""Rows of a roll: the velocity of each pitch while it sounds, a mark where it begins, and how it fades."""

FADING = 0.5
"""Seconds in which the last of these falls by a factor of e, about as a piano does.

So a frame says how long ago a note began; a network's own past holds a tenth of a second only."""

DRUMS = 9  # Channel 10 as musicians count: its pitches are instruments.
_SUSTAIN, _ALL_SOUND_OFF, _RESET, _ALL_NOTES_OFF = 64, 120, 121, 123
_PEDAL_DOWN = 64
_DEFAULT_TEMPO = 500_000  # Microseconds a quarter note.
_MAX_BYTES = 1 << 21  # Some five hours of dense piano, and what mido reads within a quarter of a minute.
_MAX_SECONDS = 24 * 3600.0
# Numbers of the format have up to four bytes; mido adds up as many as there are, in quadratic time.
_ENDLESS_NUMBER = re.compile(rb"[\x80-\xff]{4096}")
# A share of a frame: times this close to a frame's edge lie on it, whichever frame the count starts from.
_EDGE = 1e-6
_BLOCK = 64
_SHORTER_SECONDS, _LONGER_SECONDS = 2.0, 10.0


@dataclass(frozen=True, eq=False)
class Score:
    """The notes of a piece, in the order in which they begin.

    Attributes
    ----------
    onset, release : float64 arrays (notes,)
        Seconds from the start of the piece; the release is where the sound is let go, by key and pedal.
    pitch : int64 array (notes,)
        0 to 127, of which 60 is the middle C.
    velocity : int64 array (notes,)
        1 to 127.

    Raises
    ------
    ConfigError
        If the arrays do not go together or hold values outside these ranges.
    """

    onset: np.ndarray
    release: np.ndarray
    pitch: np.ndarray
    velocity: np.ndarray

    def __post_init__(self) -> None:
        kinds = {"onset": np.float64, "release": np.float64, "pitch": np.int64, "velocity": np.int64}
        arrays = {name: np.asarray(getattr(self, name), dtype=kind) for name, kind in kinds.items()}
        onset, release, pitch, velocity = arrays.values()
        if onset.ndim != 1 or any(each.shape != onset.shape for each in arrays.values()):
            shapes = ", ".join(f"{name} {each.shape}" for name, each in arrays.items())
            raise ConfigError(f"the arrays of a score differ in shape ({shapes}): give one value per note")
        if not (np.isfinite(onset).all() and np.isfinite(release).all() and (release >= onset).all()):
            raise ConfigError("a note of the score ends before it begins, or at no time: check its releases")
        if len(onset) and not (pitch.min() >= 0 and pitch.max() < PITCHES):
            raise ConfigError(f"pitches from {pitch.min()} to {pitch.max()} in the score: use 0 to 127")
        if len(onset) and not (velocity.min() >= 1 and velocity.max() <= 127):
            raise ConfigError(
                f"velocities from {velocity.min()} to {velocity.max()} in the score: use 1 to 127"
            )
        order = np.argsort(onset, kind="stable")
        for name, each in arrays.items():
            object.__setattr__(self, name, each[order])

    def __len__(self) -> int:
        return len(self.onset)

    @property
    def seconds(self) -> float:
        """Where the last sounding note ends; 0 without notes."""
        return float(self.release.max(initial=0.0))

    def roll(self, first: float, hop: float, frames: int) -> np.ndarray:
        """Return the score as frames; the cost depends on the notes nearby, not on the length of the piece.

        Parameters
        ----------
        first : float
            Seconds at which frame 0 begins; before the piece and after its end there is silence.
        hop : float
            Seconds from one frame to the next: frame f covers [first + f * hop, first + (f + 1) * hop).
        frames : int

        Returns
        -------
        float32 array (ROLL_CHANNELS, frames)
            Rows 0 to 127: velocity / 127 of the note of that pitch that sounds at any time within the frame,
            the newest if there are several; a note always sounds in the frame where it begins. Rows 128 to
            255: 1 in the frame where a note of that pitch begins. Rows 256 to 383: as the first ones, times
            exp(-t / FADING) where the frame begins t seconds after the note.

        Raises
        ------
        ConfigError
            If `hop` is not above 0 or `frames` is below 0.
        """
        if not (hop > 0 and np.isfinite(hop) and np.isfinite(first) and frames >= 0):
            raise ConfigError(
                f"no roll of {frames} frames from {first} s every {hop} s: give finite times, hop > 0"
            )
        roll = np.zeros((ROLL_CHANNELS, frames), dtype=np.float32)
        near = self._near(first - _EDGE * hop, first + frames * hop)
        begin = np.floor((self.onset[near] - first) / hop + _EDGE)
        end = np.maximum(np.ceil((self.release[near] - first) / hop - _EDGE), begin + 1)
        begin, end = (np.clip(each, -1, frames).astype(np.int64).tolist() for each in (begin, end))
        times = first + hop * np.arange(frames)
        pitches, velocities = self.pitch[near].tolist(), (self.velocity[near] / 127).tolist()
        for start, stop, pitch, velocity, onset in zip(
            begin, end, pitches, velocities, self.onset[near].tolist(), strict=True
        ):
            sounding = slice(max(start, 0), max(stop, 0))
            roll[pitch, sounding] = velocity
            if 0 <= start < frames:
                roll[PITCHES + pitch, start] = 1
            seconds = np.maximum(times[sounding] - onset, 0)
            roll[2 * PITCHES + pitch, sounding] = velocity * np.exp(-seconds / FADING)
        return roll

    def shuffled(self, seed: int) -> Score:
        """Return the same onsets, lengths and velocities with the pitches dealt out anew among the notes."""
        pitch = np.random.default_rng(seed).permutation(self.pitch)
        return Score(self.onset, self.release, pitch, self.velocity)

    def shifted(self, seconds: float) -> Score:
        """Return the same score, later by some seconds."""
        return Score(self.onset + seconds, self.release + seconds, self.pitch, self.velocity)

    def _near(self, start: float, stop: float) -> np.ndarray:
        """Return the indices, ascending, of all notes that sound or begin within [start, stop)."""
        last = int(np.searchsorted(self.onset, stop, side="left"))
        block = max(int(np.searchsorted(self.onset, start, side="right")) - 1, 0) // _BLOCK
        offsets, notes = self._sounding
        begun = notes[offsets[block] : offsets[block + 1]]
        near = np.concatenate([begun, np.arange(block * _BLOCK, last)])
        return near[(self.release[near] > start) | (self.onset[near] >= start)]

    @cached_property
    def _sounding(self) -> tuple[np.ndarray, np.ndarray]:
        """For each block of notes the earlier notes that sound as it begins: (offsets, indices).

        So neither one endless note nor the length of the piece makes a short roll slow.
        """
        blocks = max(1, -(-len(self) // _BLOCK))
        own = np.arange(len(self)) // _BLOCK
        stop = np.searchsorted(self.onset[::_BLOCK], self.release, side="left")
        counts = np.maximum(stop - own - 1, 0)
        note = np.repeat(np.arange(len(self)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        block = own[note] + 1 + within
        order = np.argsort(block, kind="stable")
        return np.searchsorted(block[order], np.arange(blocks + 1)), note[order]


def mismatch(score: Score, seconds: float) -> str | None:
    """Say in one sentence why a score does not go with a recording of some seconds; None if it may."""
    if not len(score):
        return "the score has no notes"
    if seconds < score.seconds - _SHORTER_SECONDS:
        return f"the score lasts {score.seconds:.1f} s but the recording ends at {seconds:.1f} s"
    if seconds > score.seconds + _LONGER_SECONDS:
        return f"the recording lasts {seconds:.1f} s but the score ends at {score.seconds:.1f} s"
    return None


def read_midi(path: str | os.PathLike[str]) -> Score:
    """Read the notes of a standard MIDI file, all tracks and channels but the drums together.

    A note ends where its key is let go, or the sustain pedal of its channel if that is later, or where its
    pitch is struck again on its channel; without any of these at the end of its track. Two strikes of one
    pitch on one channel at once are one note, the louder.

    Parameters
    ----------
    path : path
        A file of format 0 or 1, timed in beats (tempo changes in any track) or by SMPTE.

    Returns
    -------
    Score
        Empty if the file holds no notes.

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
        raise _unusable(path, "damaged: it lasts for ever", "export it again")
    # Stable: at one tick the order of the tracks, and within one that of the file.
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
    """Read a regular file whole; never waits, and takes no more than a score can be large."""

    def no_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    try:
        # A look before the open: opening a device can have effects of its own.
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
    except Exception as error:  # Whatever a parser meets in a damaged file: index, key, value, struct, ...
        why = one_line(str(error) or type(error).__name__)
        raise _unusable(path, f"damaged: {why}", "export it again") from None


class _Note:
    """One note: times in ticks, and the track it began in."""

    __slots__ = ("onset", "pitch", "release", "track", "velocity")

    def __init__(self, onset: int, track: int, pitch: int, velocity: int) -> None:
        self.onset, self.release = onset, onset
        self.track, self.pitch, self.velocity = track, pitch, velocity


class _Keys:
    """The keys and pedals of all channels, as the events of a file arrive in the order of their ticks."""

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
        # What another track lets go at the instant at which this one strikes is an earlier note.
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
    """Return the seconds of some ticks: `tempos` are (tick, microseconds a quarter), sorted, from tick 0."""
    units = division & 0xFF
    if division == 0 or (division < 0 and units == 0):
        raise _unusable(path, "damaged: no ticks per beat", "export it again")
    if division < 0:  # SMPTE: minus the frames a second in the upper byte, ticks a frame in the lower.
        frames = 256 - (division >> 8 & 0xFF)
        return ticks / ((30000 / 1001 if frames == 29 else frames) * units)
    start = np.array([tick for tick, _ in tempos], dtype=np.float64)
    length = np.array([tempo for _, tempo in tempos]) / 1e6 / division
    begun = np.concatenate([[0.0], np.cumsum(np.diff(start) * length[:-1])])
    tempo = np.searchsorted(start, ticks, side="right") - 1
    return begun[tempo] + (ticks - start[tempo]) * length[tempo]
