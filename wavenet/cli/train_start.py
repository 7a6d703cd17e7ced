"""What a training run starts from: random weights, a trained network, or its own latest checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from wavenet.cli.train_data import source_of
from wavenet.cli.train_settings import CONDITIONING_FIELDS, MAX_THREADS, RunRequest, conditioning, named
from wavenet.conditioning import registry as conditioning_kinds
from wavenet.config import NO_FEATURES, PRESETS, TrainingConfig, WaveNetConfig, flat
from wavenet.errors import CheckpointError, ConfigError
from wavenet.models import locate
from wavenet.models.serialization import read_config
from wavenet.models.wavenet import WaveNet
from wavenet.training import checkpoint
from wavenet.utils.console import Console
from wavenet.utils.distributed import World
from wavenet.utils.files import cause

SPLIT_SETTINGS = ("validation_fraction", "silence_db")
"""Settings that decide which audio is held out for validation; a run keeps them."""


@dataclasses.dataclass(frozen=True)
class RunStart:
    """What a run starts from.

    Attributes
    ----------
    config : WaveNetConfig
    training : TrainingConfig
    source : dict
        Which recordings, as `source_of` returns it.
    weights : dict or None
        The weights of a trained network.
    checkpoint : tuple or None
        The folder and the contents of the checkpoint that is resumed.
    """

    config: WaveNetConfig
    training: TrainingConfig
    source: dict[str, Any]
    weights: dict[str, torch.Tensor] | None = None
    checkpoint: Any = None


def resolve(options: argparse.Namespace, request: RunRequest, world: World, console: Console) -> RunStart:
    """Return what a run starts from.

    Raises
    ------
    ConfigError, CheckpointError
        If there is nothing to resume, a run is in the way, a setting contradicts the network, or no
        recordings are named.
    """
    source = source_of(options)
    start = RunStart(request.config, request.training, source)
    if options.init_from is not None:
        config, weights = _initial(options, request.network, console)
        shipped = locate.find(options.init_from) == locate.SHIPPED
        source["init_from"] = locate.SHIPPED.name if shipped else str(options.init_from.resolve())
        start = dataclasses.replace(start, config=config, weights=weights)
    if options.resume:
        found = world.run_main_first(
            lambda: checkpoint.load_latest(options.out_dir, lambda text: console.line(f"warning: {text}"))
        )
        start = _resumed(options, found, request, source)
        if found[1].record.processes == world.size:
            _set_threads(options.threads, found[1].record.threads)
    elif not options.dry_run and checkpoint.numbered(options.out_dir):
        latest = checkpoint.numbered(options.out_dir)[0]
        raise CheckpointError(
            f"{options.out_dir}: contains a run already ({latest.name}); continue it with --resume, "
            "or start another with --out-dir"
        )
    if start.source["audio_dir"] is None and options.cache_dir is None and not options.resume:
        raise ConfigError(
            "name the folder of recordings with --audio-dir DIR (or prepared audio: --cache-dir)"
        )
    return start


def check_writable(out_dir: Path) -> None:
    """Raise `CheckpointError` if a run cannot be written to a folder."""
    place = out_dir
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise CheckpointError(f"--out-dir {out_dir}: {place} is not a folder; choose another place")
    try:
        # A folder is really created: permissions do not show that a disk is read-only.
        os.rmdir(tempfile.mkdtemp(prefix=".wavenet-", dir=place))
    except OSError as error:
        raise CheckpointError(
            f"--out-dir {out_dir}: cannot be written ({cause(error)}); choose another place"
        ) from None


def _requested_fields(options: argparse.Namespace, network: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the network that the options name, each for itself or with a preset."""
    requested = {**network, **named(options, CONDITIONING_FIELDS)}
    for kind, companion in conditioning_kinds.companions():
        if getattr(options, companion.argument) is not None:
            requested["features"] = kind.name
    return {**PRESETS[options.preset], **requested} if hasattr(options, "preset") else requested


def _initial(
    options: argparse.Namespace, network: dict[str, Any], console: Console
) -> tuple[WaveNetConfig, dict[str, torch.Tensor]]:
    """Return the configuration and the weights of the network that --init-from names."""
    path = locate.find(options.init_from)
    model = WaveNet.from_pretrained(path)
    config = model.config
    known = flat(config)
    if config.conditioning is None:
        # An unconditional network can learn to use conditioning.
        config = dataclasses.replace(config, conditioning=conditioning(options, config.sample_rate))
        known = flat(config)
    elif getattr(options, "features", None) == NO_FEATURES and not config.conditioning.class_names:
        model = _unconditional(model)
        config, known = model.config, flat(model.config)
    elif (missing := _missing_companion(options, config)) is not None:
        raise ConfigError(
            f"--init-from {options.init_from}: its network needs a {missing.noun} for each recording: name "
            f"their folder with --{missing.argument.replace('_', '-')} DIR, or train without features by "
            f"--features {NO_FEATURES}"
        )
    requested = _requested_fields(options, network)
    others = [
        f"{name} {known.get(name)}, not {requested[name]}"
        for name in requested
        if known.get(name) != requested[name]
    ]
    if others:
        raise ConfigError(
            f"--init-from {options.init_from}: its network has {'; '.join(others)}: "
            "leave these flags out, or train a network from random weights"
        )
    console.line(
        f"start    from {locate.display_name(path)}: {config.layers} layers, {model.parameter_count:,} "
        f"parameters, {config.sample_rate} Hz, {config.quantization_channels} classes, normalization "
        f"{config.normalization}; the optimiser starts from zero"
    )
    return config, model.state_dict()


def _missing_companion(options: argparse.Namespace, config: WaveNetConfig) -> Any:
    """Return the files that a network's features need and that no option names; None if none is missing."""
    kind = config.conditioning and conditioning_kinds.feature_kind(config.conditioning)
    companion = kind.companion if kind else None
    missing = companion is not None and getattr(options, companion.argument) is None
    return companion if missing else None


def _unconditional(model: WaveNet) -> WaveNet:
    """Return a conditioned network without its conditioner, which computes what it did without input."""
    network = WaveNet(dataclasses.replace(model.config, conditioning=None))
    network.load_state_dict({name: model.state_dict()[name] for name in network.state_dict()})
    return network


def _resumed(
    options: argparse.Namespace, found: Any, request: RunRequest, source: dict[str, Any]
) -> RunStart:
    """Return the checkpoint of a run, with the settings that the options change."""
    path, moment = found
    config = read_config(path)
    known = flat(config)
    for name, value in _requested_fields(options, request.network).items():
        if known.get(name) != value:
            raise ConfigError(
                f"--{name.replace('_', '-')} {value}: the run in {options.out_dir} has {known.get(name)}; "
                "leave the network's flags out when resuming, or start another run with --out-dir"
            )
    training, before = moment.record.training, moment.record.source
    kept = dict(before)
    _refuse_another_split(options, request.settings, training, source, before)
    if options.audio_dir is not None:
        kept["audio_dir"] = source["audio_dir"]
    for name in ("exclude", "weight", "midi_dir"):
        if getattr(options, name):
            kept[name] = source[name]
    if options.cache_dir is not None:
        kept["cache_dir"] = source["cache_dir"]
        if options.audio_dir is None:
            # Prepared audio is enough if the recordings are gone.
            kept.update(audio_dir=None, val_dir=None)
    return RunStart(config, dataclasses.replace(training, **request.settings), kept, checkpoint=found)


def _refuse_another_split(
    options: argparse.Namespace,
    settings: dict[str, Any],
    training: TrainingConfig,
    source: dict[str, Any],
    before: dict[str, Any],
) -> None:
    """Raise `ConfigError` if a resumed run would train on audio that it has held out so far."""
    for name in SPLIT_SETTINGS:
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


def _set_threads(requested: int | None, before: int) -> None:
    """Use as many threads as the run did: sums are rounded differently with another number."""
    if requested is None and 1 <= before <= MAX_THREADS:
        torch.set_num_threads(before)
