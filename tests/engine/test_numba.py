"""Properties of the numba engine only; tests/engine/test_engines.py tests those of all engines."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from support.engines import random_gate, random_model, random_state

from wavenet.engine import numba as numba_backend
from wavenet.engine import registry
from wavenet.engine.cpu import CpuBackend
from wavenet.engine.numba import NumbaBackend
from wavenet.errors import BackendError


def test_invalid_arguments_give_one_line():
    shape, _, model = random_model(37, classes=16)
    backend = NumbaBackend(model)
    state, samples = random_state(shape, 2, 0), torch.zeros(2, 3, dtype=torch.int64)
    gate = random_gate(shape, 3, frames=1)
    for call, message in (
        (lambda: backend.advance(state, samples + 16), "samples contains 16: must be 0 to 15"),
        (lambda: backend.advance(state, samples - 1), "samples contains -1: must be 0 to 15"),
        (lambda: backend.advance(state, samples[:1]), r"samples is \(1, 3\): must be \(2, any\)"),
        (lambda: backend.advance(state, samples.float()), "samples is torch.float32: must be torch.int64"),
        (lambda: backend.advance(state, samples, gate), r"gate_bias is \(3, 1, .*\): must be \(2, any, "),
        (lambda: backend.advance(state.select([]), samples), r"samples is \(2, 3\): must be \(0, any\)"),
    ):
        with pytest.raises(BackendError, match=f"^{message}"):
            call()


@pytest.fixture
def fresh_availability():
    """Clear the cached availability of numba before and after a test."""
    numba_backend._unusable.cache_clear()
    yield
    numba_backend._unusable.cache_clear()


def test_missing_numba_gives_a_reason(fresh_availability, monkeypatch):
    _, _, model = random_model(38)
    for name in [name for name in sys.modules if name == "numba" or name.startswith("numba.")]:
        monkeypatch.setitem(sys.modules, name, None)
    reason = NumbaBackend.available()
    assert reason is not None and reason.startswith("numba cannot be loaded: ") and "\n" not in reason
    with pytest.raises(BackendError, match=r"^backend 'numba' cannot run here: numba cannot be loaded: "):
        registry.create(model, "numba")
    monkeypatch.setattr(CpuBackend, "available", staticmethod(lambda: "not built"))
    assert registry.create(model).name == "reference"


def test_a_disabled_compiler_gives_a_reason(fresh_availability, monkeypatch):
    from numba.core import config

    monkeypatch.setattr(config, "DISABLE_JIT", 1)
    assert NumbaBackend.available() == "NUMBA_DISABLE_JIT is set: nothing would be compiled"


def test_numba_is_chosen_only_without_the_cpp_engine(monkeypatch):
    _, _, model = random_model(38)
    monkeypatch.setattr(CpuBackend, "available", staticmethod(lambda: "not built"))
    assert registry.create(model).name == "numba"
    monkeypatch.undo()
    if CpuBackend.available() is None:
        monkeypatch.setattr(NumbaBackend, "available", staticmethod(lambda: pytest.fail("was asked")))
        assert registry.create(model).name == "cpu"


@pytest.fixture
def small_kernel(monkeypatch):
    """A kernel that compiles quickly, from a source that numba cannot cache."""
    from numba import types

    from wavenet.engine import numba_kernel

    names: dict = {}
    exec(compile("def kernel(values):\n    values[0] = 3\n", "/dev/null/kernel.py", "exec"), names)
    monkeypatch.setattr(numba_kernel, "_run", names["kernel"])
    monkeypatch.setattr(numba_kernel, "_SIGNATURE", types.void(types.Array(types.int64, 1, "C")))
    numba_kernel.compiled.cache_clear()
    yield numba_kernel
    numba_kernel.compiled.cache_clear()


def test_the_kernel_compiles_without_a_cache_folder(small_kernel):
    from numba import njit

    with pytest.raises(RuntimeError, match="no locator available"):
        njit(small_kernel._SIGNATURE, cache=True)(small_kernel._run)
    values = np.zeros(1, np.int64)
    small_kernel.compiled()(values)
    assert values.tolist() == [3]


def test_the_compiled_kernel_is_in_the_users_cache(small_kernel, tmp_path, monkeypatch):
    from numba.core import config

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(config, "CACHE_DIR", "")
    source = tmp_path / "package" / "kernel.py"
    source.parent.mkdir()
    source.write_text("def kernel(values):\n    values[0] = 3\n")
    names: dict = {}
    exec(compile(source.read_text(), str(source), "exec"), names)
    monkeypatch.setattr(small_kernel, "_run", names["kernel"])
    _, _, model = random_model(38)
    NumbaBackend(model)
    assert list((tmp_path / "cache" / "wavenet" / "numba").rglob("*.nbi"))
    assert list(source.parent.iterdir()) == [source] and config.CACHE_DIR == ""


def test_an_interrupted_compilation_can_be_repeated(small_kernel, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(small_kernel, "njit", interrupted)
        small_kernel.compiled()
    values = np.zeros(1, np.int64)
    small_kernel.compiled()(values)
    assert values.tolist() == [3]


def test_a_failed_compilation_gives_one_line(small_kernel, monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("no such target\nat all")

    _, _, model = random_model(38)
    monkeypatch.setattr(small_kernel, "njit", failing)
    message = "^backend 'numba' failed to compile: no such target; try backend reference$"
    with pytest.raises(BackendError, match=message):
        NumbaBackend(model)
