"""Public-domain tunes in a text notation, and its parser.

Notation
--------
A voice is a line of tokens separated by blanks. ``|`` ends a bar, and every bar of a tune must fill exactly
``beats_per_bar`` beats (an upbeat is written as a bar that opens with a rest).

=============  ======================================================================================
``c5:1``       C in octave 5 for one beat; scientific pitch, ``a4`` is 440 Hz
``f#4 bb3``    sharp and flat
``d5:.5 e5``   a length applies until the next one: both notes last half a beat
``c3+e3+g3``   a chord
``r:2``        a rest of two beats
=============  ======================================================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_TOKEN = re.compile(r"(?P<names>[a-gr][^:\s]*)(?::(?P<beats>\d*\.?\d+))?")
_NAME = re.compile(r"([a-g])([#b]?)(\d)")
_SEMITONE = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}


@dataclass(frozen=True)
class Note:
    """One note of a score: start and length in beats, pitch as a MIDI number (69 is 440 Hz)."""

    start: Fraction
    beats: Fraction
    pitch: int


@dataclass(frozen=True)
class Voice:
    """A line of the notation, its level (1: melody), shift in semitones, and ring after a note in seconds."""

    text: str
    level: float = 1.0
    shift: int = 0
    ring: float = 0.1


@dataclass(frozen=True)
class Tune:
    """A tune: the stem of its file, its origin, its voices, and the passes in which it is played.

    A pass is (semitones up, tempo factor); ``tempo`` is in beats per minute.
    """

    stem: str
    title: str
    origin: str
    beats_per_bar: int
    tempo: float
    voices: tuple[Voice, ...]
    passes: tuple[tuple[int, float], ...] = ((0, 1.0),)


def pitch_number(name: str) -> int:
    """Return the MIDI number of a note name such as ``f#4``; raise ValueError for others."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not a note: write a letter a to g, # or b, and an octave, as in f#4")
    letter, accidental, octave = match.groups()
    return 12 * (int(octave) + 1) + _SEMITONE[letter] + {"": 0, "#": 1, "b": -1}[accidental]


def parse(text: str, beats_per_bar: int) -> tuple[list[Note], Fraction]:
    """Return the notes of one voice and its length in beats; a ValueError names an incomplete bar."""
    notes: list[Note] = []
    beats = Fraction(1)
    now = Fraction(0)
    for bar, line in enumerate(text.split("|")):
        for token in line.split():
            match = _TOKEN.fullmatch(token)
            if match is None:
                raise ValueError(f"bar {bar + 1}: cannot read {token!r}")
            beats = Fraction(match["beats"]) if match["beats"] else beats
            if match["names"] != "r":
                notes += [Note(now, beats, pitch_number(name)) for name in match["names"].split("+")]
            now += beats
        if now != (bar + 1) * beats_per_bar:
            filled = now - bar * beats_per_bar
            raise ValueError(f"bar {bar + 1} has {float(filled):g} beats instead of {beats_per_bar}")
    return notes, now


def _bars(*bars: str) -> str:
    return " | ".join(bars)


def _prelude(chords: str) -> str:
    """Return Bach's figure: five notes as n1 n2 n3 n4 n5 n3 n4 n5, twice in a bar."""
    figures = []
    for chord in chords.split("|"):
        n1, n2, n3, n4, n5 = chord.split()
        figures.append(" ".join([f"{n1}:.25", n2, n3, n4, n5, n3, n4, n5] * 2))
    return _bars(*figures)


_TWINKLE_A = "c5:1 c5 g5 g5 | a5 a5 g5:2 | f5:1 f5 e5 e5 | d5 d5 c5:2"
_TWINKLE_A_BASS = """c3:.5 g3 e3 g3 c3 g3 e3 g3 | c3 a3 f3 a3 c3 g3 e3 g3 | b2 g3 d3 g3 c3 g3 e3 g3
    | b2 g3 d3 g3 c3 g3 e3:1"""
_TWINKLE_B = "g5:1 g5 f5 f5 | e5 e5 d5:2 | g5:1 g5 f5 f5 | e5 e5 d5:2"
_TWINKLE_B_BASS = _bars(*["c3:.5 g3 e3 g3 b2 g3 d3 g3", "c3:.5 g3 e3 g3 b2 g3 d3:1"] * 2)

_ODE = "f#4:1 f#4 g4 a4 | a4 g4 f#4 e4 | d4 d4 e4 f#4"
_ODE_HALF = f"{_ODE} | f#4:1.5 e4:.5 e4:2"
_ODE_FULL = f"{_ODE} | e4:1.5 d4:.5 d4:2"
_ODE_BASS = "d3:1 f#3+a3 a2 f#3+a3 | d3 e3+g3 a2 e3+g3 | d3 f#3+a3 a2 f#3+a3"
_ODE_HALF_BASS = f"{_ODE_BASS} | d3 f#3+a3 a2 e3+g3"
_ODE_FULL_BASS = f"{_ODE_BASS} | a2 e3+g3 d3 f#3+a3"

_JACQUES = _bars(
    *["c4:1 d4 e4 c4"] * 2, *["e4:1 f4 g4:2"] * 2, *["g4:.5 a4 g4 f4 e4:1 c4"] * 2, *["c4:1 g3 c4:2"] * 2
)

_GREEN_VERSE = "c5:2 d5:1 e5:1.5 f#5:.5 e5:1 | d5:2 b4:1 g4:1.5 a4:.5 b4:1"
_GREEN_CHORUS = "g5:3 g5:1.5 f#5:.5 e5:1 | d5:2 b4:1 g4:1.5 a4:.5 b4:1"
_GREEN_HALF = "c5:2 a4:1 a4:1.5 g#4:.5 a4:1"
_GREEN_FULL = "c5:1.5 b4:.5 a4:1 g#4:1.5 f#4:.5 g#4:1 | a4:6"
_GREEN_AM = "a2:1 e3 a3 c4 a3 e3"
_GREEN_C = "c3:1 g3 c4 e4 c4 g3"
_GREEN_REST = "g2:1 d3 g3 b3 g3 d3 | f2 c3 f3 a3 f3 c3 | e2 b2 e3 g#3 e3 b2"
_GREEN_CLOSE = "g2:1 d3 g3 b3 g3 d3 | a2 e3 c4 e2 b2 g#3 | a2 e3 a3 c4:3"

_JIG_A = """b4:1 g4 g4 d4 g4 g4 | b4 g4 b4 d5 c5 b4 | c5 a4 a4 e4 a4 a4 | c5 a4 c5 e5 d5 c5
    | b4 g4 g4 d4 g4 g4 | b4 g4 b4 d5 c5 b4 | c5 b4 c5 a4 d5 c5 | b4 g4 g4 g4:2 d5:1"""
_JIG_B = """g5:1 d5 g5 g5 d5 g5 | g5 d5 g5 b5 a5 g5 | f#5 d5 f#5 f#5 d5 f#5 | f#5 d5 f#5 a5 g5 f#5
    | e5 g5 g5 d5 g5 g5 | c5 g5 g5 b4 g5 g5 | c5 b4 c5 a4 d5 c5 | b4 g4 g4 g4:3"""
_JIG_G = "g2:2 d3+g3+b3:1 d3:2 g3+b3:1"
_JIG_D = "d3:2 f#3+a3+c4:1 a2:2 f#3+c4:1"
_JIG_CLOSE = "c3:2 e3+g3:1 d3:2 f#3+c4:1 | g2:2 d3+g3:1 g2:3"
_JIG_BASS = _bars(
    *["r:6", _JIG_G, _JIG_G, "a2:2 e3+a3+c4:1 e3:2 a3+c4:1", _JIG_D, _JIG_G, _JIG_G, _JIG_CLOSE],
    *[_JIG_G, _JIG_G, _JIG_D, _JIG_D, "c3:2 e3+g3:1 b2:2 d3+g3:1", "a2:2 e3+c4:1 g2:2 d3+b3:1", _JIG_CLOSE],
)

_FOLIA = """d5:1 d5:1.5 e5:.5 | c#5:1 c#5:2 | d5:1 d5:1.5 e5:.5 | e5:1 e5:2
    | f5:1 f5:1.5 g5:.5 | e5:1 e5:1.5 f5:.5"""
_FOLIA_D = "d3:.5 a3 d4 f4 d4 a3"
_FOLIA_A = "a2:.5 e3 a3 c#4 a3 e3"
_FOLIA_C = "c3:.5 g3 c4 e4 c4 g3"
_FOLIA_BASS = _bars(_FOLIA_D, _FOLIA_A, _FOLIA_D, _FOLIA_C, "f2:.5 c3 f3 a3 f3 c3", _FOLIA_C)

_SAKURA_MIDDLE = """a4:1 b4 c5 b4 | a4 b4:.5 a4 f4:2 | e4:1 c4 e4 f4 | e4 e4:.5 c4 b3:2"""
_SAKURA_OPEN = "a2:1 e3 a3 e3"
_SAKURA_MIDDLE_BASS = _bars(_SAKURA_OPEN, "d3:1 a3 d4 a3", _SAKURA_OPEN, "e2:1 b2 e3 b2")

TUNES = (
    Tune(
        "twinkle",
        "Ah ! vous dirai-je, maman (Twinkle, Twinkle, Little Star)",
        "French folk tune, printed 1761",
        4,
        144,
        (
            Voice(_bars(_TWINKLE_A, _TWINKLE_B, _TWINKLE_A)),
            Voice(_bars(_TWINKLE_A_BASS, _TWINKLE_B_BASS, _TWINKLE_A_BASS), level=0.55, ring=0.2),
        ),
    ),
    Tune(
        "ode-to-joy",
        "Ode to Joy, Symphony No. 9",
        "Ludwig van Beethoven (1770-1827), 1824",
        4,
        152,
        (
            Voice(
                _bars(
                    *[_ODE_HALF, _ODE_FULL, "e4:1 e4 f#4 d4 | e4 f#4:.5 g4 f#4:1 d4"],
                    *["e4 f#4:.5 g4 f#4:1 e4 | d4 e4 a3:2", _ODE_FULL],
                ),
                ring=0.15,
            ),
            Voice(
                _bars(
                    *[_ODE_HALF_BASS, _ODE_FULL_BASS, "a2:1 e3+g3 d3 f#3+a3 | a2 e3+a3 d3 f#3+a3"],
                    *["a2 e3+a3 b2 e3+g#3 | b2 e3+g#3 a2:2", _ODE_FULL_BASS],
                ),
                level=0.5,
            ),
        ),
    ),
    Tune(
        "frere-jacques",
        "Frère Jacques, as a round in three voices",
        "French round, about 1780",
        4,
        132,
        (
            Voice(f"{_JACQUES} | c4:1 g3 c4:2 | c4:1 g3 c4:2 | c4:4 | r", shift=12),
            Voice(f"r:4 | r | {_JACQUES} | c4:4 | r", level=0.8),
            Voice(f"r:4 | r | r | r | {_JACQUES}", level=0.8, shift=-12),
        ),
    ),
    Tune(
        "minuet-1",
        "Minuet in G, BWV Anh. 114, first half",
        "Christian Petzold (1677-1733), before 1725",
        3,
        132,
        (
            Voice(
                """d5:1 g4:.5 a4 b4 c5 | d5:1 g4 g4 | e5 c5:.5 d5 e5 f#5 | g5:1 g4 g4
                | c5 d5:.5 c5 b4 a4 | b4:1 c5:.5 b4 a4 g4 | f#4:1 g4:.5 a4 b4 g4 | a4:3
                | d5:1 g4:.5 a4 b4 c5 | d5:1 g4 g4 | e5 c5:.5 d5 e5 f#5 | g5:1 g4 g4
                | c5 d5:.5 c5 b4 a4 | b4:1 c5:.5 b4 a4 g4 | a4:1 b4:.5 a4 g4 f#4 | g4:3"""
            ),
            Voice(
                """g3+b3+d4:2 a3:1 | b3:3 | c4 | b3 | a3 | g3 | d4:1 b3 g3 | d4 d3:.5 c4 b3 a3
                | b3:2 a3:1 | g3 b3 g3 | c4:3 | b3:1 c4:.5 b3 a3 g3 | a3:2 f#3:1 | g3:2 b3:1
                | c4:1 d4 d3 | g3:2 g2:1""",
                level=0.75,
            ),
        ),
    ),
    Tune(
        "minuet-2",
        "Minuet in G, BWV Anh. 114, second half",
        "Christian Petzold (1677-1733), before 1725",
        3,
        132,
        (
            Voice(
                """b5:1 g5:.5 a5 b5 g5 | a5:1 d5:.5 e5 f#5 d5 | g5:1 e5:.5 f#5 g5 d5 | c#5:1 b4:.5 c#5 a4:1
                | a4:.5 b4 c#5 d5 e5 f#5 | g5:1 f#5 e5 | f#5 a4 c#5 | d5:3
                | d5:1 g4:.5 f#4 g4:1 | e5 g4:.5 f#4 g4:1 | d5 c5 b4 | a4:.5 g4 f#4 g4 a4:1
                | d4:.5 e4 f#4 g4 a4 b4 | c5:1 b4 a4 | b4:.5 d5 g4:1 f#4 | g4+b3:3"""
            ),
            Voice(
                """g3:3 | f#3 | e3:1 g3 e3 | a3:2 a2:1 | a3:3 | b3:1 d4 c#4 | d4 f#3 a3 | d4 d3 c4
                | r b3+d4 b3+d4 | r c4+e4 c4+e4 | b3 a3 g3 | d4:2 r:1
                | r:2 f#3:1 | e3 g3 f#3 | g3 b2 d3 | g3 d3 g2""",
                level=0.75,
            ),
        ),
    ),
    Tune(
        "greensleeves",
        "Greensleeves",
        "English, registered 1580",
        6,
        288,
        (
            Voice(
                _bars(
                    *[
                        "r:5 a4:1",
                        _GREEN_VERSE,
                        _GREEN_HALF,
                        "b4:2 g#4:1 e4:2 a4:1",
                        _GREEN_VERSE,
                        _GREEN_FULL,
                    ],
                    *[_GREEN_CHORUS, _GREEN_HALF, "b4:2 g#4:1 e4:3", _GREEN_CHORUS, _GREEN_FULL],
                )
            ),
            Voice(
                _bars(
                    *["r:6", _GREEN_AM, _GREEN_REST, _GREEN_AM, _GREEN_CLOSE],
                    *[_GREEN_C, _GREEN_REST, _GREEN_C, _GREEN_CLOSE],
                ),
                level=0.6,
                ring=0.3,
            ),
        ),
    ),
    Tune(
        "irish-washerwoman",
        "The Irish Washerwoman, a jig",
        "Irish and English dance tune, 18th century",
        6,
        360,
        (Voice(_bars("r:4 d5:1 c5", _JIG_A, _JIG_B)), Voice(_JIG_BASS, level=0.5)),
    ),
    Tune(
        "la-folia",
        "La Folia",
        "Iberian dance; this form Jean-Baptiste Lully (1632-1687), 1672",
        3,
        138,
        (
            Voice(_bars(_FOLIA, "d5:1 d5:1.5 e5:.5 | c#5:3", _FOLIA, "d5:1 c#5:1.5 d5:.5 | d5:3"), ring=0.15),
            Voice(
                _bars(
                    *[_FOLIA_BASS, _FOLIA_D, _FOLIA_A],
                    *[_FOLIA_BASS, "d3:.5 a3 a2 e3 a3 c#4", "d3 a3 d4 f4:1.5"],
                ),
                level=0.6,
                ring=0.3,
            ),
        ),
    ),
    Tune(
        "sakura",
        "Sakura, sakura, in two keys",
        "Japanese koto tune, Edo period",
        4,
        132,
        (
            Voice(
                _bars(
                    *["a4:1 a4 b4:2"] * 2,
                    _SAKURA_MIDDLE,
                    *["a4:1 a4 b4:2"] * 2,
                    "e4:1 f4 b4:.5 a4 f4:1 | e4:4",
                ),
                ring=0.3,
            ),
            Voice(
                _bars(
                    *[_SAKURA_OPEN] * 2,
                    _SAKURA_MIDDLE_BASS,
                    *[_SAKURA_OPEN] * 2,
                    "d3:1 a3 d4 a3 | e2 b2 e3:2",
                ),
                level=0.6,
                ring=0.3,
            ),
        ),
        ((0, 1.0), (3, 1.12)),
    ),
    Tune(
        "prelude",
        "Prelude in C, BWV 846, bars 1 to 11",
        "Johann Sebastian Bach (1685-1750), 1722",
        4,
        104,
        (
            Voice(
                _prelude(
                    """c4 e4 g4 c5 e5 | c4 d4 a4 d5 f5 | b3 d4 g4 d5 f5 | c4 e4 g4 c5 e5 | c4 e4 a4 e5 a5
                    | c4 d4 f#4 a4 d5 | b3 d4 g4 d5 g5 | b3 c4 e4 g4 c5 | a3 c4 e4 g4 c5 | d3 a3 d4 f#4 c5
                    | g3 b3 d4 g4 b4"""
                ),
                ring=0.7,
            ),
        ),
    ),
)
