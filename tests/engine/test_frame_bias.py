"""Gate biases by the compiled engine: the same as by formula, and whatever frames are computed at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import conditioned
from support.conditioned import KINDS, config, network
from support.engines import INSTRUCTION_SETS, needs_extension, use_instruction_set

from wavenet.conditioning import registry
from wavenet.conditioning.base import BLOCK, Frames
from wavenet.conditioning.supplied import SuppliedFrames
from wavenet.engine.cpu import CompiledConditioner
from wavenet.engine.packing_conditioner import pack_conditioner
from wavenet.errors import BackendError
from wavenet.generation.conditioned import LONG_BLOCK
from wavenet.generation.generator import Generator
from wavenet.models.conditioner import LIMIT

pytestmark = needs_extension


def both(kind: str, width: int):
    model = network(config(kind, conditioning_channels=width))
    assert model.conditioner is not None and model.config.conditioning is not None
    frames = torch.rand(2, registry.channels(model.config.conditioning), 51) - 0.3
    return model, CompiledConditioner(model.conditioner), frames


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("width", [7, 16, 70])
@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_equals_the_formula(kind, width, instruction_set, monkeypatch):
    use_instruction_set(instruction_set, monkeypatch)
    model, compiled, frames = both(kind, width)
    found, plain = (each.gate_bias(Frames(frames, first=3)) for each in (compiled, model.conditioner))
    assert (found.hop, found.start, found.linear) == (plain.hop, plain.start, plain.linear)
    for row in range(2):
        expected = conditioned.gate_bias(model, frames[row].numpy())
        np.testing.assert_allclose(found.values[row], expected, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_other_frames_change_no_bit(kind):
    _, compiled, frames = both(kind, 20)
    whole, lost = compiled.gate_bias(Frames(frames)).values, 2 * compiled.context_frames
    for count in (1, 2, 5, 17):
        for row in (0, 1):
            part = frames[row : row + 1, :, 9 : 9 + lost + count]
            found = compiled.gate_bias(Frames(part)).values
            assert torch.equal(found[0], whole[row, 9 : 9 + count])


def test_unconditioned_rows_have_no_bias():
    _, compiled, frames = both("class+mel", 7)
    found = compiled.gate_bias(Frames(frames, conditioned_mask=torch.tensor([False, True]))).values
    assert not found[0].any() and found[1].any()


def test_what_is_not_finite_passes_through():
    _, compiled, frames = both("mel", 7)
    frames[0, 2, 20] = np.nan
    found = compiled.gate_bias(Frames(frames)).values
    assert found[0, 20 - compiled.context_frames].isnan().all() and found[1].isfinite().all()


def test_long_blocks_where_nobody_waits():
    model = network(config("mel"))
    generator = Generator(model, "cpu", threads=1)
    values = torch.rand(6, 90)
    for closed, block in ((True, LONG_BLOCK), (False, BLOCK)):
        assert generator.gate_bias_provider(SuppliedFrames(model.config, values, closed)).block == block
    assert (
        Generator(model, "reference").gate_bias_provider(SuppliedFrames(model.config, values)).block == BLOCK
    )


# -- the operator ---------------------------------------------------------------------------------------


def arguments(kind: str = "class+mel", **changes) -> tuple:
    model, _, frames = both(kind, 7)
    packed = pack_conditioner(model.conditioner)
    values = {"weights": packed.data, "entries": packed.geometry, "limit": LIMIT, "frames": frames}
    return tuple((values | changes).values())


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind):
    torch.library.opcheck(torch.ops.wavenet.frame_bias.default, arguments(kind))


ENTRIES = [2, 6, 7, 60, 3, 1, 2, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": torch.zeros(5)}, "conditioner has 5 weights: its entries require"),
        ({"weights": torch.zeros(5).double()}, "weights is Double: must be Float"),
        ({"entries": []}, "conditioner has 0 entries: must have 5 to 13"),
        ({"entries": [0, *ENTRIES[1:5]]}, "classes = 0: must be 1 to"),
        ({"entries": [2, 6, 7, 60, 3]}, "features = 6: must be 0 to 0"),
        ({"entries": [2, 0, *ENTRIES[2:]]}, "features = 0: must be 1 to"),
        ({"entries": [2, 6, 0, *ENTRIES[3:]]}, "width = 0"),
        ({"entries": [2, 6, 7, -1, *ENTRIES[4:]]}, "outputs = -1"),
        ({"entries": [*ENTRIES[:4], 9, *ENTRIES[5:]]}, "taps = 9: must be 1 to 8"),
        ({"entries": [*ENTRIES[:-1], 0]}, "dilation = 0"),
        ({"frames": torch.zeros(2, 8, 14)}, "14 frames: must be more than the 14"),
        ({"frames": torch.zeros(2, 9, 30)}, r"frames is \(2, 9, 30\): must be \(any, 8, any\)"),
        ({"frames": torch.zeros(2, 8, 60)[:, :, ::2]}, "frames is not contiguous"),
        ({"limit": 0.0}, "limit = 0: must be above 0"),
        ({"limit": float("nan")}, "limit = nan: must be above 0"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    assert arguments()[1] == ENTRIES
    with pytest.raises(RuntimeError, match=f"^wavenet:error: [^\n]*{message}[^\n]*$"):
        torch.ops.wavenet.frame_bias(*arguments(**changes))


def test_no_rows_are_no_error():
    found = torch.ops.wavenet.frame_bias(*arguments(frames=torch.zeros(0, 8, 20)))
    assert found.shape == (0, 6, 60)


def test_the_engines_errors_are_those_of_the_package(monkeypatch):
    _, compiled, frames = both("class", 7)
    monkeypatch.setenv("WAVENET_CPU", "abacus")
    with pytest.raises(BackendError, match=r"^WAVENET_CPU = abacus: not available"):
        compiled.gate_bias(Frames(frames))
