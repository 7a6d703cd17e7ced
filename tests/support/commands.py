"""Run the commands as a user does: each in its own process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from wavenet.audio.wav import write_wav
from wavenet.config import WaveNetConfig
from wavenet.models.wavenet import WaveNet

CONFIG = WaveNetConfig(
    sample_rate=4000, quantization_channels=64, layers=6, stacks=1, residual_channels=8,
    dilation_channels=8, skip_channels=16, head_channels=16,
)  # fmt: skip

NETWORK_FLAGS = [
    *("--sample-rate", "4000", "--quantization-channels", "64", "--layers", "6", "--stacks", "1"),
    *("--residual-channels", "8", "--dilation-channels", "8", "--skip-channels", "16"),
    *("--head-channels", "16"),
]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", **extra}


def command(name: str, *arguments: object) -> list[str]:
    return [
        sys.executable,
        "-m",
        f"wavenet.cli.{name}",
        *(os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments),
    ]


def run(name: str, *arguments: object, cwd: Path, **settings) -> subprocess.CompletedProcess:
    """Run a command to its end; `.stdout` is bytes, `.stderr` is text."""
    result = subprocess.run(
        command(name, *arguments), cwd=cwd, capture_output=True, timeout=120,
        env=environment(XDG_CACHE_HOME=str(cwd / "xdg"), **settings.pop("env", {})), **settings,
    )  # fmt: skip
    result.stderr = result.stderr.decode("utf-8", "replace")
    return result


def start(home: Path, *arguments: object, **settings) -> subprocess.Popen:
    """Start `wavenet-generate`."""
    return subprocess.Popen(command("generate", *arguments), cwd=home, env=environment(), **settings)


def assert_one_line_error(result: subprocess.CompletedProcess, *fragments: str, code: int = 1) -> None:
    """Check the exit code, and that standard error ends with one line of error and has no traceback."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if ": error: " in line]
    assert len(errors) == 1 and result.stderr.splitlines()[-1] == errors[0], result.stderr
    for fragment in fragments:
        assert fragment in errors[0], errors[0]


def temporaries(folder: Path) -> list[Path]:
    """Return the files that `wavenet.utils.files.atomic_output` has not finished."""
    return list(folder.glob(".wavenet-*.tmp"))


def chord(seconds: float, rate: int = 4000, pitch: float = 220.0) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (sum(np.sin(2 * np.pi * pitch * ratio * time) for ratio in (1, 1.26, 1.5)) * 0.25).astype(
        np.float32
    )


def make_audio(folder: Path, files: int = 3, seconds: float = 2.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        write_wav(folder / f"take-{number}.wav", chord(seconds, pitch=200.0 + 20 * number), 4000)
    return folder


def make_checkpoint(folder: Path, config: WaveNetConfig = CONFIG) -> Path:
    torch.manual_seed(0)
    WaveNet(config).save_pretrained(folder)
    return folder
