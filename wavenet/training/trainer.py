"""The training loop: steps, validation, checkpoints, samples, and the account of it all."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from wavenet.audio.wav import write_wav
from wavenet.config import TrainingConfig, WaveNetConfig, flat
from wavenet.data.batch import Segments
from wavenet.data.dataset import Dataset
from wavenet.data.loader import Loader
from wavenet.errors import CheckpointError, WaveNetError
from wavenet.evaluation.scoring import bits_per_sample
from wavenet.generation.generator import Generator
from wavenet.models import native_layers
from wavenet.models.wavenet import WaveNet
from wavenet.training import checkpoint, resume
from wavenet.training.compile import compile_network
from wavenet.training.metrics import Metrics, due, final, status, window
from wavenet.training.monitor import COUNTERS as WATCHED
from wavenet.training.monitor import Watch
from wavenet.training.schedules import ema_decay, learning_rate
from wavenet.training.step import add_gradients, fit_normalization, parameter_groups
from wavenet.training.tensorboard import Board
from wavenet.utils.console import Console, Meter
from wavenet.utils.distributed import ALONE, World
from wavenet.utils.files import cause

LOG_EVERY = 10
"""Steps averaged in one line of `metrics.jsonl`."""

GIVE_UP_AFTER = 100
"""Steps with a non-finite loss or gradient in a row after which a run is beyond rescue."""

FINAL_SECONDS = 600.0
"""Validation audio scored once, when a run has ended."""

SAMPLES = "samples"
BOARD = "tensorboard"
EFFECTIVE_FILE = "effective.json"


class Trainer:
    """One training run in one directory.

    Parameters
    ----------
    config : WaveNetConfig
    training : TrainingConfig
        With its precision resolved to "fp32" or "bf16".
    data : Dataset
        Training and validation clips.
    run : Path
        Directory the run writes to.
    device : torch.device
    source : dict
        JSON values that say where the data came from; kept in every checkpoint.
    console : Console
        Where the account goes.
    world : World
        The processes that train together, each with a batch of its own; the first one writes.
    """

    def __init__(
        self,
        config: WaveNetConfig,
        training: TrainingConfig,
        data: Dataset,
        run: Path,
        device: torch.device,
        source: dict[str, Any],
        console: Console,
        world: World = ALONE,
    ):
        self.config = config
        self.training = training
        self.data = data
        self.run = run
        self.device = device
        self.source = source
        self.console = console
        self.log = console.line
        self.world = world
        self.board: Board | None = None
        self.metrics = Metrics(run, self.log)
        torch.manual_seed(training.seed)
        self.model = WaveNet(config, training.checkpoint_layers).to(device)
        self.segment = max(1, round(training.segment * config.sample_rate))
        fit_normalization(self.model, data.train, self.segment, training.seed)
        self.loader = Loader(self._segments, ahead=device.type == "cuda")
        self.averaged = copy.deepcopy(self.model).requires_grad_(False).eval()
        if training.compile:
            compile_network(self.model, training)
        groups = parameter_groups(self.model, training.weight_decay)
        # One kernel, on a GPU for all parameters.
        self.optimizer = torch.optim.AdamW(groups, lr=training.lr, betas=(0.9, 0.99), fused=True)
        self.fingerprint = resume.fingerprint(data)
        self.counters: dict[str, Any] = {**resume.COUNTERS, **WATCHED}

    @property
    def watch(self) -> Watch:
        """What looks at steps and validations."""
        return Watch(self.training, self.counters, self.log)

    @property
    def samples_per_step(self) -> int:
        """Targets of a step, in all processes together."""
        return self.training.batch * self.training.accumulate * self.world.size * self.segment

    @property
    def ended(self) -> bool:
        """Whether no step is left to be taken."""
        return self.counters["step"] >= self.training.steps or self.watch.patience_is_over

    def start_from(self, network: Mapping[str, torch.Tensor]) -> None:
        """Begin with a trained network of the same configuration instead of a random one."""
        # Conditions may be new to it.
        network = {**self.model.state_dict(), **network}
        self.model.load_state_dict(network)
        self.averaged.load_state_dict(network)

    # -- one step ------------------------------------------------------------------------------------

    def step(self) -> tuple[float, float]:
        """Take one optimiser step and return its loss in bits per sample and the gradient's norm.

        A step whose loss or gradient is not finite changes no weight and is counted.
        """
        counters, training = self.counters, self.training
        segments = self.loader.take(counters["step"])
        rate = learning_rate(training, counters["step"])
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = add_gradients(self.model, training, counters["step"], segments, self.device, self.world)
        bits = loss / math.log(2)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), training.clip_norm))
        if math.isfinite(bits) and math.isfinite(norm):
            self.optimizer.step()
            counters["skipped_in_a_row"] = 0
            decay = ema_decay(training, counters["step"] - counters["skipped"])
            pairs = zip(self.averaged.parameters(), self.model.parameters(), strict=True)
            for average, parameter in pairs:
                average.lerp_(parameter.detach(), 1 - decay)
            counters["window_bits"] += bits
            counters["window_steps"] += 1
            self.watch.step(norm)
        else:
            self._skip()
        counters["step"] += 1
        return bits, norm

    def _segments(self, step: int) -> Segments:
        rows = self.training.batch * self.training.accumulate
        return self.data.train.batch(step, rows, self.segment, self.training.seed, self.world.rank * rows)

    def _skip(self) -> None:
        counters = self.counters
        counters["skipped"] += 1
        counters["skipped_in_a_row"] += 1
        if counters["skipped_in_a_row"] >= GIVE_UP_AFTER:
            raise WaveNetError(
                f"{GIVE_UP_AFTER} steps in a row had a non-finite loss or gradient, up to step "
                f"{counters['step']}: lower --lr, or resume from an earlier checkpoint"
            )

    # -- the loop ------------------------------------------------------------------------------------

    def train(self, stop: Callable[[], bool] = lambda: False, tensorboard: bool = False) -> bool:
        """Train to the last step; return False if `stop` said so before. A checkpoint is written either way.

        Parameters
        ----------
        stop : callable
            Asked after every step, and while a sample is generated or the finished network is scored; one
            process in which it says so stops them all.
        tensorboard : bool
            Whether to write the account for TensorBoard too.

        Raises
        ------
        CheckpointError
            If another process trains into the same directory, or the last checkpoint cannot be written.
        WaveNetError
            If steps are no longer finite, or another process of the run has ended.
        """
        self._meet()
        with contextlib.ExitStack() as stack:
            if self.world.leads:
                stack.enter_context(checkpoint.lock(self.run))
            if tensorboard and self.world.leads:
                self.board = Board(self.run / BOARD, self.counters["step"], self.log)
                stack.callback(self.board.close)
            stack.callback(self.loader.close)
            stack.enter_context(native_layers.kept_blocks())
            return self._train(stop)

    def _meet(self) -> None:
        """Make sure that all processes are at the same point of the same run."""
        settings, step = (self.config, self.training), self.counters["step"]
        self.world.agree({"settings": settings, "recordings": self.fingerprint, "step": step})
        self.world.equalise([*self.model.parameters(), *self.averaged.parameters()])

    def _train(self, stop: Callable[[], bool]) -> bool:
        training, counters = self.training, self.counters
        self.world.once(self._tidy)
        meter, waited = Meter(), self.loader.waited
        saved = counters["step"] if self.world.once(lambda: checkpoint.numbered(self.run)) else -1
        while not self.ended and not self.world.any(stop()):
            _, norm = self.step()
            done = counters["step"]
            meter.count(self.samples_per_step)
            if done % LOG_EVERY == 0:
                waiting = meter.share(self.loader.waited - waited)
                waited = self.loader.waited
                self._record(window(counters, training, norm, meter.rate, waiting))
            if due(done, training.validate_every, training.steps) and self.data.validation.samples:
                with meter.paused():
                    self.validate()
            if due(done, training.sample_every, training.steps):
                with meter.paused():
                    self.world.once(lambda: self.write_sample(stop))
            if due(done, training.checkpoint_every, training.steps):
                with meter.paused():
                    saved = done if self.world.once(self._try_save) else saved
            self.console.status(status(counters, training, meter.rate, self.samples_per_step))
        if saved != counters["step"]:
            self.world.once(self._save_last)
        if self.ended:
            self.watch.ended()
            # A run that was killed while it was scored is scored when it is resumed.
            scored = self.world.once(lambda: self.metrics.holds(counters["step"], "final_validation_bits"))
            if self.data.validation.samples and not scored:
                self._final_score(stop)
        return self.ended

    def _tidy(self) -> None:
        """Make the directory that of a run at this step, whatever a kill has left there."""
        step = self.counters["step"]
        checkpoint.set_aside_beyond(self.run, step)
        self.metrics.trim(step)
        for leftover in (self.run / SAMPLES).glob(".wavenet-*.tmp"):
            leftover.unlink(missing_ok=True)
        values = {**self.source, **flat(self.config), **self.training.to_json()}
        values.update(device=str(self.device), threads=torch.get_num_threads())
        self.metrics.beside(EFFECTIVE_FILE, values)

    def validate(self) -> float:
        """Score the averaged weights on the validation part, keep them if they are the best so far."""
        counters = self.counters
        bits = self._score(self.training.validation_seconds)
        counters["validation_bits"] = bits if math.isfinite(bits) else None
        report = self.data.report
        self._record(
            {
                "step": counters["step"],
                "validation_bits": counters["validation_bits"],
                "unigram_bits": report.validation_unigram_bits,
                "uniform_bits": report.uniform_bits,
            }
        )
        self.log(
            f"step {counters['step']}: validation {bits:.3f} bits per sample "
            f"(knowing nothing {report.uniform_bits:.2f}, unigram {report.validation_unigram_bits:.2f})"
        )
        if self.watch.validation(bits, report.validation_unigram_bits) and self.world.once(
            lambda: self._try_save_best(bits)
        ):
            self.watch.new_best(bits)
        return bits

    def _try_save_best(self, bits: float) -> bool:
        progress = {"step": self.counters["step"], "validation_bits": bits}
        try:
            checkpoint.save_best(self.run, self.config, self.averaged.state_dict(), progress)
        except OSError as error:
            self.log(f"warning: the best network could not be saved: {cause(error)}")
            return False
        return True

    def _score(self, seconds: float, stop: Callable[[], bool] = lambda: False) -> float:
        """Return the averaged weights' bits per sample over about so much of the validation part."""
        limit = round(seconds * self.config.sample_rate)
        windows = self.data.validation.windows(self.segment, max_samples=limit)
        windows = itertools.islice(windows, self.world.rank, None, self.world.size)
        windows = itertools.takewhile(lambda window: not stop(), windows)
        return bits_per_sample(self.averaged, windows, self.device, self.training.precision, self.world.sums)

    def _final_score(self, stop: Callable[[], bool]) -> None:
        """Score the finished network on more than the few seconds that steer a run."""
        self.console.status("scoring the finished network")
        bits = self._score(max(FINAL_SECONDS, self.training.validation_seconds), stop)
        if self.world.any(stop()) or not math.isfinite(bits):
            return
        self._record({"step": self.counters["step"], "final_validation_bits": bits})
        self.log(final(bits, self.data.report.validation_unigram_bits))

    def write_sample(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Generate a little audio from the averaged weights into `samples/`, unless asked to stop."""
        step = self.counters["step"]
        try:
            generator = Generator(self.averaged)
            steps = round(self.training.sample_seconds * self.config.sample_rate)
            bias = generator.gate_bias(self.data.first_frames(steps))
            chunks = generator.stream(generator.start(1, self.training.seed, 0, bias), steps, gate_bias=bias)
            chunks = list(itertools.takewhile(lambda chunk: not stop(), chunks))
            if stop():
                return
            audio = generator.decode(torch.cat(chunks, dim=1)[0])
            path = self.run / SAMPLES / f"{checkpoint.step_name(step)}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_wav(path, audio.numpy(), self.config.sample_rate)
        except (OSError, WaveNetError) as error:
            self.log(f"warning: no sample at step {step}: {error}")
            return
        self.log(f"step {step}: wrote {path}")
        if self.board is not None:
            self.board.audio(step, audio, self.config.sample_rate)

    # -- saving and resuming -------------------------------------------------------------------------

    def save(self) -> Path:
        """Write a numbered checkpoint and delete those beyond the number kept."""
        progress = {
            **self.counters,
            "training": self.training.to_json(),
            "source": self.source,
            "data": self.fingerprint,
            "threads": torch.get_num_threads(),
            "processes": self.world.size,
        }
        self.metrics.sync()
        state = resume.state_of(self.model, self.optimizer)
        moment = checkpoint.Checkpoint(self.averaged.state_dict(), state, progress)
        path = checkpoint.save(self.run, self.config, moment)
        checkpoint.prune(self.run, self.training.keep)
        return path

    def _try_save(self) -> bool:
        try:
            self.save()
        except OSError as error:
            self.log(
                f"warning: no checkpoint at step {self.counters['step']}: {cause(error)}; "
                "training goes on, and earlier ones are kept"
            )
            return False
        return True

    def _save_last(self) -> None:
        try:
            self.save()
        except OSError as error:
            left = checkpoint.numbered(self.run)
            go_on = f", then go on from {left[0].name} with --resume" if left else ""
            raise CheckpointError(
                f"{self.run}: the checkpoint of step {self.counters['step']} could not be written "
                f"({cause(error)}); free some space{go_on}"
            ) from None

    def restore(self, path: Path, moment: checkpoint.Checkpoint) -> None:
        """Go back to a checkpoint of this run.

        Raises `CheckpointError` if it does not fit; the run is then unchanged.
        """
        try:
            progress = {**WATCHED, **moment.progress}
            counters = resume.counters_of(path / checkpoint.PROGRESS_FILE, progress, self.counters)
            resume.restore(path, moment, self.model, self.averaged, self.optimizer)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; remove {path} to go on from the one before") from None
        self.counters = counters
        before = moment.progress.get("processes", 1)
        if before != self.world.size:
            self.log(f"{self.world.size} process(es), not {before}: a step takes --batch segments in each")
        if moment.progress.get("data") != self.fingerprint:
            self.log(
                "warning: the audio has changed since this run began: losses will differ, "
                "and the best network is chosen anew"
            )
            self.watch.forget_best()

    # -- the account ---------------------------------------------------------------------------------

    def _record(self, record: dict[str, Any]) -> None:
        if not self.world.leads:
            return
        self.metrics.add(record)
        if self.board is not None:
            self.board.add(record)
