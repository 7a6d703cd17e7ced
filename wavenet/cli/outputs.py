"""Where generated audio goes: files that appear whole, or standard output; and what an interrupt leaves."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from wavenet.audio import WavWriter
from wavenet.cli.interrupts import interrupts
from wavenet.errors import AudioError
from wavenet.files import atomic_output, cause, free_name, printable
from wavenet.generation import Bias, Generator
from wavenet.progress import Console
from wavenet.state import GeneratorState


class Take:
    """One file to write.

    Attributes
    ----------
    path : Path
        As asked for.
    whole : bool
        Whether it got the length asked for.
    name : Path
        Where it went: a part of a take does not replace what stands at `path`.
    """

    def __init__(self, path: Path) -> None:
        self.path = self.name = path
        self.whole = True

    def final(self) -> Path:
        """Choose and return `name`."""
        if not self.whole and self.path.exists():
            # Beside the file itself, which a link at the path may have on another disk.
            beside = Path(os.path.realpath(self.path)) if self.path.is_symlink() else self.path
            self.name = free_name(beside, "interrupted")
        return self.name


def write(
    generator: Generator,
    state: GeneratorState,
    steps: int | None,
    paths: list[Path],
    options: Namespace,
    console: Console,
    gate_bias: Bias | None = None,
) -> int:
    """Generate chunk by chunk into files, or standard output if there are none; return the exit code.

    An interrupt ends them early, but whole.
    """
    rate, batch = generator.config.sample_rate, max(1, len(paths))
    takes = [Take(path) for path in paths]
    # A pipe may block for ever, and then another interrupt must end that.
    files = bool(paths) and all(path.is_file() or not path.exists() for path in paths)
    done, code, start = 0, 0, time.perf_counter()
    with contextlib.ExitStack() as stack:
        defer = stack.enter_context(interrupts.deferrable())
        stack.callback(console.clear)
        writers = [_writer(stack, take, steps, rate, options.format) for take in takes or [None]]
        chunks = generator.stream(
            state,
            steps,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            gate_bias=gate_bias,
        )
        try:
            for chunk in chunks:
                audio = generator.decode(chunk).numpy()
                for writer, part in zip(writers, audio, strict=True):
                    writer.write(part)
                if not paths:
                    writers[0].stream.flush()
                done += chunk.shape[1]
                console.status(_progress(done, steps, rate, batch, time.perf_counter() - start))
        except KeyboardInterrupt:
            if not done:
                raise
            code = interrupts.taken()
        if files:
            defer()
        for take in takes:
            take.whole = code == 0
        for writer in writers:
            writer.finish()
    elapsed = time.perf_counter() - start
    console.line(
        f"{'interrupted: ' if code else ''}{_names([take.name for take in takes])}  {done / rate:.2f} s"
        + (f" x {batch}" if batch > 1 else "")
        + f" in {elapsed:.2f} s  {_speed(done, rate, batch, elapsed)}"
    )
    if kept := [take.path for take in takes if take.name != take.path]:
        console.line(f"left as before: {_names(kept)}")
    return code


def _names(paths: list[Path]) -> str:
    if not paths:
        return "standard output"
    if len(paths) == 1:
        return printable(paths[0])
    return f"{printable(paths[0])} ... {printable(paths[-1].name)}"


def _writer(
    stack: contextlib.ExitStack, take: Take | None, steps: int | None, rate: int, form: str
) -> WavWriter:
    if take is None:
        # What a pipe is given must not promise more than an interrupt may deliver.
        return WavWriter(
            stack.enter_context(standard_output()), rate, None, header=form == "wav", rewind=False
        )
    stream = stack.enter_context(atomic_output(take.path, take.final))
    return WavWriter(stream, rate, steps, header=form == "wav")


@contextlib.contextmanager
def standard_output() -> Iterator[BinaryIO]:
    """Lend the binary standard output, and say in one line what went wrong with it."""
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except OSError as error:
        # Python would complain once more while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise AudioError(
                "standard output was closed by its reader before the end; nothing more was written"
            ) from None
        raise AudioError(
            f"cannot write to standard output: {cause(error)}; free some space, or write elsewhere"
        ) from None


def _speed(done: int, rate: int, batch: int, elapsed: float) -> str:
    times = done / rate / max(elapsed, 1e-9)
    return f"{times:.2f} x realtime" + (f" each, {times * batch:.2f} together" if batch > 1 else "")


def _progress(done: int, steps: int | None, rate: int, batch: int, elapsed: float) -> str:
    told = f"{done / rate:.1f} s" if steps is None else f"{done / rate:.1f} of {steps / rate:.1f} s"
    if steps is not None and done:
        told += f"  {elapsed * (steps - done) / done:.0f} s left"
    return f"{told}  {_speed(done, rate, batch, elapsed)}"
