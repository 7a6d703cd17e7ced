"""MIDI files built with mido against known times, and files that are not MIDI."""

from __future__ import annotations

import os
import struct
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavenet.errors import AudioError
from wavenet.music.midi_file import read_midi
from wavenet.music.score import ROLL_CHANNELS, Score

mido = pytest.importorskip("mido")

BEAT = 480


def save(path, *tracks, kind=None, division=BEAT):
    """Write tracks of (tick, message type, values); each ends with its last event."""
    file = mido.MidiFile(type=(len(tracks) > 1) if kind is None else kind, ticks_per_beat=division)
    for events in tracks:
        track, now = mido.MidiTrack(), 0
        for tick, name, values in events:
            make = mido.MetaMessage if name in ("set_tempo", "end_of_track", "text") else mido.Message
            track.append(make(name, time=tick - now, **values))
            now = tick
        file.tracks.append(track)
    file.save(path)
    return path


def on(tick, note, velocity=64, channel=0):
    return tick, "note_on", {"note": note, "velocity": velocity, "channel": channel}


def off(tick, note, channel=0):
    return tick, "note_off", {"note": note, "channel": channel}


def pedal(tick, value, channel=0):
    return control(tick, 64, value, channel)


def control(tick, number, value, channel=0):
    return tick, "control_change", {"control": number, "value": value, "channel": channel}


def tempo(tick, bpm):
    return tick, "set_tempo", {"tempo": round(60e6 / bpm)}


def end(tick):
    return tick, "end_of_track", {}


def notes(score):
    """(onset, release, pitch, velocity) of each note."""
    columns = (score.onset, score.release, score.pitch, score.velocity)
    return [tuple(row) for row in zip(*(each.tolist() for each in columns), strict=True)]


def read(tmp_path, *tracks, **how):
    return notes(read_midi(save(tmp_path / "a.mid", *tracks, **how)))


# Reading


@pytest.mark.parametrize("zero", [False, True])
def test_notes_of_one_track(tmp_path, zero):
    """Two quarters at 120 a minute; a note-on of velocity 0 is a note-off."""
    let_go = (lambda tick, note: on(tick, note, 0)) if zero else off
    track = [
        on(0, 60, 1),
        let_go(480, 60),
        on(480, 62, 127),
        on(720, 64, 30),
        let_go(960, 62),
        let_go(1200, 64),
    ]
    path = save(tmp_path / "a.mid", track)
    score = read_midi(path)
    assert notes(score) == [(0.0, 0.5, 60, 1), (0.5, 1.0, 62, 127), (0.75, 1.25, 64, 30)]
    assert [each.dtype for each in (score.onset, score.release, score.pitch, score.velocity)] == [
        np.float64, np.float64, np.int64, np.int64,
    ]  # fmt: skip
    assert score.seconds == 1.25 and len(score) == 3


@pytest.mark.parametrize("place", [0, 1])
def test_tempo_changes_apply_to_all_tracks(tmp_path, place):
    """60 a minute for 1.5 beats, then 240, and 30 from beat 3.5: beats 1, 3 and 4 are worked out by hand."""
    tempos = [tempo(0, 60), tempo(720, 240), tempo(1680, 30)]
    played = [on(480, 50), off(1440, 50), on(1440, 52), off(1920, 52)]
    tracks = [tempos, played] if place == 0 else [played, tempos]
    # Beat 3 is 1.5 + 1.5 / 4 s; beat 3.5 an eighth of a second later; beat 4 another whole second.
    assert read(tmp_path, *tracks) == [(1.0, 1.875, 50, 64), (1.875, 3.0, 52, 64)]


def test_the_later_of_two_tempos_at_one_tick_holds(tmp_path):
    track = [tempo(0, 30), tempo(0, 60), on(480, 60), off(960, 60)]
    assert read(tmp_path, track) == [(1.0, 2.0, 60, 64)]


@pytest.mark.parametrize(("frames", "rate"), [(24, 24), (25, 25), (29, 30000 / 1001), (30, 30)])
def test_smpte_division_ignores_the_tempo(tmp_path, frames, rate):
    division = struct.unpack(">h", bytes([256 - frames, 40]))[0]
    track = [tempo(0, 33), on(40, 60), off(600, 60)]
    [(onset, release, *_)] = read(tmp_path, track, division=division)
    assert (onset, release) == pytest.approx((1 / rate, 15 / rate), rel=1e-12)


def test_tracks_and_channels_merge_without_drums(tmp_path):
    tracks = (
        [on(960, 70, channel=3), off(1200, 70, channel=3)],
        [on(0, 40, channel=15), on(240, 35, channel=9), off(480, 40, channel=15), off(480, 35, channel=9)],
    )
    assert read(tmp_path, *tracks) == [(0.0, 0.5, 40, 64), (1.0, 1.25, 70, 64)]


def test_a_new_onset_ends_the_older_note_of_its_pitch(tmp_path):
    track = [on(0, 60, 10), on(480, 60, 20), off(960, 60), off(1440, 60)]
    assert read(tmp_path, track) == [(0.0, 0.5, 60, 10), (0.5, 1.0, 60, 20)]
    # On another channel it is another string.
    track = [on(0, 60, 10), on(480, 60, 20, channel=1), off(960, 60), off(1440, 60, channel=1)]
    assert read(tmp_path, track) == [(0.0, 1.0, 60, 10), (0.5, 1.5, 60, 20)]


@pytest.mark.parametrize("turned", [False, True])
def test_a_pitch_repeated_by_another_voice_is_not_cut(tmp_path, turned):
    """One track lets go at the tick at which the other strikes the same key."""
    tracks = [[on(0, 60, 10), off(480, 60)], [on(480, 60, 20), off(960, 60)]]
    assert read(tmp_path, *tracks[:: -1 if turned else 1]) == [(0.0, 0.5, 60, 10), (0.5, 1.0, 60, 20)]


def test_two_strikes_at_once_are_one_note(tmp_path):
    tracks = [[on(0, 60, 10), off(480, 60)], [on(0, 60, 20), off(480, 60)]]
    assert read(tmp_path, *tracks) == [(0.0, 0.5, 60, 20)]


def test_unfinished_notes_end_with_their_track(tmp_path):
    tracks = [[on(0, 60), end(960)], [on(0, 72), off(240, 72), end(4800)]]
    assert read(tmp_path, *tracks) == [(0.0, 1.0, 60, 64), (0.0, 0.25, 72, 64)]


def test_the_pedal_holds_what_its_channel_lets_go(tmp_path):
    track = [
        on(0, 60), on(0, 61, channel=1), pedal(240, 64), off(480, 60), off(480, 61, channel=1),
        on(480, 62), off(960, 62), on(960, 64), pedal(1440, 63), off(1920, 64),
    ]  # fmt: skip
    assert read(tmp_path, track) == [
        (0.0, 1.5, 60, 64),  # let go by the pedal
        (0.0, 0.5, 61, 64),  # another channel
        (0.5, 1.5, 62, 64),
        (1.0, 2.0, 64, 64),  # the key outlasts the pedal
    ]


def test_the_pedal_may_be_in_another_track(tmp_path):
    tracks = [[pedal(0, 127), pedal(1440, 0)], [on(0, 60), off(480, 60)]]
    assert read(tmp_path, *tracks) == [(0.0, 1.5, 60, 64)]


def test_a_held_note_ends_where_it_is_struck_again(tmp_path):
    track = [pedal(0, 127), on(0, 60), off(240, 60), on(480, 60), off(720, 60), pedal(960, 0)]
    assert read(tmp_path, track) == [(0.0, 0.5, 60, 64), (0.5, 1.0, 60, 64)]


def test_a_pedal_that_is_never_released(tmp_path):
    track = [pedal(0, 127), on(0, 60), off(240, 60), on(480, 62), off(720, 62), end(1920)]
    assert read(tmp_path, track) == [(0.0, 2.0, 60, 64), (0.5, 2.0, 62, 64)]


@pytest.mark.parametrize(("number", "until"), [(120, 0.5), (121, 1.5), (123, 1.0)])
def test_controllers_that_end_notes(tmp_path, number, until):
    """All sound off ends at once, a reset lifts the pedal, all notes off lifts the keys."""
    track = [pedal(0, 127), on(0, 60), control(480, number, 0), pedal(960, 0), off(1440, 60), end(1920)]
    assert read(tmp_path, track) == [(0.0, until, 60, 64)]


def test_a_note_without_length_and_a_stray_note_off(tmp_path):
    assert read(tmp_path, [off(0, 61), on(480, 60), off(480, 60)]) == [(0.5, 0.5, 60, 64)]


@pytest.mark.parametrize("tracks", [([],), ([], []), ([(0, "text", {"text": "nothing"})],)])
def test_a_file_without_notes_is_an_empty_score(tmp_path, tracks):
    score = read_midi(save(tmp_path / "a.mid", *tracks))
    assert len(score) == 0 and score.seconds == 0
    assert not score.roll(0, 0.01, 7).any() and score.roll(0, 0.01, 7).shape == (ROLL_CHANNELS, 7)
    assert len(score.shuffled(0)) == 0


def test_an_hour_is_read_and_rolled_fast(tmp_path):
    """25,000 notes, one of them endless: read in seconds; a roll costs what it does in a short piece."""
    events = [on(0, 21), end(3600 * 960)]
    for index in range(25_000):
        tick = index * 138
        events += [on(tick, 30 + index % 60), off(tick + 200, 30 + index % 60)]
    order = {"note_off": 0, "note_on": 1, "end_of_track": 2}
    path = save(tmp_path / "a.mid", sorted(events, key=lambda event: (event[0], order[event[1]])))
    started = time.perf_counter()
    score = read_midi(path)
    assert time.perf_counter() - started < 20
    assert len(score) == 25_001 and score.seconds == 3600

    def fastest(score):
        times = []
        for _ in range(30):
            started = time.perf_counter()
            score.roll(1.0, 0.01, 50)
            score.roll(score.seconds - 1.0, 0.01, 50)
            times.append(time.perf_counter() - started)
        return min(times)

    short = Score(*(getattr(score, name)[:30] for name in ("onset", "release", "pitch", "velocity")))
    assert fastest(score) < 5 * fastest(short)
    assert score.roll(3500.0, 0.01, 50)[21].all()


# Bad files


def chunk(name, body, size=None):
    return name + struct.pack(">I", len(body) if size is None else size) + body


def midi(body, kind=0, tracks=1, division=480, size=None):
    return chunk(b"MThd", struct.pack(">hHh", kind, tracks, division)) + chunk(b"MTrk", body, size)


END = b"\x00\xff\x2f\x00"
NOTE = b"\x00\x90\x3c\x40\x60\x3c\x00"
BAD = {
    "empty": b"",
    "text": b"This is not music.\n" * 50,
    "wav": b"RIFF\x00\x00\x00\x00WAVEfmt ",
    "header alone": b"MThd",
    "cut header": b"MThd\x00\x00\x00\x06\x00\x00",
    "no track": b"MThd\x00\x00\x00\x06\x00\x00\x00\x01\x01\xe0",
    "none promised": midi(END, tracks=0),
    "cut track": midi(NOTE + END)[:-6],
    "a track that claims more": midi(NOTE + END, size=1 << 31),
    "a header that claims more": b"MThd\xff\xff\xff\xff" + midi(NOTE + END)[8:],
    "tracks that are not there": midi(NOTE + END, kind=1, tracks=32767),
    "text that claims more": midi(b"\x00\xff\x01\x8f\xff\xff\x7f" + END),
    "no status": midi(b"\x00\x3c\x40" + END),
    "high data": midi(b"\x00\x90\xbc\x40" + END),
    "other chunk": midi(END).replace(b"MTrk", b"XTrk"),
    "format 17": midi(END, kind=17),
    "division 0": midi(NOTE + END, division=0),
    "SMPTE without ticks": midi(NOTE + END, division=-25 * 256),
    "no end of a number": midi(b"\xff" * 2_000_000),
    "a time beyond numbers": midi(b"\xff" * 4000 + NOTE + END),
    "centuries": midi(NOTE + b"\x8f\xff\xff\xff\x7f\x3c\x40\x7f\x3c\x00" + END, division=1),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_files_give_one_line(name, tmp_path):
    path = tmp_path / "bad\nname.mid"
    path.write_bytes(BAD[name])
    started = time.perf_counter()
    with pytest.raises(AudioError) as caught:
        read_midi(path)
    message = str(caught.value)
    assert message.isprintable() and "bad\\nname.mid: " in message and "; " in message
    assert time.perf_counter() - started < 5


def test_format_2_is_refused(tmp_path):
    path = save(tmp_path / "a.mid", [on(0, 60), off(480, 60)], kind=2)
    with pytest.raises(
        AudioError, match=r"a\.mid: format 2 \(separate sequences\); save it as format 0 or 1$"
    ):
        read_midi(path)


@given(st.binary(max_size=300), st.integers(0, 1))
def test_any_bytes_are_a_score_or_an_error(tmp_path_factory, body, kind):
    path = tmp_path_factory.getbasetemp() / "any.mid"
    path.write_bytes(midi(body, kind=kind))
    try:
        assert read_midi(path).seconds >= 0
    except AudioError as error:
        assert str(error).isprintable()


@given(st.data())
def test_damage_to_a_real_file_is_a_score_or_an_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.mid"
    track = [tempo(0, 90), pedal(0, 127), *(on(240 * i, 60 + i) for i in range(9)), pedal(4800, 0)]
    content = bytearray(save(path, track).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        read_midi(path)
    except AudioError as error:
        assert str(error).isprintable()


def test_what_is_no_file(tmp_path):
    with pytest.raises(AudioError, match=r"none\.mid: does not exist; check the path$"):
        read_midi(tmp_path / "none.mid")
    with pytest.raises(AudioError, match=r"not a regular file; give a MIDI file$"):
        read_midi(tmp_path)
    with pytest.raises(AudioError, match="cannot be read"):
        read_midi("a\0b")
    large = tmp_path / "large.mid"
    with open(large, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(AudioError, match="larger than 2 MiB"):
        read_midi(large)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mid")
    with pytest.raises(AudioError, match="not a regular file"):
        read_midi(tmp_path / "pipe.mid")


def test_missing_mido_names_the_extra(tmp_path, monkeypatch):
    path = save(tmp_path / "a.mid", [])
    monkeypatch.setitem(sys.modules, "mido", None)
    with pytest.raises(AudioError, match=r"pip install 'wavenet\[midi\]'$"):
        read_midi(path)
