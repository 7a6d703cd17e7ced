"""Recordings of every kind, whole and broken, against signals that are known in advance."""

import io
import math
import os
import socket
import struct
import tracemalloc
import wave

import numpy as np
import pytest
import scipy.signal
import soundfile
from audio_files import (
    FORMATS,
    au_bytes,
    flac_claiming,
    noise,
    pitch,
    save,
    sine,
    w64_bytes,
    wav_bytes,
)

from wavenet.audio import Decoder, Unusable, WavWriter, load_audio, write_wav
from wavenet.errors import AudioError
from wavenet.files import atomic_output, find_audio, printable
from wavenet.levels import gain, measure, sounding


def decode(path, rate=16000):
    decoder = Decoder(path, rate)
    return np.concatenate(list(decoder.blocks())), decoder


def failure(path, rate=16000):
    with pytest.raises(AudioError) as caught:
        load_audio(path, rate)
    message = str(caught.value)
    assert "\n" not in message and printable(path) in message
    return message


def names_in(folder, **options):
    return find_audio(folder, **options).names


# -- finding ---------------------------------------------------------------------------------------------


def test_search_is_recursive_sorted_by_bytes_and_counts_the_rest(tmp_path):
    for name in ("b.wav", "a/z.FLAC", "a/b/c.mp3", "A.ogg", "z.txt", "y.txt", "._b.wav", "Makefile"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = find_audio(tmp_path)
    assert found.names == ["A.ogg", "a/b/c.mp3", "a/z.FLAC", "b.wav"]
    assert found.ignored == {"": 1, "txt": 2, "wav": 1}
    assert not found.unreadable


def test_a_single_file_is_a_folder_of_one(tmp_path):
    path = save(tmp_path / "one.wav", sine(440, 0.1, 16000))
    found = find_audio(path)
    assert found.root == tmp_path and found.names == ["one.wav"]


def test_pipes_sockets_and_device_links_are_never_opened(tmp_path):
    save(tmp_path / "good.wav", sine(440, 0.1, 16000))
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "zero.wav").symlink_to("/dev/zero")
    (tmp_path / "dead.wav").symlink_to("nowhere")
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(tmp_path)  # a socket's path is limited to about 100 bytes
    try:
        server.bind("socket.wav")
    finally:
        os.chdir(here)
        server.close()
    found = find_audio(tmp_path)
    assert found.names == ["good.wav"]
    assert found.ignored == {"(not a file)": 3}
    assert list(found.unreadable) == ["dead.wav"]
    # Named directly they are refused, where an open would wait or never end.
    assert "not a regular file" in failure(tmp_path / "pipe.wav")
    assert "not a regular file" in failure(tmp_path / "zero.wav")


def test_links_are_followed_once_and_rename_nothing(tmp_path):
    save(tmp_path / "tree" / "m" / "x.wav", sine(440, 0.1, 16000))
    save(tmp_path / "elsewhere" / "y.wav", sine(440, 0.1, 16000))
    assert names_in(tmp_path / "tree") == ["m/x.wav"]
    (tmp_path / "tree" / "a-loop").symlink_to(tmp_path / "tree")
    (tmp_path / "tree" / "m" / "up").symlink_to("..")
    (tmp_path / "tree" / "a-copy.wav").symlink_to("m/x.wav")
    (tmp_path / "tree" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "tree")
    assert names_in(tmp_path / "tree") == ["m/x.wav", "out/y.wav"]


def test_excluded_folders_are_not_searched(tmp_path):
    save(tmp_path / "x.wav", sine(440, 0.1, 16000))
    save(tmp_path / "checkpoints" / "sample.wav", sine(440, 0.1, 16000))
    assert names_in(tmp_path, exclude=[tmp_path / "checkpoints", tmp_path / "absent"]) == ["x.wav"]


def test_names_that_are_not_utf8_work_and_print_as_one_line(tmp_path):
    name = b"caf\xe9\n\x1b[31m.wav"
    plain = save(tmp_path / "plain.wav", sine(440, 0.1, 16000))
    os.rename(plain, os.path.join(os.fsencode(tmp_path), name))
    (found,) = names_in(tmp_path)
    assert os.fsencode(found) == name
    assert printable(found) == "caf\\xe9\\n\\x1b[31m.wav"
    assert len(load_audio(tmp_path / found, 16000)) == 1600


def test_folders_without_recordings_say_what_they_hold(tmp_path):
    def refusal(folder):
        with pytest.raises(AudioError) as caught:
            find_audio(folder)
        assert "\n" not in str(caught.value) and printable(folder) in str(caught.value)
        return str(caught.value)

    assert "does not exist" in refusal(tmp_path / "absent")
    assert "is empty" in refusal(tmp_path)
    (tmp_path / "songs.zip").write_bytes(b"PK\3\4")
    assert "1 zip" in refusal(tmp_path) and "flac" in refusal(tmp_path)
    assert "does not exist" in refusal(tmp_path / "songs" / "x")
    os.mkfifo(tmp_path / "pipe")
    assert "not a folder" in refusal(tmp_path / "pipe")
    assert "cannot be read" in refusal(tmp_path / "songs.zip" / "x")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_unreadable_folders_and_files_are_named(tmp_path):
    save(tmp_path / "good.wav", sine(440, 0.1, 16000))
    locked = save(tmp_path / "locked" / "x.wav", sine(440, 0.1, 16000)).parent
    locked.chmod(0)
    try:
        assert find_audio(tmp_path).unreadable == {"locked": "permission denied"}
        with pytest.raises(AudioError, match="permission denied"):
            find_audio(locked)
    finally:
        locked.chmod(0o755)


# -- decoding --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("extension", "form", "encoding", "error"), FORMATS)
def test_every_format_comes_back(tmp_path, extension, form, encoding, error):
    rate = 24000 if encoding == "OPUS" else 22050
    audio = sine(440, 2.0, rate)
    path = save(tmp_path / f"x.{extension}", audio, rate, form, encoding)
    got, decoder = decode(path, rate)
    assert (decoder.source_rate, decoder.channels, decoder.cut_short) == (rate, 1, False)
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


def test_channels_that_cancel_are_named_as_such(tmp_path):
    left = sine(440, 0.5, 16000)
    path = save(tmp_path / "x.wav", np.stack([left, -left], axis=1), encoding="FLOAT")
    assert "silent once mixed to mono" in failure(path)


# -- resampling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"), [(48000, 16000), (44100, 16000), (8000, 16000), (22050, 24000), (16000, 16000)]
)
def test_resampled_sine_is_the_sine_of_the_other_rate(tmp_path, source, target):
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


def test_what_the_rate_cannot_hold_is_removed_not_folded(tmp_path):
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


def test_things_named_wav_that_are_none(tmp_path):
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
        assert failure(tmp_path / name)
    (tmp_path / "empty.wav").write_bytes(b"")
    assert "0 bytes" in failure(tmp_path / "empty.wav")
    assert "does not exist" in failure(tmp_path / "absent.wav")
    assert "not a regular file" in failure(tmp_path)
    assert "no samples" in failure(save(tmp_path / "zero.wav", np.zeros(0)))


@pytest.mark.parametrize(("extension", "form", "encoding", "error"), FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.6, 0.999])
def test_truncated_files_give_their_beginning_or_a_reason(
    tmp_path, capfd, extension, form, encoding, error, share
):
    rate = 24000 if encoding == "OPUS" else 22050
    audio = sine(440, 6.0, rate)
    whole = save(tmp_path / f"whole.{extension}", audio, rate, form, encoding).read_bytes()
    path = tmp_path / f"cut.{extension}"
    path.write_bytes(whole[: int(len(whole) * share)])
    try:
        got, decoder = decode(path, rate)
    except Unusable as problem:
        assert "\n" not in str(problem)
    else:
        assert 0 < len(got) <= len(audio) + 2048
        checked = min(len(got), len(audio)) - 4096
        if checked > 1000:
            assert np.abs(got[1000:checked] - audio[1000:checked]).max() < error
        # VOC and IRCAM files have no length that libsndfile compares.
        assert decoder.cut_short or form in ("VOC", "IRCAM") or share > 0.99
    # The MP3 decoder complains on the process's standard error unless it is kept from it.
    assert capfd.readouterr() == ("", "")


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


def test_flac_damaged_in_the_middle_is_refused_and_cut_short_is_used(tmp_path):
    audio = noise(20, 16000)
    whole = save(tmp_path / "x.flac", audio, 16000, "FLAC").read_bytes()
    middle = len(whole) // 2
    (tmp_path / "bad.flac").write_bytes(whole[:middle] + bytes(3000) + whole[middle + 3000 :])
    (tmp_path / "cut.flac").write_bytes(whole[:middle])
    assert "damaged" in failure(tmp_path / "bad.flac")
    got, decoder = decode(tmp_path / "cut.flac")
    assert decoder.cut_short and decoder.claimed == len(audio)
    assert 0.8 < len(got) / (len(audio) / 2) <= 1.02
    assert np.abs(got - audio[: len(got)]).max() < 1e-4


def test_headers_that_claim_too_much_cost_no_memory(tmp_path):
    data = (noise(0.5, 16000) * 32767).astype("<i2").tobytes()
    flac = save(tmp_path / "x.flac", noise(0.5, 16000), 16000, "FLAC").read_bytes()
    files = {
        "a.wav": wav_bytes(data, claimed=0x7F000000),
        "b.wav": wav_bytes(data, channels=200, claimed=0x7F000000),
        "c.w64": w64_bytes(data, 16000, 2 * 10**10),
        "d.flac": flac_claiming(flac, 10**10),
        "e.au": au_bytes(data, claimed=0x7F000000),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        tracemalloc.start()
        try:
            got, decoder = decode(tmp_path / name)
            assert decoder.cut_short and 0 < len(got) <= 8000
        except Unusable:
            assert name not in ("a.wav", "d.flac")
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 32e6


def test_a_header_written_for_a_pipe_is_not_cut_short(tmp_path):
    audio = noise(0.5, 16000)
    stream = Pipe()
    writer = WavWriter(stream, 16000)
    writer.write(audio)
    writer.finish()
    (tmp_path / "x.wav").write_bytes(stream.getvalue())
    got, decoder = decode(tmp_path / "x.wav")
    assert len(got) == len(audio) and not decoder.cut_short


@pytest.mark.parametrize("rate", [0, 1, 99, 1_000_001, 2_000_000_000, 0xFFFFFFFF])
def test_impossible_rates_are_refused(tmp_path, rate):
    (tmp_path / "x.wav").write_bytes(wav_bytes(bytes(range(256)) * 20, rate=rate))
    (tmp_path / "x.au").write_bytes(au_bytes(bytes(range(256)) * 20, rate=rate))
    failure(tmp_path / "x.wav")
    failure(tmp_path / "x.au")


@pytest.mark.parametrize("channels", [0, 257, 1024, 65535])
def test_impossible_channel_counts_are_refused(tmp_path, channels):
    (tmp_path / "x.wav").write_bytes(wav_bytes(bytes(range(256)) * 2000, channels=channels))
    (tmp_path / "x.au").write_bytes(au_bytes(bytes(range(256)) * 2000, channels=channels))
    failure(tmp_path / "x.wav")
    failure(tmp_path / "x.au")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 20000, 39999])
def test_values_that_are_no_audio_are_refused(tmp_path, value, place):
    audio = noise(2.5, 16000)
    audio[place] = value
    path = save(tmp_path / "x.wav", audio, encoding="FLOAT")
    assert "NaN or infinite" in failure(path)


def test_huge_values(tmp_path):
    audio = noise(1.0, 16000).astype(np.float64)
    (tmp_path / "huge").mkdir()
    assert "1e+30" in failure(save(tmp_path / "a.wav", audio * 0 + 1e30, encoding="FLOAT"))
    assert "NaN or infinite" in failure(save(tmp_path / "b.wav", audio * 1e300, encoding="DOUBLE"))
    # Integers stored as floats: refused at their own level, usable once normalised.
    integers = save(tmp_path / "c.wav", audio * 32768, encoding="FLOAT")
    assert "--normalization peak" in failure(integers)
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


# -- levels ----------------------------------------------------------------------------------------------


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
    return sounding(measure(signal, rate), len(signal), rate, silence_db)


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
    assert stretches(signal) == [(0, len(signal))]
    gap = np.zeros(16000, np.float32)
    shifted = np.concatenate([gap, tone, gap]) + np.float32(0.2)
    assert stretches(shifted) == [(16000 - 800, 32000 + 800)]


def test_something_is_always_kept():
    rng = np.random.default_rng(5)
    for length in (1, 7, 319, 320, 321, 50_000):
        signal = (rng.normal(size=length) * 10.0 ** rng.uniform(-6, 0, size=length)).astype(np.float32)
        for silence_db in (0.001, 1.0, 60.0):
            assert sum(stop - start for start, stop in stretches(signal, silence_db)) > 0


# -- writing ---------------------------------------------------------------------------------------------


class Pipe(io.BytesIO):
    """A stream that can be written once, in order."""

    def seekable(self):
        return False

    def seek(self, *args):
        raise OSError("a pipe cannot seek")

    def tell(self):
        raise OSError("a pipe has no position")


def test_written_wav_is_read_by_others(tmp_path):
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


def test_stream_header_says_unknown_length():
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


def test_a_file_gets_its_true_length_at_the_end():
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


def test_more_than_four_gib_is_refused_before_anything_is_written():
    limit = (0xFFFFFFFF - 36) // 2
    stream = Pipe()
    WavWriter(stream, 16000, limit)
    assert len(stream.getvalue()) == 44
    stream = Pipe()
    with pytest.raises(AudioError, match="--format raw"):
        WavWriter(stream, 16000, limit + 1)
    assert not stream.getvalue()
    WavWriter(stream, 16000, limit + 1, header=False)


def test_output_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "x.bin"
    with atomic_output(target) as stream:
        stream.write(b"first")
        assert not target.exists()
    assert target.read_bytes() == b"first"
    with pytest.raises(KeyboardInterrupt), atomic_output(target) as stream:
        stream.write(b"second")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["x.bin"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_output_through_a_link_keeps_the_link(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with atomic_output(tmp_path / "link") as stream:
        stream.write(b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"


def test_output_that_cannot_be_written_is_one_line(tmp_path):
    for path, why in (
        (tmp_path / "absent" / "x.wav", "folder does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / ("x" * 300), "name too long"),
    ):
        with pytest.raises(AudioError, match=why) as caught:
            write_wav(path, np.zeros(10, np.float32), 16000)
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_full_disk_and_devices():
    with pytest.raises(AudioError, match="no space left"):
        write_wav("/dev/full", noise(1, 16000), 16000)
    write_wav("/dev/null", noise(1, 16000), 16000)
    assert not os.path.isfile("/dev/null")
