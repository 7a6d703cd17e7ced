"""Which class and which score belong to each recording, and what a network is told of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from wavenet.audio import pcm
from wavenet.conditioning.segments import Conditions
from wavenet.config import WaveNetConfig
from wavenet.data.dataset import Dataset
from wavenet.errors import AudioError, ConfigError
from wavenet.music.alignment import Loudness, alignment_problem
from wavenet.music.midi_file import read_midi
from wavenet.music.score import Score, mismatch
from wavenet.utils.files import printable

SUFFIXES = (".mid", ".midi", ".MID", ".MIDI")
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
    midi_dir: Path | None = None,
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
    midi_dir : path, optional
        Of a network with scores: a folder with a MIDI file for each recording, under the same name.
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
    scores: dict[str, Score] = {}
    if conditioning.features == "score":
        if midi_dir is None:
            raise ConfigError("--features score: name the folder of MIDI files with --midi-dir DIR")
        scores = read_scores(data, midi_dir)
        notes = sum(map(len, scores.values()))
        tell(f"scores      {len(scores)} read, {notes:,} notes")
        doubted = [f"{printable(name)} ({why})" for name, why in doubtful(config, data, scores).items()]
        if doubted:
            tell(
                f"warning: {len(doubted)} score(s) may not be played when they say: {_some(doubted)}; "
                "audio and MIDI begin together"
            )
    if conditioning.class_names:
        tell(f"classes     {', '.join(map(printable, conditioning.class_names))}")
    for clips in (data.train, data.validation, data.whole):
        labels = (
            [_number(clip.name, conditioning.class_names) for clip in clips.clips]
            if conditioning.class_names
            else None
        )
        clip_scores = [scores[clip.name] for clip in clips.clips] if scores else None
        clips.conditions = Conditions(
            config, labels, clip_scores, condition_dropout if clips is data.train else 0.0
        )


def _number(name: str, classes: Sequence[str]) -> int:
    found = class_of(name)
    if found not in classes:
        raise AudioError(
            f"{printable(name)} is of class {found!r}, which this network does not know; it knows "
            f"{', '.join(classes)}"
        )
    return classes.index(found)


def read_scores(data: Dataset, midi_dir: Path) -> dict[str, Score]:
    """Return the score of every recording by its name.

    Raises `AudioError` if one is missing or does not fit its recording's length, naming the first few.
    """
    if not midi_dir.is_dir():
        raise AudioError(f"--midi-dir {printable(midi_dir)}: is no folder; name one of MIDI files")
    paths = {name: _score_of(name, midi_dir) for name in data.whole.names}
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        raise AudioError(
            f"--midi-dir {printable(midi_dir)}: no score for {len(missing)} of {len(paths)} recording(s), as "
            f"{_some(missing)}; a score has its recording's name and ends in .mid; others may be left out "
            "with --exclude"
        )
    scores = {name: read_midi(path) for name, path in paths.items() if path is not None}
    wrong = {name: mismatch(score, data.seconds[name]) for name, score in scores.items()}
    told = [f"{printable(name)} ({why})" for name, why in wrong.items() if why]
    if told:
        raise AudioError(
            f"--midi-dir {printable(midi_dir)}: {len(told)} score(s) do not go with their recordings: "
            f"{_some(told)}; audio and MIDI begin together; leave these out with --exclude"
        )
    return scores


def doubtful(config: WaveNetConfig, data: Dataset, scores: Mapping[str, Score]) -> dict[str, str]:
    """Return by recording what speaks against its score's being aligned with the sound; see `alignment`."""
    rate = config.sample_rate
    heard = {name: Loudness(data.seconds[name], rate) for name in scores}
    for index, clip in enumerate(data.whole.clips):
        samples = data.whole.pcm(index)
        for first in range(0, clip.length, _STRETCH):
            audio = pcm.to_float(samples[first : first + _STRETCH])
            heard[clip.name].add(clip.start + first, audio)
    found = {name: alignment_problem(heard[name].rises(), score) for name, score in scores.items()}
    return {name: why for name, why in found.items() if why is not None}


def _score_of(name: str, midi_dir: Path) -> Path | None:
    # With several folders of recordings the first part of a name tells them apart.
    for each in (name, name.partition("/")[2]):
        stem = os.path.splitext(each)[0]
        for suffix in SUFFIXES:
            path = midi_dir / f"{stem}{suffix}"
            if stem and path.is_file():
                return path
    return None


def _some(names: Iterable[str]) -> str:
    names = [printable(name) for name in names]
    rest = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + rest
