"""How networks are laid out over blocks of a GPU, and which kernel is chosen."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from support.engines import random_model
from support.host_cuda import HostKernel, Stages, compiler
from support.stage_plans import DRAW, HEAD, LAYERS, NEWEST, RESIDUAL, Block, StagePlan, read_plan

from wavenet.config import WaveNetConfig
from wavenet.engine.packing import pack
from wavenet.engine.packing_tiles import pack_tiles
from wavenet.models.wavenet import WaveNet

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")

# Capability, multiprocessors, shared memory of a block, its registers, largest cluster, cooperative launches,
# and how many multiprocessors make a group within which clusters lie (0: not told).
REGISTERS = 64 * 1024
H100 = [90, 132, 227 * 1024, REGISTERS, 16, 1, 0]
A100 = [80, 108, 163 * 1024, REGISTERS, 0, 1, 0]
RTX3090 = [86, 82, 99 * 1024, REGISTERS, 0, 1, 0]
T4 = [75, 40, 64 * 1024, REGISTERS, 0, 1, 0]
RTX5090 = [120, 170, 99 * 1024, REGISTERS, 8, 1, 0]


def network(layers: int, stacks: int, kernel_size: int, width: int, skip: int, head: int) -> WaveNet:
    config = WaveNetConfig(
        layers=layers,
        stacks=stacks,
        kernel_size=kernel_size,
        residual_channels=width,
        dilation_channels=width,
        skip_channels=skip,
        head_channels=head,
    )
    return WaveNet(config).requires_grad_(False)


NETWORKS = {
    "A": (20, 2, 2, 64, 256, 256),
    "B": (30, 3, 2, 64, 256, 256),
    "C": (24, 4, 3, 128, 128, 256),
    "D": (40, 4, 2, 128, 512, 512),
    "small": (20, 2, 2, 32, 128, 128),
}


def kernel_of(model: WaveNet, stages: Stages | None = None) -> HostKernel:
    return HostKernel(model, packed=pack_tiles(model), stages=stages)


def plan_of(model: WaveNet, stages: Stages) -> StagePlan:
    return read_plan(kernel_of(model, stages).stage_plan())


def padded(channels: int) -> int:
    return -(-channels // 16) * 16


def disjoint(ranges: list[range]) -> bool:
    ordered = sorted((each for each in ranges if each), key=lambda each: each.start)
    return all(a.stop <= b.start for a, b in itertools.pairwise(ordered))


def state_of(block: Block, config: WaveNetConfig, stages: Stages) -> list[range]:
    """Return the bytes that everything in a block but weights needs, from the definitions."""
    residual, dilated, classes = (
        padded(each)
        for each in (config.residual_channels, config.dilation_channels, config.quantization_channels)
    )
    old = padded((config.kernel_size - 1) * config.residual_channels)
    streams = 8 * stages.tiles
    first = block.first_layer == 0 and block.kind == LAYERS
    sizes: dict[str, int] = {}
    if block.kind == LAYERS:
        # A table entry of a part has 32 bytes, of a layer 104.
        biases = block.layers * (2 * dilated + residual) + (padded(config.skip_channels) if first else 0)
        sizes = {"parts": 32 * 4 * block.layers, "table": 104 * block.layers, "biases": 4 * biases}
        sizes |= {"values": 48 * residual, "activations": 48 * dilated * block.layers}
        sizes |= {"taps": 48 * old * block.layers, "starts": 32 * 2 * dilated * block.layers}
        sizes |= {"slots": 32 * block.layers, "frames": 24 * 8, "position": 8 * streams}
        sizes |= {"last": 32, "active": 32}
        rows = (1 if first else residual + 1, 0 if first else padded(config.skip_channels))
    elif block.kind == HEAD:
        sizes = {"values": 48 * padded(config.skip_channels), "parts": 32}
        sizes |= {"biases": 4 * padded(config.head_channels)}
        rows = (0, padded(config.skip_channels))
    else:
        row = -(-config.quantization_channels // 32) * 32
        sizes = {"values": 48 * padded(config.head_channels), "position": 8 * streams}
        sizes |= {"last": 4 * streams, "active": 4 * streams, "logits": 32 * row, "weights": 32 * row}
        sizes |= {"sums": 8 * 8 * 33, "uniforms": 4 * 8, "parts": 32, "biases": 4 * classes}
        rows = (padded(config.head_channels), 0)
    assert classes and tuple(rows_of for rows_of, _ in block.boxes) == rows
    taken = [range(block.places[name], block.places[name] + size) for name, size in sizes.items()]
    if stages.mail_is_shared:
        taken += [range(at, at + 32 * stages.tiles * each) for each, at in block.boxes]
    # Books of 16 bytes for two mailboxes, and the block's own entry in the plan.
    return [range(32 * stages.tiles + 4 * (12 + len(block.places) + 1)), *taken]


@pytest.mark.parametrize("seed", range(40))
def test_every_weight_is_placed_once(seed):
    random = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=random))

    changes = {"residual": number(1, 140), "dilation": number(1, 140), "skip": number(1, 300)}
    changes |= {"head": number(1, 300), "classes": number(2, 1024), "layers_per_stack": number(1, 9)}
    shape, _, model = random_model(seed, **changes)
    packed = pack_tiles(model)
    stages = Stages(
        tiles=[1, 2, 4][seed % 3],
        blocks=number(3, 20),
        shared_bytes=number(60, 227) * 1024,
        mail_is_shared=seed % 2 == 0,
    )
    plan = plan_of(model, stages)
    if not plan.serves:
        assert plan.bytes > stages.shared_bytes
        return
    assert plan.bytes == max(block.bytes for block in plan.blocks) <= stages.shared_bytes
    assert len(plan.blocks) <= stages.blocks
    assert [block.kind for block in plan.blocks[-2:]] == [HEAD, DRAW]
    layered = [block for block in plan.blocks if block.kind == LAYERS]
    numbers = [block.first_layer + i for block in layered for i in range(block.layers)]
    assert numbers == list(range(len(shape.dilations))) and len(layered) == len(plan.blocks) - 2
    assert max(b.layers for b in layered) - min(b.layers for b in layered) <= 1
    # Every word of a matrix is in one part, no word of anything else is.
    words = torch.zeros(packed.data.nbytes // 4, dtype=torch.int64)
    for part in plan.parts:
        for row in part.covered():
            words[row.start : row.stop] += 1
    assert int(words.max()) == 1
    inputs = {name: weight.shape for name, weight in model.state_dict().items() if name.endswith("weight")}
    tiles = 0
    for name, (outputs, channels) in inputs.items():
        if name.startswith("layers") and ".dilated." in name:
            old = channels - shape.residual
            tiles += 2 * padded(outputs // 2) * (padded(old) + padded(shape.residual)) // 256
        elif name.startswith("skip"):
            tiles += len(shape.dilations) * padded(outputs) * padded(shape.dilation) // 256
        elif name != "embedding.weight":
            tiles += padded(outputs) * padded(channels) // 256
    assert int(words.sum()) == 128 * tiles
    everything = True
    for block in plan.blocks:
        parts = plan.parts_of(block)
        assert disjoint([*state_of(block, model.config, stages), *(part.bytes() for part in parts)])
        assert all(0 <= part.resident <= part.rows and part.bytes().stop <= block.bytes for part in parts)
        assert all(at % 16 == 0 for at in [*block.places.values(), *(part.offset for part in parts)])
        # What a sample waits for in every layer lies there always.
        if block.kind == LAYERS:
            for layer in range(block.layers):
                for kind in (NEWEST, RESIDUAL):
                    assert parts[4 * layer + kind].resident == parts[4 * layer + kind].rows
        # What was cleared at the beginning is not a message, and not a weight.
        assert min(part.offset for part in parts) == parts[0].offset
        everything = everything and all(part.resident == part.rows for part in parts)
    assert everything == plan.resident
    if not plan.resident:
        assert len(plan.blocks) == min(stages.blocks, len(shape.dilations) + 2)
    mail = [range(at, at + 32 * stages.tiles * rows) for block in plan.blocks for rows, at in block.boxes]
    if not stages.mail_is_shared:
        assert disjoint(mail) and max(each.stop for each in mail) <= plan.mail_bytes
    # A line of the cache for each flag: of two mailboxes of every block, a slot for each tile.
    assert plan.flag_bytes == (0 if stages.mail_is_shared else 128 * 2 * stages.tiles * len(plan.blocks))
    assert [block.next for block in plan.blocks] == [
        block.boxes for block in (*plan.blocks[1:], plan.blocks[0])
    ]


@pytest.mark.parametrize(
    ("name", "precision", "device", "expected"),
    [
        ("A", "fp16", H100, "stage_cluster"),
        ("B", "fp16", H100, "stage_cluster"),
        ("C", "fp16", H100, "stage_grid"),
        ("D", "fp16", H100, "stage_grid"),
        ("small", "fp16", H100, "stage_cluster"),
        ("A", "fp16", A100, "stage_grid"),
        ("A", "fp32", H100, "stream_cta"),
        ("A", "fp16", T4, "stream_cta"),
        ("small", "fp16", RTX3090, "stage_grid"),
        ("small", "fp16", RTX5090, "stage_cluster"),
    ],
)
def test_the_kernel_for_one_stream(name, precision, device, expected):
    model = network(*NETWORKS[name])
    packed = pack_tiles(model) if precision == "fp16" else pack(model)
    assert HostKernel(model, packed=packed).select_kernel(1, device, "") == expected


def test_the_kernel_changes_with_the_batch():
    kernel = kernel_of(network(*NETWORKS["A"]))
    chosen = [kernel.select_kernel(batch, H100, "") for batch in (1, 8, 64, 10_000)]
    assert chosen[:2] == ["stage_cluster"] * 2 and chosen[3] == "stream_cta"
    assert "tiles of 64 streams" in kernel.select_kernel(10_000, H100, None)


def test_clusters_are_counted_by_processor_group():
    kernel = kernel_of(network(*NETWORKS["A"]))

    def description(batch, group):
        return kernel.select_kernel(batch, [*H100[:6], group], None).splitlines()[0]

    # 132 processors have room for 11 pipelines of 12 blocks, but groups of 18 processors for 7 only.
    assert "11 pipeline(s) of 12 blocks with 1 tile(s)" in description(88, 0)
    assert "7 pipeline(s) of 12 blocks with 1 tile(s)" in description(56, 18)
    assert "6 pipeline(s) of 12 blocks with 2 tile(s)" in description(88, 18)
    assert "7 pipeline(s) of 12 blocks with 3 tile(s)" in description(168, 18)
    # A cluster of 12 does not fit into a group of 11.
    assert "of 11 blocks" in description(8, 11) and "not all weights resident" in description(8, 11)
    assert description(8, 4).startswith("stage_cluster: no: with 20 layers in ")


@pytest.mark.parametrize(
    ("name", "precision", "device", "batch", "kernel", "message"),
    [
        ("A", "fp16", A100, 1, "stage_cluster", "it needs compute capability 9.0; this device has 8.0"),
        ("A", "fp16", T4, 1, "stage_grid", "it needs compute capability 8.0; this device has 7.5"),
        ("A", "fp32", H100, 1, "stage_cluster", "not fp32; use precision fp16"),
        ("D", "fp16", H100, 1, "stage_cluster", "with 40 layers in 14 stages, 3 layer(s) per block need"),
        ("A", "fp16", H100, 5000, "stage_grid", "of this network; the batch has 5000; use backend cuda"),
        (
            "A",
            "fp16",
            [80, 2, 163840, REGISTERS, 0, 1, 0],
            1,
            "stage_grid",
            "needs at least 3 blocks; available: 2; use backend cuda",
        ),
        (
            "A",
            "fp16",
            [80, 108, 163840, REGISTERS, 0, 0, 0],
            1,
            "stage_grid",
            "does not support cooperative launches",
        ),
        (
            "A",
            "fp16",
            [90, 132, 232448, REGISTERS - 1, 16, 1, 0],
            1,
            "stage_cluster",
            "a block needs 65536 registers",
        ),
        ("A", "fp16", [80, 108, 163840, REGISTERS // 2, 0, 1, 0], 1, "stage_grid", "this device has 32768"),
        (
            "A",
            "fp16",
            [75, 40, 65536, REGISTERS // 2, 0, 1, 0],
            1,
            "stream_cta",
            "a block needs 40960 registers",
        ),
        (
            "A",
            "fp16",
            [75, 40, 1024, REGISTERS, 0, 1, 0],
            1,
            "stream_cta",
            "too wide for this device: it needs",
        ),
    ],
)
def test_why_a_kernel_does_not_serve(name, precision, device, batch, kernel, message):
    model = network(*NETWORKS[name])
    packed = pack_tiles(model) if precision == "fp16" else pack(model)
    found = HostKernel(model, packed=packed).select_kernel(batch, device, kernel)
    assert found.startswith(f"no CUDA kernel can run this network: {kernel}: ") and message in found


def test_a_queue_longer_than_kernels_count_is_refused():
    packed = pack_tiles(network(2, 1, 3, 16, 16, 16))
    packed = dataclasses.replace(packed, geometry=[*packed.geometry[:8], 1, 2**30])
    told = HostKernel(WaveNet(WaveNetConfig(layers=2, stacks=1)), packed=packed).select_kernel(1, H100, None)
    ends = [line.partition(": ")[2] for line in told.splitlines()]
    reason = "a layer's queue can have at most 2147483647 steps; that of layer 1 has 2147483648"
    assert ends == [f"no: {reason}"] * 3


def test_all_reasons_are_listed_if_no_kernel_serves():
    model = network(*NETWORKS["small"])
    found = kernel_of(model).select_kernel(1, [75, 40, 1024, REGISTERS, 0, 1, 0], "")
    assert found.count("stage_cluster: it needs") == found.count("stage_grid: it needs") == 1
    assert "stream_cta: the network is too wide" in found and found.endswith("use device cpu")
    assert kernel_of(model).select_kernel(1, H100, "fast") == "kernel = fast: unknown kernel"


def test_more_classes_than_can_be_drawn_from():
    model = WaveNet(WaveNetConfig(layers=2, stacks=1, quantization_channels=1025))
    told = kernel_of(model).select_kernel(1, H100, None).splitlines()
    assert all(line.endswith("at most 1024 classes; the network has 1025") for line in told)
    assert [line.split(": ")[0] for line in told] == ["stage_cluster", "stage_grid", "stream_cta"]
