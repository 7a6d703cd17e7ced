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
    from wavenet.generation.session import Beginning, Job
    from wavenet.utils.distributed import World

PROGRAM = "wavenet-generate"

SECONDS = 4.0
"""The length of a take where nothing says another."""

GROUP = 256
"""Takes of a folder made together."""


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
    from wavenet.cli.generate_job import beginning_of, source, typical_bits
    from wavenet.cli.signals import interrupts
    from wavenet.engine.sampling import Sampling
    from wavenet.generation.generator import Generator
    from wavenet.generation.saved_state import load_state
    from wavenet.generation.session import Job
    from wavenet.models import locate
    from wavenet.utils.console import Console

    interrupts.check()
    Sampling(options.temperature, options.top_k, options.top_p)
    console = Console(silent=not world.is_main)
    directory = locate.find(options.checkpoint) if options.checkpoint else locate.default_checkpoint()
    if directory == locate.SHIPPED and not options.checkpoint:
        console.line("no checkpoint lies under ./checkpoints: the piano that comes with wavenet plays")
    device = options.device if world.size == 1 else str(world.device(device_named(options.device)))
    generator = Generator.from_pretrained(
        directory, options.backend, device, options.threads, options.precision
    )
    if generator.fallback_reason:
        console.line(generator.fallback_reason)
    left_off = None if options.from_state is None else load_state(options.from_state, generator)
    seed = options.seed
    if seed is None:
        seed = secrets.randbelow(2**31) if left_off is None else int(left_off.seed[0])
    rate = generator.config.sample_rate
    console.line(
        f"checkpoint {locate.display_name(directory)}  {rate} Hz  "
        f"backend {generator.backend.name}  {generator.backend.precision}  seed {seed}"
    )
    told, length = source(options, generator.config, seed, console)
    beginning = beginning_of(generator, options, seed, console, told, left_off)
    seconds = _seconds(options, length, beginning, rate)
    steps = None if seconds == 0 else max(1, round(seconds * rate))
    typical = typical_bits(directory, beginning, told) if options.best_of else None
    job = Job(generator, options, console, seed, beginning, told, steps, typical)
    interrupts.check()
    code = _make(job, paths, world)
    if options.json is not None:
        from wavenet.cli.generate_report import write_json

        write_json(job, directory)
    return code


def _seconds(options: Namespace, length: float | None, beginning: Beginning, rate: int) -> float:
    """Return how long takes become: as asked, or what is left of that which is to be played."""
    from wavenet.errors import ConfigError

    if options.seconds is not None:
        return options.seconds
    if length is None:
        return SECONDS
    left = length - (beginning.position - beginning.told_from) / rate
    if left <= 0:
        raise ConfigError(
            f"--from-state: what is to be played ended {-left:.1f} s before; give --seconds to go on"
        )
    return left


def _make(job: Job, paths: list[Path], world: World) -> int:
    """Make takes, those of a folder in groups; return the exit code."""
    from wavenet.cli import generate_output
    from wavenet.cli.signals import interrupts

    options = job.options
    if options.out_dir is None:
        return generate_output.write(job, job.streams(0, options.batch), paths)
    options.out_dir.mkdir(parents=True, exist_ok=True)
    if world.size > 1:
        job.console.line(f"{world.size} processes; told of here are the first one's {len(paths)} takes")
    first, group = world.share(options.batch).start, max(1, GROUP // job.candidates)
    for done in range(0, len(paths), group):
        some = paths[done : done + group]
        state = job.streams(first + done, len(some))
        interrupts.check()
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
