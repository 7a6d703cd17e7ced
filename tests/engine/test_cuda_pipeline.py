"""Pipelines of blocks that hold their weights, run on the host with queues in place of mailboxes.

Their blocks take turns in a random order, whichever has a message; a slot that is written before it was read
is an error there, as is a message with a piece missing.
"""

from __future__ import annotations

import dataclasses
import subprocess

import numpy as np
import pytest
import torch
from support import naive
from support.engines import empty_state, model_of, random_gate, random_model, random_state, same
from support.host_cuda import CSRC, NONE, HostKernel, Stages, compiler

from wavenet.engine.packing_tiles import pack_tiles
from wavenet.engine.reference import ReferenceBackend
from wavenet.engine.sampling import Sampling
from wavenet.models.gate_bias import GateBias
from wavenet.models.wavenet import WaveNet

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")

# Odd widths and the ones in use; kernel sizes 2, 3 and 4.
SHAPES = [
    {"residual": 5, "dilation": 7, "skip": 9, "head": 11, "classes": 2, "kernel_size": 2},
    {"residual": 32, "dilation": 32, "skip": 64, "head": 48, "classes": 256, "kernel_size": 2},
    {"residual": 64, "dilation": 64, "skip": 80, "head": 64, "classes": 130, "kernel_size": 3},
    {"residual": 128, "dilation": 128, "skip": 64, "head": 32, "classes": 64, "kernel_size": 2},
    {"residual": 17, "dilation": 35, "skip": 66, "head": 65, "classes": 129, "kernel_size": 4},
    {"residual": 160, "dilation": 144, "skip": 20, "head": 20, "classes": 1000, "kernel_size": 2},
]


def shaped(index: int, **changes: int):
    # The wide ones have three layers: the host takes its time.
    layers = 3 if SHAPES[index]["residual"] > 100 else 4
    sizes = {**SHAPES[index], "stacks": 1 if layers == 3 else 1 + index % 2, "layers_per_stack": layers}
    sizes |= changes
    return random_model(index, **sizes)


def several(index: int, **changes) -> Stages:
    """Return room for some pipeline of several layers to a block, or of one."""
    room = {"tiles": [1, 2, 4][index % 3], "blocks": 3 + index, "seed": index}
    return Stages(**{**room, "shared_bytes": 400 * 1024, "mail_is_shared": index % 2 == 0, **changes})


@pytest.mark.parametrize("index", range(len(SHAPES)))
@pytest.mark.parametrize("conditioned", ["", "repeat", "linear"])
@pytest.mark.parametrize("beyond", [False, True])
def test_every_number_is_that_of_stream_cta(index, conditioned, beyond):
    torch.manual_seed(index)
    shape, weights, model = shaped(index)
    if beyond:
        weights["head1.weight"] *= np.float32(2**17)
        weights["head2.weight"] *= np.float32(2**-17)
        model = model_of(shape, weights)
    packed, batch, steps = pack_tiles(model), 19 if index < 3 else 9, 4
    assert packed.geometry[0] == (5 if beyond else 4)
    gate = random_gate(shape, batch, conditioned == "linear") if conditioned else None
    state, uniforms = random_state(shape, batch, index), torch.rand(batch, steps)
    sampling = Sampling(temperature=0.9, top_k=20, top_p=0.9)
    anchor = HostKernel(model, packed=packed)
    expected, whole = [], state.clone()
    expected.append(anchor.generate(whole.with_sampling(sampling), uniforms, gate)[0])
    expected.append(anchor.advance(whole, expected[0], gate)[0])
    for backward in (False, True):
        stages = several(index, seed=index + 100 * backward)
        kernel = HostKernel(model, packed=packed, backward=backward, stages=stages)
        again = state.clone()
        drawn, report = kernel.generate(again.with_sampling(sampling), uniforms, gate)
        logits, other = kernel.advance(again, drawn, gate)
        assert (report == NONE).all() and (other == NONE).all()
        assert torch.equal(drawn, expected[0]) and torch.equal(logits, expected[1])
        assert same(again, whole)


@pytest.mark.parametrize("dilations", [[3, 1, 7], [5, 5, 9, 2], [1, 1, 1, 1, 13]])
@pytest.mark.parametrize("kernel_size", [2, 3, 4])
def test_any_dilations(dilations, kernel_size):
    """Also such as no configuration has."""
    shape, _, model = shaped(0, kernel_size=kernel_size, stacks=1, layers_per_stack=len(dilations))
    packed = pack_tiles(model)
    packed = dataclasses.replace(packed, geometry=[*packed.geometry[:8], *dilations])
    deep = dataclasses.replace(
        random_state(shape, 3, 0), queues=torch.randn(3, (kernel_size - 1) * sum(dilations), shape.residual)
    )
    results = []
    for stages in (None, Stages(tiles=1, blocks=4), Stages(tiles=2, blocks=9, mail_is_shared=False)):
        state = deep.clone()
        logits, report = HostKernel(model, packed=packed, stages=stages).advance(
            state, torch.randint(0, 2, (3, 40), generator=torch.Generator().manual_seed(1))
        )
        assert (report == NONE).all()
        results.append((logits, state))
    for logits, state in results[1:]:
        assert torch.equal(logits, results[0][0]) and same(state, results[0][1])


def rounded(shape: naive.Shape, weights: dict[str, np.ndarray]) -> WaveNet:
    """Return the network with its matrices rounded as the kernels have them."""
    return model_of(
        shape,
        {
            name: torch.from_numpy(value).half().float().numpy()
            if name.endswith("weight") and name != "embedding.weight"
            else value
            for name, value in weights.items()
        },
    )


@pytest.mark.parametrize("index", [0, 2, 4])
@pytest.mark.parametrize("linear", [False, True])
def test_logits_are_those_of_the_reference(index, linear):
    """But for the rounding of what the matrices are multiplied with."""
    torch.manual_seed(index)
    shape, weights, model = shaped(index)
    state, samples = random_state(shape, 10, index), torch.randint(0, shape.classes, (10, 12))
    gate = random_gate(shape, 10, linear)
    other = state.clone()
    kernel = HostKernel(model, packed=pack_tiles(model), stages=several(index))
    found = [kernel.advance(state, part, gate)[0] for part in samples.split(7, dim=1)]
    expected = ReferenceBackend(rounded(shape, weights)).advance(other, samples, gate)
    error = (torch.cat(found, dim=1) - expected).abs().max() / expected.abs().max()
    assert 1e-5 <= float(error) <= 3e-3
    assert torch.equal(state.position, other.position) and torch.equal(state.last_sample, other.last_sample)
    assert torch.allclose(state.queues, other.queues, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("index", [0, 3, 4])
def test_kernels_continue_each_other(index):
    shape, _, model = shaped(index)
    packed, uniforms = pack_tiles(model), torch.rand(9, 14)
    state, sampling = random_state(shape, 9, index), Sampling(top_p=0.95)
    whole = state.clone()
    expected, _ = HostKernel(model, 16, packed=packed).generate(whole.with_sampling(sampling), uniforms)
    rooms = [None, several(index), several(index + 1, tiles=1), None, several(index)]
    parts = [
        HostKernel(model, packed=packed, stages=stages).generate(state.with_sampling(sampling), part)[0]
        for stages, part in zip(rooms, uniforms.split([4, 3, 1, 1, 5], dim=1), strict=True)
    ]
    assert torch.equal(torch.cat(parts, dim=1), expected) and same(state, whole)


@pytest.mark.parametrize("tiles", [1, 2, 4])
def test_a_stream_does_not_depend_on_the_others(tiles):
    shape, _, model = shaped(4)
    packed, sampling = pack_tiles(model), Sampling(temperature=0.8, top_k=9)
    state, uniforms = random_state(shape, 70, 2), torch.rand(70, 4)
    gate, whole = random_gate(shape, 70, linear=True), state.clone()
    expected, _ = HostKernel(model, packed=packed).generate(whole.with_sampling(sampling), uniforms, gate)
    for rows in ([0], [69, 3, 41], list(range(30, 63)), list(range(70))):
        part, values = state.select(rows), GateBias(gate.values[rows], gate.hop, gate.start, gate.linear)
        kernel = HostKernel(model, packed=packed, stages=several(3, tiles=tiles, seed=len(rows)))
        found, report = kernel.generate(part.with_sampling(sampling), uniforms[rows], values)
        assert (report == NONE).all()
        assert torch.equal(found, expected[rows]) and same(part, whole.select(rows))


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_turns_and_any_division(seed):
    shape, _, model = random_model(200 + seed)
    packed, uniforms = pack_tiles(model), torch.rand(33, 7)
    state = random_state(shape, 33, seed)
    whole = state.clone()
    expected, _ = HostKernel(model, packed=packed).generate(whole, uniforms)
    room = several(seed, blocks=3 + seed % 11, shared_bytes=(48 + 8 * seed) * 1024)
    found, report = HostKernel(model, packed=packed, stages=room).generate(state, uniforms)
    assert (report == NONE).all() and torch.equal(found, expected) and same(state, whole)


def test_a_failed_stream_does_not_stop_the_others():
    shape, weights, _ = shaped(0)
    weights["embedding.weight"][1] = np.nan
    model = model_of(shape, weights)
    given = torch.zeros(11, 6, dtype=torch.int64)
    given[1, 2] = given[9, 5] = 1
    results = []
    for stages in (None, several(2)):
        state = random_state(shape, 11, 0)
        state.last_sample[:] = 0
        kernel = HostKernel(model, packed=pack_tiles(model), stages=stages)
        logits, report = kernel.advance(state, given)
        results.append((torch.nan_to_num(logits, 7.0), torch.from_numpy(report), state))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    one, other = results[0][2], results[1][2]
    one.queues, other.queues = torch.nan_to_num(one.queues, 7.0), torch.nan_to_num(other.queues, 7.0)
    assert same(one, other)
    assert results[1][1].tolist().count(NONE) == 14


@pytest.mark.parametrize("dropped", [0, 1, 5, 30])
def test_a_dropped_message_is_reported(dropped):
    shape, _, model = shaped(0)
    kernel = HostKernel(model, packed=pack_tiles(model), stages=several(1, dropped=dropped))
    _, report = kernel.generate(random_state(shape, 9, 0), torch.rand(9, 6))
    assert report[3] != NONE and (np.delete(report, 3) == NONE).all()


MAX_POLLS = 2**24
"""Enough polls that a thread which is not scheduled for a while does not time out."""


@pytest.mark.parametrize("mail_is_shared", [True, False])
@pytest.mark.parametrize("index", [0, 2, 4])
def test_the_mailboxes_of_the_kernels_carry_the_same(index, mail_is_shared):
    """With a thread for each block: what the kernels wait for, and what they read then."""
    shape, _, model = shaped(index)
    packed, uniforms = pack_tiles(model), torch.rand(19, 12)
    state, sampling = random_state(shape, 19, index), Sampling(temperature=0.9)
    gate, whole = random_gate(shape, 19, linear=True), state.clone()
    expected, _ = HostKernel(model, packed=packed).generate(whole.with_sampling(sampling), uniforms, gate)
    stages = several(index, mail_is_shared=mail_is_shared, max_polls=MAX_POLLS)
    kernel = HostKernel(model, packed=packed, backward=bool(index % 4), stages=stages)
    found, report = kernel.generate(state.with_sampling(sampling), uniforms, gate)
    assert (report == NONE).all() and torch.equal(found, expected) and same(state, whole)


@pytest.mark.parametrize("mail_is_shared", [True, False])
@pytest.mark.parametrize("tiles", [1, 2, 4])
@pytest.mark.parametrize("dropped", [0, 3])
def test_blocks_time_out_after_max_polls(dropped, tiles, mail_is_shared):
    shape, _, model = shaped(0)
    stages = several(1, tiles=tiles, mail_is_shared=mail_is_shared, max_polls=2**16, dropped=dropped)
    kernel = HostKernel(model, packed=pack_tiles(model), stages=stages)
    state, uniforms = random_state(shape, 9, 0), torch.rand(9, 6)
    drawn, report = kernel.generate(state.clone(), uniforms)
    assert 0 <= report[3] < 8 and (np.delete(report, 3) == NONE).all()
    # Earlier samples are in the output.
    expected, _ = HostKernel(model, packed=pack_tiles(model)).generate(state, uniforms)
    end = dropped + 1
    assert torch.equal(drawn[0, :end], expected[0, :end]) and (drawn[:, end:] == -1).all()


@pytest.mark.slow
def test_what_blocks_read_comes_by_messages_alone(tmp_path):
    """The same with every access of every thread watched."""
    flags = ["-std=c++17", "-g", "-O1", "-ffp-contract=off", "-pthread", "-fsanitize=thread", f"-I{CSRC}"]
    names = ("checks/cuda_on_host/mailbox_check.cpp", "cuda/pipeline/plan.cpp", "core/network.cpp")
    sources, program = [str(CSRC / name) for name in names], str(tmp_path / "check")
    trial = tmp_path / "trial.cpp"
    trial.write_text("int main() {}")
    tried = subprocess.run([*(compiler() or []), *flags, str(trial), "-o", program], capture_output=True)
    if tried.returncode:
        pytest.skip("the compiler has no sanitizer of threads")
    subprocess.run([*(compiler() or []), *flags, *sources, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout + done.stderr
    assert done.stdout.count("right, the loss is reported") == 4


def test_what_is_refused_moves_nothing():
    shape, _, model = shaped(0)
    kernel = HostKernel(model, packed=pack_tiles(model), stages=several(1))
    state = random_state(shape, 2, 0)
    before, uniforms = state.clone(), torch.rand(2, 4)
    uniforms[1, 1] = 1.0
    _, report = kernel.generate(state, uniforms)
    assert report[2] == 5 and same(state, before)


def test_one_sample():
    shape, _, model = shaped(1)
    for batch in (1, 8, 9):
        states = [random_state(shape, batch, 0) for _ in range(2)]
        uniforms = torch.rand(batch, 1)
        found = [
            HostKernel(model, packed=pack_tiles(model), stages=stages).generate(state, uniforms)[0]
            for state, stages in zip(states, (None, several(2)), strict=True)
        ]
        assert torch.equal(*found) and same(*states)


def test_an_empty_state_follows_a_float64_convolution():
    shape, weights, model = shaped(4)
    samples = np.random.default_rng(4).integers(0, shape.classes, shape.context + 15)
    state = empty_state(shape, last_sample=int(samples[0]))
    kernel = HostKernel(model, packed=pack_tiles(model), stages=several(4))
    found, _ = kernel.advance(state, torch.from_numpy(samples[1:])[None])
    exact = naive.logits(shape, weights, samples[:-1])
    errors = np.abs(found[0, shape.context :].numpy() - exact) / np.abs(exact).max(axis=-1, keepdims=True)
    assert 1e-5 <= errors.max() <= 4e-3
