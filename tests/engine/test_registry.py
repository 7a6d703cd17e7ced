"""What is said about the engines: which there are, with what, and why not."""

from __future__ import annotations

import pytest
from support.engines import needs_extension

import wavenet
from wavenet import __version__
from wavenet.cli import generate
from wavenet.engine import cpu, registry
from wavenet.engine.cpu import CpuBackend
from wavenet.engine.numba import NumbaBackend


def line_of(name: str) -> str:
    (line,) = (line for line in registry.describe() if line.split()[0] == name)
    return line


def test_every_backend_is_described_in_its_order():
    assert [line.split()[0] for line in registry.describe()] == list(registry.NAMES)
    assert registry.NAMES == ("cpu", "numba", "reference", "cuda")
    for name in ("numba", "reference"):
        assert "fp32" in line_of(name) and "int8" not in line_of(name)


@needs_extension
def test_instruction_sets_in_use_there_and_missing(monkeypatch):
    monkeypatch.setenv("WAVENET_CPU", "base")
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    assert line_of("cpu").startswith("cpu        fp32, bf16, int8, instruction set base of base")
    monkeypatch.setattr(CpuBackend, "instruction_sets", staticmethod(lambda: ["base", "avx2"]))
    assert line_of("cpu").endswith("of base avx2, not on this processor: avx512 avx512vnni")
    monkeypatch.setattr(cpu.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(CpuBackend, "instruction_sets", staticmethod(lambda: ["base", "neon"]))
    assert line_of("cpu").endswith("of base neon, not on this processor: neondot")
    monkeypatch.setenv("WAVENET_CPU", "mmx")
    assert "not available: WAVENET_CPU = mmx" in line_of("cpu")


def test_why_an_engine_is_not_there(monkeypatch):
    monkeypatch.setattr(cpu, "load_extension", lambda: "the extension was not built: no C++ compiler")
    assert line_of("cpu") == "cpu        not available: the extension was not built: no C++ compiler"


NOT_BUILT = "the extension was not built: no C++ compiler"


@pytest.mark.parametrize(
    ("numba", "told"),
    [
        (None, f"warning: the C++ engine cannot run here; numba replaces it: {NOT_BUILT}"),
        (
            "numba cannot be loaded",
            f"warning: the C++ engine cannot run here; reference replaces it, slowly: {NOT_BUILT}; "
            "numba: numba cannot be loaded",
        ),
    ],
)
def test_engines_that_auto_skips_are_reported(numba, told, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(cpu, "load_extension", lambda: NOT_BUILT)
    monkeypatch.setattr(NumbaBackend, "available", staticmethod(lambda: numba))
    name, reasons = registry.choose("auto")
    assert name == ("reference" if numba else "numba")
    assert registry.fallback_reason(name, reasons) == told
    if numba is None:
        assert registry.choose("numba") == ("numba", {})
        return
    model = wavenet.WaveNet(wavenet.WaveNetConfig(layers=2, stacks=1))
    assert wavenet.Generator(model, "reference").fallback_reason is None
    model.save_pretrained(tmp_path / "model")
    take = str(tmp_path / "take.wav")
    assert generate.main(["--checkpoint", str(tmp_path / "model"), "--seconds", "0.01", take]) == 0
    assert told in capfd.readouterr().err.splitlines()


@needs_extension
def test_the_preferred_engine_gives_no_warning():
    assert registry.choose("auto") == ("cpu", {})
    model = wavenet.WaveNet(wavenet.WaveNetConfig(layers=2, stacks=1))
    assert wavenet.Generator(model).fallback_reason is None


def test_version_lists_the_engines(capsys):
    with pytest.raises(SystemExit) as end:
        generate.build_parser().parse_args(["--version"])
    assert end.value.code == 0
    expected = [f"wavenet-generate {__version__}", *registry.describe()]
    assert capsys.readouterr().out.splitlines() == expected
