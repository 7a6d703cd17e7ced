"""Truncated files, and complete files whose header lacks the length."""

import io
import struct

import numpy as np
import pytest
import soundfile
from support.audio_files import FORMATS, au_bytes, flac_claiming, noise, sine, w64_bytes, wav_bytes

from wavenet.audio.decoding import Decoder, UnusableAudio, load_audio

CUT_SHORT = "cut short (it ends before its header says)"


def decoded(path, content, rate=16000):
    path.write_bytes(content)
    return np.concatenate(list(Decoder(path, rate).blocks()))


def reason(path, content, rate=16000):
    with pytest.raises(UnusableAudio) as caught:
        decoded(path, content, rate)
    assert "\n" not in str(caught.value)
    return caught.value.reason


def encoded(audio, rate=16000, form="WAV", encoding="PCM_16"):
    stream = io.BytesIO()
    soundfile.write(stream, audio, rate, format=form, subtype=encoding)
    return stream.getvalue()


def pcm(audio):
    return np.rint(np.asarray(audio) * 32767).astype("<i2").tobytes()


# -- too little ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("extension", "form", "encoding", "error"), FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.6, 0.95])
def test_truncated_files_are_refused(tmp_path, capfd, extension, form, encoding, error, share):
    rate = 24000 if encoding == "OPUS" else 22050
    audio = sine(440, 6.0, rate)
    whole = encoded(audio, rate, form, encoding)
    path, content = tmp_path / f"cut.{extension}", whole[: int(len(whole) * share)]
    if form == "IRCAM":
        # The one format without a length: what is there is all that can be known.
        got = decoded(path, content, rate)
        assert np.abs(got - audio[: len(got)]).max() < error
    else:
        why = reason(path, content, rate)
        # Of a file cut within its header nothing can be read.
        assert why == CUT_SHORT or share == 0.02 or form == "CAF", why
    # The MP3 decoder complains on the process's standard error unless it is kept from it.
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("encoding", ["VORBIS", "OPUS"])
def test_ogg_files_end_with_their_last_page(tmp_path, encoding):
    whole = encoded(noise(5, 48000), 48000, "OGG", encoding)
    assert len(decoded(tmp_path / "x.ogg", whole, 48000)) == 5 * 48000
    tagged = decoded(tmp_path / "x.ogg", whole + b"TAG" + bytes(125), 48000)
    assert len(tagged) == 5 * 48000
    last_page = whole.rfind(b"OggS")
    for end in (len(whole) - 1, last_page + 40, last_page + 20, last_page):
        assert reason(tmp_path / "x.ogg", whole[:end], 48000) == CUT_SHORT


def test_load_audio_refuses_truncated_files(tmp_path):
    (tmp_path / "x.wav").write_bytes(wav_bytes(pcm(noise(0.5, 16000)), claimed=10**6))
    with pytest.raises(UnusableAudio, match=r"x\.wav: cut short \(.*\); get a whole copy of it"):
        load_audio(tmp_path / "x.wav", 16000)


def test_flac_without_a_length(tmp_path):
    audio = noise(5, 16000)
    unknown = flac_claiming(encoded(audio, form="FLAC"), 0)
    assert np.abs(decoded(tmp_path / "x.flac", unknown) - audio).max() < 1e-4
    assert reason(tmp_path / "x.flac", unknown[: len(unknown) // 2]) == CUT_SHORT


def test_small_and_large_false_lengths(tmp_path):
    data = pcm(noise(0.5, 16000))
    flac = encoded(noise(0.5, 16000), form="FLAC")
    for claimed in (len(data) + 1000, 10**8, 3 * 10**9):
        assert reason(tmp_path / "x.wav", wav_bytes(data, claimed=claimed)) == CUT_SHORT
    assert reason(tmp_path / "x.au", au_bytes(data, claimed=10**8)) == CUT_SHORT
    assert reason(tmp_path / "x.w64", w64_bytes(data, 16000, 2 * 10**10)) == CUT_SHORT
    assert reason(tmp_path / "x.flac", flac_claiming(flac, 8001)) == CUT_SHORT


# -- enough ----------------------------------------------------------------------------------------------

CONTAINERS = ["WAV", "WAVEX", "AIFF", "AU", "CAF", "W64", "RF64", "FLAC", "OGG", "MP3", "NIST", "VOC", "SVX"]
WRITABLE = [(form, encoding) for form in CONTAINERS for encoding in soundfile.available_subtypes(form)]


@pytest.mark.parametrize(("form", "encoding"), WRITABLE)
def test_complete_files_in_every_encoding(tmp_path, form, encoding):
    rate = 48000 if encoding == "OPUS" else 8000
    for frames in (777, 8192, 20_001):
        for channels in (1, 2):
            audio = np.tile(noise(frames / rate, rate)[:, None], (1, channels))
            try:
                content = encoded(audio, rate, form, encoding)
            except (soundfile.LibsndfileError, ValueError):
                continue  # not in this combination of channels and encoding
            path = tmp_path / "x"
            path.write_bytes(content)
            decoder = Decoder(path, rate)
            for _ in decoder.blocks():
                pass
            assert decoder.frames >= frames


@pytest.mark.parametrize("before", [b"", b"LIST\x1a\0\0\0INFOISFT\x0e\0\0\0Lavf58.76.100\0"])
@pytest.mark.parametrize(
    ("riff", "data"),
    [
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF - 36),
        (0, 0xFFFFFFFF),
        (0x7FFFFFFF, 0x7FFFFFFF),
        (0x7FFFFFFF, 0x7FFFFFFF - 36),
        (0x7FFFF024, 0x7FFFF000),
        (0x7F000024, 0x7F000000),
        (0x80000024, 0x80000000),
        (8, 0),
        (0, 16000),
        (0xFFFFFFFF, 16000),
        (16036, 16000 + 44),
    ],
)
def test_wav_sizes_of_streaming_writers(tmp_path, before, riff, data):
    audio = noise(0.5, 16000)
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    head = b"RIFF" + struct.pack("<I", riff) + b"WAVE" + form + before + b"data" + struct.pack("<I", data)
    got = decoded(tmp_path / "x.wav", head + pcm(audio))
    assert len(got) == len(audio) and np.abs(got - audio).max() < 1e-4


def test_a_header_that_was_not_completed(tmp_path):
    content = bytearray(wav_bytes(pcm(noise(0.5, 16000))))
    content[40:44] = bytes(4)
    assert "not have completed" in reason(tmp_path / "x.wav", bytes(content))
    assert reason(tmp_path / "x.wav", wav_bytes(b"")) == "no samples in it"


def test_streamed_au_and_aiff(tmp_path):
    audio = noise(0.5, 16000)
    assert len(decoded(tmp_path / "x.au", au_bytes(pcm(audio), claimed=0xFFFFFFFF))) == len(audio)
    content = bytearray(encoded(audio, form="AIFF"))
    sizes, frames = content.index(b"SSND") + 4, content.index(b"COMM") + 10
    for size in (0xFFFFFFFF, 0x7F000008):
        content[sizes : sizes + 4] = struct.pack(">I", size)
        content[frames : frames + 4] = struct.pack(">I", size // 2)
        assert len(decoded(tmp_path / "x.aiff", bytes(content))) == len(audio)


def test_tags_are_not_missing_audio(tmp_path):
    tag, lead = b"TAG" + bytes(125), b"ID3\3\0\0\0\0\x4e\x20" + bytes(0x4E * 128 + 0x20)
    audio = noise(2, 16000)
    for form in ("FLAC", "MP3"):
        content = encoded(audio, form=form, encoding="MPEG_LAYER_III" if form == "MP3" else "PCM_16")
        for whole in (content, content + tag, lead + content, lead + content + tag):
            assert len(decoded(tmp_path / "x", whole)) == len(audio)
    odd = bytes(range(256)) * 5
    assert len(decoded(tmp_path / "x", wav_bytes(odd[:1001], bits=8))) == 1001
    assert len(decoded(tmp_path / "x", wav_bytes(odd) + b"LIST\xff\0\0\0INFO")) == 640


def test_mp3_without_a_frame_count(tmp_path):
    whole = encoded(noise(5, 16000), form="MP3", encoding="MPEG_LAYER_III")
    # All frames but the first, which holds the count; libsndfile then guesses a length from the file's size.
    bare = whole[whole.index(whole[:2], 100) :]
    lead = b"ID3\3\0\0\0\0\x4e\x20" + bytes(0x4E * 128 + 0x20)
    for content in (bare, lead + bare, bare[: len(bare) * 2 // 3]):
        assert len(decoded(tmp_path / "x.mp3", content)) > 10_000
