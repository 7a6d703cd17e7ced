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
    from wavenet.distributed import World

PROGRAM = "wavenet-generate"
DEFAULT_RUN = "checkpoints"

SECONDS = 4.0
"""The length of a take where nothing says another."""

MAX_SECONDS = 1e7
"""Beyond sixteen weeks a length is a slip of the hand; 0 streams for ever."""

MAX_BATCH = 1000
"""Every take is an open file."""

MAX_FOLDER = 1_000_000
"""The most takes in a folder, which are made in groups."""

GROUP = 256
"""Takes of a folder made together."""

OTHER_FILES = 64
"""Files open besides the takes, generously."""


def _backends() -> list[str]:
    from wavenet import backends

    return backends.describe()


def build_parser() -> Parser:
    """Return the parser of `wavenet-generate`."""
    from pathlib import Path

    from wavenet.cli.common import Parser

    parser = Parser(
        details=_backends,
        prog=PROGRAM,
        description="Generate audio from a trained network, sample by sample.",
        epilog="example: wavenet-generate --seconds 0 - | ffplay -nodisp -i -",
    )
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument(
        "output", metavar="OUT", nargs="?", help="WAV file to write, or - to stream to standard output"
    )
    place.add_argument(
        "--out-dir",
        type=Path,
        metavar="DIR",
        help="instead of OUT: folder for many takes, 0000.wav, 0001.wav, ... (made if missing); each process "
        "of a torchrun makes its share",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="a checkpoint, or a training run (default: the newest under ./checkpoints)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="X",
        help="length; 0 with -: until interrupted (default: 4, or that of what is to be played)",
    )
    parser.add_argument(
        "--prime", type=Path, metavar="FILE", help="recording to go on from (it is not repeated)"
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        metavar="N",
        help="takes to make: OUT-0.wav, OUT-1.wav, ... (default: 1)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="X",
        help="below 1 tamer, 0 always the likeliest (default: 1)",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        default=0,
        metavar="N",
        help="draw from the N likeliest classes (default: 0, all)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="X",
        help="draw from the likeliest that hold X (default: 1, all)",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="same seed, same audio (default: a new one, shown)"
    )
    parser.add_argument("--device", default="cpu", help="where to generate (default: cpu)")
    parser.add_argument(
        "--backend", default="auto", help="auto, cpu, cuda, numba or reference (default: auto)"
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        metavar="P",
        help="of the weights: fp32, or faster and a little less accurate bf16, int8, on a GPU fp16 "
        "(default: fp32)",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads to spread takes over (default: all cores)"
    )
    parser.add_argument(
        "--format",
        choices=("wav", "raw"),
        default="wav",
        help="WAV, or 16-bit little-endian samples (default: wav)",
    )
    parser.add_argument(
        "--keep-silence", action="store_true", help="do not skip the silence before a take's first sound"
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that exist")
    _add_told(parser)
    return parser


def _add_told(parser: Parser) -> None:
    """Add the flags that tell a network what to play."""
    from pathlib import Path

    group = parser.add_argument_group("what to play, with a network trained for it")
    group.add_argument(
        "--class",
        dest="classes",
        metavar="NAME",
        help="whose sound: a class, a mixture as piano:0.7,cello:0.3, or a way as '0:piano 2:cello'",
    )
    group.add_argument("--midi", type=Path, metavar="FILE", help="the score to play; it sets the length")
    group.add_argument(
        "--mel-from",
        type=Path,
        metavar="FILE",
        help="recording whose mel spectrum to play; it sets the length",
    )
    group.add_argument(
        "--features", type=Path, metavar="FILE", help=".npy file of frames (channels, frames) to play"
    )


def check(options: Namespace, world: World) -> list[Path]:
    """Check what can be checked before anything is loaded; return the files to write (none for a stream).

    Of a folder of takes they are those of this process.
    """
    import math

    from wavenet.errors import ConfigError

    seconds, output = options.seconds, options.output
    if world.size > 1 and (options.out_dir is None or options.seed is None):
        missing = "--out-dir DIR" if options.out_dir is None else "--seed N"
        raise ConfigError(f"{world.size} processes share the takes of one seed in one folder: add {missing}")
    if seconds is not None and not (math.isfinite(seconds) and 0 <= seconds <= MAX_SECONDS):
        raise ConfigError(f"--seconds {seconds:g}: must be between 0 and {MAX_SECONDS:g}")
    most = MAX_FOLDER if options.out_dir else MAX_BATCH
    if not 1 <= options.batch <= most:
        hint = "; --out-dir takes more" if options.batch > most == MAX_BATCH else ""
        raise ConfigError(f"--batch {options.batch}: must be from 1 to {most}{hint}")
    if options.seed is not None and not 0 <= options.seed < 2**63:
        raise ConfigError(f"--seed {options.seed}: must be from 0 to 2^63 - 1")
    if output == "-":
        if options.batch > 1:
            raise ConfigError(
                f"--batch {options.batch}: only one take fits standard output; name a file instead"
            )
        if sys.stdout is None:
            raise ConfigError("standard output is closed: open it, or name a file instead of -")
        if sys.stdout.isatty():
            raise ConfigError("standard output is a terminal: pipe it into a player, or name a file")
        return []
    if seconds == 0:
        raise ConfigError("--seconds 0 streams for ever and needs - as its output; give a file a length")
    paths = _files(options, world)
    if not options.force:
        _refuse(paths)
    _allow_open_files(min(options.batch, GROUP) if options.out_dir else options.batch)
    return paths


def _files(options: Namespace, world: World) -> list[Path]:
    from pathlib import Path

    from wavenet.errors import AudioError, ConfigError
    from wavenet.files import printable

    if options.out_dir is not None:
        return _numbered(options, world)
    path = Path(options.output)
    suffix = path.suffix.lower()
    if options.format == "wav" and suffix not in ("", ".wav", ".wave"):
        raise ConfigError(
            f"{printable(path)}: only WAV is written; name it {printable(path.stem)}.wav, or add --format raw"
        )
    if path.is_dir() or not path.name:
        raise AudioError(f"{printable(path)}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise AudioError(f"{printable(path)}: its folder does not exist; create it first")
    paths = [path]
    if options.batch > 1:
        paths = [path.with_name(f"{path.stem}-{take}{path.suffix}") for take in range(options.batch)]
    return paths


def _numbered(options: Namespace, world: World) -> list[Path]:
    """Return this process's files in a folder of takes, named by the numbers of their streams."""
    from wavenet.errors import AudioError
    from wavenet.files import printable

    if options.out_dir.exists() and not options.out_dir.is_dir():
        raise AudioError(f"--out-dir {printable(options.out_dir)}: is no folder; choose another name")
    digits = max(4, len(str(options.batch - 1)))
    return [options.out_dir / f"{take:0{digits}}.{options.format}" for take in world.share(options.batch)]


def _refuse(paths: list[Path]) -> None:
    """Raise `AudioError` if one of the files exists."""
    from wavenet.errors import AudioError
    from wavenet.files import printable

    for each in paths:
        if each.is_file():
            raise AudioError(
                f"{printable(each)}: exists; add --force to overwrite it, or choose another name"
            )


def _allow_open_files(batch: int) -> None:
    """Raise the process's limit of open files as far as the takes need; `ConfigError` if it may not be."""
    try:
        import resource
    except ImportError:  # Windows has no such limit.
        return
    from wavenet.errors import ConfigError

    needed = batch + OTHER_FILES
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))
    except (ValueError, OSError):
        raise ConfigError(
            f"--batch {batch}: needs {needed} open files and the limit is {most}; "
            "lower it, or raise the limit (ulimit -n)"
        ) from None


def work(options: Namespace) -> int:
    """Carry out parsed options; return the exit code."""
    from wavenet.distributed import World

    world = World.from_environment()
    paths = check(options, world)

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
