"""Measure how well a network plays scores: playing.py --checkpoint RUN --audio-dir DIR --midi-dir DIR

Renders the scores of the recordings that training held out and, as a control, the same scores with shuffled
pitches. `transcription.check` compares both takes with the true score. Takes of the true score should come
near the recording's figures, those of the shuffled score near chance.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transcription

SHOWN = ("own", "pitch", "onset", "rise_db")


def held_out(checkpoint: Path, audio_dir: Path) -> dict[str, np.ndarray]:
    """Return the recordings that a checkpoint's training held out, by name."""
    from wavenet.audio.decoding import load_audio
    from wavenet.data.dataset import held_out
    from wavenet.data.discovery import find_audio
    from wavenet.models.serialization import read_config
    from wavenet.training.checkpoint import read_record

    record = read_record(checkpoint)
    if record is None:
        raise SystemExit(
            f"{checkpoint}: has no record of the held-out recordings; choose a checkpoint of a training run"
        )
    config = read_config(checkpoint)
    fraction = record.training.validation_fraction
    names = [name for name in find_audio(audio_dir).names if held_out(name, fraction)]
    return {name: load_audio(audio_dir / name, config.sample_rate, config.normalization) for name in names}


def play(generator: Any, source: Any, steps: int, options: argparse.Namespace) -> np.ndarray:
    """Return the beginning of a take that follows a frame source, float32 (steps,)."""
    from wavenet import Sampling

    gate_bias = generator.gate_bias_provider(source, guidance=options.guidance)
    with torch.inference_mode():
        sampling = Sampling(temperature=options.temperature)
        state = generator.start(seed=options.seed, gate_bias=gate_bias, sampling=sampling)
        samples = generator.generate(steps, state, gate_bias=gate_bias)
    return generator.decode(samples[0]).numpy()


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add the sampling flags."""
    parser.add_argument(
        "--seconds", type=float, default=30.0, metavar="X", help="seconds of each piece (default: 30)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the takes (default: 0)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="X", help="(default: 1)")
    parser.add_argument("--guidance", type=float, default=1.0, metavar="X", help="(default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    parser.add_argument("--audio-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--midi-dir", type=Path, required=True, metavar="DIR")
    add_sampling(parser)
    options = parser.parse_args(arguments)

    from wavenet.conditioning.score import ScoreSource
    from wavenet.generation.generator import Generator
    from wavenet.models import locate
    from wavenet.music.midi_file import read_midi

    directory = locate.find(options.checkpoint)
    generator = Generator.from_pretrained(directory)
    rate, results = generator.config.sample_rate, {}
    print(
        f"{directory}  {generator.backend.name}  temperature {options.temperature:g}  seed {options.seed}  "
        f"guidance {options.guidance:g}"
    )
    print(f"{'':44}" + "".join(f"{name:>10}" for name in SHOWN))
    for name, audio in held_out(directory, options.audio_dir).items():
        score = read_midi((options.midi_dir / name).with_suffix(".mid"))
        audio = audio[: round(options.seconds * rate)]
        scores = {"true score": score, "shuffled score": score.shuffled(0)}
        takes = {"recording": audio}
        for kind, each in scores.items():
            takes[kind] = play(generator, ScoreSource(generator.config, each), len(audio), options)
        checked = {kind: transcription.check(take, rate, score) for kind, take in takes.items()}
        results[name] = checked
        for kind, figures in checked.items():
            cells = "".join(f"{figures[each]:10.3f}" for each in SHOWN)
            print(f"{name[:26]:28}{kind:16}{cells}", flush=True)
    means = {
        kind: {each: float(np.mean([found[kind][each] for found in results.values()])) for each in SHOWN}
        for kind in ("recording", "true score", "shuffled score")
    }
    for kind, figures in means.items():
        print(f"{'mean':28}{kind:16}" + "".join(f"{figures[each]:10.3f}" for each in SHOWN))
    if options.json is not None:
        values = {**vars(options), "checkpoint": str(directory), "pieces": results, "mean": means}
        options.json.write_text(json.dumps(values, indent=1, default=str) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
