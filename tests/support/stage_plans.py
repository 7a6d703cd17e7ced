"""The layout of a network over the blocks of a pipeline, parsed from the numbers that the planner returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

LAYERS, HEAD, DRAW = range(3)
"""Kinds of blocks."""

NEWEST, RESIDUAL, SKIP, OLD = range(4)
"""A layer's parts, in their order."""

_OFFSETS = (
    *("parts", "table", "biases", "values", "activations", "taps", "starts", "slots", "frames"),
    *("position", "last", "active", "logits", "weights", "sums", "uniforms"),
)


@dataclass(frozen=True)
class Part:
    """Some inputs of a matrix; all counts are in 32-bit words, and the offset is in bytes."""

    source: int
    pitch: int
    words: int
    rows: int
    resident: int
    offset: int

    def bytes(self) -> range:
        """Return its bytes in shared memory."""
        return range(self.offset, self.offset + 4 * self.resident * self.words)

    def covered(self) -> Iterator[range]:
        """Yield its words of the weights."""
        for row in range(self.rows):
            yield range(self.source + row * self.pitch, self.source + row * self.pitch + self.words)


@dataclass(frozen=True)
class Block:
    kind: int
    first_layer: int
    layers: int
    first_part: int
    boxes: tuple[tuple[int, int], tuple[int, int]]
    next: tuple[tuple[int, int], tuple[int, int]]
    """The mailboxes of the block that receives its messages."""
    places: dict[str, int]
    bytes: int


@dataclass(frozen=True)
class StagePlan:
    serves: bool
    resident: bool
    bytes: int
    mail_bytes: int
    flag_bytes: int
    blocks: list[Block]
    parts: list[Part]

    def parts_of(self, block: Block) -> list[Part]:
        """Return a block's parts, layer by layer."""
        count = 4 * block.layers if block.kind == LAYERS else 1
        return self.parts[block.first_part : block.first_part + count]


def read_plan(numbers: list[int]) -> StagePlan:
    """Return the plan in serialized numbers."""
    rest = iter(numbers)

    def some(count: int) -> list[int]:
        return [next(rest) for _ in range(count)]

    serves, resident, size, mail, flags, count = some(6)
    blocks = []
    for _ in range(count):
        kind, first, layers, part = some(4)
        a, b, c, d, e, f, g, h = some(8)
        places = dict(zip(_OFFSETS, some(len(_OFFSETS)), strict=True))
        blocks.append(
            Block(kind, first, layers, part, ((a, b), (c, d)), ((e, f), (g, h)), places, next(rest))
        )
    parts = [Part(*some(6)) for _ in range(next(rest))]
    assert next(rest, None) is None
    return StagePlan(bool(serves), bool(resident), size, mail, flags, blocks, parts)
