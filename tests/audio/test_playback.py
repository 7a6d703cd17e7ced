"""The playback buffer and its gaps, with a simulated sound device."""

from __future__ import annotations

import sys
import threading
import types

import numpy as np
import pytest
from support.audio_device import ManualDevice, PollingDevice

from wavenet.audio import playback
from wavenet.audio.playback import Device, Player, lead_for, real_time_factor
from wavenet.errors import AudioError, ConfigError

RATE = 1000


def ramp(count: int, start: int = 0) -> np.ndarray:
    return (start + np.arange(count, dtype=np.float32)) / 10_000


def test_audio_starts_in_order_after_the_lead():
    sink = ManualDevice()
    player = Player(sink, RATE, lead=0.1)
    player.write(ramp(60))
    assert sink.pull is None
    player.write(ramp(70, 60))
    assert np.array_equal(sink.pull(50), ramp(50))
    assert np.array_equal(sink.pull(50), ramp(50, 50))
    assert player.underruns == 0


def test_gaps_are_silence_and_counted_once():
    sink = ManualDevice()
    player = Player(sink, RATE, lead=0.01)
    player.write(ramp(30))
    assert np.array_equal(sink.pull(50), np.concatenate([ramp(30), np.zeros(20, np.float32)]))
    assert not sink.pull(50).any()
    assert (player.underruns, player.missing) == (1, 70)
    player.write(ramp(60, 30))
    assert np.array_equal(sink.pull(60), ramp(60, 30)) and player.underruns == 1
    sink.pull(1)
    assert (player.underruns, player.missing) == (2, 71)


def test_writing_blocks_while_the_buffer_is_full():
    sink = ManualDevice()
    player = Player(sink, RATE, lead=0.01, capacity=0.1)
    writing = threading.Thread(target=player.write, args=(ramp(250),), daemon=True)
    writing.start()
    for start in range(0, 250, 50):
        for _ in range(1000):
            if sink.pull is not None and player._buffered >= min(50, 250 - start):
                break
            threading.Event().wait(0.005)
        assert player._buffered <= 100
        assert np.array_equal(sink.pull(50), ramp(50, start))
    writing.join(5)
    assert not writing.is_alive() and player.underruns == 0


def test_a_short_take_starts_without_a_lead():
    sink = PollingDevice()
    player = Player(sink, RATE, lead=5.0)
    player.write(ramp(100))
    assert sink.pull is None
    player.finish()
    played = np.concatenate(sink.played)
    assert np.array_equal(played[:100], ramp(100)) and not played[100:].any()
    assert player.underruns == player.missing == 0 and sink.stopped
    player.stop()


def test_audio_beyond_full_scale_is_clipped():
    sink = ManualDevice()
    player = Player(sink, RATE, lead=0)
    player.write(np.array([-3.0, 0.5, 2.0]))
    assert sink.pull(3).tolist() == [-1, 0.5, 1]


def test_stopping_discards_the_buffer():
    sink = ManualDevice()
    player = Player(sink, RATE)
    player.stop()
    assert not sink.stopped
    player = Player(sink, RATE, lead=0)
    player.write(ramp(100))
    player.stop()
    assert sink.stopped


def test_a_device_that_stops_requesting():
    clock = iter(range(0, 1000, 2))
    player = Player(ManualDevice(), RATE, lead=0, capacity=0.05, clock=lambda: float(next(clock)))
    with pytest.raises(AudioError, match="stopped requesting audio"):
        player.write(ramp(200))


def test_real_time_factor_ignores_the_first_call():
    # The first call takes 100 s, the others a tenth of a second for 500 samples.
    times = iter(np.arange(100, 110, 0.1).tolist())
    calls: list[int] = []

    def make():
        calls.append(1)
        return 500

    assert real_time_factor(make, RATE, clock=lambda: next(times)) == pytest.approx(
        2500 / 0.6 / RATE, rel=0.2
    )
    assert len(calls) > 3


def test_the_lead_grows_with_slow_generation():
    assert lead_for(8.0, 4.0) == lead_for(8.0, None) == lead_for(0.1, None) == playback.LEAD_SECONDS
    # At half the speed, half of the take is needed before playback starts.
    assert 2.0 < lead_for(0.5, 4.0) < 2.7
    assert lead_for(0.01, 1000.0) == playback.BUFFER_SECONDS


class NoDevice(Exception):
    pass


def library(error: Exception | None = None, **more):
    def query_devices(kind):
        assert kind == "output"
        if error is not None:
            raise error

    return types.SimpleNamespace(PortAudioError=NoDevice, query_devices=query_devices, **more)


def test_missing_devices_are_one_line_errors(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(ConfigError, match=r"pip install 'wavenet\[play\]'"):
        Device()
    for error in (NoDevice("Error querying device\n -1"), ValueError("No output device matching ''")):
        monkeypatch.setitem(sys.modules, "sounddevice", library(error))
        with pytest.raises(AudioError, match=r"no sound device can be opened \(.*\); connect one"):
            Device()

    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.delitem(sys.modules, "sounddevice")
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(ConfigError, match="PortAudio library not found; install it"):
        Device()


def test_the_device_is_filled_from_the_player(monkeypatch):
    made = []

    class OutputStream:
        latency = 0.25

        def __init__(self, **settings):
            self.settings, self.log = settings, []
            made.append(self)

        def start(self):
            self.log.append("start")

        def abort(self):
            self.log.append("abort")

        def close(self):
            self.log.append("close")

    monkeypatch.setitem(sys.modules, "sounddevice", library(OutputStream=OutputStream))
    device = Device(RATE)
    player = Player(device, RATE, lead=0)
    player.write(ramp(10))
    (stream,) = made
    out = np.ones((12, 1), dtype=np.float32)
    stream.settings["callback"](out, 12, None, None)
    assert np.array_equal(out[:, 0], np.concatenate([ramp(10), np.zeros(2, np.float32)]))
    assert (stream.settings["samplerate"], stream.settings["channels"]) == (RATE, 1)
    assert device.latency == 0.25
    player.stop()
    assert stream.log == ["start", "abort", "close"]
