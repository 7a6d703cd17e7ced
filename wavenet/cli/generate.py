"""`wavenet-generate`: new audio from a trained network."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from wavenet.cli import interrupted

# Everything else is loaded inside `main`, where an interrupt is one line.
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence
    from pathlib import Path

    from wavenet.cli.common import Parser
    from wavenet.cli.generate_job import Job
    from wavenet.generation.session import StreamStart
    from wavenet.utils.distributed import World

PROGRAM = "wavenet-generate"

SECONDS = 4.0
"""Default length of a take."""

GROUP = 256
"""Takes generated together with --out-dir."""


def build_parser() -> Parser:
    """Return the parser of `wavenet-generate`."""
    from wavenet.cli.generate_options import build_parser

    return build_parser(PROGRAM)


def work(options: Namespace) -> int:
    """Carry out parsed options; return the exit code."""
    from wavenet.cli.generate_options import check
    from wavenet.utils.distributed import World

    world = World.from_environment()
    paths = check(options, world, GROUP)

    import secrets

    from wavenet.cli.common import device_named
    from wavenet.cli.generate_job import Job, source, stream_start, take_settings, typical_bits
    from wavenet.cli.signals import signal_handler
    from wavenet.engine.sampling import Sampling
    from wavenet.generation.generator import Generator
    from wavenet.generation.saved_state import load_state
    from wavenet.generation.session import Session
    from wavenet.models import locate
    from wavenet.utils.console import Console

    signal_handler.check()
    Sampling(options.temperature, options.top_k, options.top_p)
    console = Console(silent=not world.is_main)
    directory = locate.find(options.checkpoint) if options.checkpoint else locate.default_checkpoint()
    if directory == locate.SHIPPED and not options.checkpoint:
        console.line("no checkpoint under ./checkpoints: using the piano that ships with wavenet")
    device = options.device if world.size == 1 else str(world.device(device_named(options.device)))
    generator = Generator.from_pretrained(
        directory, options.backend, device, options.threads, options.precision
    )
    if generator.fallback_reason:
        console.line(generator.fallback_reason)
    saved = None if options.from_state is None else load_state(options.from_state, generator)
    seed = options.seed
    if seed is None:
        seed = secrets.randbelow(2**31) if saved is None else int(saved.seed[0])
    rate = generator.config.sample_rate
    console.line(
        f"checkpoint {locate.display_name(directory)}  {rate} Hz  "
        f"backend {generator.backend.name}  {generator.backend.precision}  seed {seed}"
    )
    frames, length = source(options, generator.config, seed, console)
    start = stream_start(generator, options, seed, console, frames, saved)
    seconds = _seconds(options, length, start, rate)
    steps = None if seconds == 0 else max(1, round(seconds * rate))
    typical = typical_bits(directory, start, frames) if options.best_of else None
    job = Job(
        Session(generator, take_settings(options), start, frames, steps, typical), options, console, seed
    )
    signal_handler.check()
    code = _generate(job, paths, world)
    if options.json is not None:
        from wavenet.cli.generate_report import write_json

        write_json(job, directory)
    return code


def _seconds(options: Namespace, length: float | None, start: StreamStart, rate: int) -> float:
    """Return the length of takes in seconds: the option, or the rest of the conditioning."""
    from wavenet.errors import ConfigError

    if options.seconds is not None:
        return options.seconds
    if length is None:
        return SECONDS
    left = length - (start.position - start.conditioning_start) / rate
    if left <= 0:
        raise ConfigError(
            f"--from-state: the conditioning ended {-left:.1f} s earlier; continue with --seconds"
        )
    return left


def _generate(job: Job, paths: list[Path], world: World) -> int:
    """Generate the takes, those of a folder in groups; return the exit code."""
    from wavenet.cli import generate_output
    from wavenet.cli.signals import signal_handler

    options = job.options
    if options.out_dir is None:
        return generate_output.write(job, job.session.streams(0, options.batch), paths)
    options.out_dir.mkdir(parents=True, exist_ok=True)
    if world.size > 1:
        job.console.line(f"{world.size} processes; this one reports its {len(paths)} takes")
    first, group = world.share(options.batch).start, max(1, GROUP // job.session.candidates)
    for done in range(0, len(paths), group):
        some = paths[done : done + group]
        state = job.session.streams(first + done, len(some))
        signal_handler.check()
        if code := generate_output.write(job, state, some):
            return code
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `wavenet-generate`; return the exit code."""
    try:
        from wavenet.cli.common import run
        from wavenet.cli.signals import ENDING

        return run(build_parser(), work, arguments, ENDING)
    except KeyboardInterrupt:
        return interrupted(PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
