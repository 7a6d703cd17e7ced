"""The engines of the sample loop, and the choice among them."""

from __future__ import annotations

import torch

from wavenet.engine.base import Backend
from wavenet.engine.cpu import CompiledConditioner, CpuBackend
from wavenet.engine.cuda import CudaBackend
from wavenet.engine.numba import NumbaBackend
from wavenet.engine.packing import CPU_PRECISIONS
from wavenet.engine.reference import ReferenceBackend
from wavenet.errors import BackendError
from wavenet.models.conditioner import Conditioner
from wavenet.models.wavenet import WaveNet

_BACKENDS: dict[str, type[CpuBackend] | type[NumbaBackend] | type[ReferenceBackend] | type[CudaBackend]] = {
    "cpu": CpuBackend,
    "numba": NumbaBackend,
    "reference": ReferenceBackend,
    "cuda": CudaBackend,
}
"""By name; of those that serve a device, the preferred one first."""

NAMES = tuple(_BACKENDS)

PRECISIONS = tuple(dict.fromkeys([*CPU_PRECISIONS, *CudaBackend.precisions]))
"""Those that some engine computes in."""

MAX_THREADS = 1024
"""Larger values are almost certainly typos."""


def report() -> dict[str, str | None]:
    """Return for every backend None if it can run here, or else the reason why not."""
    return {name: backend.available() for name, backend in _BACKENDS.items()}


def describe() -> list[str]:
    """Return one line for every backend: its precisions and instruction sets, or why it cannot run here."""
    lines = []
    for name, reason in report().items():
        backend = _BACKENDS[name]
        text = f"not available: {reason}" if reason else ", ".join([*backend.precisions, *backend.details()])
        lines.append(f"{name:10} {text}")
    return lines


def create(
    model: WaveNet,
    name: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    precision: str = "fp32",
) -> Backend:
    """Return a backend for a network.

    Parameters
    ----------
    model : WaveNet
        On the CPU, float32; not to be changed while the backend is in use.
    name : str
        A name from `NAMES`, or "auto" for the first that is available and has the precision. "cuda:" and the
        name of a kernel forces that kernel.
    device : str
        Where to run: "cpu", "cuda", or "cuda:" and a number.
    threads : int, optional
        Threads over which streams are spread; by default as many as torch uses.
    precision : str
        Of the weights, from `PRECISIONS`; not every engine has all of them.

    Raises
    ------
    BackendError
        If the name or the precision is unknown, the backend cannot run here, or it does not serve the device
        or the precision.
    """
    name, _ = choose(name, device, precision)
    threads = torch.get_num_threads() if threads is None else threads
    if not 1 <= threads <= MAX_THREADS:
        raise BackendError(f"threads = {threads}: must be from 1 to {MAX_THREADS}")
    name, _, kernel = name.partition(":")
    if name == "cuda":
        return CudaBackend(model, threads, precision, device, kernel)
    return _BACKENDS[name](model, threads, precision)


def bias_computer(backend: Backend, model: WaveNet) -> Conditioner | CompiledConditioner | None:
    """Return the module that computes gate biases for a backend; None without conditioning."""
    if model.conditioner is None:
        return None
    if isinstance(backend, CpuBackend):
        return CompiledConditioner(model.conditioner)
    model.conditioner.pack_weights()
    return model.conditioner


def choose(name: str, device: str = "cpu", precision: str = "fp32") -> tuple[str, dict[str, str]]:
    """Return the name of the backend to use, and why those that "auto" prefers cannot run here.

    The parameters and errors are those of `create`.
    """
    name, colon, kernel = name.partition(":")
    if name != "auto" and name not in _BACKENDS:
        raise BackendError(f"unknown backend {name!r}: choose from auto, {', '.join(NAMES)}")
    if kernel and name != "cuda":
        raise BackendError(f"backend {name!r} has no kernel {kernel!r} to choose: only cuda has kernels")
    serving = _serving(device)
    if name != "auto" and name not in serving:
        own = "cuda" if name == "cuda" else "cpu"
        raise BackendError(f"backend {name!r} does not generate on device {device!r}: use device {own!r}")
    if precision not in PRECISIONS:
        raise BackendError(f"unknown precision {precision!r}: choose from {', '.join(PRECISIONS)}")
    reasons: dict[str, str] = {}
    # One by one: engines that are not needed are not loaded.
    for each in serving if name == "auto" else [name]:
        reason = _reason(each, precision)
        if reason is None:
            return each + colon + kernel, reasons
        if name == "auto" and "WAVENET_CPU" in reason:
            # The user selected an instruction set: a fallback would hide the mistake.
            raise BackendError(reason)
        reasons[each] = reason
    other = "" if device.startswith("cpu") else "device 'cpu'"
    if name != "auto":
        raise BackendError(
            f"backend {name!r} cannot run here: {reasons[name]}; try {other or 'backend auto'}"
        )
    text = "; ".join(f"{each}: {reason}" for each, reason in reasons.items())
    raise BackendError(
        f"no backend can generate in {precision} here: {text}; try {other or 'precision fp32'}"
    )


def fallback_reason(name: str, reasons: dict[str, str]) -> str | None:
    """Return one line with the backends that cannot run here and their reasons; None if there are none."""
    if not reasons:
        return None
    # There is a choice on the CPU only, and there the C++ engine comes first.
    (_, why), *others = reasons.items()
    text = "; ".join([why, *(f"{each}: {reason}" for each, reason in others)])
    slowly = ", slowly" if name == "reference" else ""
    return f"warning: the C++ engine cannot run here; {name} replaces it{slowly}: {text}"


def _serving(device: str) -> list[str]:
    """Return the names of the backends that serve a device, the preferred one first."""
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise BackendError(f"no backend generates on device {device!r}: use cpu or cuda")
    return [name for name in NAMES if (name == "cuda") == (kind == "cuda")]


def _reason(name: str, precision: str) -> str | None:
    """Return None if a backend can run here in a precision, or else the reason why not."""
    backend = _BACKENDS[name]
    if precision not in backend.precisions:
        return f"it computes in {' and '.join(backend.precisions)} only, not in {precision}"
    return backend.available()
