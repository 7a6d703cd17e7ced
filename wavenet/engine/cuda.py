"""The compiled engine on NVIDIA GPUs: `torch.ops.wavenet` with the state and the weights on the device."""

from __future__ import annotations

import dataclasses

import torch

from wavenet.config import WaveNetConfig
from wavenet.engine import cuda_tuning
from wavenet.engine.cpu import CpuBackend
from wavenet.engine.packing import LAYOUTS, pack
from wavenet.engine.packing_tiles import TILE_LAYOUTS, pack_tiles
from wavenet.engine.reference import ReferenceBackend, draw
from wavenet.engine.sampling import Sampling
from wavenet.engine.state import GeneratorState
from wavenet.errors import BackendError
from wavenet.extension import build_info, load_extension
from wavenet.models.gate_bias import GateBias
from wavenet.models.wavenet import WaveNet

KERNELS = ("stage_cluster", "stage_grid", "stream_cta")
"""All that the engine has. For a network, a device and a batch the one that was measured to be the fastest is
taken (`wavenet.engine.cuda_tuning`), or without a measurement the first that serves."""

TILES = (8, 16, 32, 64)
"""Streams that a block takes; the batch is divided among all multiprocessors (csrc/cuda/stream/plan.h)."""

CHECK_STEPS = 64
CHECK_BATCH = 3
CHECK_STREAMS = 40
"""Streams with which kernels are compared: several pipelines, or tiles in one."""
CHECK_TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2}
"""By what the matrices are stored in: the largest error there may be, relative to the largest logit; for
draws, how far a uniform may be off."""

_STORED = {LAYOUTS["fp32"]: "fp32", TILE_LAYOUTS[torch.float16]: "fp16", TILE_LAYOUTS[torch.bfloat16]: "bf16"}
_checked: set[tuple[torch.device, str, str]] = set()


class CudaBackend(CpuBackend):
    """Generation by CUDA kernels.

    In "stream_cta" a block of threads takes a tile of streams through a whole chunk of samples; the tile's
    size is chosen by the batch. In "stage_cluster" and "stage_grid" blocks keep the weights of a few layers
    each, and samples go from block to block; these serve few streams sooner, and fp16 only. No result depends
    on the kernel, to the bit. Before a process first uses a device in a precision, a small network is
    generated with and compared with the reference backend, and the kernels with each other.

    Parameters
    ----------
    model : WaveNet
        Its weights are copied to the device.
    threads : int
        Without effect.
    precision : str
        Of the matrices: "fp32" (exact), or "fp16" (tensor cores: weights and what they are multiplied with
        are rounded, sums are float32; bf16 takes its place where a weight is beyond the range of fp16).
    device : str
        "cuda", or "cuda:" and a number.
    kernel : str
        A name from `KERNELS`, or "" for a choice for each batch.

    Raises
    ------
    BackendError
        If the engine cannot run here, the device or the kernel is not there, or the check failed.
    """

    name = "cuda"
    precisions = ("fp32", "fp16")

    def __init__(
        self,
        model: WaveNet,
        threads: int = 1,
        precision: str = "fp32",
        device: str = "cuda",
        kernel: str = "",
    ):
        if kernel and kernel not in KERNELS:
            raise BackendError(
                f"unknown kernel {kernel!r} of backend 'cuda': choose from {', '.join(KERNELS)}"
            )
        reason = self.available()
        if reason is not None:
            raise BackendError(f"backend 'cuda' cannot run here: {reason}")
        self.device = _device_named(device)
        self.kernel = kernel
        self.threads = threads
        self.precision = precision
        packed = pack_tiles(model) if precision == "fp16" else pack(model)
        self.packed = dataclasses.replace(packed, data=packed.data.to(self.device))
        stored = _STORED[packed.geometry[0]]
        # stream_cta first: the others are compared with it.
        for each in reversed(KERNELS):
            if each == "stream_cta" or kernel in ("", each):
                _check_once(self.device, stored, each)
        self.fastest = [] if kernel else cuda_tuning.remembered(self.identity())
        told = self.kernels()[kernel] if kernel else ""
        if told.startswith("no: "):
            raise BackendError(f"kernel {kernel!r} does not serve this network here: {told[4:]}")

    def kernels(self, batch: int = 1) -> dict[str, str]:
        """Return what each kernel would do for so many streams; where it would not serve, "no: " and why."""
        told = torch.ops.wavenet.cuda_kernels(self.packed.data, self.packed.geometry, batch)
        return dict(line.split(": ", 1) for line in told.splitlines())

    def serving(self, batch: int) -> str:
        """Return the name of the kernel that serves so many streams."""
        first = (name for name, told in self.kernels(batch).items() if not told.startswith("no: "))
        return self._kernel_for(batch) or next(first)

    def identity(self) -> str:
        """Return what a measurement of the kernels on this device, with such a network, holds for."""
        return cuda_tuning.identity(self.device, self.packed.geometry)

    def _kernel_for(self, batch: int) -> str:
        return self.kernel or cuda_tuning.kernel_for(self.fastest, batch)

    @staticmethod
    def available() -> str | None:
        """Return None if the engine can run here, or else the reason why not."""
        if not torch.cuda.is_available():
            return "no CUDA device" + ("" if torch.version.cuda else " (this torch is built without CUDA)")
        reason = load_extension()
        if reason is not None:
            return reason
        if not hasattr(torch.ops.wavenet, "cuda_architectures"):
            reason = (build_info() or {}).get("cuda") or "install the package again with nvcc at hand"
            return f"the extension was built without CUDA: {reason}"
        return None

    @classmethod
    def details(cls) -> list[str]:
        """Return what else is to be known of the engine here, where it is available."""
        devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        compiled = torch.ops.wavenet.cuda_architectures()
        return [f"kernels {' '.join(KERNELS)}", f"compiled for {compiled}", f"on {', '.join(devices)}"]

    def _call(
        self,
        operator: str,
        state: GeneratorState,
        inputs: torch.Tensor,
        settings: tuple[torch.Tensor, ...],
        gate_bias: GateBias | None,
    ) -> torch.Tensor:
        if gate_bias is not None:
            values = gate_bias.values
            # Of a batch expanded from one row, one row goes to the device.
            once = values[:1] if values.shape[0] > 1 and values.stride(0) == 0 else values
            gate_bias = dataclasses.replace(gate_bias, values=once.to(self.device).expand(values.shape))
        return super()._call(operator, state, inputs, settings, gate_bias)


def _device_named(name: str) -> torch.device:
    """Return a CUDA device with its number."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BackendError(f"device {name!r}: is not a device; use cuda, or cuda:0") from None
    index = torch.cuda.current_device() if device.index is None else device.index
    if device.type != "cuda" or index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise BackendError(f"device {name!r}: this machine has {count} CUDA device(s), from cuda:0 on")
    return torch.device("cuda", index)


def _check_once(device: torch.device, stored: str, kernel: str) -> None:
    """Check a kernel unless this process has done so; `stored` names what the matrices are stored in."""
    if (device, stored, kernel) in _checked:
        return
    # Before the check, which makes a backend of its own.
    _checked.add((device, stored, kernel))
    try:
        if kernel == "stream_cta":
            check(device, stored)
        else:
            check_alike(device, stored, kernel)
    except BaseException:
        _checked.discard((device, stored, kernel))
        raise


def check_alike(device: torch.device, stored: str, kernel: str) -> None:
    """Raise `BackendError` unless a kernel gives what stream_cta gives, to the bit, or does not serve."""
    random = torch.Generator().manual_seed(1)
    model = _small_network(random, beyond_fp16=stored == "bf16")
    precision = "fp32" if stored == "fp32" else "fp16"
    anchor = CudaBackend(model, 1, precision, str(device), "stream_cta")
    if anchor.kernels(CHECK_STREAMS)[kernel].startswith("no: "):
        return
    other = CudaBackend(model, 1, precision, str(device), kernel)
    rows = [row % CHECK_BATCH for row in range(CHECK_STREAMS)]
    state = _random_state(model.config, random).select(rows).with_sampling(Sampling(temperature=0.9))
    uniforms = torch.rand(CHECK_STREAMS, CHECK_STEPS, generator=random)
    values = torch.randn(
        CHECK_STREAMS, 5, model.config.layers, 2 * model.config.dilation_channels, generator=random
    )
    gate = GateBias(values, hop=16, start=3, linear=True)
    for batch in (1, CHECK_STREAMS):
        bias = dataclasses.replace(gate, values=values[:batch])
        states = [state.select(list(range(batch))).to(device) for _ in range(2)]
        drawn = [
            backend.generate(each, uniforms[:batch].to(device), bias)
            for backend, each in zip((anchor, other), states, strict=True)
        ]
        one, two = states
        same = torch.equal(*drawn) and torch.equal(one.queues, two.queues)
        if not (same and torch.equal(one.position, two.position)):
            raise BackendError(
                f"the CUDA kernel {kernel} differs from stream_cta on {device} in {stored}; "
                "use backend cuda:stream_cta, and please report this"
            )


def check(device: torch.device, stored: str) -> None:
    """Raise `BackendError` unless a small network gives the same on a device and on the reference backend.

    The network has random conditioning and draws random samples. The logits of these samples are compared,
    and the samples with those that the reference logits give, except where rounding decides. This uses the
    smallest tile; all other tiles must give the same streams to the bit. `stored` is the storage
    type of the matrices.
    """
    random = torch.Generator().manual_seed(0)
    model = _small_network(random, beyond_fp16=stored == "bf16")
    backend = CudaBackend(model, 1, "fp32" if stored == "fp32" else "fp16", str(device), "stream_cta")
    sampling = Sampling(temperature=0.9)
    state = _random_state(model.config, random).with_sampling(sampling)
    uniforms = torch.rand(CHECK_BATCH, CHECK_STEPS, generator=random)
    values = torch.randn(
        CHECK_BATCH, 5, model.config.layers, 2 * model.config.dilation_channels, generator=random
    )
    gate = GateBias(values, hop=16, start=3, linear=True)
    on_device = state.to(device)
    drawn = backend.generate(on_device.clone(), uniforms.to(device), gate).cpu()
    found = backend.advance(on_device.clone(), drawn.to(device), gate).cpu()
    expected = ReferenceBackend(model).advance(state.clone(), drawn, gate)
    _compare(found, expected, drawn, uniforms, sampling, f"on {device} in {stored}", CHECK_TOLERANCE[stored])
    for tile in TILES[1:]:
        rows = [row % CHECK_BATCH for row in range(tile // 2 * _multiprocessors(device) + 1)]
        many, draws = state.select(rows).to(device), uniforms[rows].to(device)
        again = backend.generate(many, draws, dataclasses.replace(gate, values=values[rows])).cpu()
        if not torch.equal(again, drawn[rows]):
            raise BackendError(
                f"{_FAILED} on {device} in {stored}: streams in tiles of {tile} differ; {_ADVICE}"
            )


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _compare(
    found: torch.Tensor,
    expected: torch.Tensor,
    drawn: torch.Tensor,
    uniforms: torch.Tensor,
    sampling: Sampling,
    where: str,
    tolerance: float,
) -> None:
    """Raise `BackendError` if logits or samples differ by more than a tolerance."""
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error <= tolerance:
        raise BackendError(f"{_FAILED} {where}: logits are off by {error:.1e} of the largest; {_ADVICE}")
    for row in range(CHECK_BATCH):
        for step in range(CHECK_STEPS):
            uniform = float(uniforms[row, step])
            low = draw(expected[row, step], max(0.0, uniform - tolerance), sampling)
            high = draw(expected[row, step], min(1 - 2**-24, uniform + tolerance), sampling)
            if not low <= int(drawn[row, step]) <= high:
                raise BackendError(f"{_FAILED} {where}: sample {step} of row {row} is wrong; {_ADVICE}")


_FAILED = "the CUDA engine differs from the reference"
_ADVICE = "use device cpu, and please report this"


def _small_network(random: torch.Generator, beyond_fp16: bool = False) -> WaveNet:
    config = WaveNetConfig(
        quantization_channels=40,
        layers=4,
        stacks=2,
        kernel_size=3,
        residual_channels=20,
        dilation_channels=12,
        skip_channels=70,
        head_channels=36,
    )
    with torch.random.fork_rng(devices=[]):
        model = WaveNet(config)
    scaled = {
        name: torch.randn(tensor.shape, generator=random) * 1.5 / tensor.shape[-1] ** 0.5
        for name, tensor in model.state_dict().items()
    }
    if beyond_fp16:
        # Large before the last matrix, which makes it small again.
        for name, factor in (("head1.weight", 2.0**17), ("head1.bias", 2.0**17), ("head2.weight", 2.0**-17)):
            scaled[name] *= factor
    model.load_state_dict(scaled)
    return model.eval().requires_grad_(False)


def _random_state(config: WaveNetConfig, random: torch.Generator) -> GeneratorState:
    shape = (CHECK_BATCH, config.queue_steps, config.residual_channels)
    return GeneratorState(
        queues=torch.randn(shape, generator=random),
        position=torch.tensor([0, 7, 1000]),
        last_sample=torch.tensor([0, 39, 17]),
        stream=torch.arange(CHECK_BATCH),
    )
