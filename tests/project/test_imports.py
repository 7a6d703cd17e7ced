"""Imports: nothing slow before arguments are parsed, and audio libraries only where they are used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wavenet.audio.decoding import load_audio
from wavenet.audio.wav import write_wav
from wavenet.errors import AudioError

PACKAGE = Path(__file__).parents[2] / "wavenet"


def loaded_after(code: str) -> set[str]:
    """Names of the modules that a program has loaded when it ends."""
    program = code + "\nimport sys; print(*sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_modules_directly_under_the_package():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "config", "errors", "extension"}


def test_parsing_arguments_loads_nothing_slow():
    slow = {"torch", "numpy", "numba", "librosa", "scipy", "soundfile", "soxr", "safetensors", "mido"}
    code = (
        "import wavenet, wavenet.cli.train, wavenet.cli.generate, wavenet.cli.evaluate\n"
        "wavenet.cli.train.build_parser().parse_args([])\n"
        "wavenet.cli.evaluate.build_parser().parse_args([])\n"
        "wavenet.cli.generate.build_parser().parse_args(['out.wav'])"
    )
    assert not slow & loaded_after(code)


def test_engines_load_no_audio_library():
    loaded = loaded_after(
        "import wavenet.audio.decoding, wavenet.audio.mel, wavenet.data.dataset\n"
        "import wavenet.generation.generator, wavenet.music.midi_file, wavenet.training.trainer"
    )
    assert not {"librosa", "soundfile", "soxr", "scipy", "mido"} & loaded


@pytest.mark.parametrize(("library", "rate"), [("soundfile", 8000), ("soxr", 4000)])
def test_a_missing_audio_library_is_named(library, rate, tmp_path, monkeypatch):
    path = tmp_path / "tone.wav"
    write_wav(path, np.sin(np.arange(800, dtype=np.float32)) / 2, 8000)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(AudioError, match=f"pip install {library}$"):
        load_audio(path, rate)
