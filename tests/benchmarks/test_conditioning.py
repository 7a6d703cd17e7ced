"""Benchmarks of conditioned networks: scores, resynthesis, cost."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from support.commands import NETWORK_FLAGS, run
from support.conditioned import tune
from support.scores import write_midi

from wavenet.audio.wav import write_wav
from wavenet.engine import registry

RATE = 4000
SHORT = [*NETWORK_FLAGS, "--steps", "2", "--validate-every", "0", "--sample-every", "0", "--segment", "0.1"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    before = set(sys.modules)
    yield importlib.import_module
    for name in {"playing", "copying", "conditioning", "transcription", "generation"} - before:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Networks after two training steps: on scores, on spectra, and without conditioning."""
    home = tmp_path_factory.mktemp("conditioned")
    (home / "audio").mkdir()
    # Two of these names are held out.
    for number in range(14):
        score = tune(number, 1.0)
        noise = np.random.default_rng(number).normal(0, 0.1, round(score.seconds * RATE) + RATE)
        write_wav(home / "audio" / f"{number}.wav", noise.astype(np.float32), RATE)
        write_midi(home / "midi" / f"{number}.mid", score)
    runs = {
        "score": ["--midi-dir", "midi"],
        "mel": ["--features", "mel", "--n-mels", "8", "--n-fft", "128"],
        "plain": [],
    }
    for name, flags in runs.items():
        done = run("train", "--audio-dir", "audio", "--out-dir", name, *SHORT, *flags, cwd=home)
        assert done.returncode == 0, done.stderr
    return home


@pytest.mark.slow
def test_playing_reports_pieces_and_mean(runs, script, capsys):
    out = runs / "playing.json"
    arguments = ["--checkpoint", str(runs / "score"), "--audio-dir", str(runs / "audio"), "--guidance", "1.5"]
    arguments += ["--midi-dir", str(runs / "midi"), "--seconds", "0.8", "--json", str(out)]
    assert script("playing").main(arguments) == 0
    found = json.loads(out.read_text())
    assert len(found["pieces"]) >= 1 and set(found["mean"]) == {"recording", "true score", "shuffled score"}
    for kind, figures in found["mean"].items():
        each = [piece[kind]["own"] for piece in found["pieces"].values()]
        assert figures["own"] == pytest.approx(np.mean(each))
    assert "guidance 1.5" in capsys.readouterr().out


@pytest.mark.slow
def test_copying_reports_distances_and_bits(runs, script):
    out = runs / "copying.json"
    arguments = ["--checkpoint", str(runs / "mel"), "--audio-dir", str(runs / "audio"), "--seconds", "0.5"]
    arguments += ["--without", str(runs / "plain"), "--cache-dir", str(runs / "cache"), "--json", str(out)]
    copying = script("copying")
    assert copying.main(arguments) == 0
    found = json.loads(out.read_text())
    assert set(found["bits_per_sample"]) == {"own spectrum", "no conditioning", "another network"}
    assert all(0 < bits < 9 for bits in found["bits_per_sample"].values())
    assert all(0 < distance < 60 for distance in found["distance_db"].values())


def test_spectral_distance(script):
    copying = script("copying")
    noise = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    assert copying.distance(noise, noise, 16000) == 0
    # All bands of a take half as strong are 6 dB away.
    assert copying.distance(noise, noise / 2, 16000) == pytest.approx(6.02, abs=0.01)
    # The distance of silence is limited by RANGE_DB.
    assert 40 < copying.distance(noise, 0 * noise, 16000) < copying.RANGE_DB


@pytest.mark.parametrize("flags", [[], ["--one-class"]])
def test_cost_of_conditioning(flags, script, monkeypatch, tmp_path):
    conditioning = script("conditioning")
    small = dict(layers=4, residual_channels=4, dilation_channels=4, skip_channels=8, head_channels=8)
    monkeypatch.setitem(conditioning.PRESETS, "A", small)
    monkeypatch.setattr(conditioning, "MEMORY_SECONDS", 1)
    out = tmp_path / "cost.json"
    backend = "numba" if registry.report()["cpu"] else "cpu"
    arguments = ["A", "--backend", backend, "--seconds", "0.1", "--repeats", "2", "--json", str(out), *flags]
    assert conditioning.main(arguments) == 0
    (row,) = json.loads(out.read_text())
    assert row["samples_per_second"] > 0 and row["ratio"] == pytest.approx(
        row["samples_per_second_conditioned"] / row["samples_per_second"], abs=0.01
    )
    assert conditioning.main(["Z"]) == 1
