"""A network trained on tunes of one instrument plays another, composed tune."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.commands import run

from wavenet.audio.wav import write_wav
from wavenet.music.midi_file import read_midi
from wavenet.music.score import Score

RATE = 4000
TRAINING = [
    *("--sample-rate", "4000", "--quantization-channels", "64", "--layers", "7", "--stacks", "1"),
    *("--residual-channels", "24", "--dilation-channels", "24", "--skip-channels", "48"),
    *("--head-channels", "48", "--hop", "40", "--batch", "8", "--segment", "0.25", "--lr", "0.008"),
    *("--steps", "400", "--warmup-steps", "40", "--ema-decay", "0.98", "--precision", "fp32"),
    *("--validate-every", "0", "--sample-every", "0", "--silence-db", "60"),
]


@pytest.fixture
def scripts(monkeypatch):
    root = Path(__file__).resolve().parents[2]
    for folder in ("examples", "benchmarks"):
        monkeypatch.syspath_prepend(root / folder)
    names = ("compose", "transcription")
    yield [importlib.import_module(name) for name in names]
    for name in names:
        sys.modules.pop(name, None)


def played(score: Score, rng: np.random.Generator) -> np.ndarray:
    """Render a struck instrument with three harmonics."""
    audio = np.zeros(round((score.seconds + 0.5) * RATE))
    for onset, release, pitch, velocity in zip(
        score.onset, score.release, score.pitch, score.velocity, strict=True
    ):
        time = np.arange(round((release - onset) * RATE)) / RATE
        hertz, start = 440 * 2 ** ((pitch - 69) / 12), round(onset * RATE)
        wave = sum(np.sin(2 * np.pi * n * hertz * time + rng.uniform(0, 6.28)) / n**2 for n in (1, 2, 3))
        audio[start : start + len(time)] += velocity / 300 * wave * np.exp(-time / 0.3)
    return (audio + rng.normal(0, 0.002, len(audio))).astype(np.float32)


@pytest.mark.slow
def test_network_plays_a_composed_tune(scripts, tmp_path):
    pytest.importorskip("mido")
    compose, transcription = scripts
    rng = np.random.default_rng(0)
    (tmp_path / "midi").mkdir()
    (tmp_path / "audio").mkdir()
    for seed in range(1, 11):
        path = tmp_path / "midi" / f"{seed}.mid"
        assert compose.main([str(path), "--seed", str(seed), "--tempo", "240"]) == 0
        write_wav(tmp_path / "audio" / f"{seed}.wav", played(read_midi(path), rng), RATE)
    trained = run(
        "train", "--audio-dir", "audio", "--midi-dir", "midi", "--out-dir", "run", *TRAINING, cwd=tmp_path
    )
    assert trained.returncode == 0, trained.stderr

    tune = tmp_path / "tune.mid"
    assert compose.main([str(tune), "--seed", "0", "--tempo", "240"]) == 0
    score = read_midi(tune)
    done = run(
        "generate", "--checkpoint", "run", "--midi", "tune.mid", "--seed", "1", "out.wav", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    audio, _ = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert len(audio) == round((score.seconds + 1.5) * RATE)

    found = transcription.check(audio, RATE, score)
    other = transcription.check(audio, RATE, score.shuffled(0))
    # The instrument itself scores nearly 1.
    assert found["own"] > 0.65 and found["own"] > other["own"] + 0.12
