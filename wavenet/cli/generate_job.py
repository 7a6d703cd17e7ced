"""The job of `wavenet-generate`: conditioning, settings and start of its takes, from parsed options."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from wavenet.generation.session import Session, StreamStart, TakeSettings
from wavenet.training.checkpoint import read_record
from wavenet.utils.console import Console
from wavenet.utils.files import printable

MAX_LEADING_SILENCE = 10.0
"""Seconds of silence that are skipped at most at the start of a take."""


@dataclass
class Job:
    """One call of `wavenet-generate`.

    Attributes
    ----------
    session : Session
    options : Namespace
        The parsed options.
    console : Console
    seed : int
    records : list of dict
        One record per finished take, for --json.
    """

    session: Session
    options: Namespace
    console: Console
    seed: int
    records: list[dict[str, Any]] = field(default_factory=list)


def take_settings(options: Namespace) -> TakeSettings:
    """Return the settings of takes."""
    return TakeSettings(
        best_of=options.best_of,
        supervise=not options.no_watchdog,
        keep_state=options.save_state is not None,
        entropy=bool(options.entropy or options.plot),
    )


def source(
    options: Namespace, config: WaveNetConfig, seed: int, console: Console
) -> tuple[FrameSource | None, float | None]:
    """Return the source of conditioning frames, and its length in seconds if it has one.

    Without a score, a network conditioned on scores plays tunes composed by rule from the seed.

    Raises
    ------
    ConfigError, AudioError
        If an option does not fit the network, is missing, or names an unusable file.
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


def stream_start(
    generator: Generator,
    options: Namespace,
    seed: int,
    console: Console,
    source: FrameSource | None,
    saved: GeneratorState | None = None,
) -> StreamStart:
    """Return the start of the streams: from silence, after a primer, or from a saved state."""
    provider = None if source is None else generator.gate_bias_provider(source, options.guidance)
    if saved is not None:
        return _saved_start(options, seed, provider, saved)
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    if options.prime is None:
        state = generator.start(1, seed, gate_bias=provider, sampling=sampling)
        if options.keep_silence or (source is not None and not source.constant):
            return StreamStart(lambda first, batch: state.fan_out(batch, first), provider)
        return StreamStart(
            lambda first, batch: _without_silence(generator, state.fan_out(batch, first), console, provider),
            provider,
        )

    config = generator.config
    audio = load_audio(options.prime, config.sample_rate, config.normalization)
    used = min(len(audio), config.receptive_field) / config.sample_rate
    console.line(f"primed with the last {used:.2f} s of {printable(options.prime)}")
    # The conditioning begins where the recording ends.
    primed = generator.prime(generator.encode(audio), seed, 0, provider, sampling, len(audio))
    return StreamStart(
        lambda first, batch: primed.fan_out(batch, first), provider, len(audio), len(audio), False
    )


def _saved_start(
    options: Namespace, seed: int, provider: GateBiasProvider | None, state: GeneratorState
) -> StreamStart:
    """Return the streams of a saved state, or copies of its only stream."""
    shown = printable(options.from_state)
    if options.seed is not None:
        state = dataclasses.replace(state, seed=torch.full_like(state.seed, seed))
    state = state.with_sampling(Sampling(options.temperature, options.top_k, options.top_p))
    several = state.batch > 1
    if several and (options.batch != state.batch or options.out_dir is not None or options.best_of):
        raise ConfigError(
            f"--from-state {shown}: contains {state.batch} takes; continue all of them with "
            f"--batch {state.batch} and OUT"
        )
    own = int(state.stream[0])

    def streams(first: int, batch: int) -> GeneratorState:
        return state.clone() if several else state.fan_out(batch, own + first)

    start = int(state.conditioning_start[0])
    return StreamStart(streams, provider, start, int(state.position.max()), False)


def _without_silence(
    generator: Generator, state: GeneratorState, console: Console, provider: GateBiasProvider | None
) -> GeneratorState:
    """Return the streams advanced to their first sound."""
    limit = round(MAX_LEADING_SILENCE * generator.config.sample_rate)
    advanced = generator.skip_silence(state, limit, provider)
    skipped = (advanced.position - state.position).tolist()
    if max(skipped):
        longest = max(skipped) / generator.config.sample_rate
        console.line(f"skipped {'up to ' if state.batch > 1 else ''}{longest:.1f} s of silence")
    return advanced


def _flag(name: str) -> str:
    return name.replace("_", "-")


def typical_bits(directory: Path, start: StreamStart, source: FrameSource | None) -> float | None:
    """Return the bits per sample of held-out recordings; None if takes are not comparable with them."""
    if source is not None or not start.from_silence:
        return None
    record = read_record(directory)
    return None if record is None else record.progress.validation_bits
