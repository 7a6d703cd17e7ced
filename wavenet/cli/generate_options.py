"""The flags of `wavenet-generate`."""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from wavenet.cli.common import Parser
from wavenet.conditioning.inputs import feature_inputs
from wavenet.errors import AudioError, ConfigError
from wavenet.utils.distributed import World
from wavenet.utils.figures import new_figure
from wavenet.utils.files import printable


def _backends() -> list[str]:
    from wavenet.engine import registry

    return registry.describe()


class _Parser(Parser):
    """A parser that asks for a place to put the audio, which may be a file and a player."""

    def parse_args(self, *given: Any, **more: Any) -> Any:
        """Parse, and exit with a usage error where no place is named."""
        options = super().parse_args(*given, **more)
        if options.output is None and options.out_dir is None and not options.play:
            self.error("one of the arguments OUT --out-dir --play is required")
        return options


def build_parser(program: str) -> Parser:
    """Return the parser of the command, under its name."""
    parser = _Parser(
        details=_backends,
        prog=program,
        description="Generate audio from a trained network, sample by sample.",
        epilog="example: wavenet-generate --seconds 0 - | ffplay -nodisp -i -",
    )
    place = parser.add_mutually_exclusive_group()
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
        "--play",
        action="store_true",
        help="play it while it is made, besides writing OUT or instead (extra [play])",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="a checkpoint or a training run (default: the newest under ./checkpoints, or else piano, which "
        "ships with wavenet)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="X",
        help="length; 0 with - or --play: until interrupted (default: 4, or that of the conditioning)",
    )
    parser.add_argument(
        "--prime", type=Path, metavar="FILE", help="recording to continue (the output does not repeat it)"
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        metavar="N",
        help="number of takes: OUT-0.wav, OUT-1.wav, ... (default: 1)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="X",
        help="divides the logits: below 1 less varied, 0 always the most probable class (default: 1)",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        default=0,
        metavar="N",
        help="sample from the N most probable classes (default: 0, all)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="X",
        help="sample from the most probable classes whose probabilities sum to X (default: 1, all)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="the same seed generates the same audio (default: random, printed)",
    )
    parser.add_argument("--device", default="cpu", help="where to generate (default: cpu)")
    parser.add_argument(
        "--backend", default="auto", help="auto, cpu, cuda, numba or reference (default: auto)"
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        metavar="P",
        help="precision of the weights: fp32, or the faster and less accurate bf16 and int8; on a GPU fp16 "
        "(default: fp32)",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads over which takes are spread (default: all cores)"
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
    _add_conditioning(parser)
    _add_selection(parser)
    _add_reports(parser)
    return parser


def _add_selection(parser: Parser) -> None:
    """Add the flags for selecting, supervising and continuing takes."""
    group = parser.add_argument_group("selecting, supervising and continuing takes")
    group.add_argument(
        "--best-of",
        type=int,
        metavar="N",
        help="generate N candidates for each take and keep the one whose bits per sample are nearest to "
        "those of the recordings that training held out; with conditioning, a primer or a saved state "
        "nearest to the median of the N. Faulty candidates are kept last",
    )
    group.add_argument(
        "--no-watchdog",
        action="store_true",
        help="keep faulty passages. By default 2 s of silence (below -60 dB), 1 s of noise or 3 s of an "
        "unchanging tone are regenerated with other random numbers, up to 4 times. 4 s of audio are held "
        "back for this; for a pipe or a player a quarter of what has been generated, so that playback "
        "starts at once",
    )
    group.add_argument(
        "--save-state",
        type=Path,
        metavar="FILE",
        help="write the state at the end of the takes, for --from-state",
    )
    group.add_argument(
        "--from-state",
        type=Path,
        metavar="FILE",
        help="continue a state written by --save-state, with its seed: with the same flags the result equals "
        "one uninterrupted take. Another --seed continues differently, --batch branches",
    )


def _add_reports(parser: Parser) -> None:
    """Add the flags for plots and reports."""
    group = parser.add_argument_group("plots and reports")
    group.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw waveform, spectrogram and entropy of each take, .png, .pdf or .svg (extra [plot])",
    )
    group.add_argument(
        "--entropy",
        action="store_true",
        help="print the entropy of the network's predictions in bits, before temperature, top-k and top-p. A "
        "second pass computes it, which takes about as long as the first",
    )
    group.add_argument(
        "--json", type=Path, metavar="FILE", help="write a record of each take, with --entropy included"
    )


def _add_conditioning(parser: Parser) -> None:
    """Add the conditioning flags."""
    group = parser.add_argument_group("conditioning, for a network trained with it")
    group.add_argument(
        "--class",
        dest="classes",
        metavar="NAME",
        help="a class, a mixture such as piano:0.7,cello:0.3, or a glide such as '0:piano 2:cello'",
    )
    group.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        metavar="X",
        help="strength of the conditioning: above 1 the network follows it more closely, with less variety; "
        "0 removes it (default: 1, as trained)",
    )
    for each in feature_inputs().values():
        flag = "--" + each.name.replace("_", "-")
        group.add_argument(flag, type=Path, metavar="FILE", help=each.description)


MAX_SECONDS = 1e7
"""Longer takes (sixteen weeks) are almost certainly typos; 0 is an endless stream."""


MAX_BATCH = 1000
"""Every take is an open file."""


MAX_FOLDER = 1_000_000
"""Maximum number of takes in a folder, which are generated in groups."""


MAX_CANDIDATES = 1000
"""Maximum number of candidates for a take."""


MAX_PLOTS = 16
"""Maximum number of plots."""


MAX_PLOT_SECONDS = 600.0
"""Longest take that is drawn, in seconds."""


OTHER_FILES = 64
"""Upper limit of open files besides the takes."""


def check(options: Namespace, world: World, group: int) -> list[Path]:
    """Check the options before anything is loaded; return the files to write (none for a stream).

    With --out-dir these are the files of this process, which generates `group` of them at a time.
    """
    _check_counts(options, world)
    _check_views(options)
    if options.play:
        if options.out_dir is not None or options.batch > 1:
            raise ConfigError("--play: plays a single take; remove --out-dir and --batch")
        from wavenet.audio.playback import Device

        # Reports a missing device before the network is loaded.
        Device()
    if options.output == "-":
        _check_standard_output(options)
        return []
    if options.output is None and options.out_dir is None:
        return []
    if options.seconds == 0:
        raise ConfigError(
            "--seconds 0 streams without end and needs - as its output, or --play; give a file a length"
        )
    paths = _files(options, world)
    if not options.force:
        _refuse(paths)
    _allow_open_files(min(options.batch, group) if options.out_dir else options.batch)
    return paths


def _check_counts(options: Namespace, world: World) -> None:
    seconds = options.seconds
    if world.size > 1 and (options.out_dir is None or options.seed is None):
        missing = "--out-dir DIR" if options.out_dir is None else "--seed N"
        raise ConfigError(f"{world.size} processes share the takes of one seed in one folder: add {missing}")
    if world.size > 1 and options.json is not None:
        raise ConfigError("--json: covers the takes of one process; remove it under torchrun")
    if seconds is not None and not (math.isfinite(seconds) and 0 <= seconds <= MAX_SECONDS):
        raise ConfigError(f"--seconds {seconds:g}: must be between 0 and {MAX_SECONDS:g}")
    most = MAX_FOLDER if options.out_dir else MAX_BATCH
    if not 1 <= options.batch <= most:
        hint = "; --out-dir takes more" if options.batch > most == MAX_BATCH else ""
        raise ConfigError(f"--batch {options.batch}: must be from 1 to {most}{hint}")
    if options.seed is not None and not 0 <= options.seed < 2**63:
        raise ConfigError(f"--seed {options.seed}: must be from 0 to 2^63 - 1")
    if options.best_of is not None:
        if not 1 <= options.best_of <= MAX_CANDIDATES:
            raise ConfigError(f"--best-of {options.best_of}: must be from 1 to {MAX_CANDIDATES}")
        if seconds == 0:
            raise ConfigError("--best-of selects among complete takes: give them a length with --seconds")
    if options.from_state is not None and options.prime is not None:
        raise ConfigError("--from-state and --prime exclude each other: give one of them")
    if options.out_dir is not None and options.save_state is not None:
        raise ConfigError("--save-state: works with OUT, not with --out-dir")


def _check_views(options: Namespace) -> None:
    for flag in ("plot", "json", "save_state"):
        path = getattr(options, flag)
        for each in numbered(path, options.batch if flag == "plot" else 1) if path is not None else []:
            check_file(f"--{flag.replace('_', '-')}", each, options.force)
    if options.seconds == 0 and (options.plot is not None or options.entropy):
        raise ConfigError("--plot and --entropy need a complete take: give it a length with --seconds")
    if options.plot is not None:
        if options.out_dir is not None or options.batch > MAX_PLOTS:
            raise ConfigError(f"--plot: draws at most {MAX_PLOTS} takes of OUT; generate fewer, or remove it")
        if options.seconds is not None and options.seconds > MAX_PLOT_SECONDS:
            raise ConfigError(f"--plot: draws at most {MAX_PLOT_SECONDS:g} s; reduce --seconds")
        new_figure(options.plot, (1, 1))


def _check_standard_output(options: Namespace) -> None:
    if options.batch > 1:
        raise ConfigError(f"--batch {options.batch}: only one take fits standard output; name a file instead")
    if sys.stdout is None:
        raise ConfigError("standard output is closed: open it, or name a file instead of -")
    if sys.stdout.isatty():
        raise ConfigError("standard output is a terminal: pipe it into a player, or name a file")


def numbered(path: Path, batch: int) -> list[Path]:
    """Return the file names of several takes, out-0.wav, ..., or of a single one, out.wav."""
    if batch == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{take}{path.suffix}") for take in range(batch)]


def check_file(flag: str, path: Path, force: bool) -> None:
    """Raise `AudioError` if the file of a flag cannot be written, or exists and `force` is false."""
    shown = printable(path)
    if path.is_dir() or not path.name:
        raise AudioError(f"{flag} {shown}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise AudioError(f"{flag} {shown}: its folder does not exist; create it first")
    if path.is_file() and not force:
        raise AudioError(f"{flag} {shown}: exists; add --force to overwrite it, or choose another name")


def _files(options: Namespace, world: World) -> list[Path]:
    if options.out_dir is not None:
        return _in_folder(options, world)
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
    return numbered(path, options.batch)


def _in_folder(options: Namespace, world: World) -> list[Path]:
    """Return this process's files in a folder of takes, named by the numbers of their streams."""
    if options.out_dir.exists() and not options.out_dir.is_dir():
        raise AudioError(f"--out-dir {printable(options.out_dir)}: is no folder; choose another name")
    digits = max(4, len(str(options.batch - 1)))
    return [options.out_dir / f"{take:0{digits}}.{options.format}" for take in world.share(options.batch)]


def _refuse(paths: list[Path]) -> None:
    """Raise `AudioError` if one of the files exists."""
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
