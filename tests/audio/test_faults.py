"""Faults in synthetic sounds, quantised like the output of a network."""

from __future__ import annotations

import numpy as np
import pytest

from wavenet.audio import faults, mulaw

RATE = 16000


def quantised(wave: np.ndarray, classes: int = 256) -> np.ndarray:
    return mulaw.decode(mulaw.encode(np.clip(wave, -1, 1).astype(np.float32), classes), classes)


def kinds(wave: np.ndarray, rate: int = RATE) -> set[str]:
    return {each.kind for each in faults.find_faults(quantised(wave), rate)}


def times(seconds: float, rate: int = RATE) -> np.ndarray:
    return np.arange(round(seconds * rate)) / rate


def white(seconds: float, level: float = 0.1, rate: int = RATE) -> np.ndarray:
    return np.random.default_rng(0).normal(scale=level, size=round(seconds * rate))


def tone(seconds: float, hertz: float = 440, rate: int = RATE) -> np.ndarray:
    return 0.1 * np.sin(2 * np.pi * hertz * times(seconds, rate))


def melody(seconds: float, rate: int = RATE) -> np.ndarray:
    """A struck note every third of a second, of four decaying harmonics."""
    rng, found = np.random.default_rng(1), np.zeros(round(seconds * rate))
    for onset in np.arange(0, seconds, 1 / 3):
        rest = times(seconds - onset, rate)
        pitch = 220 * 2 ** (rng.integers(0, 24) / 12)
        note = sum(np.sin(2 * np.pi * pitch * part * rest) / part**2 for part in range(1, 5))
        found[len(found) - len(rest) :] += 0.2 * rng.uniform(0.3, 1) * np.exp(-2.5 * rest) * note
    return found


@pytest.mark.parametrize("rate", [4000, 8000, 16000, 44100])
def test_finds_silence_noise_and_stuck_tones(rate):
    assert kinds(0 * times(3, rate), rate) == {"silence"}
    assert kinds(white(2, rate=rate), rate) == {"noise"}
    assert kinds(tone(4, rate=rate), rate) == {"tone"}
    assert kinds(melody(8, rate), rate) == set()


@pytest.mark.parametrize("level", [0.02, 0.1, 0.5])
def test_noise_at_any_audible_level(level):
    assert kinds(white(2, level)) == {"noise"}
    assert kinds(white(2, level)[1:] - white(2, level)[:-1]) == {"noise"}


def test_noise_of_uniform_classes_and_overload():
    classes = np.random.default_rng(0).integers(0, 256, 2 * RATE)
    assert {each.kind for each in faults.find_faults(mulaw.decode(classes, 256), RATE)} == {"noise"}
    assert kinds(np.sign(tone(2, 50))) == {"noise"}


@pytest.mark.parametrize(
    "wave",
    [
        tone(4, 60),
        tone(4) + tone(4, 554) + tone(4, 659),
        tone(4) * (1 + 0.05 * np.sin(2 * np.pi * 5 * times(4))),
        np.sign(tone(4, 100)) / 10,
        np.tile(white(0.01), 400),
        tone(4) + white(4, 0.003),
    ],
)
def test_repeating_sounds_are_tones(wave):
    assert kinds(wave) == {"tone"}


def test_fading_changing_and_short_sounds():
    assert kinds(tone(4) * np.exp(-times(4) / 3)) == set()
    assert kinds(np.concatenate([tone(2, hertz) for hertz in (330, 440, 550, 440)])) == set()
    assert kinds(np.concatenate([melody(2), tone(2.5), melody(2)])) == set()
    assert kinds(np.concatenate([melody(2), white(0.7), melody(2)])) == set()
    assert kinds(np.concatenate([melody(2), np.zeros(int(1.9 * RATE)), melody(2)])) == set()
    assert kinds(white(3, 1e-3)) == set()
    assert kinds(np.zeros(0)) == kinds(np.zeros(100)) == set()


def test_offsets_and_quantisation_are_silence():
    assert kinds(np.full(3 * RATE, 0.25)) == {"silence"}
    assert kinds(1e-4 * np.sign(tone(3))) == {"silence"}


def test_start_and_stop_of_faults():
    wave = np.concatenate([melody(3), white(2.5), np.zeros(4 * RATE), melody(3)])
    noise, silence = faults.find_faults(quantised(wave), RATE)
    assert (noise.kind, silence.kind) == ("noise", "silence")
    assert noise.start == pytest.approx(3, abs=0.26) and noise.stop == pytest.approx(5.5, abs=0.26)
    assert silence.start == pytest.approx(5.5, abs=0.26) and silence.stop == pytest.approx(9.5, abs=0.26)
    assert faults.find_faults(quantised(wave), RATE, kinds=("tone", "silence")) == [silence]


def measured(wave: np.ndarray, bits: float | None) -> list[faults.AudioStatistics]:
    size = faults.block_samples(RATE)
    entropy = None if bits is None else np.array([bits])
    return [
        faults.measure_block(wave[None, start : start + size], RATE, entropy, 256)
        for start in range(0, len(wave) - size + 1, size)
    ]


def test_entropy_finds_faults_that_audio_does_not():
    """Pink noise has the spectrum of music, and a fading note has no constant level."""
    pink = np.cumsum(white(1.1, 0.01)) * 0.3
    assert (
        faults.detect_fault(measured(pink, None)) is None and faults.detect_fault(measured(pink, 6.9)) is None
    )
    assert faults.detect_fault(measured(pink, 7.1)) == "noise"
    fading = tone(3) * np.exp(-times(3))
    assert (
        faults.detect_fault(measured(fading, None)) is None
        and faults.detect_fault(measured(fading, 0.5)) is None
    )
    assert faults.detect_fault(measured(fading, 0.01)) == "tone"
    assert faults.detect_fault(measured(fading, 0.01), {"noise"}) is None
    assert faults.detect_fault(measured(0 * fading, 0.0)) == "silence"
