"""Levels, gains and silence, compared with closed forms and a plain computation."""

import numpy as np
import pytest
from support.audio_files import save, sine

from wavenet.audio.decoding import load_audio
from wavenet.audio.levels import gain, measure, non_silent_spans


def test_peak_and_loudness(tmp_path):
    path = save(tmp_path / "x.wav", sine(440, 2.0, 16000, 0.01), encoding="FLOAT")
    assert np.abs(load_audio(path, 16000, "peak")).max() == pytest.approx(0.95, rel=1e-3)
    loud = load_audio(path, 16000, "loudness")
    assert np.sqrt(np.mean(loud**2)) == pytest.approx(10 ** (-20 / 20), rel=1e-3)
    # Silence between does not make the rest louder.
    gaps = np.concatenate([np.zeros(32000, np.float32), sine(440, 2.0, 16000, 0.01)])
    path = save(tmp_path / "gaps.wav", gaps, encoding="FLOAT")
    assert np.sqrt(np.mean(load_audio(path, 16000, "loudness")[32000:] ** 2)) == pytest.approx(0.1, rel=1e-3)
    # A click that would pass full scale limits the gain.
    click = sine(440, 2.0, 16000, 0.01)
    click[5000] = 0.9
    path = save(tmp_path / "click.wav", click, encoding="FLOAT")
    assert np.abs(load_audio(path, 16000, "loudness")).max() == pytest.approx(0.95, rel=1e-3)


def test_levels_match_a_plain_computation():
    rng = np.random.default_rng(1)
    signal = (rng.normal(size=100_123) * 0.1 + 0.3).astype(np.float32)
    levels = measure(signal, 16000)
    assert levels.frame == 320
    wide = signal.astype(np.float64)
    truth = [np.mean((wide[i : i + 320] - wide.mean()) ** 2) for i in range(0, len(wide), 320)]
    assert np.allclose(levels.power, truth, rtol=1e-9)
    assert (levels.low, levels.high) == (wide.min(), wide.max())
    assert gain(levels, "none") == 1


def stretches(signal, silence_db: float | None = 60.0, rate=16000):
    return non_silent_spans(measure(signal, rate), len(signal), rate, silence_db)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_silence_is_relative_to_the_file(scale):
    tone, gap = sine(440, 1.0, 16000), np.zeros(16000, np.float32)
    signal = np.concatenate([gap, tone, gap, tone * 0.01, gap]) * scale
    pad = 800
    assert stretches(signal) == [(16000 - pad, 32000 + pad), (48000 - pad, 64000 + pad)]
    # At 30 dB the second tone, 40 dB down, is silence as well.
    assert stretches(signal, 30.0) == [(16000 - pad, 32000 + pad)]
    assert stretches(signal, None) == [(0, len(signal))]


def test_short_pauses_and_offsets_do_not_matter():
    tone, pause = sine(440, 1.0, 16000), np.zeros(7600, np.float32)
    signal = np.concatenate([pause, tone, pause, tone, pause])
    # Inside, they stay; at the ends all but 50 ms goes, however short they are.
    ((start, stop),) = stretches(signal)
    assert abs(start - (7600 - 800)) <= 320 and abs(stop - (len(signal) - 7600 + 800)) <= 320
    for pause in (0, 200, 700):
        short = np.concatenate([np.zeros(pause, np.float32), tone, np.zeros(pause, np.float32)])
        assert stretches(short) == [(0, len(short))]
    gap = np.zeros(16000, np.float32)
    shifted = np.concatenate([gap, tone, gap]) + np.float32(0.2)
    assert stretches(shifted) == [(16000 - 800, 32000 + 800)]


def test_the_loudest_frame_is_always_kept():
    rng = np.random.default_rng(5)
    for length in (1, 7, 319, 320, 321, 50_000):
        signal = (rng.normal(size=length) * 10.0 ** rng.uniform(-6, 0, size=length)).astype(np.float32)
        for silence_db in (0.001, 1.0, 60.0):
            assert sum(stop - start for start, stop in stretches(signal, silence_db)) > 0
