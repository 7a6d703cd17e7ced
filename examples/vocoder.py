"""Generate audio from mel frames while they arrive, as from a text-to-speech system.

The network must have been trained with --features mel. Here the frames are computed from a recording; in your
own system, replace `mel_pieces` by a generator of float32 arrays of shape (n_mels, frames).
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


def mel_pieces(recording: str, config: wavenet.WaveNetConfig, frames: int) -> Iterator[np.ndarray]:
    """Yield the mel frames of a recording, a few at a time, in place of an acoustic model."""
    conditioning = config.conditioning
    assert conditioning is not None
    audio = load_audio(recording, config.sample_rate)
    c = conditioning
    mel = log_mel(audio, config.sample_rate, c.n_fft, c.hop, c.n_mels, c.fmin, c.fmax)
    for first in range(0, mel.shape[1], frames):
        yield mel[:, first : first + frames]


def vocode(generator: wavenet.Generator, pieces: Iterator[np.ndarray], seed: int) -> Iterator[np.ndarray]:
    """Yield audio, float32 (samples,), as soon as the frames that it needs have arrived."""
    first = torch.from_numpy(next(pieces))
    frames = SuppliedFrames(generator.config, first, closed=False)
    gate_bias = generator.gate_bias_provider(frames)
    state, generated = None, 0
    # The end is known only when no further piece arrives; the last samples are generated then.
    for piece in itertools.chain([first[:, :0]], map(torch.from_numpy, pieces), [None]):
        frames.append(first[:, :0] if piece is None else piece, last=piece is None)
        if frames.ready > generated:
            state = state or generator.start(seed=seed, gate_bias=gate_bias)
            samples = generator.generate(frames.ready - generated, state, gate_bias=gate_bias)
            generated = frames.ready
            yield generator.decode(samples)[0].numpy()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="a network trained with --features mel")
    parser.add_argument("recording", help="recording whose spectra are resynthesised")
    parser.add_argument("out", help="WAV file to write")
    parser.add_argument("--frames", type=int, default=20, help="frames that arrive at once (default: 20)")
    options = parser.parse_args(arguments)
    generator = wavenet.Generator.from_pretrained(options.checkpoint)
    config = generator.config
    chunks, start = [], time.perf_counter()
    for chunk in vocode(generator, mel_pieces(options.recording, config, options.frames), seed=0):
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
