"""Speak mel frames while they arrive, as a text-to-speech system would hand them over.

The network must have been trained with --features mel. The frames come from a recording here; in a system of
your own, replace `arriving` by whatever yields float32 arrays of shape (n_mels, frames).
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch

import wavenet
from wavenet.audio.decoding import load_audio
from wavenet.audio.mel import log_mel
from wavenet.audio.wav import write_wav
from wavenet.conditioning.supplied import SuppliedFrames


def arriving(recording: str, config: wavenet.WaveNetConfig, frames: int) -> Iterator[np.ndarray]:
    """Yield the mel frames of a recording, a few at a time: stands for an acoustic model."""
    told = config.conditioning
    assert told is not None
    audio = load_audio(recording, config.sample_rate)
    mel = log_mel(audio, config.sample_rate, told.n_fft, told.hop, told.n_mels, told.fmin, told.fmax)
    for first in range(0, mel.shape[1], frames):
        yield mel[:, first : first + frames]


def speak(generator: wavenet.Generator, pieces: Iterator[np.ndarray], seed: int) -> Iterator[np.ndarray]:
    """Yield audio, float32 (samples,), as soon as the frames that it needs have come."""
    first = torch.from_numpy(next(pieces))
    given = SuppliedFrames(generator.config, first, closed=False)
    steering = generator.steering(given)
    state, made = None, 0
    # That no frame follows the last one is only known when none has come; nothing is then waited for.
    for piece in itertools.chain([first[:, :0]], map(torch.from_numpy, pieces), [None]):
        given.append(first[:, :0] if piece is None else piece, last=piece is None)
        if given.ready > made:
            state = state or generator.start(seed=seed, gate_bias=steering)
            samples = generator.generate(given.ready - made, state, gate_bias=steering)
            made = given.ready
            yield generator.decode(samples)[0].numpy()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="a network trained with --features mel")
    parser.add_argument("recording", help="whose spectra are spoken")
    parser.add_argument("out", help="WAV file to write")
    parser.add_argument("--frames", type=int, default=20, help="that arrive at once (default: 20)")
    options = parser.parse_args(arguments)
    generator = wavenet.Generator.from_pretrained(options.checkpoint)
    config = generator.config
    chunks, start = [], time.perf_counter()
    for chunk in speak(generator, arriving(options.recording, config, options.frames), seed=0):
        if not chunks:
            print(f"first sound after {1000 * (time.perf_counter() - start):.0f} ms", file=sys.stderr)
        chunks.append(chunk)
    audio = np.concatenate(chunks)
    seconds = time.perf_counter() - start
    write_wav(options.out, audio, config.sample_rate)
    length = len(audio) / config.sample_rate
    print(f"{options.out}  {length:.2f} s in {seconds:.2f} s, {len(chunks)} pieces", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
