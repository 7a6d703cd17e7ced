"""Writes generated audio: to files that appear complete or not at all, to standard output, to a player."""

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
from wavenet.cli.generate_job import Job
from wavenet.cli.generate_report import TakeReport
from wavenet.cli.signals import signal_handler
from wavenet.engine.state import GeneratorState
from wavenet.errors import AudioError
from wavenet.generation.generator import Generator
from wavenet.generation.saved_state import save_state
from wavenet.utils.files import atomic_output, cause, free_name, printable


class Take:
    """One file to write.

    Attributes
    ----------
    path : Path
        The requested path.
    whole : bool
        Whether the take has its full length.
    name : Path
        The path written: an interrupted take does not replace an existing file at `path`.
    """

    def __init__(self, path: Path) -> None:
        self.path = self.name = path
        self.whole = True

    def final(self) -> Path:
        """Choose and return `name`."""
        if not self.whole and self.path.exists():
            # Next to the file itself; a link may point to another disk.
            beside = Path(os.path.realpath(self.path)) if self.path.is_symlink() else self.path
            self.name = free_name(beside, "interrupted")
        return self.name


def write(job: Job, state: GeneratorState, paths: list[Path]) -> int:
    """Generate takes and write or play them; return the exit code.

    After an interrupt the files contain what was generated so far.

    Parameters
    ----------
    job : Job
    state : GeneratorState
        Its streams; the candidates of a take are adjacent.
    paths : list of Path
        Files, one for each take; none for standard output or a player alone.
    """
    options, console, rate = job.options, job.console, job.session.generator.config.sample_rate
    takes = [Take(path) for path in paths]
    # A pipe may block forever; a second interrupt must end the process then.
    files = bool(paths) and all(path.is_file() or not path.exists() for path in paths)
    player = _player(job, state) if options.play else None
    maker = job.session.takes(state, live=player is not None or not files)
    report = TakeReport(job, state, maker)
    batch, code, start = max(1, len(paths)), 0, time.perf_counter()
    with contextlib.ExitStack() as stack:
        ignore_signals = stack.enter_context(signal_handler.ignorable())
        stack.callback(console.clear)
        places: list[Take | None] = [*takes] if options.output != "-" else [None]
        writers = [_writer(stack, take, job.session.steps, rate, options.format) for take in places]
        if player is not None:
            stack.callback(player.stop)
        sinks = AudioSinks(job.session.generator, writers, player, report)
        try:
            for chunk in maker:
                sinks.write(chunk)
                console.status(
                    _progress(maker.generated, job.session.steps, rate, batch, time.perf_counter() - start)
                )
            if player is not None:
                player.finish()
        except KeyboardInterrupt:
            if not maker.generated:
                raise
            code = signal_handler.exit_code()
            if files and player is None:
                sinks.write(maker.flush())
        if not sinks.done:
            raise KeyboardInterrupt
        if files:
            ignore_signals()
        for take in takes:
            take.whole = code == 0 or sinks.done == job.session.steps
        for writer in writers:
            writer.finish()
    elapsed = time.perf_counter() - start
    names = [take.name for take in takes]
    console.line(
        f"{'interrupted: ' if code else ''}{_names(names, player is not None)}  {sinks.done / rate:.2f} s"
        + (f" x {batch}" if batch > 1 else "")
        + f" in {elapsed:.2f} s  {_speed(sinks.done, rate, batch, elapsed)}"
    )
    if kept := [take.path for take in takes if take.name != take.path]:
        console.line(f"unchanged: {_names(kept)}")
    if player is not None and player.underruns:
        console.line(f"played with {player.underruns} gap(s), {player.missing / rate:.2f} s in all")
    report.print(names, sinks.done)
    if options.save_state is not None:
        save_state(options.save_state, job.session.generator, maker.state_after(sinks.done))
        console.line(f"state saved in {printable(options.save_state)}")
    return code


class AudioSinks:
    """Files, player and report that receive the audio; `done` counts the samples of each take."""

    def __init__(
        self, generator: Generator, writers: list[WavWriter], player: Player | None, report: TakeReport
    ):
        self.generator = generator
        self.writers = writers
        self.player = player
        self.report = report
        self.done = 0

    def write(self, chunk: torch.Tensor) -> None:
        """Write new samples, int64 (takes, samples)."""
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
        self.report.add(chunk, audio)


def _player(job: Job, state: GeneratorState) -> Player:
    """Return a player for a job, after reporting whether this machine generates in real time."""
    rate = job.session.generator.config.sample_rate
    device = Device(rate)
    if job.options.best_of:
        job.console.line("playback starts when the best take has been selected")
        return Player(device, rate)
    trial = state.clone()
    times = real_time_factor(lambda: job.session.trial(trial), rate)
    lead = lead_for(times, None if job.session.steps is None else job.session.steps / rate)
    message = f"this machine generates at {times:.2f}x real time"
    if times < HEADROOM:
        message += f"; playback starts after {lead:.1f} s"
        if lead >= BUFFER_SECONDS or job.session.steps is None:
            message += " and will have gaps: try --precision int8 or a smaller network"
    job.console.line(message)
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
        # An interrupt may end the stream early, so the header states no length.
        return WavWriter(
            stack.enter_context(standard_output()), rate, None, header=form == "wav", rewind=False
        )
    stream = stack.enter_context(atomic_output(take.path, take.final))
    return WavWriter(stream, rate, steps, header=form == "wav")


@contextlib.contextmanager
def standard_output() -> Iterator[BinaryIO]:
    """Yield the binary standard output; `AudioError` if it cannot be written."""
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except OSError as error:
        # Avoids a second error when Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise AudioError(
                "the reader of standard output closed it before the end; nothing more was written"
            ) from None
        raise AudioError(
            f"cannot write to standard output: {cause(error)}; free some space, or write elsewhere"
        ) from None


def _speed(done: int, rate: int, batch: int, elapsed: float) -> str:
    times = done / rate / max(elapsed, 1e-9)
    return f"{times:.2f} x realtime" + (f" each, {times * batch:.2f} together" if batch > 1 else "")


def _progress(done: int, steps: int | None, rate: int, batch: int, elapsed: float) -> str:
    text = f"{done / rate:.1f} s" if steps is None else f"{done / rate:.1f} of {steps / rate:.1f} s"
    if steps is not None and done:
        text += f"  {elapsed * (steps - done) / done:.0f} s left"
    return f"{text}  {_speed(done, rate, batch, elapsed)}"
