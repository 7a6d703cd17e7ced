"""`wavenet-evaluate`: how many bits per sample a network needs for a folder of recordings."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from wavenet.cli import interrupted

# Everything else is loaded inside `main`, where an interrupt is one line.
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from wavenet.cli.common import Parser

PROGRAM = "wavenet-evaluate"
BASELINE = "linear prediction"
PARALLEL = "parallel"
EXACT = "fp32"

WINDOW_SECONDS = 1.0
"""Length of the windows that are scored; the linear prediction is fitted to each of them."""

MAX_SECONDS = 1e9


def build_parser() -> Parser:
    """Return the parser of `wavenet-evaluate`."""
    from pathlib import Path

    from wavenet.cli.common import Parser, add_recordings

    parser = Parser(
        prog=PROGRAM,
        description="Score a network on recordings, in bits per sample, beside what one needs who knows\n"
        "nothing (uniform), how often each class occurs (unigram), or linear prediction of order 32.",
        epilog="The price of fewer bits in the weights: wavenet-evaluate --audio-dir DIR "
        "--precision fp32 bf16 int8",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="a checkpoint, or a training run (default: the newest under ./checkpoints)",
    )
    add_recordings(parser, "those of training, if --audio-dir is what it was given", "as for --val-dir")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="prepared audio; without --audio-dir it is all that is needed (default: ~/.cache/wavenet)",
    )
    parser.add_argument(
        "--midi-dir", type=Path, metavar="DIR", help="scores of the recordings (default: those of training)"
    )
    parser.add_argument(
        "--part",
        choices=("validation", "train", "all"),
        help="part to score, with the split of training (default: validation; all if the checkpoint does not "
        "record the split)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="X",
        help="approximate amount of audio, evenly spread (default: everything)",
    )
    parser.add_argument(
        "--backend",
        metavar="NAME",
        help="parallel: all samples at once; auto or an engine's name: sample by sample, as in generation "
        "(default: parallel, for other precisions than fp32 auto)",
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        default=[EXACT],
        metavar="P",
        help="of the weights: fp32, bf16, int8; several are compared on the same samples (default: fp32)",
    )
    parser.add_argument(
        "--device", default="cpu", help="of the parallel form: auto, cpu or cuda (default: cpu)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (default: all cores)")
    parser.add_argument(
        "--json", metavar="FILE", help="write everything as JSON; - prints it in place of the table"
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw the scores as bars beside the baselines, .png, .pdf or .svg (extra [plot])",
    )
    parser.add_argument("--force", action="store_true", help="overwrite a file that exists")
    return parser


def check(options: Namespace) -> None:
    """Check what can be checked before anything is loaded."""
    import math

    from wavenet.errors import ConfigError

    seconds = options.seconds
    if seconds is not None and not (math.isfinite(seconds) and 0 < seconds <= MAX_SECONDS):
        raise ConfigError(f"--seconds {seconds:g}: must be more than 0 and at most {MAX_SECONDS:g}")
    if options.threads is not None and not 1 <= options.threads <= 1024:
        raise ConfigError(f"--threads {options.threads}: must be from 1 to 1024")
    if options.audio_dir is None and options.cache_dir is None:
        raise ConfigError(
            "name the folder of recordings with --audio-dir DIR (or prepared audio: --cache-dir)"
        )
    if options.val_dir is not None and options.audio_dir is None:
        raise ConfigError(
            f"--val-dir {options.val_dir}: goes with --audio-dir; to score it alone: "
            f"--audio-dir {options.val_dir} --part all"
        )
    options.precision = list(dict.fromkeys(options.precision))
    if options.backend is None:
        options.backend = PARALLEL if options.precision == [EXACT] else "auto"
    if options.backend == PARALLEL and options.precision != [EXACT]:
        wrong = next(each for each in options.precision if each != EXACT)
        raise ConfigError(
            f"--precision {wrong}: the parallel form is scored in fp32 only; use --backend auto (sample loop)"
        )
    if options.backend != PARALLEL and options.device != "cpu":
        raise ConfigError(
            f"--device {options.device}: the sample loop is scored on the cpu only; "
            "use --backend parallel with --precision fp32"
        )
    _check_output(options)


def _check_output(options: Namespace) -> None:
    from pathlib import Path

    from wavenet.cli.generate_options import check_file
    from wavenet.errors import ConfigError
    from wavenet.utils.figures import new_figure

    if sys.stdout is None and options.json in (None, "-"):
        raise ConfigError("standard output is closed: open it, or name a file with --json")
    if options.json not in (None, "-"):
        check_file("--json", Path(options.json), options.force)
    if options.plot is not None:
        check_file("--plot", options.plot, options.force)
        new_figure(options.plot, (1, 1))


def work(options: Namespace) -> int:
    """Carry out parsed options; return the exit code."""
    check(options)

    import torch

    from wavenet.cli.signals import signal_handler
    from wavenet.errors import AudioError
    from wavenet.evaluation.plots import draw_scores
    from wavenet.evaluation.scoring import evaluate
    from wavenet.models import locate
    from wavenet.models.wavenet import WaveNet
    from wavenet.training.checkpoint import read_record
    from wavenet.utils.console import Console
    from wavenet.utils.files import printable

    signal_handler.check()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    console = Console()
    directory = locate.find(options.checkpoint or locate.RUN)
    record = read_record(directory)
    model = WaveNet.from_pretrained(directory)
    console.line(f"checkpoint {locate.display_name(directory)}  {model.parameter_count:,} parameters")
    scorers, facts = _scorers(model, options, console)
    signal_handler.check()
    part, data = _data(model, options, record, console)
    clips = {"validation": data.validation, "train": data.train, "all": data.whole}[part]
    if not clips.samples:
        raise AudioError(f"--part {part}: holds no sound; choose another part, or add recordings")
    rate = model.config.sample_rate
    limit = None if options.seconds is None else max(1, round(options.seconds * rate))
    amount = f"{clips.samples / rate:.1f} s of {len(clips.names)} recording(s)"
    console.line(f"scoring  {part}: {'' if limit is None else f'{options.seconds:g} s out of '}{amount}")
    found = evaluate(
        clips, scorers, _segment(model), limit, lambda done, total: console.status(f"window {done}/{total}")
    )
    console.clear()
    signal_handler.check()
    networks = [name for name in scorers if name != BASELINE]
    reference = next((name for name in networks if name.endswith(EXACT)), networks[0])
    values = {
        "checkpoint": printable(directory),
        "step": None if record is None else record.progress.step,
        "audio_dir": printable(data.report.audio_dir),
        "part": part,
        "split": data.report.split,
        "sample_rate": rate,
        "quantization_channels": model.config.quantization_channels,
        "seconds": found.total / rate,
        "seconds_available": clips.samples / rate,
        "window_seconds": WINDOW_SECONDS,
        **found.as_dict(facts, BASELINE, reference),
    }
    if options.plot is not None:
        draw_scores(options.plot, found.bars(networks, BASELINE))
    _write(options, values, found.table(networks, BASELINE, reference, rate))
    return 0


def _segment(model: Any) -> int:
    # Of a shorter window most of the work would be its context.
    return max(round(WINDOW_SECONDS * model.config.sample_rate), model.config.receptive_field)


def _scorers(model: Any, options: Namespace, console: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the scorers by name, and for those of the network what is to be said of each."""
    from wavenet.cli.common import device_named
    from wavenet.evaluation.linear_prediction import LinearPrediction
    from wavenet.evaluation.scoring import Loop, Parallel, rows_per_pass
    from wavenet.generation.generator import Generator

    scorers: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for precision in options.precision:
        if options.backend == PARALLEL:
            device = device_named(options.device)
            rows = rows_per_pass(model.config, _segment(model))
            scorer = Parallel(model.to(device), device, precision, rows)
            backend = PARALLEL
        else:
            generator = Generator(model, options.backend, "cpu", options.threads, precision)
            device, scorer, backend = generator.backend.device, Loop(generator), generator.backend.name
            if generator.fallback_reason:
                console.line(generator.fallback_reason)
        name = f"{backend} {precision}"
        scorers[name] = scorer
        facts[name] = {"backend": backend, "precision": precision, "device": str(device)}
    return {**scorers, BASELINE: LinearPrediction(model.config.quantization_channels)}, facts


def _sources(options: Namespace, trained: dict[str, Any]) -> dict[str, Any]:
    """Return which recordings are meant; of the folders that it was trained on, those that it was."""
    folders = options.audio_dir
    noted = trained.get("audio_dir") or []
    noted = [noted] if isinstance(noted, str) else noted
    own = trained if folders and [str(each.resolve()) for each in folders] == noted else {}
    return {
        "audio_dir": folders[0] if folders and len(folders) == 1 else folders,
        "val_dir": options.val_dir or own.get("val_dir"),
        "patterns": options.exclude or own.get("exclude") or (),
    }


def _data(model: Any, options: Namespace, record: Any, console: Any) -> tuple[str, Any]:
    """Return the part to score and the prepared data, divided and cleaned as for training."""
    from pathlib import Path

    from wavenet.conditioning.segments import Conditions
    from wavenet.data.dataset import DataConfig, prepare
    from wavenet.data.labels import attach_conditions
    from wavenet.data.report import reason_lines
    from wavenet.training.resume import fingerprint
    from wavenet.utils.files import printable, user_cache

    settings, part = DataConfig(), options.part or "validation"
    if record is not None:
        settings = DataConfig(record.training.silence_db, record.training.validation_fraction)
    elif options.part is None:
        part = "all"
        console.line("the checkpoint does not record the split of its recordings: scoring all of them")
    elif part != "all":
        console.line(
            f"warning: the checkpoint does not record the split of its recordings: its {part} part may differ"
        )
    trained = {} if record is None else record.source
    data = prepare(
        audio_format=model.config.audio_format,
        receptive_field=model.config.receptive_field,
        quantization_channels=model.config.quantization_channels,
        data=settings,
        progress=lambda done, total, name: console.status(f"preparing {done}/{total}: {name}"),
        cache_dir=options.cache_dir or user_cache(),
        **_sources(options, trained),
    )
    console.clear()
    if model.config.conditioning is not None:
        scores = options.midi_dir or (Path(trained["midi_dir"]) if trained.get("midi_dir") else None)
        attach_conditions(data, Conditions(model.config), scores)
    report = data.report
    console.line(f"data  {printable(report.audio_dir)}: {report.used} of {report.found} recordings used")
    for text in reason_lines(report.skipped):
        console.line(f"warning: skipped {text}")
    if record is not None and part != "all" and record.data != fingerprint(data):
        console.line(
            "warning: this is not the audio, or not all of it, that the network was trained on: "
            f"the {part} part may differ from that of training"
        )
    return part, data


def _write(options: Namespace, values: dict[str, Any], table: str) -> None:
    import json

    from wavenet.cli import generate_output
    from wavenet.utils.files import atomic_output

    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    if options.json not in (None, "-"):
        with atomic_output(options.json) as stream:
            stream.write(text.encode())
    output = text if options.json == "-" else f"{table}\n"
    if sys.stdout is not None and not hasattr(sys.stdout, "buffer"):
        # In a notebook standard output accepts text only.
        sys.stdout.write(output)
    elif sys.stdout is not None:
        with generate_output.standard_output() as stream:
            stream.write(output.encode("utf-8"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `wavenet-evaluate`; return the exit code."""
    try:
        from wavenet.cli.common import run
        from wavenet.cli.signals import ENDING

        return run(build_parser(), work, arguments, ENDING)
    except KeyboardInterrupt:
        return interrupted(PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
