"""What `wavenet-generate` is asked to play, a class, a score or a spectrum, and where it begins."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from pathlib import Path

import torch

from wavenet.audio.decoding import load_audio
from wavenet.conditioning.base import FrameSource
from wavenet.conditioning.inputs import feature_inputs, source_for
from wavenet.conditioning.registry import feature_kind
from wavenet.config import WaveNetConfig
from wavenet.engine.sampling import Sampling
from wavenet.engine.state import GeneratorState
from wavenet.errors import ConfigError
from wavenet.generation.conditioned import GateBiasProvider
from wavenet.generation.generator import Generator
from wavenet.generation.session import Beginning
from wavenet.training.checkpoint import read_record
from wavenet.utils.console import Console
from wavenet.utils.files import printable

LOOK_AHEAD = 10.0
"""Seconds in which a take's first sound is looked for."""


def source(
    options: Namespace, config: WaveNetConfig, seed: int, console: Console
) -> tuple[FrameSource | None, float | None]:
    """Return the source of conditioning frames, and its length in seconds if it has one.

    A network that plays scores and is given none plays tunes that are composed by rule from the seed.

    Raises
    ------
    ConfigError, AudioError
        If an option does not suit the network, is missing, or names an unusable file.
    """
    arguments = {name: getattr(options, name) for name in feature_inputs()}
    arguments["class"] = options.classes
    found = source_for(config, arguments, seed)
    if config.conditioning is None and options.guidance != 1:
        raise ConfigError("this network is unconditional; remove the conditioning", argument="guidance")
    kind = config.conditioning and feature_kind(config.conditioning)
    if found.note is not None and kind:
        console.line(f"{found.note}; --{_flag(kind.inputs[0].name)} FILE plays yours")
    return found.source, found.seconds


def beginning_of(
    generator: Generator,
    options: Namespace,
    seed: int,
    console: Console,
    told: FrameSource | None,
    left_off: GeneratorState | None = None,
) -> Beginning:
    """Return the streams to go on from: in silence, after the recording given, or where others were left."""
    if left_off is not None:
        return _left_off(generator, options, seed, told, left_off)
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    if options.prime is None:
        steering = None if told is None else generator.gate_bias_provider(told, options.guidance)
        begun = generator.start(1, seed, gate_bias=steering, sampling=sampling)
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
    steering = None if told is None else generator.gate_bias_provider(told, options.guidance)
    primed = generator.prime(generator.encode(audio), seed, 0, steering, sampling, len(audio))
    return Beginning(
        lambda first, batch: primed.fan_out(batch, first), steering, len(audio), len(audio), False
    )


def _left_off(
    generator: Generator,
    options: Namespace,
    seed: int,
    told: FrameSource | None,
    state: GeneratorState,
) -> Beginning:
    """Return the streams of a saved state, or branches of its only one."""
    shown = printable(options.from_state)
    if options.seed is not None:
        state = dataclasses.replace(state, seed=torch.full_like(state.seed, seed))
    state = state.with_sampling(Sampling(options.temperature, options.top_k, options.top_p))
    several = state.batch > 1
    if several and (options.batch != state.batch or options.out_dir is not None or options.best_of):
        raise ConfigError(
            f"--from-state {shown}: holds {state.batch} takes; go on with all, --batch {state.batch} and OUT"
        )
    own = int(state.stream[0])

    def streams(first: int, batch: int) -> GeneratorState:
        return state.clone() if several else state.fan_out(batch, own + first)

    steering = None if told is None else generator.gate_bias_provider(told, options.guidance)
    start = int(state.conditioning_start[0])
    return Beginning(streams, steering, start, int(state.position.max()), False)


def _sounding(
    generator: Generator,
    options: Namespace,
    state: GeneratorState,
    console: Console,
    steering: GateBiasProvider | None,
) -> GeneratorState:
    """Return streams without the silence before their first sound."""
    limit = round(LOOK_AHEAD * generator.config.sample_rate)
    began = generator.skip_silence(state, limit, steering)
    skipped = (began.position - state.position).tolist()
    if max(skipped):
        longest = max(skipped) / generator.config.sample_rate
        console.line(f"skipped {'up to ' if state.batch > 1 else ''}{longest:.1f} s of silence")
    return began


def _flag(name: str) -> str:
    return name.replace("_", "-")


def typical_bits(directory: Path, beginning: Beginning, told: FrameSource | None) -> float | None:
    """Return what the network needed for held-out recordings; None where that is no measure for a take."""
    if told is not None or not beginning.fresh:
        return None
    record = read_record(directory)
    return None if record is None else record.progress.validation_bits
