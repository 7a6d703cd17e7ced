"""The block cache reuses memory between training steps: equal results, bounded memory, nothing leaked."""

from __future__ import annotations

import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.engines import UNAVAILABLE
from support.trainers import CONFIG, TRAINING, equal, trainer, weights

from wavenet.models import native_layers
from wavenet.models.losses import cross_entropy
from wavenet.models.wavenet import WaveNet

pytestmark = pytest.mark.skipif(
    UNAVAILABLE is not None or not torch.ops.wavenet.cpu_can_train(False),
    reason="needs the extension and AVX2",
)

MB = 1 << 20
STEPS = 9000
"""Of which the tensors of `CONFIG` are large enough for blocks."""


def held() -> tuple[int, int]:
    """Bytes that are used, and that are idle."""
    return torch.ops.wavenet.cpu_block_bytes(False), torch.ops.wavenet.cpu_block_bytes(True)


def block(megabytes: int) -> torch.Tensor:
    return torch.ops.wavenet.cpu_block(torch.empty(0), [megabytes, MB // 4], False)


def network() -> WaveNet:
    torch.manual_seed(0)
    return WaveNet(CONFIG)


def losses(model: WaveNet, steps: int = 3, lengths: tuple[int, ...] = (STEPS, STEPS + 700)) -> list[float]:
    """Take steps on noise, of several lengths in turns."""
    optimizer, random = torch.optim.SGD(model.parameters(), lr=0.1), torch.Generator().manual_seed(5)
    found = []
    for step in range(steps):
        length = lengths[step % len(lengths)]
        samples = torch.randint(64, (2, CONFIG.receptive_field - 1 + length), generator=random)
        optimizer.zero_grad()
        per_target = native_layers.cross_entropy_per_target
        loss = cross_entropy(model(samples), samples[:, -length:], per_target=per_target)
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def test_what_was_there_before_changes_no_bit():
    plain, kept = network(), network()
    expected = losses(plain)
    assert held() == (0, 0)
    with native_layers.reuse_blocks():
        dirty = [block(megabytes).fill_(torch.nan) for megabytes in (1, 2, 3, 4, 5, 5, 6, 8, 12, 16)]
        del dirty
        assert losses(kept) == expected
        assert held()[0] == 0 and held()[1] > 0
    assert equal(plain.state_dict(), kept.state_dict())
    assert held() == (0, 0)


def test_blocks_are_reused_and_memory_is_bounded():
    with native_layers.reuse_blocks():
        first = block(8)
        address = first.data_ptr()
        del first
        again = block(8)
        assert again.data_ptr() == address
        del again
        # Twice as much as is wanted will do, rather than more in all; more than that will not.
        half = block(4)
        assert half.data_ptr() == address and held() == (8 * MB, 0)
        del half
        other = block(3)
        assert other.data_ptr() != address and held() == (3 * MB, 0)
        more = block(6)
        assert held() == (9 * MB, 0)
        del other, more
        assert held() == (0, 9 * MB)
        # Where there is room below what was once in use, a size gets a block of its own.
        small = block(3)
        assert held() == (3 * MB, 6 * MB)
        del small
    assert held() == (0, 0)


def test_later_steps_hold_no_more_than_the_first():
    model, sums = network(), []
    with native_layers.reuse_blocks():
        for length in [STEPS] * 4 + [STEPS // 2] * 3 + [STEPS] * 2:
            losses(model, 1, (length,))
            sums.append(sum(held()))
    assert max(sums) == sums[0] and min(sums) > 0.9 * sums[0]


def test_nothing_is_kept_outside_the_contexts():
    losses(network(), 1)
    assert held() == (0, 0)
    with pytest.raises(KeyError), native_layers.reuse_blocks():
        with native_layers.reuse_blocks():
            losses(network(), 1)
        assert held()[1] > 0
        raise KeyError
    assert held() == (0, 0)


def test_what_outlives_the_context_stays_whole():
    samples = torch.randint(64, (2, CONFIG.receptive_field - 1 + STEPS))
    model = network()
    with torch.no_grad():
        expected = model(samples)
    with native_layers.reuse_blocks():
        logits = model(samples)
        per_target = native_layers.cross_entropy_per_target
        loss = cross_entropy(logits, samples[:, -STEPS:], per_target=per_target)
    assert held()[0] > 0 and held()[1] == 0
    losses(network(), 1)
    assert torch.equal(logits, expected)
    loss.backward()
    model.zero_grad()
    del logits, loss
    assert held() == (0, 0)


def test_a_graph_may_be_used_twice():
    model = network()
    samples = torch.randint(64, (2, CONFIG.receptive_field - 1 + STEPS))
    with native_layers.reuse_blocks():
        per_target = native_layers.cross_entropy_per_target
        loss = cross_entropy(model(samples), samples[:, -STEPS:], per_target=per_target)
        once = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        losses(network(), 1)
        twice = torch.autograd.grad(loss, list(model.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
        del loss


def test_networks_in_several_threads():
    expected = losses(network())
    with native_layers.reuse_blocks(), ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda model: losses(model), [network() for _ in range(3)]))
    assert found == [expected] * 3
    assert held() == (0, 0)


def test_training_keeps_blocks_and_gives_them_back(data, tmp_path, monkeypatch):
    training = dataclasses.replace(TRAINING, segment=2.0, steps=4, batch=4)
    seen = []

    def stop() -> bool:
        seen.append(held())
        return False

    trainer(data, tmp_path / "kept", training).train(stop)
    assert all(used == 0 for used, _ in seen) and max(idle for _, idle in seen) > 0
    assert held() == (0, 0)
    monkeypatch.setattr(native_layers, "_can_train", lambda bf16: False)
    trainer(data, tmp_path / "torch", training).train()
    kept, plain = (weights(tmp_path / run / "best") for run in ("kept", "torch"))
    assert all(torch.allclose(kept[name], plain[name], atol=1e-4) for name in plain)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_operator_passes_opcheck(bf16):
    given = (torch.empty(2), [3, 5], bf16)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.wavenet.cpu_block.default, given, test_utils=checks)
    found = torch.ops.wavenet.cpu_block(*given)
    assert found.shape == (3, 5) and found.is_contiguous()
    with pytest.raises(RuntimeError, match="a size is out of range: -1"):
        torch.ops.wavenet.cpu_block(torch.empty(2), [3, -1], bf16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_are_those_of_torch(dtype):
    torch.manual_seed(0)
    gates = torch.randn(2, 50, 24).to(dtype).requires_grad_(True)
    sizes = (24, 19, 33, 16)
    pairs = [(torch.randn(b, a) / a**0.5, torch.randn(b)) for a, b in itertools.pairwise(sizes)]
    flat = [tensor.requires_grad_(True) for pair in pairs for tensor in pair]
    values = gates
    for number, (weight, bias) in enumerate(pairs):
        values = torch.relu(values) if number else values
        values = torch.nn.functional.linear(values, weight.to(dtype), bias.to(dtype))
    given = torch.randn_like(values)
    found = native_layers.heads(gates, pairs)
    torch.testing.assert_close(found, values)
    for mine, own in zip(
        torch.autograd.grad(found, [gates, *flat], given, retain_graph=True),
        torch.autograd.grad(values, [gates, *flat], given),
        strict=True,
    ):
        torch.testing.assert_close(mine, own)
    with torch.no_grad():
        assert torch.equal(native_layers.heads(gates, pairs), found)
