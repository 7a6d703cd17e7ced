"""The kinds of conditioning: a new kind is one file with a `Kind`, and one line here."""

from __future__ import annotations

from wavenet.conditioning import classes, mel, score
from wavenet.conditioning.base import BLOCK, Companion, Kind
from wavenet.config import ConditioningConfig, WaveNetConfig
from wavenet.errors import ConfigError

CLASSES = classes.ClassKind()
"""The kind that `ConditioningConfig.class_names` selects."""

FEATURE_KINDS: dict[str, Kind] = {
    "mel": mel.MelKind(),
    "score": score.ScoreKind(),
}
"""The kinds that `ConditioningConfig.features` selects, by its value."""


def feature_kind(conditioning: ConditioningConfig) -> Kind | None:
    """Return the kind of a network's features; None for a network without.

    Raises `ConfigError` if there is no such kind.
    """
    if not conditioning.has_features:
        return None
    if conditioning.features not in FEATURE_KINDS:
        raise ConfigError(
            f"features = {conditioning.features!r}: unknown kind; choose from {', '.join(FEATURE_KINDS)}"
        )
    return FEATURE_KINDS[conditioning.features]


def kinds_of(conditioning: ConditioningConfig) -> tuple[Kind, ...]:
    """Return the kinds that a network uses, in the order of its channels: classes, then features."""
    features = feature_kind(conditioning)
    own = (CLASSES,) if conditioning.class_names else ()
    return own if features is None else (*own, features)


def check(config: WaveNetConfig) -> None:
    """Raise `ConfigError` if a network's features are of an unknown kind, or its settings do not fit."""
    for kind in kinds_of(config.conditioning) if config.conditioning else ():
        kind.check(config)


def channels(conditioning: ConditioningConfig) -> int:
    """Return the number of values per frame, of all kinds that a network uses."""
    return sum(kind.channels(conditioning) for kind in kinds_of(conditioning))


def context_frames(conditioning: ConditioningConfig) -> int:
    """Return how many frames before and after a frame its gate bias depends on."""
    return max(kind.context_frames for kind in kinds_of(conditioning))


def look_ahead_frames(conditioning: ConditioningConfig) -> int:
    """Return how many frames beyond the one being played generation has to know."""
    return BLOCK + context_frames(conditioning)


def check_speed(conditioning: ConditioningConfig | None) -> None:
    """Raise `ConfigError` if a network's training segments cannot be played faster or slower."""
    for kind in kinds_of(conditioning) if conditioning else ():
        if not kind.allows_speed:
            raise ConfigError(
                f"changes pitches but not those of the {kind.name} features; set it to 0",
                argument="augment_speed",
            )


def companions() -> list[tuple[Kind, Companion]]:
    """Return the kinds that need a file for each recording in training, with these files."""
    return [(kind, kind.companion) for kind in FEATURE_KINDS.values() if kind.companion is not None]
