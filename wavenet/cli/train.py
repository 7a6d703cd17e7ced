"""`wavenet-train`: from a folder of recordings to a network."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wavenet.cli import interrupted
from wavenet.cli.common import INTERRUPTED, device_named, run
from wavenet.cli.signals import interrupts
from wavenet.cli.train_options import (
    AUTO,
    NETWORK_FLAGS,
    OTHER_TRAINING_FLAGS,
    TOLD,
    TRAINING_FLAGS,
    UNKNOWN,
    build_parser,
    complete,
    conditioning,
    seconds,
)
from wavenet.conditioning import registry as conditioning_kinds
from wavenet.config import NO_FEATURES, PRESETS, TrainingConfig, WaveNetConfig, flat, preset
from wavenet.errors import CheckpointError, ConfigError
from wavenet.training import environment
from wavenet.utils.distributed import World
from wavenet.utils.files import user_cache

DATA_FLAGS = ("validation_fraction", "silence_db")
"""What decides which audio is trained on; fixed for a run."""

MAX_THREADS = 1024


def _given(options: argparse.Namespace, names: Any) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def work(options: argparse.Namespace) -> int:
    """Carry out parsed options; return the exit code."""
    started = time.monotonic()
    options = complete(options)
    if hasattr(options, "plot"):
        return _plot(options)
    if hasattr(options, "plot_to"):
        raise ConfigError(f"--plot-to {options.plot_to}: says where, --plot RUN says what; give both")
    network = _given(options, [*NETWORK_FLAGS, "normalization"])
    settings = _given(options, [*TRAINING_FLAGS, *OTHER_TRAINING_FLAGS, "silence_db"])
    auto = settings.get("batch") == AUTO
    if auto:
        del settings["batch"]
    # Wrong values are told before torch is loaded.
    config = preset(getattr(options, "preset", "small"), **network)
    config = dataclasses.replace(config, conditioning=conditioning(options, config.sample_rate))
    conditioning_kinds.check(config)
    training = dataclasses.replace(TrainingConfig(), **settings)
    limit = None if options.max_time is None else started + seconds(options.max_time)
    if options.threads is not None and not 1 <= options.threads <= MAX_THREADS:
        raise ConfigError(f"--threads {options.threads}: must be from 1 to {MAX_THREADS}")
    environment.prepare()
    world = World.from_environment()
    if options.init_from is not None and options.resume:
        raise ConfigError("--init-from begins a run and --resume goes on with one: leave one of them out")

    import torch

    from wavenet.conditioning.segments import Conditions
    from wavenet.data.labels import attach_conditions, class_names
    from wavenet.engine import registry
    from wavenet.models import locate
    from wavenet.models.precision import resolve_precision
    from wavenet.training import checkpoint
    from wavenet.training.compile import explain_compile_errors
    from wavenet.training.memory_plan import explain_out_of_memory, fit_batch
    from wavenet.training.tensorboard import writer_class
    from wavenet.training.trainer import Trainer
    from wavenet.utils.console import Console

    interrupts.check()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    console = Console(silent=not world.is_main)
    device = world.device(device_named(options.device))
    source = _source(options)
    if options.tensorboard:
        # Told before the recordings are read.
        writer_class()
    world.join(device)
    found = first = None
    if options.init_from is not None:
        config, first = _initial(options, network, console)
        own = locate.find(options.init_from) == locate.SHIPPED
        source["init_from"] = locate.SHIPPED.name if own else str(options.init_from.resolve())
    if options.resume:
        found = world.run_main_first(
            lambda: checkpoint.load_latest(options.out_dir, lambda text: console.line(f"warning: {text}"))
        )
        config, training, source = _resumed(options, found, network, settings, source)
        if found[1].record.processes == world.size:
            _set_threads(options.threads, found[1].record.threads)
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
    if not options.dry_run and world.is_main:
        _check_place(options.out_dir)
    if training.augment_speed:
        conditioning_kinds.check_speed(config.conditioning)
    training = dataclasses.replace(training, precision=resolve_precision(training.precision, device))
    if auto and world.size > 1:
        raise ConfigError(f"--batch auto: {world.size} processes have to agree on it; give a number")
    # A run that goes on has a batch already.
    training = fit_batch(config, training, device, auto and not options.resume, console.line)

    data = world.run_main_first(lambda: _prepared(options, source, config, training, console))
    if config.conditioning is not None and config.conditioning.class_names == (UNKNOWN,):
        named = dataclasses.replace(config.conditioning, class_names=class_names(data))
        config = dataclasses.replace(config, conditioning=named)
    if config.conditioning is not None:
        folder = source.get("midi_dir") and Path(source["midi_dir"])
        attach_conditions(data, Conditions(config), folder, training.condition_dropout, console.line)
    trainer = Trainer(config, training, data, options.out_dir, device, source, console, world)
    console.line(
        f"network  {config.layers} layers, {trainer.model.parameter_count:,} parameters, receptive field "
        f"{config.receptive_field:,} samples ({1000 * config.receptive_field / config.sample_rate:.0f} ms), "
        f"{training.precision} on {device}" + (f", {world.size} processes" if world.size > 1 else "")
    )
    if device.type == "cpu" and (why := registry.report()["cpu"]):
        console.line(f"warning: the C++ engine cannot run here, training is slower without it: {why}")
    if first is not None:
        trainer.start_from(first)
    if found is not None:
        trainer.restore(*found)
        console.line(f"resuming from {found[0]}")
    with explain_out_of_memory(config, training, device), explain_compile_errors():
        code = _dry_run(trainer, console) if options.dry_run else _train(trainer, console, options, limit)
    # One that ends is taken for a failure by what started it, if its code is not 0, and ends the others.
    world.leave()
    return code


def _prepared(
    options: argparse.Namespace,
    source: dict[str, Any],
    config: WaveNetConfig,
    training: TrainingConfig,
    console: Any,
) -> Any:
    """Return the prepared recordings, told of, with what is to be done to those trained on."""
    from wavenet.data.augmentation import Augmentation
    from wavenet.data.dataset import DataConfig, prepare
    from wavenet.data.preparation import weights
    from wavenet.training.trainer import SAMPLES

    data = prepare(
        source["audio_dir"],
        Path(source["cache_dir"]),
        config.audio_format,
        config.receptive_field,
        config.quantization_channels,
        DataConfig(silence_db=training.silence_db, validation_fraction=training.validation_fraction),
        lambda done, total, name: console.status(f"preparing {done}/{total}: {name}"),
        # What a run generates is no recording, nor is anything beside it.
        exclude=[options.out_dir, options.out_dir / SAMPLES, Path(source["cache_dir"])],
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


def _source(options: argparse.Namespace) -> dict[str, Any]:
    """Return where the recordings are, as it is kept with a run: real paths, a list only of several."""
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


def _plot(options: argparse.Namespace) -> int:
    from wavenet.training.plots import draw_curves
    from wavenet.utils.console import Console

    Console().line(f"wrote {draw_curves(options.plot, getattr(options, 'plot_to', None))}")
    return 0


def _asked(options: argparse.Namespace, network: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the network that the command line or a file names, in itself or by a preset."""
    asked = {**network, **_given(options, TOLD)}
    for kind, companion in conditioning_kinds.companions():
        if getattr(options, companion.argument) is not None:
            asked["features"] = kind.name
    return {**PRESETS[options.preset], **asked} if hasattr(options, "preset") else asked


def _initial(options: argparse.Namespace, network: dict[str, Any], console: Any) -> tuple[WaveNetConfig, Any]:
    """Return the configuration and the weights that a run is to start from, and tell of them."""
    from wavenet.models import locate
    from wavenet.models.wavenet import WaveNet

    path = locate.find(options.init_from)
    model = WaveNet.from_pretrained(path)
    config = model.config
    known = flat(config)
    if config.conditioning is None:
        # A network that has been told nothing can learn to be.
        config = dataclasses.replace(config, conditioning=conditioning(options, config.sample_rate))
        known = flat(config)
    elif getattr(options, "features", None) == NO_FEATURES and not config.conditioning.class_names:
        model = _untold(model)
        config, known = model.config, flat(model.config)
    elif (missing := _missing_companion(options, config)) is not None:
        raise ConfigError(
            f"--init-from {options.init_from}: its network needs a {missing.noun} for each recording: name "
            f"their folder with --{missing.argument.replace('_', '-')} DIR, or train without features by "
            f"--features {NO_FEATURES}"
        )
    asked = _asked(options, network)
    others = [
        f"{name} {known.get(name)}, not {asked[name]}" for name in asked if known.get(name) != asked[name]
    ]
    if others:
        raise ConfigError(
            f"--init-from {options.init_from}: its network has {'; '.join(others)}: "
            "leave the network's flags out, or train one from the beginning"
        )
    console.line(
        f"start    from {locate.display_name(path)}: {config.layers} layers, {model.parameter_count:,} "
        f"parameters, {config.sample_rate} Hz, {config.quantization_channels} classes, normalization "
        f"{config.normalization}; the optimiser starts anew"
    )
    return config, model.state_dict()


def _missing_companion(options: argparse.Namespace, config: WaveNetConfig) -> Any:
    """Return the files that a network's features need and that no option names; None if none is missing."""
    kind = config.conditioning and conditioning_kinds.feature_kind(config.conditioning)
    companion = kind.companion if kind else None
    missing = companion is not None and getattr(options, companion.argument) is None
    return companion if missing else None


def _untold(model: Any) -> Any:
    """Return the network that a conditioned one is where it is told nothing."""
    from wavenet.models.wavenet import WaveNet

    # Without a gate bias nothing of the conditioner is left.
    network = WaveNet(dataclasses.replace(model.config, conditioning=None))
    network.load_state_dict({name: model.state_dict()[name] for name in network.state_dict()})
    return network


def _resumed(
    options: argparse.Namespace,
    found: Any,
    network: dict[str, Any],
    settings: dict[str, Any],
    source: dict[str, Any],
) -> tuple[WaveNetConfig, TrainingConfig, dict[str, Any]]:
    """Return the configurations of a resumed run: the checkpoint's, with what the command line changes."""
    from wavenet.models.serialization import read_config

    path, moment = found
    config = read_config(path)
    known = flat(config)
    for name, value in _asked(options, network).items():
        if known.get(name) != value:
            raise ConfigError(
                f"--{name.replace('_', '-')} {value}: the run in {options.out_dir} has "
                f"{known.get(name)}; "
                "leave network flags out when resuming, or start another run with --out-dir"
            )
    training, before = moment.record.training, moment.record.source
    kept = dict(before)
    for name in DATA_FLAGS:
        if name in settings and settings[name] != getattr(training, name):
            raise ConfigError(
                f"--{name.replace('_', '-')} {settings[name]}: the run in {options.out_dir} has "
                f"{getattr(training, name)}, and another split would let validation audio into training; "
                "leave it out when resuming"
            )
    if source["val_dir"] not in (None, before.get("val_dir")):
        raise ConfigError(
            f"--val-dir {options.val_dir}: the run in {options.out_dir} has {before.get('val_dir')}, and "
            "another one would let validation audio into training; leave it out when resuming"
        )
    if options.audio_dir is not None:
        kept["audio_dir"] = source["audio_dir"]
    for name in ("exclude", "weight", "midi_dir"):
        if getattr(options, name):
            kept[name] = source[name]
    if options.cache_dir is not None:
        kept["cache_dir"] = source["cache_dir"]
        if options.audio_dir is None:
            # Prepared audio alone will do, should the recordings be gone.
            kept.update(audio_dir=None, val_dir=None)
    return config, dataclasses.replace(training, **settings), kept


def _set_threads(asked: int | None, before: int) -> None:
    """Use as many threads as the run did: with another number, sums are rounded differently."""
    import torch

    if asked is None and 1 <= before <= MAX_THREADS:
        torch.set_num_threads(before)


def _check_place(out_dir: Path) -> None:
    """Raise `CheckpointError` if a run cannot be written there: before the recordings are read, not after."""
    from wavenet.utils.files import cause

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
    start = time.perf_counter()
    bits, _ = trainer.step()
    seconds = time.perf_counter() - start
    if not math.isfinite(bits):
        raise ConfigError(f"the first step's loss is {bits}: lower --lr")
    from wavenet.utils.console import duration

    total = duration(seconds * trainer.training.steps)
    console.line(
        f"dry run  one step took {seconds:.2f} s at {bits:.3f} bits per sample; "
        f"{trainer.training.steps:,} steps would take about {total} (the first step is a slow one)"
    )
    return 0


def _train(trainer: Any, console: Any, options: argparse.Namespace, end: float | None) -> int:
    import shlex

    from wavenet.cli.signals import Limit, Stopper

    # Clocks differ a little: the first process's counts.
    limit = Limit(options.max_time, end if trainer.world.is_main else None, console)
    with Stopper(console) as asked:
        finished = trainer.train(lambda: asked() or limit(), options.tensorboard)
    step = trainer.progress.step
    run_dir = shlex.quote(str(options.out_dir))
    best = trainer.progress.best_bits
    told = f", best validation {best:.3f} bits per sample" if best is not None else ""
    if finished:
        console.line(f"done: {step} steps{told}; checkpoints in {options.out_dir}")
        console.line(f"now: wavenet-generate --checkpoint {run_dir} --seconds 4 out.wav")
        return 0
    console.line(f"stopped and saved at step {step}{told}; go on with:")
    # These two are no part of the run, but its losses come out the same only with them.
    again = "" if options.device == "auto" else f" --device {shlex.quote(options.device)}"
    again += "" if options.threads is None else f" --threads {options.threads}"
    again += " --tensorboard" if options.tensorboard else ""
    console.line(f"  {_command(trainer.world)} --resume --out-dir {run_dir}{again}")
    return 0 if trainer.world.any_rank(limit.passed) else INTERRUPTED


def _command(world: World) -> str:
    """Return how a run like this one is started."""
    if world.size == 1:
        return "wavenet-train"
    count = f"--nproc-per-node {world.local_size}"
    return f"torchrun {count}{' ...' if world.size > world.local_size else ''} -m wavenet.cli.train"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `wavenet-train`; return the exit code."""
    try:
        return run(build_parser(), work, arguments)
    except KeyboardInterrupt:
        return interrupted("wavenet-train")


if __name__ == "__main__":
    sys.exit(main())
