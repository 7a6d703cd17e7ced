"""Where generated audio goes: files that appear whole, or standard output; and what an interrupt leaves."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch

from wavenet.audio.playback import BUFFER_SECONDS, HEADROOM, Device, Player, lead_for, real_time_factor
from wavenet.audio.wav import WavWriter
from wavenet.cli.generate_report import Look
from wavenet.cli.signals import interrupts
from wavenet.engine.state import GeneratorState
from wavenet.errors import AudioError
from wavenet.generation.generator import Generator
from wavenet.generation.saved_state import save_state
from wavenet.generation.session import Job
from wavenet.utils.files import atomic_output, cause, free_name, printable


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


def write(job: Job, state: GeneratorState, paths: list[Path]) -> int:
    """Make takes of streams and write or play them; return the exit code.

    An interrupt ends them early, but whole.

    Parameters
    ----------
    job : Job
    state : GeneratorState
        Its streams, the candidates of each take together.
    paths : list of Path
        Files, one for each take; none for standard output or a player alone.
    """
    options, console, rate = job.options, job.console, job.generator.config.sample_rate
    takes = [Take(path) for path in paths]
    # A pipe may block for ever, and then another interrupt must end that.
    files = bool(paths) and all(path.is_file() or not path.exists() for path in paths)
    player = _player(job, state) if options.play else None
    maker = job.maker(state, live=player is not None or not files)
    look = Look(job, state, maker)
    batch, code, start = max(1, len(paths)), 0, time.perf_counter()
    with contextlib.ExitStack() as stack:
        defer = stack.enter_context(interrupts.deferrable())
        stack.callback(console.clear)
        places: list[Take | None] = [*takes] if options.output != "-" else [None]
        writers = [_writer(stack, take, job.steps, rate, options.format) for take in places]
        if player is not None:
            stack.callback(player.stop)
        ways = _Ways(job.generator, writers, player, look)
        try:
            for chunk in maker:
                ways.give(chunk)
                console.status(
                    _progress(maker.generated, job.steps, rate, batch, time.perf_counter() - start)
                )
            if player is not None:
                player.finish()
        except KeyboardInterrupt:
            if not maker.generated:
                raise
            code = interrupts.taken()
            if files and player is None:
                ways.give(maker.flush())
        if not ways.done:
            raise KeyboardInterrupt
        if files:
            defer()
        for take in takes:
            take.whole = code == 0 or ways.done == job.steps
        for writer in writers:
            writer.finish()
    elapsed = time.perf_counter() - start
    names = [take.name for take in takes]
    console.line(
        f"{'interrupted: ' if code else ''}{_names(names, player is not None)}  {ways.done / rate:.2f} s"
        + (f" x {batch}" if batch > 1 else "")
        + f" in {elapsed:.2f} s  {_speed(ways.done, rate, batch, elapsed)}"
    )
    if kept := [take.path for take in takes if take.name != take.path]:
        console.line(f"left as before: {_names(kept)}")
    if player is not None and player.underruns:
        console.line(f"played with {player.underruns} gap(s), {player.missing / rate:.2f} s in all")
    look.tell(names, ways.done)
    if options.save_state is not None:
        save_state(options.save_state, job.generator, maker.state_after(ways.done))
        console.line(f"state saved in {printable(options.save_state)}")
    return code


class _Ways:
    """All that audio is given to; `done` counts the samples of each take."""

    def __init__(self, generator: Generator, writers: list[WavWriter], player: Player | None, look: Look):
        self.generator = generator
        self.writers = writers
        self.player = player
        self.look = look
        self.done = 0

    def give(self, chunk: torch.Tensor) -> None:
        """Pass on new samples, int64 (takes, samples)."""
        if not chunk.shape[1]:
            return
        audio = self.generator.decode(chunk).numpy()
        for writer, part in zip(self.writers, audio, strict=False):
            writer.write(part)
            if not writer.rewind:
                writer.stream.flush()
        self.done += chunk.shape[1]
        if self.player is not None:
            self.player.write(audio[0])
        self.look.add(chunk, audio)


def _player(job: Job, state: GeneratorState) -> Player:
    """Return a player for a job, having said whether this machine keeps up with it."""
    rate = job.generator.config.sample_rate
    device = Device(rate)
    if job.options.best_of:
        job.console.line("plays once the best take is chosen")
        return Player(device, rate)
    trial = state.clone()
    times = real_time_factor(lambda: job.trial(trial), rate)
    lead = lead_for(times, None if job.steps is None else job.steps / rate)
    told = f"this machine makes it {times:.2f} x as fast as it plays: "
    if times >= HEADROOM:
        told += "it keeps up"
    else:
        told += f"it does not keep up; it starts {lead:.1f} s ahead"
        if lead < BUFFER_SECONDS and job.steps is not None:
            told += ", which is enough"
        else:
            told += ", and there will be gaps: try --precision int8, or a smaller network"
    job.console.line(told)
    return Player(device, rate, lead)


def _names(paths: list[Path], played: bool = False) -> str:
    if not paths:
        return "played" if played else "standard output"
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
