"""A small network, a short run, and readers of its output, for tests of training."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import torch

from wavenet.config import TrainingConfig, WaveNetConfig
from wavenet.models.serialization import write_json
from wavenet.models.wavenet import WaveNet
from wavenet.training.checkpoint import RECORD_FILE
from wavenet.training.metrics import TIMED
from wavenet.training.objective import Losses
from wavenet.training.progress import TrainingProgress, TrainingRecord
from wavenet.training.trainer import Trainer
from wavenet.utils.console import Console

CONFIG = WaveNetConfig(
    sample_rate=4000, quantization_channels=64, layers=8, stacks=1, residual_channels=16,
    dilation_channels=16, skip_channels=32, head_channels=32,
)  # fmt: skip
TRAINING = TrainingConfig(
    steps=12, batch=2, segment=0.1, warmup_steps=3, precision="fp32", validate_every=4, checkpoint_every=4,
    sample_every=0, validation_seconds=1.0, silence_db=None,
)  # fmt: skip


def trainer(data, run: Path, training: TrainingConfig = TRAINING, device: str = "cpu") -> Trainer:
    console = Console(io.StringIO())
    return Trainer(
        CONFIG, training, data, run, torch.device(device), {"audio_dir": None, "cache_dir": "x"}, console
    )


def write_record(
    directory: Path, training: TrainingConfig = TRAINING, source=None, data="", **counters
) -> None:
    """Write `training.json` into a checkpoint's directory."""
    progress = TrainingProgress(**counters)
    record = TrainingRecord(progress, training, source or {}, data, threads=1, processes=1)
    write_json(directory / RECORD_FILE, record.to_json())


def said(trainer: Trainer) -> str:
    return trainer.console.stream.getvalue()


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return WaveNet.from_pretrained(directory).state_dict()


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


def poison(subject: Trainer, steps: set[int], monkeypatch) -> None:
    """Make the loss of some steps infinite."""
    plain = subject.objective.losses

    def poisoned(*arguments):
        objective, loss = plain(*arguments)
        factor = math.inf if subject.progress.step in steps else 1
        return Losses(objective * factor, loss * factor)

    monkeypatch.setattr(subject.objective, "losses", poisoned)
