"""The recordings of a training run: which ones, and how they are prepared."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from wavenet.cli.train_options import UNKNOWN_CLASSES
from wavenet.conditioning.segments import Conditions
from wavenet.config import TrainingConfig, WaveNetConfig
from wavenet.data.augmentation import Augmentation
from wavenet.data.dataset import DataConfig, prepare
from wavenet.data.labels import attach_conditions, class_names
from wavenet.data.preparation import weights
from wavenet.training.trainer import SAMPLES
from wavenet.utils.console import Console
from wavenet.utils.files import user_cache


def source_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return which recordings the options name, as a checkpoint records it: JSON values, absolute paths."""
    audio = [str(each.resolve()) for each in options.audio_dir or ()]
    return {
        "audio_dir": audio if len(audio) > 1 else next(iter(audio), None),
        "cache_dir": str((options.cache_dir or user_cache()).resolve()),
        "val_dir": options.val_dir and str(options.val_dir.resolve()),
        "exclude": options.exclude,
        "weight": options.weight,
        "classes": options.classes,
        "midi_dir": options.midi_dir and str(options.midi_dir.resolve()),
    }


def prepared(
    source: dict[str, Any], config: WaveNetConfig, training: TrainingConfig, out_dir: Path, console: Console
) -> Any:
    """Return the prepared recordings, with the augmentation and weights of the training part."""
    data = prepare(
        source["audio_dir"],
        Path(source["cache_dir"]),
        config.audio_format,
        config.receptive_field,
        config.quantization_channels,
        DataConfig(silence_db=training.silence_db, validation_fraction=training.validation_fraction),
        lambda done, total, name: console.status(f"preparing {done}/{total}: {name}"),
        # Audio that a run generates is not a recording to train on.
        exclude=[out_dir, out_dir / SAMPLES, Path(source["cache_dir"])],
        val_dir=source.get("val_dir"),
        patterns=source.get("exclude", ()),
    )
    console.clear()
    console.line(str(data.report))
    if training.augment_gain or training.augment_polarity or training.augment_speed:
        data.train.augmentation = Augmentation(
            training.augment_gain, training.augment_polarity, training.augment_speed
        )
    if source.get("weight"):
        data.train.set_weights(weights(data.train.names, source["weight"]))
    return data


def attach_conditioning(
    config: WaveNetConfig, data: Any, source: dict[str, Any], training: TrainingConfig, console: Console
) -> WaveNetConfig:
    """Add classes and scores to prepared recordings; return the configuration with the names of classes."""
    if config.conditioning is None:
        return config
    if config.conditioning.class_names == UNKNOWN_CLASSES:
        conditioning = replace(config.conditioning, class_names=class_names(data))
        config = replace(config, conditioning=conditioning)
    midi_dir = source.get("midi_dir")
    attach_conditions(
        data, Conditions(config), midi_dir and Path(midi_dir), training.condition_dropout, console.line
    )
    return config
