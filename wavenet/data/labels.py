"""Which class and which score belong to each recording, and what a network is told of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wavenet.audio import pcm
from wavenet.conditioning import registry
from wavenet.conditioning.base import Companion
from wavenet.conditioning.segments import Conditions
from wavenet.config import WaveNetConfig
from wavenet.data.dataset import Dataset
from wavenet.errors import AudioError, ConfigError
from wavenet.music.alignment import Loudness
from wavenet.utils.files import printable

_NAMES_SHOWN = 3
_STRETCH = 1 << 20


def with_classes(config: WaveNetConfig, data: Dataset) -> WaveNetConfig:
    """Return the configuration with the folders of the recordings as its classes, in order of name.

    Raises `AudioError` if some recording lies in no folder, or all in the same.
    """
    assert config.conditioning is not None
    names = sorted({class_of(name) for name in data.whole.names})
    if len(names) < 2:
        raise AudioError(
            f"--classes folders: all recordings are in one folder, {printable(names[0])}; "
            "give a folder with one subfolder for each class"
        )
    return dataclasses.replace(
        config, conditioning=dataclasses.replace(config.conditioning, class_names=tuple(names))
    )


def class_of(name: str) -> str:
    """Return the folder on top of a recording's relative path; `AudioError` if it lies in none."""
    folder, slash, _ = name.partition("/")
    if not slash:
        raise AudioError(
            f"--classes folders: {printable(name)} lies in no subfolder; move it into that of its class"
        )
    return printable(folder)


def attach(
    config: WaveNetConfig,
    data: Dataset,
    folder: Path | None = None,
    condition_dropout: float = 0.0,
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Let all parts of the data come with what the network is to be told of them.

    Parameters
    ----------
    config : WaveNetConfig
        Nothing is done if it has no `conditioning`.
    data : Dataset
        Its clips get their `conditions`.
    folder : path, optional
        Folder with a file for each recording, under the same name, for a kind with a `companion`.
    condition_dropout : float
        See `Conditions`; of the training part only.
    tell : callable
        Called with a line about what was found.

    Raises
    ------
    AudioError
        If a recording has no score, or one that is not as long, or is of none of the classes.
    """
    conditioning = config.conditioning
    if conditioning is None:
        return
    kind = registry.feature_kind(conditioning)
    companion = None if kind is None else kind.companion
    companions: dict[str, Any] = {}
    if kind is not None and companion is not None:
        if folder is None:
            raise ConfigError(
                f"name the folder with the {companion.noun} of each recording: the network was set up for "
                f"{kind.name} features",
                argument=companion.argument,
            )
        companions = read_companions(companion, data, folder)
        tell(companion.summary(list(companions.values())))
        doubted = [
            f"{printable(name)} ({why})"
            for name, why in doubtful(companion, config, data, companions).items()
        ]
        if doubted:
            tell(
                f"warning: {len(doubted)} {companion.noun}(s) may not be aligned with their recordings: "
                f"{_some(doubted)}; both have to begin at the same time"
            )
    if conditioning.class_names:
        tell(f"classes     {', '.join(map(printable, conditioning.class_names))}")
    for clips in (data.train, data.validation, data.whole):
        annotations: dict[str, list[Any]] = {}
        if conditioning.class_names:
            annotations[registry.CLASSES.name] = [
                _number(clip.name, conditioning.class_names) for clip in clips.clips
            ]
        if kind is not None and companion is not None:
            annotations[kind.name] = [companions[clip.name] for clip in clips.clips]
        clips.conditions = Conditions(config, annotations, condition_dropout if clips is data.train else 0.0)


def _number(name: str, classes: Sequence[str]) -> int:
    found = class_of(name)
    if found not in classes:
        raise AudioError(
            f"{printable(name)} is of class {found!r}, which this network does not know; it knows "
            f"{', '.join(classes)}"
        )
    return classes.index(found)


def read_companions(companion: Companion, data: Dataset, folder: Path) -> dict[str, Any]:
    """Return the annotation of every recording by its name, as its score.

    Raises `AudioError` if one is missing or does not fit its recording's length, naming the first few.
    """
    noun = companion.noun
    if not folder.is_dir():
        raise AudioError(
            f"{printable(folder)} is no folder; name the one with the {noun}s", argument=companion.argument
        )
    paths = {name: _companion_of(name, folder, companion.suffixes) for name in data.whole.names}
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        raise AudioError(
            f"{printable(folder)}: no {noun} for {len(missing)} of {len(paths)} recording(s), as "
            f"{_some(missing)}; a {noun} has its recording's name and ends in {companion.suffixes[0]}; add "
            "it, or exclude these recordings",
            argument=companion.argument,
        )
    found = {name: companion.read(path) for name, path in paths.items() if path is not None}
    reasons = {name: companion.mismatch(each, data.seconds[name]) for name, each in found.items()}
    wrong = [f"{printable(name)} ({why})" for name, why in reasons.items() if why]
    if wrong:
        raise AudioError(
            f"{printable(folder)}: {len(wrong)} {noun}(s) do not match their recordings: {_some(wrong)}; "
            "both have to begin at the same time; correct them, or exclude these recordings",
            argument=companion.argument,
        )
    return found


def doubtful(
    companion: Companion, config: WaveNetConfig, data: Dataset, companions: Mapping[str, Any]
) -> dict[str, str]:
    """Return by recording why its annotation may not be aligned with the audio; see `music.alignment`."""
    rate = config.sample_rate
    loudness = {name: Loudness(data.seconds[name], rate) for name in companions}
    for index, clip in enumerate(data.whole.clips):
        samples = data.whole.pcm(index)
        for first in range(0, clip.length, _STRETCH):
            audio = pcm.to_float(samples[first : first + _STRETCH])
            loudness[clip.name].add(clip.start + first, audio)
    found = {
        name: companion.alignment_problem(each, loudness[name].rises()) for name, each in companions.items()
    }
    return {name: why for name, why in found.items() if why is not None}


def _companion_of(name: str, folder: Path, suffixes: Sequence[str]) -> Path | None:
    # With several folders of recordings the first part of a name tells them apart.
    for each in (name, name.partition("/")[2]):
        stem = os.path.splitext(each)[0]
        for suffix in suffixes:
            path = folder / f"{stem}{suffix}"
            if stem and path.is_file():
                return path
    return None


def _some(names: Iterable[str]) -> str:
    names = [printable(name) for name in names]
    rest = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + rest
