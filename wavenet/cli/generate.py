"""`wavenet-generate`: new audio from a trained network."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from wavenet.cli import interrupted

# Everything else is loaded inside `main`, where an interrupt is one line.
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from wavenet.cli.common import Parser

PROGRAM = "wavenet-generate"
DEFAULT_RUN = "checkpoints"

SECONDS = 4.0
"""The length of a take where nothing says another."""

GROUP = 256
"""Takes of a folder made together."""


def build_parser() -> Parser:
    """Return the parser of `wavenet-generate`."""
    from wavenet.cli.generate_flags import build_parser

    return build_parser(PROGRAM)


def work(options: Namespace) -> int:
    """Carry out parsed options; return the exit code."""
    from wavenet.cli.places import check
    from wavenet.distributed import World

    world = World.from_environment()
    paths = check(options, world, GROUP)

    import secrets
    from pathlib import Path

    from wavenet import backends, checkpoint
    from wavenet.cli import outputs
    from wavenet.cli.common import device_named
    from wavenet.cli.interrupts import interrupts
    from wavenet.cli.playing import beginning_of, source
    from wavenet.files import printable
    from wavenet.generation import Generator
    from wavenet.progress import Console
    from wavenet.state import Sampling

    interrupts.check()
    Sampling(options.temperature, options.top_k, options.top_p)
    console = Console(silent=not world.leads)
    directory = checkpoint.find(options.checkpoint or Path(DEFAULT_RUN))
    device = options.device if world.size == 1 else str(world.device(device_named(options.device)))
    generator = Generator.from_pretrained(
        directory, options.backend, device, options.threads, options.precision
    )
    if options.backend == "auto" and generator.backend.name == "reference":
        console.line(f"warning: the fast engine is not there, generating slowly: {backends.report()['cpu']}")
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    console.line(
        f"checkpoint {printable(directory)}  {generator.config.sample_rate} Hz  "
        f"backend {generator.backend.name}  {generator.backend.precision}  seed {seed}"
    )
    told, length = source(options, generator.config)
    seconds = next(each for each in (options.seconds, length, SECONDS) if each is not None)
    beginning, bias = beginning_of(generator, options, seed, console, told)
    steps = None if seconds == 0 else max(1, round(seconds * generator.config.sample_rate))
    interrupts.check()
    if options.out_dir is None:
        return outputs.write(generator, beginning(0, options.batch), steps, paths, options, console, bias)
    options.out_dir.mkdir(parents=True, exist_ok=True)
    if world.size > 1:
        console.line(f"{world.size} processes; told of here are the first one's {len(paths)} takes")
    first, code = world.share(options.batch).start, 0
    for done in range(0, len(paths), GROUP):
        group = paths[done : done + GROUP]
        state = beginning(first + done, len(group))
        interrupts.check()
        if code := outputs.write(generator, state, steps, group, options, console, bias):
            break
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `wavenet-generate`; return the exit code."""
    try:
        from wavenet.cli.common import run
        from wavenet.cli.interrupts import ENDING

        return run(build_parser(), work, arguments, ENDING)
    except KeyboardInterrupt:
        return interrupted(PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
