"""Decoding intact and damaged recordings of every format, compared with known signals."""

import io
import math
import os
import struct
import tracemalloc
import wave

import numpy as np
import pytest
import scipy.signal
import soundfile
from support.audio_files import (
    FORMATS,
    au_bytes,
    flac_claiming,
    load_error,
    noise,
    pitch,
    save,
    sine,
    w64_bytes,
    wav_bytes,
)

from wavenet.audio.decoding import Decoder, UnusableAudio, load_audio
from wavenet.audio.wav import WavWriter, write_wav
from wavenet.errors import AudioError

CUT_SHORT = "cut short (it ends before its header says)"


def decode(path, rate=16000):
    decoder = Decoder(path, rate)
    return np.concatenate(list(decoder.blocks())), decoder


# -- decoding --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("extension", "form", "encoding", "error"), FORMATS)
def test_every_format_is_read(tmp_path, extension, form, encoding, error):
    rate = 24000 if encoding == "OPUS" else 22050
    audio = sine(440, 2.0, rate)
    path = save(tmp_path / f"x.{extension}", audio, rate, form, encoding)
    got, decoder = decode(path, rate)
    assert (decoder.source_rate, decoder.channels, decoder.frames) == (rate, 1, len(got))
    # ADPCM pads its last block.
    assert len(got) >= len(audio) and len(got) - len(audio) < 2048
    assert np.abs(got[1000 : len(audio) - 1000] - audio[1000:-1000]).max() < error
    resampled = load_audio(path, 16000)
    assert abs(len(resampled) - 32000) <= 2048
    assert pitch(resampled[4000:28000], 16000) == pytest.approx(440, abs=0.05)


def test_channels_are_averaged(tmp_path):
    left, right = sine(440, 0.5, 16000), noise(0.5, 16000)
    path = save(tmp_path / "x.wav", np.stack([left, right, left], axis=1), encoding="FLOAT")
    assert np.allclose(load_audio(path, 16000), (2 * left + right) / 3, atol=1e-7)


def test_channels_that_cancel(tmp_path):
    left = sine(440, 0.5, 16000)
    path = save(tmp_path / "x.wav", np.stack([left, -left], axis=1), encoding="FLOAT")
    assert "silent once mixed to mono" in load_error(path)


# -- resampling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"), [(48000, 16000), (44100, 16000), (8000, 16000), (22050, 24000), (16000, 16000)]
)
def test_resampled_sine(tmp_path, source, target):
    path = save(tmp_path / "x.wav", sine(441, 2.0, source), source, encoding="FLOAT")
    got = load_audio(path, target)
    wanted = sine(441, 2.0, target)
    assert len(got) == len(wanted)
    middle = slice(target // 10, -target // 10)
    assert np.abs(got[middle] - wanted[middle]).max() < 2e-4


def test_resampling_agrees_with_scipy(tmp_path):
    rate = 44100
    low = scipy.signal.butter(8, 5000, fs=rate, output="sos")
    audio = scipy.signal.sosfiltfilt(low, noise(3.0, rate).astype(np.float64)).astype(np.float32)
    path = save(tmp_path / "x.wav", audio, rate, encoding="FLOAT")
    # Sharper than scipy's default, so that what remains is the difference between two good resamplers.
    kernel = scipy.signal.firwin(160 * 441 * 2 + 1, 1 / 441, window=("kaiser", 12.0))
    truth = scipy.signal.resample_poly(audio.astype(np.float64), 160, 441, window=kernel)
    got = load_audio(path, 16000)
    assert len(got) == len(truth) == math.ceil(len(audio) * 160 / 441)
    middle = slice(500, -500)
    assert np.sqrt(np.mean((got[middle] - truth[middle]) ** 2)) < 1e-4 * np.std(truth)


def test_resampling_does_not_alias(tmp_path):
    path = save(tmp_path / "x.wav", sine(11000, 1.0, 48000), 48000, encoding="FLOAT")
    got, _ = decode(path)
    assert np.abs(got[1000:-1000]).max() < 1e-4


@pytest.mark.parametrize("rates", [(100, 1_000_000), (1_000_000, 100), (16000, 15999), (44100, 8000)])
@pytest.mark.parametrize("frames", [1, 2, 1000])
def test_length_is_exact_and_blocks_are_bounded(tmp_path, rates, frames):
    path = save(tmp_path / "x.wav", noise(frames / rates[0], rates[0]), rates[0], encoding="FLOAT")
    blocks = list(Decoder(path, rates[1]).blocks())
    assert sum(map(len, blocks)) == math.ceil(frames * rates[1] / rates[0])
    # Upsampling 10,000 times, the filter alone spans eight million samples.
    assert max(map(len, blocks)) <= 1 << 23


# -- bad input -------------------------------------------------------------------------------------------


def test_files_named_wav_that_are_not_audio(tmp_path):
    contents = {
        "text.wav": b"these are my lyrics\n" * 100,
        "zip.wav": b"PK\x03\x04" + bytes(range(256)) * 20,
        "html.wav": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "random.mp3": np.random.default_rng(3).bytes(5000),
        "riff.wav": b"RIFF\x24\x00\x00\x00WAVE",
        "stub.flac": b"fLaC",
        "stub.ogg": b"OggS",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert load_error(tmp_path / name)
    (tmp_path / "empty.wav").write_bytes(b"")
    assert "0 bytes" in load_error(tmp_path / "empty.wav")
    assert "does not exist" in load_error(tmp_path / "absent.wav")
    assert "not a regular file" in load_error(tmp_path)
    assert "no samples" in load_error(save(tmp_path / "zero.wav", np.zeros(0)))


@pytest.mark.parametrize(("extension", "form", "encoding", "error"), FORMATS)
@pytest.mark.parametrize("place", [0.0, 0.01, 0.5])
def test_corrupt_files_never_crash(tmp_path, capfd, extension, form, encoding, error, place):
    rate = 24000 if encoding == "OPUS" else 22050
    content = bytearray(save(tmp_path / f"x.{extension}", noise(4, rate), rate, form, encoding).read_bytes())
    start, rng = int(len(content) * place), np.random.default_rng(7)
    content[start : start + len(content) // 10] = rng.bytes(len(content) // 10)
    path = tmp_path / f"bad.{extension}"
    path.write_bytes(content)
    try:
        got = load_audio(path, 16000)
        assert np.isfinite(got).all() and np.abs(got).max() <= 1
    except AudioError as problem:
        assert "\n" not in str(problem)
    assert capfd.readouterr() == ("", "")


def test_flac_damaged_in_the_middle_is_refused(tmp_path):
    whole = save(tmp_path / "x.flac", noise(20, 16000), 16000, "FLAC").read_bytes()
    middle = len(whole) // 2
    (tmp_path / "bad.flac").write_bytes(whole[:middle] + bytes(3000) + whole[middle + 3000 :])
    assert "damaged" in load_error(tmp_path / "bad.flac")


def test_false_headers_cost_no_memory(tmp_path):
    data = (noise(0.5, 16000) * 32767).astype("<i2").tobytes()
    flac = save(tmp_path / "x.flac", noise(0.5, 16000), 16000, "FLAC").read_bytes()
    files = {
        "a.wav": wav_bytes(data, claimed=0x7E000000),
        "b.wav": wav_bytes(data, channels=200, claimed=0x7E000000),
        "c.w64": w64_bytes(data, 16000, 2 * 10**10),
        "d.flac": flac_claiming(flac, 10**10),
        "e.au": au_bytes(data, claimed=0x7E000000),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        tracemalloc.start()
        try:
            for _ in Decoder(tmp_path / name, 16000).blocks():
                pass
            refused = None
        except UnusableAudio as problem:
            refused = problem.reason
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 32e6
        assert refused == CUT_SHORT, name


@pytest.mark.parametrize("rate", [0, 1, 99, 1_000_001, 2_000_000_000, 0xFFFFFFFF])
def test_impossible_rates_are_refused(tmp_path, rate):
    (tmp_path / "x.wav").write_bytes(wav_bytes(bytes(range(256)) * 20, rate=rate))
    (tmp_path / "x.au").write_bytes(au_bytes(bytes(range(256)) * 20, rate=rate))
    load_error(tmp_path / "x.wav")
    load_error(tmp_path / "x.au")


@pytest.mark.parametrize("channels", [0, 257, 1024, 65535])
def test_impossible_channel_counts_are_refused(tmp_path, channels):
    (tmp_path / "x.wav").write_bytes(wav_bytes(bytes(range(256)) * 2000, channels=channels))
    (tmp_path / "x.au").write_bytes(au_bytes(bytes(range(256)) * 2000, channels=channels))
    load_error(tmp_path / "x.wav")
    load_error(tmp_path / "x.au")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 20000, 39999])
def test_nan_and_infinity_are_refused(tmp_path, value, place):
    audio = noise(2.5, 16000)
    audio[place] = value
    path = save(tmp_path / "x.wav", audio, encoding="FLOAT")
    assert "NaN or infinite" in load_error(path)


def test_huge_values(tmp_path):
    audio = noise(1.0, 16000).astype(np.float64)
    (tmp_path / "huge").mkdir()
    assert "1e+30" in load_error(save(tmp_path / "a.wav", audio * 0 + 1e30, encoding="FLOAT"))
    assert "NaN or infinite" in load_error(save(tmp_path / "b.wav", audio * 1e300, encoding="DOUBLE"))
    # Integers stored as floats: refused at their own level, usable once normalised.
    integers = save(tmp_path / "c.wav", audio * 32768, encoding="FLOAT")
    assert 'normalization "peak"' in load_error(integers)
    assert np.abs(load_audio(integers, 16000, "peak")).max() == pytest.approx(0.95)
    # A few samples over full scale are clipped.
    audio[100:120] = 1.5
    got = load_audio(save(tmp_path / "d.wav", audio, encoding="FLOAT"), 16000)
    assert got.max() == 1 and np.allclose(got[200:], audio[200:], atol=1e-7)


@pytest.mark.parametrize("normalization", ["none", "peak", "loudness"])
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_silence_is_refused(tmp_path, value, normalization):
    path = save(tmp_path / "x.wav", np.full(16000, value), encoding="FLOAT")
    with pytest.raises(AudioError, match="silent"):
        load_audio(path, 16000, normalization)


# -- writing ---------------------------------------------------------------------------------------------


class Pipe(io.BytesIO):
    """A stream that can be written once, in order."""

    def seekable(self):
        return False

    def seek(self, *args):
        raise OSError("a pipe cannot seek")

    def tell(self):
        raise OSError("a pipe has no position")


def test_written_wav_is_read_by_libraries(tmp_path):
    audio = np.concatenate([noise(0.5, 16000), [1.5, -1.5, 1, -1, 0]]).astype(np.float32)
    write_wav(tmp_path / "x.wav", audio, 16000)
    with wave.open(str(tmp_path / "x.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16000)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    wanted = [round(max(-1.0, min(1.0, float(value))) * 32767) for value in audio]
    assert samples.tolist() == wanted
    read, rate = soundfile.read(tmp_path / "x.wav", dtype="int16")
    assert rate == 16000 and read.tolist() == wanted
    assert os.listdir(tmp_path) == ["x.wav"]


def test_stream_header_has_unknown_length():
    stream = Pipe()
    writer = WavWriter(stream, 22050)
    writer.write(np.zeros(3, np.float32))
    writer.write(np.ones(2, np.float32))
    writer.finish()
    content = stream.getvalue()
    assert len(content) == 44 + 10
    wanted = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x01\0\x01\0"
    wanted += struct.pack("<IIHH", 22050, 44100, 2, 16) + b"data\xff\xff\xff\xff"
    assert content[:44] == wanted
    assert np.frombuffer(content[44:], "<i2").tolist() == [0, 0, 0, 32767, 32767]
    assert soundfile.read(io.BytesIO(content))[1] == 22050


def test_finish_writes_the_true_length():
    for promised in (None, 100):
        stream = io.BytesIO()
        writer = WavWriter(stream, 16000, promised)
        writer.write(np.zeros(7, np.float32))
        writer.finish()
        with wave.open(io.BytesIO(stream.getvalue())) as file:
            assert file.getnframes() == 7


def test_raw_has_no_header():
    stream = Pipe()
    writer = WavWriter(stream, 16000, header=False)
    writer.write(np.array([0.5, -0.5], np.float32))
    writer.finish()
    assert stream.getvalue() == struct.pack("<hh", 16384, -16384)


def test_more_than_4_gib_is_refused_first():
    limit = (0xFFFFFFFF - 36) // 2
    stream = Pipe()
    WavWriter(stream, 16000, limit)
    assert len(stream.getvalue()) == 44
    stream = Pipe()
    with pytest.raises(AudioError, match="write raw samples"):
        WavWriter(stream, 16000, limit + 1)
    assert not stream.getvalue()
    WavWriter(stream, 16000, limit + 1, header=False)
