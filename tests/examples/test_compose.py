"""The composed tunes: range, key, length, seeds, and reading back the file."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wavenet.music.midi_file import read_midi

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
try:
    compose = importlib.import_module("compose")
finally:
    sys.path.remove(str(EXAMPLES))

EIGHTH = 240


@pytest.mark.parametrize("bars", [8, 12, 16])
def test_voices_fill_bars_within_range(bars):
    for seed in range(60):
        for voice, (low, high) in zip(
            compose.compose(seed, bars), (compose.MELODY, compose.BASS), strict=True
        ):
            now = 0
            for start, length, pitch, velocity in voice:
                assert start == now and length >= EIGHTH and length % EIGHTH == 0
                assert low <= pitch <= high and 50 <= velocity <= 100
                now = start + length
            assert now == bars * 4 * 480


def test_tunes_use_one_key_and_end_on_its_tonic():
    for seed in range(60):
        melody, bass = compose.compose(seed)
        key = bass[-1][2] % 12
        assert melody[-1][2] % 12 == key and bass[0][2] % 12 == key
        used = {(pitch - key) % 12 for _, _, pitch, _ in melody + bass}
        major, minor = {0, 2, 4, 5, 7, 9, 11}, {0, 2, 3, 5, 7, 8, 10, 11}
        assert used <= major or used <= minor


def test_melody_moves_and_repeats():
    for seed in range(60):
        melody, _ = compose.compose(seed, 16)
        pitches = [pitch for _, _, pitch, _ in melody]
        assert len(set(pitches)) >= 5 and np.abs(np.diff(pitches)).max() <= 12
        shape = [
            [(s % (64 * EIGHTH), n, p) for s, n, p, _ in melody if a <= s < a + 48 * EIGHTH]
            for a in (0, 64 * EIGHTH)
        ]
        assert shape[0] == shape[1]


def test_each_seed_is_one_tune():
    assert compose.compose(3) == compose.compose(3)
    assert len({str(compose.compose(seed)) for seed in range(30)}) == 30


def test_file_reads_back(tmp_path, capsys):
    pytest.importorskip("mido")
    path = tmp_path / "tune.mid"
    assert compose.main([str(path), "--seed", "5", "--bars", "10", "--tempo", "120"]) == 0
    assert capsys.readouterr().err.strip().endswith("20.0 s")
    score, voices = read_midi(path), compose.compose(5, 10)
    expected = sorted(
        (start / 960, pitch, velocity) for voice in voices for start, _, pitch, velocity in voice
    )
    found = sorted(zip(score.onset.tolist(), score.pitch.tolist(), score.velocity.tolist(), strict=True))
    np.testing.assert_allclose(found, expected, atol=1e-9)
    # 10 bars of 4 beats at 120 per minute, less the gap after the last note of 15 ticks.
    assert score.seconds == pytest.approx(20 - 15 / 960)
    before = path.read_bytes()
    assert compose.main([str(path), "--seed", "5", "--bars", "10", "--tempo", "120"]) == 1
    assert "use --force" in capsys.readouterr().err
    assert compose.main([str(path), "--seed", "5", "--bars", "10", "--tempo", "120", "--force"]) == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bars", "7"], "7 bars: use an even number from 8 to 16"),
        (["--bars", "18"], "18 bars"),
        (["--tempo", "0"], "--tempo 0 is not between 20 and 400"),
        (["--tempo", "nan"], "--tempo nan is not between"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, capsys):
    assert compose.main([str(tmp_path / "a.mid"), *arguments]) == 1
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1 and not list(tmp_path.iterdir())


def test_missing_mido_and_missing_folder(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mido")
    assert compose.main([str(tmp_path / "none" / "a.mid")]) == 1
    assert "cannot write" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "mido", None)
    assert compose.main([str(tmp_path / "a.mid")]) == 1
    assert "pip install 'wavenet[midi]'" in capsys.readouterr().err


def test_script_runs_on_its_own():
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "compose.py"), "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "--bars" in done.stdout
