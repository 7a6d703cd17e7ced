"""Recordings for tests; damaged ones are built byte by byte."""

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from wavenet.audio.decoding import load_audio
from wavenet.errors import AudioError
from wavenet.utils.files import printable

# Extension, container, encoding, and the largest error of a sample after one round trip.
FORMATS = [
    ("wav", "WAV", "PCM_16", 2e-4),
    ("wav", "WAV", "PCM_U8", 1e-2),
    ("wav", "WAV", "PCM_24", 1e-6),
    ("wav", "WAV", "FLOAT", 1e-6),
    ("wav", "WAV", "DOUBLE", 1e-6),
    ("wav", "WAVEX", "PCM_16", 2e-4),
    ("wav", "WAV", "IMA_ADPCM", 5e-2),
    ("flac", "FLAC", "PCM_16", 2e-4),
    ("flac", "FLAC", "PCM_24", 1e-6),
    ("ogg", "OGG", "VORBIS", 5e-2),
    ("opus", "OGG", "OPUS", 0.15),
    ("mp3", "MP3", "MPEG_LAYER_III", 5e-2),
    ("aiff", "AIFF", "PCM_16", 2e-4),
    ("au", "AU", "PCM_16", 2e-4),
    ("caf", "CAF", "PCM_16", 2e-4),
    ("caf", "CAF", "ALAC_16", 2e-4),
    ("w64", "W64", "PCM_16", 2e-4),
    ("rf64", "RF64", "PCM_16", 2e-4),
    ("voc", "VOC", "PCM_16", 2e-4),
    ("sf", "IRCAM", "PCM_16", 2e-4),
    ("sph", "NIST", "PCM_16", 2e-4),
    ("svx", "SVX", "PCM_16", 2e-4),
]


def sine(frequency: float, seconds: float, rate: int, amplitude: float = 0.5) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def noise(seconds: float, rate: int, seed: int = 0, amplitude: float = 0.1) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0, amplitude, round(seconds * rate))
    return np.clip(values, -0.99, 0.99).astype(np.float32)


def save(
    path: Path, audio: np.ndarray, rate: int = 16000, form: str = "WAV", encoding: str = "PCM_16"
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, rate, format=form, subtype=encoding)
    return path


def wav_bytes(
    data: bytes,
    rate: int = 16000,
    channels: int = 1,
    bits: int = 16,
    kind: int = 1,
    claimed: int | None = None,
) -> bytes:
    """A WAV file with any header; `kind` 3 is floating point, `claimed` the stated size of the data."""
    size = len(data) if claimed is None else claimed
    frame = channels * bits // 8
    fmt = struct.pack("<HHIIHH", kind, channels, rate, min(rate * frame, 0xFFFFFFFF), frame & 0xFFFF, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", min(size + 36, 0xFFFFFFFF)) + body


def w64_bytes(data: bytes, rate: int, claimed: int) -> bytes:
    """A Sony Wave64 file, whose sizes have 64 bits and count their own 24-byte chunk headers."""
    tail = bytes.fromhex("f3acd3118cd100c04f8edb8a")
    riff = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000")
    fmt = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16)
    chunks = b"fmt " + tail + struct.pack("<Q", 24 + len(fmt)) + fmt
    chunks += b"data" + tail + struct.pack("<Q", 24 + claimed) + data
    return riff + struct.pack("<Q", 40 + len(chunks) - len(data) + claimed) + b"wave" + tail + chunks


def au_bytes(data: bytes, rate: int = 16000, channels: int = 1, claimed: int | None = None) -> bytes:
    """A Sun AU file of 16-bit PCM."""
    size = len(data) if claimed is None else claimed
    return b".snd" + struct.pack(">IIIII", 24, size, 3, rate, channels) + data


def flac_claiming(flac: bytes, frames: int) -> bytes:
    """A FLAC file with another number of frames in its STREAMINFO (36 bits from the middle of byte 21)."""
    changed = bytearray(flac)
    changed[21] = (changed[21] & 0xF0) | (frames >> 32)
    changed[22:26] = struct.pack(">I", frames & 0xFFFFFFFF)
    return bytes(changed)


def pitch(audio: np.ndarray, rate: int) -> float:
    """Frequency of the strongest component, by a windowed spectrum with parabolic interpolation."""
    power = np.log(np.abs(np.fft.rfft(audio * np.hanning(len(audio)))) + 1e-12)
    peak = int(np.argmax(power))
    left, centre, right = power[peak - 1 : peak + 2]
    return float((peak + 0.5 * (left - right) / (left - 2 * centre + right)) * rate / len(audio))


def load_error(path: Path, rate: int = 16000) -> str:
    """Return the error of decoding a file: one line that names the file."""
    with pytest.raises(AudioError) as caught:
        load_audio(path, rate)
    message = str(caught.value)
    assert "\n" not in message and printable(path) in message
    return message
