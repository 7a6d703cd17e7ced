"""From the arguments of generation to a source of frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wavenet.conditioning import registry
from wavenet.conditioning.base import CombinedSource, FrameSource, Input, Kind, require_features
from wavenet.conditioning.supplied import FEATURES_FILE
from wavenet.config import ConditioningConfig, WaveNetConfig
from wavenet.errors import ConfigError, WaveNetError


@dataclass(frozen=True)
class GenerationInput:
    """What generation is conditioned on.

    Attributes
    ----------
    source : FrameSource or None
        None for an unconditional network.
    seconds : float or None
        How long the source lasts, if it ends.
    note : str or None
        Describes a source that was chosen because no argument names one.
    """

    source: FrameSource | None
    seconds: float | None = None
    note: str | None = None


def feature_inputs() -> dict[str, Input]:
    """Return the arguments from which features are made, by name; a network takes one at most."""
    inputs = [each for kind in registry.FEATURE_KINDS.values() for each in kind.inputs]
    return {each.name: each for each in (*inputs, FEATURES_FILE)}


def inputs_for(kind: Kind) -> tuple[Input, ...]:
    """Return the arguments from which features of one kind are made."""
    return (*kind.inputs, FEATURES_FILE)


def source_for(config: WaveNetConfig, arguments: Mapping[str, Any], seed: int) -> GenerationInput:
    """Return a source of frames for a network.

    Parameters
    ----------
    config : WaveNetConfig
    arguments : mapping
        Values by the names of the kinds' `inputs`; None is as good as absent.
    seed : int
        Seed of a kind's default source.

    Raises
    ------
    ConfigError, AudioError
        If an argument does not suit the network, is missing or unusable; `argument` names it.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    conditioning = config.conditioning
    if conditioning is None:
        for name in given:
            raise ConfigError("this network is unconditional; remove the conditioning", argument=name)
        return GenerationInput(None)
    features = _features(config, conditioning, given, seed)
    (class_input,) = registry.CLASSES.inputs
    named = given.get(class_input.name)
    if not conditioning.class_names:
        if named is not None:
            raise ConfigError("this network has no classes; remove it", argument=class_input.name)
        return features
    if named is None:
        known = ", ".join(conditioning.class_names)
        raise ConfigError(f"this network has classes: choose among {known}", argument=class_input.name)
    classes, _ = _read(class_input, config, named)
    if features.source is None:
        return GenerationInput(classes)
    return GenerationInput(CombinedSource(classes, features.source), features.seconds, features.note)


def _features(
    config: WaveNetConfig, conditioning: ConditioningConfig, given: Mapping[str, Any], seed: int
) -> GenerationInput:
    known = feature_inputs()
    names = [name for name in known if name in given]
    if len(names) > 1:
        raise ConfigError(f"cannot be combined with {names[1]}; give one of them", argument=names[0])
    if names:
        # Before a file is read in vain.
        for kind in registry.FEATURE_KINDS.values():
            if known[names[0]] in kind.inputs:
                _named(names[0], require_features, config, kind.name)
        return GenerationInput(*_read(known[names[0]], config, given[names[0]]))
    kind = registry.feature_kind(conditioning)
    if kind is None:
        return GenerationInput(None)
    default = kind.default_source(config, seed)
    if default is None:
        wanted = " or ".join(each.name for each in inputs_for(kind))
        raise ConfigError(f"this network was trained with {kind.name} features: give {wanted}")
    return GenerationInput(default[0], note=default[1])


def _read(each: Input, config: WaveNetConfig, value: Any) -> tuple[FrameSource, float | None]:
    return _named(each.name, each.read, config, value)


def _named(argument: str, function: Any, *values: Any) -> Any:
    """Call a function; its errors carry the name of an argument."""
    try:
        return function(*values)
    except WaveNetError as error:
        error.argument = error.argument or argument
        raise
