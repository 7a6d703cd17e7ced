"""Measure resynthesis from mel spectra: copying.py --checkpoint RUN --audio-dir DIR [--without RUN]

Renders the recordings that training held out from their own mel frames, and as controls from another
recording's frames and without conditioning. Two figures:

- distance: root mean square difference of the log-mel spectra of take and recording, over frames and bands in
  dB, down to 60 dB below the recording's loudest band. This spectrum differs from the one the network is
  conditioned on: windows of 2,048 samples every 512, 64 bands.
- bits per sample of the recordings with their frames, without conditioning, and by another network that was
  trained without conditioning (`--without`), on the same samples.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from playing import add_sampling, held_out, play

N_FFT, HOP, BANDS = 2048, 512, 64
RANGE_DB = 60.0


def spectrum(audio: np.ndarray, rate: int) -> np.ndarray:
    """Return the log mel spectrum in dB, (BANDS, frames)."""
    from wavenet.audio.mel import log_mel, unscaled

    mel = log_mel(audio, rate, N_FFT, HOP, BANDS, 30.0, rate / 2)
    return unscaled(mel) * (20 / np.log(10))


def distance(audio: np.ndarray, take: np.ndarray, rate: int) -> float:
    """Return how far a take's spectrum is from a recording's of the same length, in dB."""
    true, found = spectrum(audio, rate), spectrum(take, rate)
    least = true.max() - RANGE_DB
    return float(np.sqrt(np.mean((np.maximum(true, least) - np.maximum(found, least)) ** 2)))


class Unconditional:
    """Scores with a network without its conditioning."""

    def __init__(self, scorer: Any):
        self.scorer = scorer

    def nats(self, inputs: Any, targets: Any, frames: Any = None) -> np.ndarray:
        """Return the cost of each target; see `wavenet.evaluation.scoring.Scorer`."""
        return self.scorer.nats(inputs, targets)


def bits(directory: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return bits per sample on the held-out recordings."""
    from wavenet.conditioning.segments import Conditions
    from wavenet.data.dataset import DataConfig, prepare
    from wavenet.data.labels import attach_conditions
    from wavenet.evaluation.scoring import Parallel, evaluate
    from wavenet.models import locate
    from wavenet.models.wavenet import WaveNet
    from wavenet.training.checkpoint import read_record
    from wavenet.utils.files import user_cache

    model = WaveNet.from_pretrained(directory)
    record = read_record(directory)
    assert record is not None
    settings = DataConfig(record.training.silence_db, record.training.validation_fraction)
    config = model.config
    data = prepare(
        options.audio_dir,
        options.cache_dir or user_cache(),
        config.audio_format,
        config.receptive_field,
        config.quantization_channels,
        settings,
    )
    attach_conditions(data, Conditions(model.config))
    scorers: dict[str, Any] = {
        "own spectrum": Parallel(model, rows=4),
        "no conditioning": Unconditional(Parallel(model, rows=4)),
    }
    if options.without is not None:
        other = WaveNet.from_pretrained(locate.find(options.without))
        if other.config.receptive_field != model.config.receptive_field:
            raise SystemExit(f"{options.without}: has another receptive field; train one of the same shape")
        scorers["another network"] = Unconditional(Parallel(other, rows=4))
    rate = model.config.sample_rate
    found = evaluate(data.validation, scorers, rate // 2, round(options.scored_seconds * rate))
    return {name: found.bits(name) for name in scorers}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    parser.add_argument("--audio-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--without", type=Path, metavar="DIR", help="a network trained without features")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="prepared audio (default: the usual)")
    parser.add_argument(
        "--scored-seconds",
        type=float,
        default=60.0,
        metavar="X",
        help="seconds scored in bits per sample (default: 60)",
    )
    add_sampling(parser)
    options = parser.parse_args(arguments)

    from wavenet.conditioning.mel import MelSource
    from wavenet.generation.generator import Generator
    from wavenet.models import locate

    directory = locate.find(options.checkpoint)
    generator = Generator.from_pretrained(directory)
    rate = generator.config.sample_rate
    steps = round(options.seconds * rate)
    recordings = {name: audio[:steps] for name, audio in held_out(directory, options.audio_dir).items()}
    names = list(recordings)
    results: dict[str, dict[str, float]] = {}
    for index, name in enumerate(names):
        audio, other = recordings[name], recordings[names[index - 1]]
        unconditional = argparse.Namespace(**{**vars(options), "guidance": 0.0})
        source = MelSource(generator.config, audio)
        takes = {
            "own spectrum": play(generator, source, len(audio), options),
            "another spectrum": play(generator, MelSource(generator.config, other), len(audio), options),
            "no conditioning": play(generator, source, len(audio), unconditional),
        }
        results[name] = {kind: distance(audio, take, rate) for kind, take in takes.items()}
        print(
            f"{name[:34]:36}"
            + "".join(f"{kind} {value:6.2f} dB   " for kind, value in results[name].items()),
            flush=True,
        )
    means = {kind: float(np.mean([each[kind] for each in results.values()])) for kind in results[names[0]]}
    print(f"{'distance, mean':36}" + "".join(f"{kind} {value:6.2f} dB   " for kind, value in means.items()))
    scored = bits(directory, options)
    print(f"{'bits per sample':36}" + "".join(f"{kind} {value:.4f}   " for kind, value in scored.items()))
    if options.json is not None:
        values = {**vars(options), "pieces": results, "distance_db": means, "bits_per_sample": scored}
        options.json.write_text(json.dumps(values, indent=1, default=str) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
