"""Data flows one way: a file imports only what stands before it, and nothing slow at the top."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "wavenet"

ORDER = [
    "__init__",
    "errors",
    "jsonconfig",
    "config",
    "distributed",
    "environment",
    "memory",
    "mulaw",
    "files",
    "midi",
    "progress",
    "quiet",
    "levels",
    "mel",
    "completeness",
    "audio",
    "report",
    "augmentation",
    "conditioning",
    "midi",
    "mel",
    "conditions",
    "clips",
    "cache",
    "recordings",
    "dataset",
    "alignment",
    "pairing",
    "weights",
    "extension",
    "fused",
    "model",
    "state",
    "packing",
    "packing_conditioner",
    "packing_cuda",
    "backends.reference",
    "backends.native",
    "backends.numba_kernel",
    "backends.numba",
    "backends.fastest",
    "backends.cuda",
    "backends",
    "checkpoint",
    "steering",
    "composing",
    "listening",
    "takes",
    "generation",
    "likelihood",
    "watchdog",
    "choosing",
    "saved",
    "live",
    "drawing",
    "portraits",
    "baselines",
    "scores",
    "evaluation",
    "resuming",
    "schedules",
    "account",
    "objectives",
    "compiling",
    "loading",
    "fitting",
    "metrics",
    "watching",
    "boards",
    "plots",
    "training",
    "cli",
    "cli.interrupts",
    "cli.common",
    "cli.flags",
    "cli.stopping",
    "cli.train",
    "cli.playing",
    "cli.generate_flags",
    "cli.places",
    "cli.making",
    "cli.looking",
    "cli.outputs",
    "cli.generate",
    "cli.evaluate",
    "cli.kernels",
]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    name = ".".join(parts)
    return name.removesuffix(".__init__") if len(parts) > 1 else name


def imports(tree: ast.AST) -> set[str]:
    """Modules of the package that a file imports anywhere, types included."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "wavenet":
            base = node.module.removeprefix("wavenet").lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                found.add(inner if inner in ORDER else base or "__init__")
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("wavenet.") for a in node.names if a.name.startswith("wavenet.")}
    return found


def test_every_file_has_its_place():
    assert {module_name(path) for path in PACKAGE.rglob("*.py")} == set(ORDER)


def test_no_step_backwards():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        name = module_name(path)
        if name == "__init__":  # its exports are lazy
            continue
        for imported in imports(ast.parse(path.read_text(encoding="utf-8"))):
            if ORDER.index(imported) >= ORDER.index(name):
                wrong.append(f"{name} imports {imported}")
    assert not wrong


def loaded_after(code: str) -> set[str]:
    program = code + "\nimport sys; print(*sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_the_package_and_parsing_arguments_loads_nothing_slow():
    slow = {"torch", "numpy", "numba", "librosa", "soundfile", "soxr", "safetensors", "mido"}
    code = (
        "import wavenet, wavenet.cli.train, wavenet.cli.generate, wavenet.cli.evaluate\n"
        "wavenet.cli.train.build_parser().parse_args([])\n"
        "wavenet.cli.evaluate.build_parser().parse_args([])\n"
        "wavenet.cli.generate.build_parser().parse_args(['out.wav'])"
    )
    assert not slow & loaded_after(code)


def test_the_engine_needs_no_audio_library():
    loaded = loaded_after(
        "import wavenet.generation, wavenet.training, wavenet.dataset, wavenet.audio, wavenet.midi\n"
        "import wavenet.mel"
    )
    assert not {"librosa", "soundfile", "soxr", "scipy", "mido"} & loaded


@pytest.mark.parametrize(("library", "rate"), [("soundfile", 8000), ("soxr", 4000)])
def test_a_missing_audio_library_is_named(library, rate, tmp_path, monkeypatch):
    import numpy as np

    from wavenet.audio import load_audio, write_wav
    from wavenet.errors import AudioError

    path = tmp_path / "tone.wav"
    write_wav(path, np.sin(np.arange(800, dtype=np.float32)) / 2, 8000)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(AudioError, match=f"pip install {library}$"):
        load_audio(path, rate)
