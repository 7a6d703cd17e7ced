"""torch.ops.wavenet as operators: registration, fake kernels, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.engines import needs_extension, random_model

from wavenet.engine.packing import CPU_PRECISIONS, pack

pytestmark = needs_extension

SHAPE, _, MODEL = random_model(50, kernel_size=2, stacks=1, layers_per_stack=2, classes=16)
PACKED = pack(MODEL)
ONES = torch.ones(2, dtype=torch.float64)


def arguments(operator: str, precision: str = "fp32") -> dict:
    """Good arguments in the order of the schema."""
    packed = pack(MODEL, precision)
    values = {
        "weights": packed.data,
        "geometry": list(packed.geometry),
        "queues": torch.zeros(2, SHAPE.context, SHAPE.residual),
        "position": torch.zeros(2, dtype=torch.int64),
        "last_sample": torch.zeros(2, dtype=torch.int64),
    }
    if operator == "advance":
        values["samples"] = torch.ones(2, 5, dtype=torch.int64)
    else:
        values |= {
            "uniforms": torch.full((2, 5), 0.5),
            "temperature": ONES,
            "top_k": ONES.long(),
            "top_p": ONES,
        }
    gate = torch.randn(2, 3, len(SHAPE.dilations), 2 * SHAPE.dilation)
    return values | {
        "gate_bias": gate,
        "hop": 4,
        "gate_start": torch.zeros(2, dtype=torch.int64),
        "linear": True,
        "threads": 1,
    }


def call(operator: str, **changes) -> torch.Tensor:
    return getattr(torch.ops.wavenet, operator)(*(arguments(operator) | changes).values())


@pytest.mark.parametrize("operator", ["advance", "generate"])
@pytest.mark.parametrize("precision", CPU_PRECISIONS)
@pytest.mark.parametrize("with_gate", [False, True])
def test_opcheck(operator, with_gate, precision):
    values = arguments(operator, precision)
    if not with_gate:
        values["gate_bias"] = None
    torch.library.opcheck(getattr(torch.ops.wavenet, operator).default, tuple(values.values()))


def test_the_cpu_has_no_kernels_to_choose_from():
    with pytest.raises(RuntimeError, match=r"^wavenet:error: kernel = fast: only the CUDA engine"):
        call("advance", kernel="fast")


@pytest.mark.parametrize("precision", CPU_PRECISIONS)
def test_results_and_what_changes(precision):
    values = arguments("advance", precision)
    logits = torch.ops.wavenet.advance(*values.values())
    assert logits.shape == (2, 5, 16) and logits.dtype == torch.float32
    assert values["position"].tolist() == [5, 5] and values["last_sample"].tolist() == [1, 1]
    values = arguments("generate", precision)
    samples = torch.ops.wavenet.generate(*values.values())
    assert samples.shape == (2, 5) and samples.dtype == torch.int64
    assert values["position"].tolist() == [5, 5] and values["last_sample"].tolist() == samples[:, -1].tolist()


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("batch", [0, 1])
def test_nothing_to_do_is_no_error(batch, steps):
    state = {
        "queues": torch.zeros(batch, SHAPE.context, SHAPE.residual),
        "position": torch.zeros(batch, dtype=torch.int64),
        "last_sample": torch.zeros(batch, dtype=torch.int64),
        "gate_bias": None,
        "gate_start": torch.zeros(batch, dtype=torch.int64),
    }
    samples = torch.zeros(batch, steps, dtype=torch.int64)
    assert call("advance", **state, samples=samples).shape == (batch, steps, 16)
    settings = {"temperature": ONES[:batch], "top_k": ONES[:batch].long(), "top_p": ONES[:batch]}
    drawn = call("generate", **state, **settings, uniforms=torch.zeros(batch, steps))
    assert drawn.shape == (batch, steps)


def geometry(**changes: int) -> list[int]:
    names = ["version", "classes", "residual", "dilation", "skip", "head", "taps", "layers"]
    entries = list(PACKED.geometry)
    for name, value in changes.items():
        entries[names.index(name)] = value
    return entries


INT64_MAX = 2**63 - 1
BYTES = pack(MODEL, "int8").data
REFUSED = [
    ({"weights": PACKED.data.double()}, "weights is Double: must be Float"),
    ({"weights": PACKED.data[:-1]}, "weights has .* the geometry requires"),
    ({"weights": PACKED.data.repeat(2)[::2]}, "weights is not contiguous"),
    ({"weights": PACKED.data[None]}, r"weights is \(1, \d+\): must be \(any\)"),
    ({"geometry": geometry(version=2)}, "weights is Float: must be Byte"),
    ({"weights": BYTES}, "weights is Byte: must be Float"),
    ({"weights": BYTES[:-1], "geometry": geometry(version=3)}, "weights has .* the geometry requires"),
    ({"weights": BYTES, "geometry": geometry(version=2)}, "weights has .* the geometry requires"),
    ({"weights": BYTES[1:], "geometry": geometry(version=3)}, "is not aligned to 4 bytes"),
    (
        {"weights": BYTES, "geometry": geometry(version=3, taps=64, residual=1025)},
        r"kernel_size \* residual_channels = 65600: int8 supports at most 65536; use bf16 or fp32",
    ),
    ({"geometry": geometry(version=0)}, "weight layout 0 is unknown"),
    ({"geometry": []}, "geometry has 0 entries"),
    ({"geometry": geometry()[:-1]}, "geometry has 9 entries: 2 layers need 10"),
    ({"geometry": geometry(version=7)}, "weight layout 7 is unknown"),
    ({"geometry": geometry(classes=1)}, "quantization_channels = 1: must be 2 to"),
    ({"geometry": geometry(residual=0)}, "residual_channels = 0: must be 1 to"),
    ({"geometry": geometry(dilation=-4)}, "dilation_channels = -4"),
    ({"geometry": geometry(skip=10**12)}, "skip_channels = 1000000000000"),
    ({"geometry": geometry(head=0)}, "head_channels = 0"),
    ({"geometry": geometry(taps=1)}, "kernel_size = 1: must be 2 to"),
    ({"geometry": geometry(layers=INT64_MAX)}, "layers = 9223372036854775807"),
    ({"geometry": [*geometry()[:-1], 0]}, "dilation = 0: must be 1 to"),
    ({"geometry": [*geometry()[:-1], 4]}, "queues is"),
    ({"queues": torch.zeros(2, SHAPE.context + 1, SHAPE.residual)}, "queues is .* must be"),
    ({"queues": torch.zeros(SHAPE.context, 2, SHAPE.residual).transpose(0, 1)}, "queues is not contiguous"),
    ({"queues": torch.zeros(2, SHAPE.context, SHAPE.residual).half()}, "queues is Half"),
    ({"position": torch.zeros(3, dtype=torch.int64)}, r"position is \(3\): must be \(2\)"),
    ({"position": torch.zeros(2, dtype=torch.int32)}, "position is Int: must be Long"),
    ({"position": torch.tensor([0, -1])}, "position contains -1"),
    ({"position": torch.tensor([0, INT64_MAX])}, "position contains 9223372036854775807"),
    ({"last_sample": torch.tensor([0, 16])}, "last_sample contains 16: must be 0 to 15"),
    ({"gate_bias": torch.zeros(2, 0, 2, 2 * SHAPE.dilation)}, "gate_bias has no frames"),
    ({"gate_bias": torch.zeros(2, 3, 2, 2 * SHAPE.dilation + 1)}, "gate_bias is .* must be"),
    ({"gate_bias": torch.zeros(3, 3, 2, 2 * SHAPE.dilation)}, "gate_bias is .* must be"),
    ({"gate_bias": torch.zeros(2, 2, 3, 2 * SHAPE.dilation).transpose(1, 2)}, "gate_bias is not contiguous"),
    ({"hop": 0}, "hop = 0"),
    ({"gate_start": torch.tensor([0, -INT64_MAX])}, "gate_start contains -9223372036854775807"),
    ({"threads": 0}, "threads = 0"),
    ({"threads": -2}, "threads = -2"),
]
REFUSED_BY_ADVANCE = [
    ({"samples": torch.full((2, 5), 16)}, "samples contains 16: must be 0 to 15"),
    ({"samples": torch.full((2, 5), -1)}, "samples contains -1"),
    ({"samples": torch.zeros(1, 5, dtype=torch.int64)}, "samples is .* must be"),
    ({"samples": torch.zeros(2, 5)}, "samples is Float: must be Long"),
]
REFUSED_BY_GENERATE = [
    ({"uniforms": torch.full((2, 5), 1.0)}, "uniforms contains 1: must be in"),
    ({"uniforms": torch.full((2, 5), np.nan)}, "uniforms contains nan"),
    ({"uniforms": torch.full((2, 5), -0.1)}, "uniforms contains -0.1"),
    ({"uniforms": torch.zeros(2, 5).double()}, "uniforms is Double"),
    ({"temperature": ONES * -1.0}, "temperature contains -1"),
    ({"temperature": ONES * float("nan")}, "temperature contains nan"),
    ({"temperature": ONES * float("inf")}, "temperature contains inf"),
    ({"top_k": -ONES.long()}, "top_k contains -1"),
    ({"top_p": ONES * 0.0}, "top_p contains 0"),
    ({"top_p": ONES * 1.5}, "top_p contains 1.5"),
]


@pytest.mark.parametrize(
    ("operator", "changes", "message"),
    [("advance", *each) for each in REFUSED + REFUSED_BY_ADVANCE]
    + [("generate", *each) for each in REFUSED + REFUSED_BY_GENERATE],
)
def test_bad_arguments_are_named(operator, changes, message):
    # One line behind the mark that the backend reads, and no name of a source file.
    with pytest.raises(RuntimeError, match=f"^wavenet:error: .*{message}[^\n]*$") as caught:
        call(operator, **changes)
    assert ".cpp" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("operator", ["advance", "generate"])
def test_non_finite_logits_give_position_and_row(operator):
    weights = PACKED.data.clone()
    weights[-weights.numel() // 3 :] = np.nan
    position = torch.tensor([40, 7])
    with pytest.raises(RuntimeError, match=r"^wavenet:nonfinite:40:0: [^\n]+$"):
        call(operator, weights=weights, position=position)
