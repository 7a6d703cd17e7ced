"""The random numbers of the C++ engine."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from support.engines import needs_extension

from wavenet.engine.cpu import CpuBackend
from wavenet.engine.sampling import uniforms
from wavenet.engine.state import GeneratorState

pytestmark = needs_extension


@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**60 - 200),
    st.integers(0, 70),
    st.lists(st.tuples(st.integers(0, 2**60), st.integers(0, 2**60)), min_size=1, max_size=4),
)
def test_uniform_numbers_are_numpys(seed, position, steps, streams):
    """Of any number of streams at different positions, to the bit."""
    numbers = torch.tensor(streams)
    positions = position + torch.arange(len(streams))
    state = GeneratorState(
        torch.zeros(len(streams), 1, 1),
        positions,
        positions,
        numbers[:, 0].clone(),
        torch.full_like(positions, seed),
        numbers[:, 1].clone(),
    )
    assert torch.equal(CpuBackend.uniforms(state, steps), uniforms(state, steps))
