"""The flags of `wavenet-train`, and the file that may stand for them."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from wavenet.cli.common import Parser, add_recordings
from wavenet.conditioning.registry import FEATURE_KINDS
from wavenet.config import (
    INTERPOLATIONS,
    NO_FEATURES,
    NORMALIZATIONS,
    PRESETS,
    SCHEDULES,
    TRAINING_PRECISIONS,
    ConditioningConfig,
    TrainingConfig,
    WaveNetConfig,
)

NETWORK_FLAGS = {
    "sample_rate": "Hz the recordings are resampled to",
    "quantization_channels": "mu-law classes",
    "layers": "dilated layers in all",
    "stacks": "stacks of dilations 1, 2, 4, ...",
    "kernel_size": "taps of each dilated convolution",
    "residual_channels": "width of the residual path",
    "dilation_channels": "width of each branch of the gate",
    "skip_channels": "width of the skip sum",
    "head_channels": "width between the last two 1x1 convolutions",
}
TRAINING_FLAGS = {
    "steps": "optimiser steps in all",
    "batch": "segments at once; auto: as many as memory allows, up to 64",
    "accumulate": "batches per step: as one batch so many times as large, in the memory of one",
    "segment": "seconds per segment",
    "lr": "peak learning rate",
    "seed": "of the first weights and the choice of segments",
    "warmup_steps": "steps over which the learning rate rises",
    "final_lr_fraction": "what is left of the learning rate at the end, as a share of its peak",
    "weight_decay": "decoupled weight decay of the matrices",
    "clip_norm": "largest norm of the gradient",
    "dropout": "probability with which a value that enters a dilated layer is dropped",
    "label_smoothing": "share of a target's probability that is spread over all classes",
    "ema_decay": "decay of the averaged weights, the ones saved for use",
    "validate_every": "steps between validations (0: none)",
    "patience": "validations without a new best after which the run ends (0: never)",
    "validation_seconds": "seconds of audio scored at each validation",
    "checkpoint_every": "steps between checkpoints (0: only at the end)",
    "sample_every": "steps between generated samples (0: none)",
    "sample_seconds": "length of a generated sample",
    "keep": "checkpoints kept besides the best",
    "validation_fraction": "share of the files held out for validation",
    "augment_gain": "attenuate training segments by up to this many dB, at random (0: off)",
    "augment_speed": "play training segments faster or slower by up to this fraction, at random, which "
    "changes the pitch (0.06: a semitone; 0: off)",
    "condition_dropout": "share of segments trained without conditioning, which --guidance needs",
}
CONDITIONING_FLAGS = {
    "hop": "samples per frame",
    "conditioning_channels": "width of the network that reads the frames",
    "n_mels": "bands of the mel spectrum",
    "n_fft": "samples of its windows",
    "fmin": "lower edge of the lowest band in Hz",
    "fmax": "upper edge of the highest band in Hz",
}
"""Besides `features` and `interpolation`, which have choices."""

UNKNOWN_CLASSES = ("?",)
"""The names of classes until the recordings are read."""

OTHER_TRAINING_FLAGS = ("schedule", "precision", "augment_polarity", "checkpoint_layers", "compile")

AUTO = "auto"
"""Instead of a number of segments: as many as memory allows."""

ABSENT = argparse.SUPPRESS


def build_parser() -> Parser:
    """Return the parser of `wavenet-train`; what is not given leaves no trace in the parsed options."""
    parser = Parser(
        prog="wavenet-train",
        description="Train a network on a folder of recordings. "
        "Ctrl-C saves, and the run goes on later with --resume.",
    )
    _add_data(parser)
    _add_run(parser)
    network = parser.add_argument_group("network")
    network.add_argument(
        "--preset", choices=tuple(PRESETS), default=ABSENT, help="size of the network (default: small)"
    )
    _add_fields(network, WaveNetConfig, NETWORK_FLAGS)
    _add_conditions(parser)
    training = parser.add_argument_group("training")
    _add_fields(training, TrainingConfig, TRAINING_FLAGS)
    training.add_argument(
        "--augment-polarity",
        action=argparse.BooleanOptionalAction,
        default=ABSENT,
        help="turn training segments upside down at random (default: not)",
    )
    training.add_argument(
        "--checkpoint-layers",
        action=argparse.BooleanOptionalAction,
        default=ABSENT,
        help="compute layers twice instead of keeping them: less memory, more time (default: not)",
    )
    training.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=ABSENT,
        help="let torch compile the network: a minute before the first step, and faster ones on a GPU "
        "(default: not)",
    )
    training.add_argument(
        "--schedule",
        choices=SCHEDULES,
        default=ABSENT,
        help="how the learning rate falls after its rise (default: cosine)",
    )
    training.add_argument(
        "--precision",
        choices=TRAINING_PRECISIONS,
        default=ABSENT,
        help="of the matrix products (default: auto)",
    )
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data", argument_default=ABSENT)
    add_recordings(group, "a share of those in --audio-dir", "none")
    group.add_argument(
        "--weight",
        nargs="+",
        action="extend",
        metavar="FOLDER=W",
        help="train W times as often on each second of a folder as on one of the others (default: 1)",
    )
    group.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="prepared audio; without --audio-dir it is all that is needed (default: ~/.cache/wavenet)",
    )
    group.add_argument(
        "--normalization",
        choices=NORMALIZATIONS,
        help="level every recording to the same peak or loudness (default: none)",
    )
    silence = group.add_mutually_exclusive_group()
    silence.add_argument(
        "--silence-db",
        type=float,
        metavar="DB",
        default=ABSENT,
        help="remove what is this far below a file's loudest part (default: 40)",
    )
    silence.add_argument(
        "--keep-silence",
        dest="silence_db",
        action="store_const",
        const=None,
        default=ABSENT,
        help="remove none",
    )


def _add_conditions(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("conditioning", argument_default=ABSENT)
    group.add_argument(
        "--classes",
        choices=("folders",),
        help="each subfolder of --audio-dir is a class (default: no classes)",
    )
    group.add_argument(
        "--midi-dir",
        type=Path,
        metavar="DIR",
        help="which notes: MIDI files under the names of their recordings (default: no scores)",
    )
    group.add_argument(
        "--features",
        choices=(NO_FEATURES, *FEATURE_KINDS),
        help="which frames: mel spectra of the recordings, or the scores of --midi-dir (default: none)",
    )
    group.add_argument(
        "--interpolation",
        choices=INTERPOLATIONS,
        help="what holds between frames: the last one, or a mixture (default: repeat)",
    )
    fields = {**CONDITIONING_FLAGS, "hop": "samples per frame; by default 10 ms"}
    _add_fields(group, ConditioningConfig, fields)


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run", argument_default=ABSENT)
    group.add_argument("--out-dir", type=Path, metavar="DIR", help="the run (default: checkpoints)")
    group.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="JSON with settings by the names of their flags; flags win",
    )
    group.add_argument(
        "--resume", action="store_true", default=False, help="go on from the run's latest checkpoint"
    )
    group.add_argument(
        "--init-from",
        type=Path,
        metavar="DIR",
        help="start from a trained network (a run or a checkpoint), in its architecture and audio format",
    )
    group.add_argument(
        "--max-time", metavar="TIME", help="save and stop after so long: 90s, 30m, 2h, 1h30m (default: never)"
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        default=False,
        help="report on the data, take one step, write no run",
    )
    group.add_argument(
        "--tensorboard",
        action="store_true",
        default=ABSENT,
        help="write for TensorBoard too, into the run (default: not)",
    )
    group.add_argument(
        "--plot",
        type=Path,
        metavar="RUN",
        help="draw the curves of a run into its curves.png, and do nothing else",
    )
    group.add_argument("--plot-to", type=Path, metavar="FILE", help="draw them there (png, pdf or svg)")
    group.add_argument("--device", help="auto, cpu or cuda (default: auto)")
    group.add_argument("--threads", type=int, metavar="N", help="processor threads (default: torch's choice)")


def _add_fields(group: Any, config: type, flags: dict[str, str]) -> None:
    """Add a flag for each named field; a flag not given leaves no trace in the parsed options."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    for name, text in flags.items():
        value = fields[name].default
        shown = "the preset's" if name in PRESETS["small"] else value
        group.add_argument(
            "--" + name.replace("_", "-"),
            type=_batch if name == "batch" else type(value),
            default=ABSENT,
            metavar="N" if isinstance(value, int) else "X",
            help=f"{text} (default: {shown})",
        )


def _batch(text: str) -> int | str:
    try:
        return text if text == AUTO else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor {AUTO}") from None
