"""The settings of a training run: the parsed options, completed by a file and by defaults."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wavenet.cli.train_options import (
    AUTO,
    CONDITIONING_FLAGS,
    NETWORK_FLAGS,
    OTHER_TRAINING_FLAGS,
    TRAINING_FLAGS,
    UNKNOWN_CLASSES,
)
from wavenet.conditioning import registry as conditioning_kinds
from wavenet.config import NO_FEATURES, PRESETS, ConditioningConfig, TrainingConfig, WaveNetConfig, preset
from wavenet.errors import ConfigError
from wavenet.utils.files import cause
from wavenet.utils.json_config import accepts, refuse_unknown

MAX_THREADS = 1024

CONDITIONING_FIELDS = ("features", "interpolation", *CONDITIONING_FLAGS)

DEFAULTS: dict[str, Any] = {
    "audio_dir": None,
    "val_dir": None,
    "exclude": [],
    "weight": [],
    "out_dir": Path("checkpoints"),
    "cache_dir": None,
    "init_from": None,
    "classes": None,
    "midi_dir": None,
    "device": "auto",
    "threads": None,
    "max_time": None,
    "tensorboard": False,
}
"""What holds where neither the command line nor a file says otherwise."""

PATHS = ("audio_dir", "val_dir", "out_dir", "cache_dir", "init_from", "midi_dir")
LISTS = ("audio_dir", "exclude", "weight")
"""What may be given several times; in a file a single text will do as well."""


@dataclasses.dataclass(frozen=True)
class RunRequest:
    """What the options request of a run.

    Attributes
    ----------
    network, settings : dict
        The fields of the network and of training that the options name.
    config : WaveNetConfig
    training : TrainingConfig
        Both with these fields, and defaults for the others.
    auto_batch : bool
        Whether the batch is chosen by the memory that is free.
    """

    network: dict[str, Any]
    settings: dict[str, Any]
    config: WaveNetConfig
    training: TrainingConfig
    auto_batch: bool


def read_request(options: argparse.Namespace) -> RunRequest:
    """Return what completed options request; `ConfigError` for a value outside its range."""
    network = named(options, [*NETWORK_FLAGS, "normalization"])
    settings = named(options, [*TRAINING_FLAGS, *OTHER_TRAINING_FLAGS, "silence_db"])
    auto_batch = settings.get("batch") == AUTO
    if auto_batch:
        del settings["batch"]
    config = preset(getattr(options, "preset", "small"), **network)
    config = dataclasses.replace(config, conditioning=conditioning(options, config.sample_rate))
    conditioning_kinds.check(config)
    training = dataclasses.replace(TrainingConfig(), **settings)
    return RunRequest(network, settings, config, training, auto_batch)


def named(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Return those of some options that were given."""
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def conditioning(options: argparse.Namespace, sample_rate: int) -> ConditioningConfig | None:
    """Return the conditioning that the options name, None for none; the data gives the names of classes."""
    given = {name: getattr(options, name) for name in CONDITIONING_FIELDS if hasattr(options, name)}
    for kind, companion in conditioning_kinds.companions():
        if getattr(options, companion.argument) is not None:
            given.setdefault("features", kind.name)
    features = given.get("features", NO_FEATURES)
    for kind, companion in conditioning_kinds.companions():
        if (features == kind.name) != (getattr(options, companion.argument) is not None):
            flag = companion.argument.replace("_", "-")
            raise ConfigError(f"--features {kind.name} and --{flag} DIR go together: give both, or neither")
    if features == NO_FEATURES and options.classes is None:
        if len(given) > ("features" in given):
            name = next(name for name in given if name != "features").replace("_", "-")
            raise ConfigError(f"--{name}: says how frames are read; add --features or --midi-dir")
        return None
    given.setdefault("hop", max(1, round(sample_rate / 100)))
    given.setdefault("fmax", min(ConditioningConfig.fmax, sample_rate / 2))
    return ConditioningConfig(class_names=() if options.classes is None else UNKNOWN_CLASSES, **given)


def complete(options: argparse.Namespace) -> argparse.Namespace:
    """Return parsed options with what `--config` names, and the defaults, where they say nothing.

    Raises `ConfigError` if the file cannot be read or holds an unknown key or a value of the wrong type.
    """
    given = vars(options)
    path = given.get("config")
    values = {} if path is None else read_settings(path)
    if "preset" in given:
        # A size asked for on the command line is not to be mixed with the file's.
        values = {key: value for key, value in values.items() if key not in PRESETS["small"]}
    if options.resume:
        values.pop("init_from", None)
    return argparse.Namespace(**{**DEFAULTS, **values, **given})


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings in a JSON file, by the names that the parsed options give them."""
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read: {cause(error)}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--config {path}: is not JSON ({error})") from None
    where = f"--config {path}"
    if not isinstance(values, dict):
        raise ConfigError(f'{where}: must hold a JSON object, such as {{"batch": 8}}')
    kinds: dict[str, Any] = {name: str | None for name in DEFAULTS}
    for config in (ConditioningConfig, WaveNetConfig, TrainingConfig):
        kinds.update(typing.get_type_hints(config))
    kinds.update(dict.fromkeys(LISTS, str | list | None))
    kinds.update(preset=str, out_dir=str, device=str, threads=int | None, tensorboard=bool)
    for name in ("conditioning", "class_names"):
        del kinds[name]
    refuse_unknown(values, list(kinds), where)
    for name, value in values.items():
        if (name, value) == ("batch", AUTO):
            continue
        texts = not isinstance(value, list) or all(isinstance(each, str) for each in value)
        if not accepts(kinds[name], value) or not texts:
            raise ConfigError(f"{where}: {name} = {json.dumps(value)} is of the wrong type")
        if name in LISTS:
            several: list[Any] = [value] if isinstance(value, str) else value or []
            values[name] = ([Path(each) for each in several] if name in PATHS else several) or DEFAULTS[name]
        elif name in PATHS and value is not None:
            values[name] = Path(str(value))
    return values


def seconds(text: str) -> float:
    """Return the length of time in `--max-time`; `ConfigError` if it is none."""
    parts = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", text.strip().lower())
    try:
        hours, minutes, rest = (float(part or 0) for part in (parts.groups() if parts else ()))
    except ValueError:
        hours = minutes = rest = 0.0
    found = 3600 * hours + 60 * minutes + rest
    if found <= 0:
        raise ConfigError(f"--max-time {text}: must be a length of time like 90s, 30m, 2h or 1h30m")
    return found
