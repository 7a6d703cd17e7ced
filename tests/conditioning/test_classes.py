"""Classes as timbres: the same pitches with two spectra, generated, mixed and interpolated over time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.commands import run

from wavenet.audio.wav import write_wav

pytestmark = pytest.mark.slow

RATE = 4000
HERTZ = np.array([180.0, 202.0, 227.0, 255.0])
"""Fundamentals of both timbres, in Hz."""

TIMBRES = {"bright": np.array([0.35, 1.0, 0.8, 0.6]), "soft": np.array([1.0, 0.1])}
"""Amplitudes of the harmonics, from the fundamental on."""

EDGE = 310.0
"""In Hz: above all fundamentals, below all second harmonics."""

WINDOW = 512


def tones(timbre: str, seed: int, seconds: float) -> np.ndarray:
    """Tones of random pitch, length, level and phases, one after the other, in a little noise."""
    rng = np.random.default_rng(seed)
    amplitudes = TIMBRES[timbre] / np.linalg.norm(TIMBRES[timbre])
    parts, wanted = [], round(seconds * RATE)
    while sum(map(len, parts)) < wanted:
        time = np.arange(round(rng.uniform(0.08, 0.16) * RATE)) / RATE
        order = np.arange(1, 1 + len(amplitudes))[:, None]
        phases = 2 * np.pi * rng.choice(HERTZ) * order * time + rng.uniform(0, 2 * np.pi, order.shape)
        parts.append(rng.uniform(0.15, 0.4) * amplitudes @ np.sin(phases))
    audio = np.concatenate(parts)[:wanted] + rng.normal(0, 0.004, wanted)
    return audio.astype(np.float32)


def share(audio: np.ndarray, which: np.ndarray) -> float:
    """Return the share of the energy at some of `FREQUENCIES`, by averaged spectra (Welch 1967)."""
    windows = np.lib.stride_tricks.sliding_window_view(audio, WINDOW)[:: WINDOW // 2]
    power = (np.abs(np.fft.rfft(windows * np.hanning(WINDOW))) ** 2).sum(axis=0)
    return float(power[which].sum() / power.sum())


FREQUENCIES = np.fft.rfftfreq(WINDOW, 1 / RATE)
OVERTONES = FREQUENCIES > EDGE
IN_TUNE = np.abs(FREQUENCIES[:, None] - np.outer(HERTZ, np.arange(1, 5)).reshape(1, -1)).min(axis=1) < 10


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Where a network learnt the timbres, half a minute of each."""
    home = tmp_path_factory.mktemp("timbres")
    for place, timbre in enumerate(TIMBRES):
        (home / "audio" / timbre).mkdir(parents=True)
        for number in range(3):
            write_wav(home / "audio" / timbre / f"{number}.wav", tones(timbre, 10 * place + number, 10), RATE)
    result = run(
        "train", "--audio-dir", "audio", "--classes", "folders", "--out-dir", "run", "--steps", "300",
        "--sample-rate", RATE, "--quantization-channels", "64", "--layers", "7", "--stacks", "1",
        "--residual-channels", "24", "--dilation-channels", "24", "--skip-channels", "48", "--head-channels",
        "48", "--batch", "8", "--segment", "0.25", "--lr", "0.008", "--warmup-steps", "40", "--ema-decay",
        "0.98", "--validate-every", "0", "--sample-every", "0", cwd=home,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return home


def played(home: Path, classes: str, *arguments: str) -> np.ndarray:
    result = run(
        "generate", "--checkpoint", "run", "--class", classes, "--seconds", "3", "--seed", "1", *arguments,
        "--force", "take.wav", cwd=home,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return soundfile.read(home / "take.wav", dtype="float32")[0]


def test_measures_separate_recordings_and_noise():
    noise = np.random.default_rng(0).normal(size=10 * RATE)
    assert share(tones("soft", 99, 10), OVERTONES) < 0.03 and share(tones("bright", 99, 10), OVERTONES) > 0.92
    assert share(noise, IN_TUNE) < 0.2 and 0.8 < share(noise, OVERTONES) < 0.9
    assert all(share(tones(timbre, 99, 10), IN_TUNE) > 0.8 for timbre in TIMBRES)


def test_each_class_has_its_timbre(home):
    soft, bright = played(home, "soft"), played(home, "bright")
    assert share(soft, OVERTONES) < 0.1 and share(bright, OVERTONES) > 0.85
    # The tones of the recordings, and not noise of a colour.
    assert share(soft, IN_TUNE) > 0.6 and share(bright, IN_TUNE) > 0.4


def test_classes_determine_the_timbre(home):
    untold = [played(home, timbre, "--guidance", "0") for timbre in TIMBRES]
    assert (untold[0] == untold[1]).all()


def test_a_mixture_is_between_its_classes(home):
    found = [share(played(home, f"soft:{1 - part},bright:{part}"), OVERTONES) for part in (0.25, 0.5, 0.75)]
    assert found == sorted(found)
    assert 0.03 < found[0] < 0.4 and 0.2 < found[1] < 0.8 and 0.6 < found[2] < 0.92


def test_one_timbre_becomes_the_other(home):
    glide = played(home, "0:soft 3:bright")
    parts = [share(part, OVERTONES) for part in np.array_split(glide, 5)]
    assert parts == sorted(parts)
    assert parts[0] < 0.15 and 0.15 < parts[2] < 0.85 and parts[4] > 0.75
    # The last class continues after the last point.
    early = played(home, "0:soft 1:bright")
    assert share(early[RATE * 3 // 2 :], OVERTONES) > 0.85
