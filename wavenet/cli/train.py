"""`wavenet-train`: from a folder of recordings to a network."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wavenet.cli import interrupted
from wavenet.cli.common import INTERRUPTED, Parser, default_cache, device_named, run
from wavenet.cli.interrupts import interrupts
from wavenet.config import NORMALIZATIONS, PRECISIONS, PRESETS, TrainingConfig, WaveNetConfig, preset
from wavenet.errors import CheckpointError, ConfigError

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
    "batch": "segments per step",
    "segment": "seconds per segment",
    "lr": "peak learning rate",
    "seed": "of the first weights and the choice of segments",
    "warmup_steps": "steps over which the learning rate rises",
    "weight_decay": "decoupled weight decay of the matrices",
    "clip_norm": "largest norm of the gradient",
    "ema_decay": "decay of the averaged weights, the ones saved for use",
    "validate_every": "steps between validations (0: none)",
    "validation_seconds": "seconds of audio scored at each validation",
    "checkpoint_every": "steps between checkpoints (0: only at the end)",
    "sample_every": "steps between generated samples (0: none)",
    "sample_seconds": "length of a generated sample",
    "keep": "checkpoints kept besides the best",
    "validation_fraction": "share of the files held out for validation",
}


DATA_FLAGS = ("validation_fraction", "silence_db")
"""What decides which audio is trained on; fixed for a run."""

MAX_THREADS = 1024


def build_parser() -> Parser:
    """Return the parser of `wavenet-train`."""
    parser = Parser(
        prog="wavenet-train",
        description="Train a network on a folder of recordings. "
        "Ctrl-C saves, and the run goes on later with --resume.",
    )
    absent = argparse.SUPPRESS
    data = parser.add_argument_group("data and run")
    data.add_argument("--audio-dir", type=Path, metavar="DIR", help="folder of recordings, searched in depth")
    data.add_argument(
        "--out-dir",
        type=Path,
        default=Path("checkpoints"),
        metavar="DIR",
        help="the run (default: checkpoints)",
    )
    data.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="prepared audio; without --audio-dir it is all that is needed (default: ~/.cache/wavenet)",
    )
    data.add_argument("--resume", action="store_true", help="go on from the run's latest checkpoint")
    data.add_argument(
        "--dry-run", action="store_true", help="report on the data, take one step, write no run"
    )
    data.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    data.add_argument("--threads", type=int, metavar="N", help="processor threads (default: torch's choice)")
    data.add_argument(
        "--normalization",
        choices=NORMALIZATIONS,
        default=absent,
        help="level every recording to the same peak or loudness (default: none)",
    )
    silence = data.add_mutually_exclusive_group()
    silence.add_argument(
        "--silence-db",
        type=float,
        default=absent,
        metavar="DB",
        help="remove what is this far below a file's loudest part (default: 40)",
    )
    silence.add_argument(
        "--keep-silence",
        dest="silence_db",
        action="store_const",
        const=None,
        default=absent,
        help="remove none",
    )
    network = parser.add_argument_group("network")
    network.add_argument(
        "--preset", choices=tuple(PRESETS), default=absent, help="size of the network (default: small)"
    )
    _add_fields(network, WaveNetConfig, NETWORK_FLAGS)
    training = parser.add_argument_group("training")
    _add_fields(training, TrainingConfig, TRAINING_FLAGS)
    training.add_argument(
        "--precision", choices=PRECISIONS, default=absent, help="of the matrix products (default: auto)"
    )
    return parser


def _add_fields(group: Any, config: type, flags: dict[str, str]) -> None:
    """Add a flag for each named field; a flag not given leaves no trace in the parsed options."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    for name, text in flags.items():
        value = fields[name].default
        shown = "the preset's" if name in PRESETS["small"] else value
        group.add_argument(
            "--" + name.replace("_", "-"),
            type=type(value),
            default=argparse.SUPPRESS,
            metavar="N" if isinstance(value, int) else "X",
            help=f"{text} (default: {shown})",
        )


def _given(options: argparse.Namespace, names: Any) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def work(options: argparse.Namespace) -> int:
    """Carry out parsed options; return the exit code."""
    network = _given(options, [*NETWORK_FLAGS, "normalization"])
    settings = _given(options, [*TRAINING_FLAGS, "precision", "silence_db"])
    # Wrong values are told before torch is loaded.
    config = preset(getattr(options, "preset", "small"), **network)
    training = dataclasses.replace(TrainingConfig(), **settings)
    if options.threads is not None and not 1 <= options.threads <= MAX_THREADS:
        raise ConfigError(f"--threads {options.threads}: must be from 1 to {MAX_THREADS}")

    import torch

    from wavenet import checkpoint
    from wavenet.dataset import DataConfig, prepare
    from wavenet.evaluation import resolve_precision
    from wavenet.memory import check_memory
    from wavenet.progress import Console
    from wavenet.training import SAMPLES, Trainer

    interrupts.check()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    console = Console()
    device = device_named(options.device)
    source = {"audio_dir": options.audio_dir and str(options.audio_dir.resolve())}
    source["cache_dir"] = str((options.cache_dir or default_cache()).resolve())
    found = None
    if options.resume:
        found = checkpoint.load_latest(options.out_dir, lambda text: console.line(f"warning: {text}"))
        config, training, source = _resumed(options, found, network, settings, source)
    elif not options.dry_run and checkpoint.numbered(options.out_dir):
        latest = checkpoint.numbered(options.out_dir)[0]
        raise CheckpointError(
            f"{options.out_dir}: holds a run already ({latest.name}); go on with --resume, "
            "or start another with --out-dir"
        )
    if source["audio_dir"] is None and options.cache_dir is None and not options.resume:
        raise ConfigError(
            "name the folder of recordings with --audio-dir DIR (or prepared audio: --cache-dir)"
        )
    if not options.dry_run:
        _check_place(options.out_dir)
    training = dataclasses.replace(training, precision=resolve_precision(training.precision, device))
    if device.type == "cpu":
        check_memory(config, training)

    data = prepare(
        Path(source["audio_dir"]) if source["audio_dir"] else None,
        Path(source["cache_dir"]),
        config,
        DataConfig(silence_db=training.silence_db, validation_fraction=training.validation_fraction),
        lambda done, total, name: console.status(f"preparing {done}/{total}: {name}"),
        # What a run generates is no recording, nor is anything beside it.
        exclude=[options.out_dir, options.out_dir / SAMPLES, Path(source["cache_dir"])],
    )
    console.clear()
    console.line(str(data.report))
    trainer = Trainer(config, training, data, options.out_dir, device, source, console)
    console.line(
        f"network  {config.layers} layers, {trainer.model.parameter_count:,} parameters, receptive field "
        f"{config.receptive_field:,} samples ({1000 * config.receptive_field / config.sample_rate:.0f} ms), "
        f"{training.precision} on {device}"
    )
    if found is not None:
        trainer.restore(*found)
        console.line(f"resuming from {found[0]}")
    if options.dry_run:
        return _dry_run(trainer, console)
    return _train(trainer, console, options)


def _resumed(
    options: argparse.Namespace,
    found: Any,
    network: dict[str, Any],
    settings: dict[str, Any],
    source: dict[str, Any],
) -> tuple[WaveNetConfig, TrainingConfig, dict[str, Any]]:
    """Return the configurations of a resumed run: the checkpoint's, with what the command line changes."""
    from wavenet.weights import read_config

    path, moment = found
    config = read_config(path)
    asked = {**PRESETS[options.preset], **network} if hasattr(options, "preset") else network
    for name, value in asked.items():
        if getattr(config, name) != value:
            raise ConfigError(
                f"--{name.replace('_', '-')} {value}: the run in {options.out_dir} has "
                f"{getattr(config, name)}; "
                "leave network flags out when resuming, or start another run with --out-dir"
            )
    try:
        training = TrainingConfig.from_json(moment.progress.get("training"))
        kept = {key: moment.progress["source"][key] for key in ("audio_dir", "cache_dir")}
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / 'training.json'}: {error}; use another checkpoint") from None
    for name in DATA_FLAGS:
        if name in settings and settings[name] != getattr(training, name):
            raise ConfigError(
                f"--{name.replace('_', '-')} {settings[name]}: the run in {options.out_dir} has "
                f"{getattr(training, name)}, and another split would let validation audio into training; "
                "leave it out when resuming"
            )
    if options.audio_dir is not None:
        kept["audio_dir"] = source["audio_dir"]
    if options.cache_dir is not None:
        # Prepared audio alone will do, should the recordings be gone.
        kept = {"audio_dir": source["audio_dir"], "cache_dir": source["cache_dir"]}
    _set_threads(options.threads, moment.progress.get("threads"))
    return config, dataclasses.replace(training, **settings), kept


def _set_threads(asked: int | None, before: Any) -> None:
    """Use as many threads as the run did: with another number, sums are rounded differently."""
    import torch

    if asked is None and isinstance(before, int) and 1 <= before <= MAX_THREADS:
        torch.set_num_threads(before)


def _check_place(out_dir: Path) -> None:
    """Raise `CheckpointError` if a run cannot be written there: before the recordings are read, not after."""
    from wavenet.files import cause

    place = out_dir
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise CheckpointError(f"--out-dir {out_dir}: {place} is not a folder; choose another place")
    try:
        # Made rather than asked for: permissions alone do not tell of a read-only disk.
        os.rmdir(tempfile.mkdtemp(prefix=".wavenet-", dir=place))
    except OSError as error:
        raise CheckpointError(
            f"--out-dir {out_dir}: cannot be written ({cause(error)}); choose another place"
        ) from None


def _dry_run(trainer: Any, console: Any) -> int:
    import time

    start = time.perf_counter()
    bits, _ = trainer.step()
    seconds = time.perf_counter() - start
    if not math.isfinite(bits):
        raise ConfigError(f"the first step's loss is {bits}: lower --lr")
    from wavenet.progress import duration

    total = duration(seconds * trainer.training.steps)
    console.line(
        f"dry run  one step took {seconds:.2f} s at {bits:.3f} bits per sample; "
        f"{trainer.training.steps:,} steps would take about {total} (the first step is a slow one)"
    )
    return 0


class _Stopper:
    """Notes the first interrupt, so that a step can be finished and saved; the second one is at once."""

    SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")

    def __init__(self, console: Any) -> None:
        self.console = console
        self.asked = self.told = False

    def __enter__(self) -> Callable[[], bool]:
        known = [getattr(signal, name) for name in self.SIGNALS if hasattr(signal, name)]
        # A run under nohup ignores the closing of its terminal.
        heeded = [each for each in known if signal.getsignal(each) is not signal.SIG_IGN]
        self.before = {each: signal.signal(each, self._ask) for each in heeded}
        return self._stop

    def __exit__(self, *_: object) -> None:
        for each, handler in self.before.items():
            signal.signal(each, handler)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def _stop(self) -> bool:
        # Not said where the signal arrives: that may be in the middle of another line.
        if self.asked and not self.told:
            self.told = True
            self.console.line("stopping: saving what there is; once more stops at once")
        return self.asked


def _train(trainer: Any, console: Any, options: argparse.Namespace) -> int:
    import shlex

    with _Stopper(console) as stop:
        finished = trainer.train(stop)
    step = trainer.counters["step"]
    run_dir = shlex.quote(str(options.out_dir))
    best = trainer.counters["best_bits"]
    told = f", best validation {best:.3f} bits per sample" if best is not None else ""
    if finished:
        console.line(f"done: {step} steps{told}; checkpoints in {options.out_dir}")
        console.line(f"now: wavenet-generate --checkpoint {run_dir} --seconds 4 out.wav")
        return 0
    console.line(f"stopped and saved at step {step}{told}; go on with:")
    # These two are no part of the run, but its losses come out the same only with them.
    again = "" if options.device == "auto" else f" --device {shlex.quote(options.device)}"
    again += "" if options.threads is None else f" --threads {options.threads}"
    console.line(f"  wavenet-train --resume --out-dir {run_dir}{again}")
    return INTERRUPTED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `wavenet-train`; return the exit code."""
    try:
        return run(build_parser(), work, arguments)
    except KeyboardInterrupt:
        return interrupted("wavenet-train")


if __name__ == "__main__":
    sys.exit(main())
