"""The training loop: steps, validation, checkpoints, samples, and the account of it all."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from wavenet import checkpoint, resuming
from wavenet.audio import write_wav
from wavenet.backends import report
from wavenet.config import TrainingConfig, WaveNetConfig
from wavenet.dataset import Prepared
from wavenet.errors import CheckpointError, WaveNetError
from wavenet.evaluation import autocast, bits_per_sample, cross_entropy
from wavenet.files import cause
from wavenet.generation import Generator
from wavenet.model import WaveNet
from wavenet.progress import Console, Meter, duration

LOG_EVERY = 10
"""Steps averaged in one line of `metrics.jsonl`."""

GIVE_UP_AFTER = 100
"""Steps with a non-finite loss or gradient in a row after which a run is beyond rescue."""

FINAL_SECONDS = 600.0
"""Validation audio scored once, when a run has ended."""

METRICS_FILE = "metrics.jsonl"
SAMPLES = "samples"


def learning_rate(training: TrainingConfig, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine (Loshchilov and Hutter 2017)."""
    warm = min(1.0, (step + 1) / max(1, training.warmup_steps))
    progress = min(1.0, step / training.steps)
    floor = training.final_lr_fraction
    return training.lr * warm * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def ema_decay(training: TrainingConfig, updates: int) -> float:
    """Return the averaging decay after so many updates: short at first, so that the start is forgotten."""
    return min(training.ema_decay, (1 + updates) / (10 + updates))


class Trainer:
    """One training run in one directory.

    Parameters
    ----------
    config : WaveNetConfig
    training : TrainingConfig
        With its precision resolved to "fp32" or "bf16".
    data : Prepared
        Training and validation clips.
    run : Path
        Directory the run writes to.
    device : torch.device
    source : dict
        JSON values that say where the data came from; kept in every checkpoint.
    console : Console
        Where the account goes.
    """

    def __init__(
        self,
        config: WaveNetConfig,
        training: TrainingConfig,
        data: Prepared,
        run: Path,
        device: torch.device,
        source: dict[str, Any],
        console: Console,
    ):
        self.config = config
        self.training = training
        self.data = data
        self.run = run
        self.device = device
        self.source = source
        self.console = console
        self.log = console.line
        torch.manual_seed(training.seed)
        self.model = WaveNet(config).to(device)
        self._told = False
        self.averaged = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(self._groups(), lr=training.lr, betas=(0.9, 0.99), foreach=True)
        self.fingerprint = resuming.fingerprint(data)
        self.segment = max(1, round(training.segment * config.sample_rate))
        self.counters: dict[str, Any] = {
            "step": 0,
            "skipped": 0,
            "skipped_in_a_row": 0,
            "best_bits": None,
            "best_step": None,
            "train_bits": None,
            "validation_bits": None,
            "window_bits": 0.0,
            "window_steps": 0,
        }

    def _groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups: matrices decay, biases and embeddings do not."""
        decayed = [p for n, p in self.model.named_parameters() if p.dim() > 1 and "embedding" not in n]
        plain = [p for n, p in self.model.named_parameters() if p.dim() == 1 or "embedding" in n]
        return [
            {"params": decayed, "weight_decay": self.training.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]

    # -- one step ------------------------------------------------------------------------------------

    def step(self) -> tuple[float, float]:
        """Take one optimiser step and return its loss in bits per sample and the gradient's norm.

        A step whose loss or gradient is not finite changes no weight and is counted.
        """
        counters, training = self.counters, self.training
        inputs, targets = self.data.train.batch(counters["step"], training.batch, self.segment, training.seed)
        rate = learning_rate(training, counters["step"])
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, training.precision):
            logits = self.model(inputs.to(self.device, non_blocking=True))
        loss = cross_entropy(logits, targets.to(self.device, non_blocking=True))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), training.clip_norm)
        bits, norm = float(loss.detach()) / math.log(2), float(norm)
        if math.isfinite(bits) and math.isfinite(norm):
            self.optimizer.step()
            counters["skipped_in_a_row"] = 0
            decay = ema_decay(training, counters["step"] - counters["skipped"])
            pairs = zip(self.averaged.parameters(), self.model.parameters(), strict=True)
            for average, parameter in pairs:
                average.lerp_(parameter.detach(), 1 - decay)
            counters["window_bits"] += bits
            counters["window_steps"] += 1
        else:
            self._skip()
        counters["step"] += 1
        return bits, norm

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

    def train(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Train to the last step; return False if `stop` said so before. A checkpoint is written either way.

        Parameters
        ----------
        stop : callable
            Asked after every step, and while a sample is generated or the finished network is scored.

        Raises
        ------
        CheckpointError
            If another process trains into the same directory, or the last checkpoint cannot be written.
        WaveNetError
            If steps are no longer finite.
        """
        with checkpoint.lock(self.run):
            return self._train(stop)

    def _train(self, stop: Callable[[], bool]) -> bool:
        training, counters = self.training, self.counters
        checkpoint.set_aside_beyond(self.run, counters["step"])
        self._trim_metrics()
        meter = Meter()
        saved = counters["step"] if checkpoint.numbered(self.run) else -1
        stepped = False
        while counters["step"] < training.steps and not stop():
            _, norm = self.step()
            done = counters["step"]
            meter.count(training.batch * self.segment)
            if done % LOG_EVERY == 0:
                self._log_window(norm, meter)
            if _due(done, training.validate_every, training.steps) and self.data.validation.samples:
                with meter.paused():
                    self.validate()
            if _due(done, training.sample_every, training.steps):
                with meter.paused():
                    self.write_sample(stop)
            if _due(done, training.checkpoint_every, training.steps):
                with meter.paused():
                    saved = done if self._try_save() else saved
            self.console.status(self._progress(meter))
            stepped = True
        if saved != counters["step"]:
            self._save_last()
        finished = counters["step"] >= training.steps
        if finished and stepped and self.data.validation.samples:
            self._final_score(stop)
        return finished

    def _log_window(self, norm: float, meter: Meter) -> None:
        counters = self.counters
        steps = counters["window_steps"]
        record = {
            "step": counters["step"],
            "train_bits": counters["window_bits"] / steps if steps else None,
            "gradient_norm": norm if math.isfinite(norm) else None,
            "lr": learning_rate(self.training, counters["step"] - 1),
            "skipped": counters["skipped"],
            "samples_per_second": round(meter.rate),
        }
        counters["train_bits"] = record["train_bits"]
        counters["window_bits"], counters["window_steps"] = 0.0, 0
        self._record(record)

    def validate(self) -> float:
        """Score the averaged weights on the validation part, keep them if they are the best so far."""
        counters = self.counters
        bits = self._score(self.training.validation_seconds)
        counters["validation_bits"] = bits if math.isfinite(bits) else None
        self._record({"step": counters["step"], "validation_bits": counters["validation_bits"]})
        report = self.data.report
        self.log(
            f"step {counters['step']}: validation {bits:.3f} bits per sample "
            f"(knowing nothing {report.uniform_bits:.2f}, unigram {report.validation_unigram_bits:.2f})"
        )
        if counters["step"] > 2 * self.training.warmup_steps and bits > report.validation_unigram_bits:
            self.log("warning: the network is no better yet than counting classes; if this stays, lower --lr")
        if not math.isfinite(bits):
            self.log(f"warning: validation gave {bits}; if this stays, lower --lr")
        elif counters["best_bits"] is None or bits < counters["best_bits"]:
            counters["best_bits"], counters["best_step"] = bits, counters["step"]
            progress = {"step": counters["step"], "validation_bits": bits}
            try:
                checkpoint.save_best(self.run, self.config, self.averaged.state_dict(), progress)
            except OSError as error:
                self.log(f"warning: the best network could not be saved: {cause(error)}")
        return bits

    def _score(self, seconds: float, stop: Callable[[], bool] = lambda: False) -> float:
        """Return the averaged weights' bits per sample over about so much of the validation part."""
        limit = round(seconds * self.config.sample_rate)
        windows = self.data.validation.windows(self.segment, max_samples=limit)
        windows = itertools.takewhile(lambda window: not stop(), windows)
        return bits_per_sample(self.averaged, windows, self.device, self.training.precision)

    def _final_score(self, stop: Callable[[], bool]) -> None:
        """Score the finished network on more than the few seconds that steer a run."""
        self.console.status("scoring the finished network")
        bits = self._score(max(FINAL_SECONDS, self.training.validation_seconds), stop)
        if stop() or not math.isfinite(bits):
            return
        unigram = self.data.report.validation_unigram_bits
        side = "below" if bits <= unigram else "above"
        self._record({"step": self.counters["step"], "final_validation_bits": bits})
        self.log(
            f"final: validation {bits:.3f} bits per sample, {abs(unigram - bits):.2f} {side} the unigram "
            f"entropy of {unigram:.2f}"
        )

    def write_sample(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Generate a little audio from the averaged weights into `samples/`, unless asked to stop."""
        steps = round(self.training.sample_seconds * self.config.sample_rate)
        path = self.run / SAMPLES / f"{checkpoint.step_name(self.counters['step'])}.wav"
        try:
            generator = Generator(self.averaged)
            self._tell_of_slowness(generator)
            state = generator.start(seed=self.training.seed)
            chunks = list(itertools.takewhile(lambda chunk: not stop(), generator.stream(state, steps)))
            if stop():
                return
            audio = generator.decode(torch.cat(chunks, dim=1)[0])
            path.parent.mkdir(parents=True, exist_ok=True)
            write_wav(path, audio.numpy(), self.config.sample_rate)
        except (OSError, WaveNetError) as error:
            self.log(f"warning: no sample at step {self.counters['step']}: {error}")
            return
        self.log(f"step {self.counters['step']}: wrote {path}")

    def _tell_of_slowness(self, generator: Generator) -> None:
        if generator.backend.name == "reference" and not self._told:
            self.log(
                f"warning: samples are generated slowly, the fast engine is not there: {report()['cpu']}"
            )
            self._told = True

    # -- saving and resuming -------------------------------------------------------------------------

    def save(self) -> Path:
        """Write a numbered checkpoint and delete those beyond the number kept."""
        progress = {
            **self.counters,
            "training": self.training.to_json(),
            "source": self.source,
            "data": self.fingerprint,
            "threads": torch.get_num_threads(),
        }
        state = resuming.state_of(self.model, self.optimizer)
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
            counters = resuming.counters_of(path / checkpoint.PROGRESS_FILE, moment.progress, self.counters)
            resuming.restore(path, moment, self.model, self.averaged, self.optimizer)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; remove {path} to go on from the one before") from None
        self.counters = counters
        if moment.progress.get("data") != self.fingerprint:
            self.log(
                "warning: the audio has changed since this run began: losses will differ, "
                "and the best network is chosen anew"
            )
            self.counters["best_bits"] = self.counters["best_step"] = None

    # -- the account ---------------------------------------------------------------------------------

    def _record(self, record: dict[str, Any]) -> None:
        try:
            with open(self.run / METRICS_FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            self.log(f"warning: {self.run / METRICS_FILE}: {cause(error)}")

    def _trim_metrics(self) -> None:
        """Drop the lines that a run killed after its last checkpoint has left."""
        path = self.run / METRICS_FILE
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= self.counters["step"]:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        beside = path.with_suffix(".tmp")
        beside.write_text("".join(kept), encoding="utf-8")
        beside.replace(path)

    def _progress(self, meter: Meter) -> str:
        counters, training = self.counters, self.training
        parts = [f"step {counters['step']}/{training.steps}"]
        if counters["train_bits"] is not None:
            parts.append(f"train {counters['train_bits']:.3f} bits")
        if counters["validation_bits"] is not None:
            parts.append(f"validation {counters['validation_bits']:.3f}")
        if counters["skipped"]:
            parts.append(f"{counters['skipped']} non-finite steps skipped")
        parts.append(f"{meter.rate:,.0f} samples/s")
        left = (training.steps - counters["step"]) * training.batch * self.segment / max(meter.rate, 1e-9)
        parts.append(f"{duration(left)} left")
        return "  ".join(parts)


def _due(step: int, every: int, last: int) -> bool:
    return every > 0 and (step % every == 0 or step == last)
