"""The class and the annotation of each recording, and the conditions that a dataset gets from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wavenet.audio import pcm
from wavenet.conditioning import registry
from wavenet.conditioning.base import Companion
from wavenet.conditioning.segments import Conditions
from wavenet.data.dataset import Dataset
from wavenet.errors import AudioError, ConfigError
from wavenet.music.alignment import Loudness
from wavenet.utils.files import printable

_NAMES_SHOWN = 3
_BLOCK = 1 << 20


def class_names(data: Dataset) -> tuple[str, ...]:
    """Return the top folders of the recordings in alphabetical order, to be used as classes.

    Raises `AudioError` if a recording is in no folder, or all are in the same one.
    """
    names = sorted({class_of(name) for name in data.whole.names})
    if len(names) < 2:
        raise AudioError(
            f"all recordings are in one folder, {printable(names[0])}; classes need one subfolder each",
            argument="classes",
        )
    return tuple(names)


def class_of(name: str) -> str:
    """Return the first folder of a recording's relative path; `AudioError` if it is in none."""
    folder, slash, _ = name.partition("/")
    if not slash:
        raise AudioError(
            f"{printable(name)} is in no subfolder; move it into that of its class", argument="classes"
        )
    return printable(folder)


def attach_conditions(
    data: Dataset,
    conditions: Conditions,
    folder: Path | None = None,
    condition_dropout: float = 0.0,
    log: Callable[[str], None] = lambda text: None,
) -> None:
    """Set the `conditions` of all parts of a dataset.

    Parameters
    ----------
    data : Dataset
        Its clips get their `conditions`.
    conditions : Conditions
        Conditions of the network, without annotations.
    folder : path, optional
        Folder with a file for each recording, under the same name, for a kind with a `companion`.
    condition_dropout : float
        See `Conditions`; applies to the training part only.
    log : callable
        Called with a line about what was found.

    Raises
    ------
    ConfigError
        If the folder is missing.
    AudioError
        If a recording has no annotation, one of another length, or none of the classes.
    """
    conditioning = conditions.conditioning
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
        log(companion.summary(list(companions.values())))
        problems = alignment_problems(companion, data, companions)
        if problems:
            listed = _listed(f"{printable(name)} ({why})" for name, why in problems.items())
            log(
                f"warning: {len(problems)} {companion.noun}(s) may not be aligned with their recordings: "
                f"{listed}; both have to begin at the same time"
            )
    classes = conditioning.class_names
    if classes:
        log(f"classes     {', '.join(map(printable, classes))}")
    for clips in (data.train, data.validation, data.whole):
        annotations: dict[str, list[Any]] = {}
        if classes:
            annotations[registry.CLASSES.name] = [_class_index(clip.name, classes) for clip in clips.clips]
        if kind is not None and companion is not None:
            annotations[kind.name] = [companions[clip.name] for clip in clips.clips]
        dropout = condition_dropout if clips is data.train else 0.0
        clips.conditions = Conditions(conditions.config, annotations, dropout)


def _class_index(name: str, classes: Sequence[str]) -> int:
    found = class_of(name)
    if found not in classes:
        raise AudioError(
            f"{printable(name)} is of class {found!r}, which this network does not have; its classes are "
            f"{', '.join(classes)}"
        )
    return classes.index(found)


def read_companions(companion: Companion, data: Dataset, folder: Path) -> dict[str, Any]:
    """Return the annotation of every recording by its name, for example its score.

    Raises `AudioError` if one is missing or has another length than its recording; it names the first few.
    """
    noun = companion.noun
    if not folder.is_dir():
        raise AudioError(
            f"{printable(folder)} is not a folder; name the one with the {noun}s", argument=companion.argument
        )
    paths = {name: _companion_of(name, folder, companion.suffixes) for name in data.whole.names}
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        raise AudioError(
            f"{printable(folder)}: no {noun} for {len(missing)} of {len(paths)} recording(s), as "
            f"{_listed(missing)}; a {noun} has its recording's name and ends in {companion.suffixes[0]}; add "
            "it, or exclude these recordings",
            argument=companion.argument,
        )
    found = {name: companion.read(path) for name, path in paths.items() if path is not None}
    reasons = {name: companion.mismatch(each, data.seconds[name]) for name, each in found.items()}
    wrong = [f"{printable(name)} ({why})" for name, why in reasons.items() if why]
    if wrong:
        raise AudioError(
            f"{printable(folder)}: {len(wrong)} {noun}(s) do not match their recordings: {_listed(wrong)}; "
            "both have to begin at the same time; correct them, or exclude these recordings",
            argument=companion.argument,
        )
    return found


def alignment_problems(companion: Companion, data: Dataset, companions: Mapping[str, Any]) -> dict[str, str]:
    """Return by recording why its annotation may not be aligned with the audio; see `music.alignment`."""
    rate = data.audio_format.sample_rate
    loudness = {name: Loudness(data.seconds[name], rate) for name in companions}
    for index, clip in enumerate(data.whole.clips):
        samples = data.whole.pcm(index)
        for first in range(0, clip.length, _BLOCK):
            audio = pcm.to_float(samples[first : first + _BLOCK])
            loudness[clip.name].add(clip.start + first, audio)
    found = {
        name: companion.alignment_problem(each, loudness[name].rises()) for name, each in companions.items()
    }
    return {name: why for name, why in found.items() if why is not None}


def _companion_of(name: str, folder: Path, suffixes: Sequence[str]) -> Path | None:
    # With several folders of recordings a name begins with the label of its folder.
    for each in (name, name.partition("/")[2]):
        stem = os.path.splitext(each)[0]
        for suffix in suffixes:
            path = folder / f"{stem}{suffix}"
            if stem and path.is_file():
                return path
    return None


def _listed(names: Iterable[str]) -> str:
    names = [printable(name) for name in names]
    rest = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + rest
