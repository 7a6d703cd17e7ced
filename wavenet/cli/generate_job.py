"""What `wavenet-generate` is asked to play, a class, a score or a spectrum, and where it begins."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from pathlib import Path
from typing import Any

from wavenet.audio.decoding import load_audio
from wavenet.conditioning.base import FrameSource, require_features
from wavenet.conditioning.classes import Classes, class_points
from wavenet.conditioning.mel import MelSource
from wavenet.conditioning.score import ScoreSource, Tunes
from wavenet.conditioning.supplied import CombinedSource, SuppliedFrames
from wavenet.config import WaveNetConfig
from wavenet.engine.state import GeneratorState
from wavenet.errors import AudioError, ConfigError
from wavenet.generation.conditioned import Steering
from wavenet.generation.generator import Generator
from wavenet.generation.saved_state import Origin
from wavenet.generation.session import Beginning
from wavenet.music.midi_file import read_midi
from wavenet.training.checkpoint import read_record
from wavenet.utils.console import Console
from wavenet.utils.files import cause, printable

TAIL = 1.5
"""Seconds in which the last note of a score rings out."""

LOOK_AHEAD = 10.0
"""Seconds in which a take's first sound is looked for."""

FLAGS = {"midi": "score", "mel_from": "mel", "features": "mel or score"}
"""What each flag tells."""


def source(
    options: Namespace, config: WaveNetConfig, seed: int, console: Console
) -> tuple[FrameSource | None, float | None]:
    """Return what is to be played, and how long it lasts in seconds if it says so.

    A network that plays scores and is given none plays tunes that are composed by rule from the seed.

    Raises
    ------
    ConfigError, AudioError
        If the network was not trained for it or needs another thing to be told, or a file is unusable.
    """
    given = [name for name in FLAGS if getattr(options, name) is not None]
    if len(given) > 1:
        raise ConfigError(f"--{_flag(given[0])} and --{_flag(given[1])}: give one of them")
    told = config.conditioning
    if told is None:
        if given or options.classes is not None or options.guidance != 1:
            flag = _flag(given[0]) if given else "class" if options.classes is not None else "guidance"
            raise ConfigError(f"--{flag}: this network was trained without conditions; leave it out")
        return None, None
    features, seconds = _features(options, config) if given else (None, None)
    if told.features == "score" and features is None:
        features = Tunes(config, seed)
        console.line(f"plays a tune composed by rule, number {seed}; --midi FILE plays yours")
    if told.features != "none" and features is None:
        raise ConfigError(
            f"this network was trained with {told.features} features: say what to play, --mel-from FILE or "
            "--features FILE"
        )
    classes = None
    if told.class_names:
        if options.classes is None:
            raise ConfigError(
                f"this network knows classes: choose with --class among {', '.join(told.class_names)}"
            )
        classes = Classes(config, class_points(options.classes))
    elif options.classes is not None:
        raise ConfigError(
            f"--class {options.classes}: this network was trained without classes; leave it out"
        )
    if classes is not None and features is not None:
        return CombinedSource(classes, features), seconds
    return classes or features, seconds


def beginning_of(
    generator: Generator,
    options: Namespace,
    seed: int,
    console: Console,
    told: FrameSource | None,
    left_off: tuple[GeneratorState, Origin] | None = None,
) -> Beginning:
    """Return the streams to go on from: in silence, after the recording given, or where others were left."""
    if left_off is not None:
        return _left_off(generator, options, seed, told, *left_off)
    if options.prime is None:
        steering = None if told is None else generator.steering(told, guidance=options.guidance)
        begun = generator.start(1, seed, gate_bias=steering)
        if options.keep_silence or (told is not None and not told.constant):
            return Beginning(lambda first, batch: begun.fan_out(batch, first), steering)
        return Beginning(
            lambda first, batch: _sounding(
                generator, options, begun.fan_out(batch, first), console, steering
            ),
            steering,
        )

    config = generator.config
    audio = load_audio(options.prime, config.sample_rate, config.normalization)
    used = min(len(audio), config.receptive_field) / config.sample_rate
    console.line(f"primed with the last {used:.2f} s of {printable(options.prime)}")
    # What is to be played begins where the recording ends.
    steering = None if told is None else generator.steering(told, len(audio), options.guidance)
    primed = generator.prime(generator.encode(audio), seed, gate_bias=steering)
    return Beginning(
        lambda first, batch: primed.fan_out(batch, first), steering, len(audio), len(audio), False
    )


def _left_off(
    generator: Generator,
    options: Namespace,
    seed: int,
    told: FrameSource | None,
    state: GeneratorState,
    origin: Origin,
) -> Beginning:
    """Return the streams of a saved state, or branches of its only one."""
    shown = printable(options.from_state)
    state = dataclasses.replace(state, seed=seed)
    several = state.batch > 1
    if several and (options.batch != state.batch or options.out_dir is not None or options.best_of):
        raise ConfigError(
            f"--from-state {shown}: holds {state.batch} takes; go on with all, --batch {state.batch} and OUT"
        )
    own = int(state.stream[0])

    def streams(first: int, batch: int) -> GeneratorState:
        return state.clone() if several else state.fan_out(batch, own + first)

    steering = None if told is None else generator.steering(told, origin.told_from, options.guidance)
    return Beginning(streams, steering, origin.told_from, int(state.position.max()), False)


def _sounding(
    generator: Generator,
    options: Namespace,
    state: GeneratorState,
    console: Console,
    steering: Steering | None,
) -> GeneratorState:
    """Return streams without the silence before their first sound."""
    limit = round(LOOK_AHEAD * generator.config.sample_rate)
    began = generator.skip_silence(
        state, limit, options.temperature, options.top_k, options.top_p, gate_bias=steering
    )
    skipped = (began.position - state.position).tolist()
    if max(skipped):
        longest = max(skipped) / generator.config.sample_rate
        console.line(f"skipped {'up to ' if state.batch > 1 else ''}{longest:.1f} s of silence")
    return began


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _features(options: Namespace, config: WaveNetConfig) -> tuple[FrameSource, float]:
    if options.midi is not None:
        # Asked first, lest a file is read in vain.
        require_features(config, "score")
        score = read_midi(options.midi)
        if not len(score):
            raise AudioError(f"{printable(options.midi)}: holds no notes; choose another score")
        return ScoreSource(config, score), score.seconds + TAIL
    if options.mel_from is not None:
        require_features(config, "mel")
        audio = load_audio(options.mel_from, config.sample_rate, config.normalization)
        return MelSource(config, audio), len(audio) / config.sample_rate
    frames = SuppliedFrames(config, _array(options.features))
    return frames, frames.ready / config.sample_rate


def _array(path: Path) -> Any:
    import numpy as np
    import torch

    try:
        values = np.load(path, allow_pickle=False)
    except OSError as error:
        raise AudioError(f"--features {printable(path)}: cannot be read: {cause(error)}") from None
    except (ValueError, EOFError):
        values = None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise AudioError(
            f"--features {printable(path)}: is no .npy file of numbers; save one with numpy.save"
        )
    return torch.from_numpy(values.astype(np.float32))


def typical_bits(directory: Path, beginning: Beginning, told: FrameSource | None) -> float | None:
    """Return what the network needed for held-out recordings; None where that is no measure for a take."""
    if told is not None or not beginning.fresh:
        return None
    record = read_record(directory)
    return None if record is None else record.progress.validation_bits
