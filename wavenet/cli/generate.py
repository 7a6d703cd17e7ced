"""`wavenet-generate`: new audio from a trained network."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from wavenet.cli.common import INTERRUPTED, Parser, run
from wavenet.errors import AudioError, ConfigError

DEFAULT_RUN = Path("checkpoints")

MAX_SECONDS = 1e7
"""Beyond sixteen weeks a length is a slip of the hand; 0 streams for ever."""


def _backends() -> list[str]:
    from wavenet import backends

    return backends.describe()


def build_parser() -> Parser:
    """Return the parser of `wavenet-generate`."""
    parser = Parser(
        details=_backends,
        prog="wavenet-generate",
        description="Generate audio from a trained network, sample by sample.",
        epilog="example: wavenet-generate --seconds 0 - | ffplay -nodisp -i -",
    )
    parser.add_argument("output", metavar="OUT", help="WAV file to write, or - to stream to standard output")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="a checkpoint, or a training run (default: the newest under ./checkpoints)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=4.0,
        metavar="X",
        help="length; 0 with -: until interrupted (default: 4)",
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
    parser.add_argument("--backend", default="auto", help="auto, cpu or reference (default: auto)")
    parser.add_argument(
        "--precision",
        default="fp32",
        metavar="P",
        help="of the weights: fp32, bf16 or int8, each faster and a little less accurate (default: fp32)",
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
    parser.add_argument("--force", action="store_true", help="overwrite files that exist")
    return parser


def check(options: Namespace) -> list[Path]:
    """Check what can be checked before anything is loaded; return the files to write (none for a stream)."""
    seconds, output = options.seconds, options.output
    if not (math.isfinite(seconds) and 0 <= seconds <= MAX_SECONDS):
        raise ConfigError(f"--seconds {seconds:g}: must be between 0 and {MAX_SECONDS:g}")
    if options.batch < 1:
        raise ConfigError(f"--batch {options.batch}: must be at least 1")
    if options.seed is not None and not 0 <= options.seed < 2**63:
        raise ConfigError(f"--seed {options.seed}: must be from 0 to 2^63 - 1")
    if output == "-":
        if options.batch > 1:
            raise ConfigError(
                f"--batch {options.batch}: only one take fits standard output; name a file instead"
            )
        if sys.stdout.isatty():
            raise ConfigError("standard output is a terminal: pipe it into a player, or name a file")
        return []
    if seconds == 0:
        raise ConfigError("--seconds 0 streams for ever and needs - as its output; give a file a length")
    return _files(options)


def _files(options: Namespace) -> list[Path]:
    from wavenet.files import printable

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
    if not options.force:
        for each in paths:
            if each.is_file():
                raise AudioError(
                    f"{printable(each)}: exists; add --force to overwrite it, or choose another name"
                )
    return paths


def work(options: Namespace) -> int:
    """Carry out parsed options; return the exit code."""
    paths = check(options)

    from wavenet import backends, checkpoint
    from wavenet.files import printable
    from wavenet.generation import Generator
    from wavenet.progress import Console
    from wavenet.state import Sampling

    Sampling(options.temperature, options.top_k, options.top_p)
    console = Console()
    directory = checkpoint.find(options.checkpoint or DEFAULT_RUN)
    generator = Generator.from_pretrained(
        directory, options.backend, options.device, options.threads, options.precision
    )
    if options.backend == "auto" and generator.backend.name == "reference":
        console.line(f"warning: the fast engine is not there, generating slowly: {backends.report()['cpu']}")
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    console.line(
        f"checkpoint {printable(directory)}  {generator.config.sample_rate} Hz  "
        f"backend {generator.backend.name}  {generator.backend.precision}  seed {seed}"
    )
    state = _state(generator, options, seed, console)
    steps = None if options.seconds == 0 else max(1, round(options.seconds * generator.config.sample_rate))
    return _write(generator, state, steps, paths, options, console)


def _state(generator: Any, options: Namespace, seed: int, console: Any) -> Any:
    """Return the streams to go on from: silence, or the recording given."""
    if options.prime is None:
        return generator.start(options.batch, seed)

    from wavenet.audio import load_audio
    from wavenet.files import printable

    config = generator.config
    audio = load_audio(options.prime, config.sample_rate, config.normalization)
    used = min(len(audio), config.receptive_field) / config.sample_rate
    console.line(f"primed with the last {used:.2f} s of {printable(options.prime)}")
    return generator.prime(generator.encode(audio), seed).fan_out(options.batch)


def _write(
    generator: Any, state: Any, steps: int | None, paths: list[Path], options: Namespace, console: Any
) -> int:
    """Generate chunk by chunk into the outputs; an interrupt ends them early, but whole."""
    rate = generator.config.sample_rate
    done, start = 0, time.perf_counter()
    interrupted = False
    with contextlib.ExitStack() as stack:
        writers = [_writer(stack, path, steps, rate, options.format) for path in paths or [None]]
        chunks = generator.stream(
            state, steps, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p
        )
        try:
            for chunk in chunks:
                audio = generator.decode(chunk).numpy()
                for writer, take in zip(writers, audio, strict=True):
                    writer.write(take)
                if not paths:
                    writers[0].stream.flush()
                done += chunk.shape[1]
                console.status(_progress(done, steps, rate, options.batch, time.perf_counter() - start))
        except KeyboardInterrupt:
            interrupted = True
            if not done:
                raise
        for writer in writers:
            writer.finish()
    elapsed = time.perf_counter() - start
    names = _names(paths)
    console.line(
        f"{'interrupted: ' if interrupted else ''}{names}  {done / rate:.2f} s"
        + (f" x {options.batch}" if options.batch > 1 else "")
        + f" in {elapsed:.2f} s  {_speed(done, rate, options.batch, elapsed)}"
    )
    return INTERRUPTED if interrupted else 0


def _names(paths: list[Path]) -> str:
    from wavenet.files import printable

    if not paths:
        return "standard output"
    return (
        printable(paths[0]) if len(paths) == 1 else f"{printable(paths[0])} ... {printable(paths[-1].name)}"
    )


def _writer(stack: contextlib.ExitStack, path: Path | None, steps: int | None, rate: int, form: str) -> Any:
    from wavenet.audio import WavWriter
    from wavenet.files import atomic_output

    stream = stack.enter_context(_standard_output() if path is None else atomic_output(path))
    # What a pipe is given must not promise more than an interrupt may deliver.
    return WavWriter(stream, rate, steps if path is not None else None, header=form == "wav")


@contextlib.contextmanager
def _standard_output() -> Iterator[BinaryIO]:
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Python would complain once more while flushing the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise AudioError(
            "standard output was closed by its reader before the end; nothing more was written"
        ) from None


def _speed(done: int, rate: int, batch: int, elapsed: float) -> str:
    times = done / rate / max(elapsed, 1e-9)
    return f"{times:.2f} x realtime" + (f" each, {times * batch:.2f} together" if batch > 1 else "")


def _progress(done: int, steps: int | None, rate: int, batch: int, elapsed: float) -> str:
    told = f"{done / rate:.1f} s" if steps is None else f"{done / rate:.1f} of {steps / rate:.1f} s"
    if steps is not None and done:
        told += f"  {elapsed * (steps - done) / done:.0f} s left"
    return f"{told}  {_speed(done, rate, batch, elapsed)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `wavenet-generate`; return the exit code."""
    return run(build_parser(), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
