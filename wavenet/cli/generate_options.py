"""The flags of `wavenet-generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wavenet.cli.common import Parser


def _backends() -> list[str]:
    from wavenet.engine import registry

    return registry.describe()


class _Parser(Parser):
    """A parser that asks for a place to put the audio, which may be a file and a player."""

    def parse_args(self, *given: Any, **more: Any) -> Any:
        """Parse, and exit with a usage error where no place is named."""
        options = super().parse_args(*given, **more)
        if options.output is None and options.out_dir is None and not options.play:
            self.error("one of the arguments OUT --out-dir --play is required")
        return options


def build_parser(program: str) -> Parser:
    """Return the parser of the command, under its name."""
    parser = _Parser(
        details=_backends,
        prog=program,
        description="Generate audio from a trained network, sample by sample.",
        epilog="example: wavenet-generate --seconds 0 - | ffplay -nodisp -i -",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "output", metavar="OUT", nargs="?", help="WAV file to write, or - to stream to standard output"
    )
    place.add_argument(
        "--out-dir",
        type=Path,
        metavar="DIR",
        help="instead of OUT: folder for many takes, 0000.wav, 0001.wav, ... (made if missing); each process "
        "of a torchrun makes its share",
    )
    parser.add_argument(
        "--play",
        action="store_true",
        help="play it while it is made, besides writing OUT or instead (extra [play])",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="a checkpoint, or a training run (default: the newest under ./checkpoints, or else piano, which "
        "comes with wavenet)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="X",
        help="length; 0 with - or --play: until interrupted (default: 4, or that of what is to be played)",
    )
    parser.add_argument(
        "--prime", type=Path, metavar="FILE", help="recording to go on from (it is not repeated)"
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        metavar="N",
        help="takes to make: OUT-0.wav, OUT-1.wav, ... (default: 1)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="X",
        help="below 1 tamer, 0 always the likeliest (default: 1)",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        default=0,
        metavar="N",
        help="draw from the N likeliest classes (default: 0, all)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="X",
        help="draw from the likeliest that hold X (default: 1, all)",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="same seed, same audio (default: a new one, shown)"
    )
    parser.add_argument("--device", default="cpu", help="where to generate (default: cpu)")
    parser.add_argument(
        "--backend", default="auto", help="auto, cpu, cuda, numba or reference (default: auto)"
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        metavar="P",
        help="of the weights: fp32, or faster and a little less accurate bf16, int8, on a GPU fp16 "
        "(default: fp32)",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads to spread takes over (default: all cores)"
    )
    parser.add_argument(
        "--format",
        choices=("wav", "raw"),
        default="wav",
        help="WAV, or 16-bit little-endian samples (default: wav)",
    )
    parser.add_argument(
        "--keep-silence", action="store_true", help="do not skip the silence before a take's first sound"
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that exist")
    _add_told(parser)
    _add_care(parser)
    _add_views(parser)
    return parser


def _add_care(parser: Parser) -> None:
    """Add the flags that choose, mend and continue takes."""
    group = parser.add_argument_group("choosing, mending and going on")
    group.add_argument(
        "--best-of",
        type=int,
        metavar="N",
        help="make N streams for each take and keep the one whose bits per sample come nearest to those of "
        "the recordings that training held out; where the network is told what to play, goes on from "
        "something or knows no such figure, nearest to the median of the N. What has gone wrong comes last",
    )
    group.add_argument(
        "--no-watchdog",
        action="store_true",
        help="let be what goes wrong. By default a stream that is silent for 2 s (below -60 dB), noise for "
        "1 s or an unchanging tone for 3 s goes back to before that and on with other random numbers, up to "
        "4 times. 4 s are held back for this; to a pipe or player they are saved up, a quarter of what is "
        "made, so that it starts at once",
    )
    group.add_argument(
        "--save-state", type=Path, metavar="FILE", help="write where the takes end, to be gone on with later"
    )
    group.add_argument(
        "--from-state",
        type=Path,
        metavar="FILE",
        help="go on where --save-state was written, with its seed: with the same flags the take is what it "
        "would have been in one. Another --seed goes on differently, --batch branches",
    )


def _add_views(parser: Parser) -> None:
    """Add the flags that show what was made."""
    group = parser.add_argument_group("seeing what was made")
    group.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw waveform, spectrogram and entropy of each take, .png, .pdf or .svg (extra [plot])",
    )
    group.add_argument(
        "--entropy",
        action="store_true",
        help="tell how sure the network was of each sample: the entropy of its predictions in bits, before "
        "temperature, top-k and top-p. It is found by a second pass, which takes about as long as the first",
    )
    group.add_argument(
        "--json", type=Path, metavar="FILE", help="write what is known of the takes, with --entropy that too"
    )


def _add_told(parser: Parser) -> None:
    """Add the flags that tell a network what to play."""
    group = parser.add_argument_group("what to play, with a network trained for it")
    group.add_argument(
        "--class",
        dest="classes",
        metavar="NAME",
        help="whose sound: a class, a mixture as piano:0.7,cello:0.3, or a way as '0:piano 2:cello'",
    )
    group.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        metavar="X",
        help="how much it counts: above 1 it is followed more closely, at the cost of variety; 0 is as told "
        "nothing (default: 1, as trained)",
    )
    group.add_argument("--midi", type=Path, metavar="FILE", help="the score to play; it sets the length")
    group.add_argument(
        "--mel-from",
        type=Path,
        metavar="FILE",
        help="recording whose mel spectrum to play; it sets the length",
    )
    group.add_argument(
        "--features", type=Path, metavar="FILE", help=".npy file of frames (channels, frames) to play"
    )
