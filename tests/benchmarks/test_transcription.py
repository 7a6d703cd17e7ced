"""The transcription check: tones with known notes; figures compared with loops over pairs."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from wavenet.audio.wav import write_wav
from wavenet.music.score import Score

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="runs in a source tree only")
RATE = 16000


@pytest.fixture
def transcription(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("transcription")
    sys.modules.pop("transcription", None)


def piece(seed, seconds=8.0):
    """Return two voices in C major, each note lasting until the next of its voice."""
    rng = np.random.default_rng(seed)
    onset, release, pitch = [], [], []
    for low, length in ((48, 0.5), (67, 0.25)):
        scale = low + np.array([0, 2, 4, 5, 7, 9, 11, 12])
        for start in np.arange(0.1, seconds, length):
            onset.append(start)
            release.append(start + length)
            pitch.append(int(rng.choice(scale)))
    return Score(np.array(onset), np.array(release), np.array(pitch), np.full(len(onset), 80))


def play(score, seconds=8.5, up=0, late=0.0, rate=RATE):
    """Render tones of eight harmonics that decay slowly, released within 10 ms."""
    audio = np.zeros(int(seconds * rate))
    for onset, release, pitch in zip(score.onset + late, score.release + late, score.pitch + up, strict=True):
        begin, end = max(int(onset * rate), 0), max(int(release * rate) + 1, 0)
        times = np.arange(len(audio))[begin:end] / rate
        level = np.clip((times - onset) / 0.005, 0, 1) * np.clip((release - times) / 0.01, 0, 1)
        level = level * np.exp(-2 * np.maximum(times - onset, 0))
        frequency = 440 * 2 ** ((pitch - 69) / 12)
        for harmonic in range(1, 9):
            if harmonic * frequency < rate / 2:
                phase = 2 * np.pi * harmonic * frequency * times + pitch * harmonic
                audio[begin:end] += level * np.sin(phase) * 0.7**harmonic
    return (audio * 0.2).astype(np.float32)


def test_played_pitches_outrank_others(transcription):
    score = piece(0)
    audio = play(score)
    true = transcription.check(audio, RATE, score)
    assert true["own"] > 0.95 and true["pitch"] > 0.95 and true["octave"] > 0.9 and true["onset"] > 0.9
    assert true["rise_db"] > 6 and abs(true["lag_ms"]) < 6
    assert true["notes"] == len(score) and true["frames"] == pytest.approx(800, abs=1)
    wrong = {
        "shuffled": transcription.check(audio, RATE, score.shuffled(0)),
        "other": transcription.check(audio, RATE, piece(1)),
        "late": transcription.check(audio, RATE, score.shifted(0.5)),
    }
    for name, figures in wrong.items():
        assert 0.35 < figures["own"] < 0.65, name
        assert figures["onset"] < 0.7, name


@pytest.mark.parametrize("up", [-12, 12])
def test_octave_errors_are_found(transcription, up):
    score = piece(2)
    true = transcription.check(play(score), RATE, score)
    wrong = transcription.check(play(score, up=up), RATE, score)
    assert true["octave"] > 0.9 > 0.6 > wrong["octave"]


@pytest.mark.parametrize("late", [-0.03, 0.0, 0.02])
def test_lag(transcription, late):
    score = piece(3).shifted(0.2)
    found = transcription.lag(play(score, late=late), RATE, score)
    # The attack of 5 ms belongs to the lag.
    assert 1000 * late <= found <= 1000 * late + 5


def test_loudness_and_rate_do_not_matter(transcription):
    score = piece(4)
    audio = play(score)
    full = transcription.check(audio, RATE, score)
    assert transcription.check(audio * np.float32(2**-7), RATE, score) == pytest.approx(full, abs=1e-4)
    other = transcription.check(play(score, rate=22050), 22050, score)
    assert other["own"] == pytest.approx(full["own"], abs=0.02)
    assert other["lag_ms"] == pytest.approx(full["lag_ms"], abs=1.5)


def test_silence_has_no_pitches(transcription):
    figures = transcription.check(np.zeros(RATE * 9, np.float32), RATE, piece(0))
    assert [figures[name] for name in ("pitch", "own", "octave", "onset", "rise_db")] == [0.5] * 4 + [0]


def test_nothing_to_measure_is_none(transcription):
    empty = Score(*np.zeros((4, 0)))
    figures = transcription.check(play(piece(0)), RATE, empty)
    assert figures == {name: None for name in transcription.FIGURES} | {"frames": 0, "notes": 0}
    # The recording ends before the score begins.
    figures = transcription.check(play(piece(0)), RATE, piece(0).shifted(100))
    assert figures["own"] is None and figures["notes"] == 0


def test_outranking_counts_pairs(transcription):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4, (20, 9)).astype(float)
    above, below = rng.random((20, 9)) < 0.3, rng.random((20, 9)) < 0.5
    above[3] = False
    allowed = rng.random((9, 9)) < 0.7
    found = transcription.outranking(values, above, below, allowed)
    for frame in range(20):
        pairs = [
            (values[frame, i] > values[frame, j]) + 0.5 * (values[frame, i] == values[frame, j])
            for i in np.flatnonzero(above[frame])
            for j in np.flatnonzero(below[frame])
            if allowed[i, j]
        ]
        assert found[frame] == pytest.approx(np.mean(pairs)) if pairs else np.isnan(found[frame])


def test_salience_by_the_definition(transcription):
    """The salience at one time, from a Fourier transform at the harmonics and around them."""
    audio = play(piece(5), seconds=1.0)
    salience, level = transcription.Saliences(audio, RATE).at(np.array([0.4]))
    window = np.sin(np.pi * np.arange(1024) / 1024) ** 2
    part = audio[6400 - 512 : 6400 + 512] * window
    floor = 1e-4 * np.abs(audio).max() * window.sum() / 2

    def magnitude(frequency):
        return np.abs(part @ np.exp(-2j * np.pi * np.outer(np.arange(1024), frequency) / RATE))

    for pitch in (60, 72, 79, 100):
        harmonics = 440 * 2 ** ((pitch - 69) / 12) * np.arange(1, 9)
        harmonics = harmonics[harmonics < 7600]
        weight = 0.8 ** np.arange(len(harmonics))
        around = []
        for frequency in harmonics:
            half = 2 ** (1 / 3)
            low, high = min(frequency / half, frequency - 94), max(frequency * half, frequency + 94)
            around.append(magnitude(np.arange(low, min(high, 8000), 4)).mean())
        levels = np.log(magnitude(harmonics) + floor)
        expected = levels - np.log(np.array(around) + floor)
        assert salience[0, pitch - 21] == pytest.approx(np.average(expected, weights=weight), abs=0.1)
        assert level[0, pitch - 21] == pytest.approx(np.average(levels, weights=weight), abs=0.1)


def test_command(transcription, tmp_path, capsys):
    mido = pytest.importorskip("mido")
    score = piece(6, seconds=3.0)
    track = mido.MidiTrack()
    events = [(round(t * 960), "note_on", p) for t, p in zip(score.onset, score.pitch, strict=True)]
    events += [(round(t * 960), "note_off", p) for t, p in zip(score.release, score.pitch, strict=True)]
    now = 0
    for tick, name, pitch in sorted(events, key=lambda event: (event[0], event[1])):
        track.append(mido.Message(name, note=int(pitch), time=tick - now))
        now = tick
    file = mido.MidiFile(ticks_per_beat=480)
    file.tracks.append(track)
    file.save(tmp_path / "a.mid")
    write_wav(tmp_path / "a.wav", play(score, seconds=3.5), RATE)
    arguments = [str(tmp_path / "a.wav"), str(tmp_path / "a.mid")]
    assert transcription.main([*arguments, "--json", str(tmp_path / "a.json")]) == 0
    results = json.loads((tmp_path / "a.json").read_text())
    assert list(results) == ["score", "shuffled", "0.5 s late"]
    assert results["score"]["own"] > 0.9 > results["shuffled"]["own"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == list(transcription.FIGURES)
    assert lines[1].split()[:3] == ["score", *(f"{results['score'][name]:.3f}" for name in ("pitch", "own"))]
    assert transcription.main(arguments[::-1]) == 1
    assert "not a MIDI file" in capsys.readouterr().err
    assert transcription.main([str(tmp_path / "none.wav"), arguments[1]]) == 1
    assert capsys.readouterr().err.count("\n") == 1
