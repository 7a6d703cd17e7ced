"""The documents: commands run, output has the form shown; quoted messages, files, functions and flags exist.

The console blocks of a document run in order in one folder, with a small network: `quick.json` replaces the
defaults of training, so that a run takes two steps instead of an hour.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import conditioned
from support.commands import chord
from support.conditioned import tune
from support.scores import write_midi

from wavenet.audio.wav import write_wav
from wavenet.conditioning.supplied import SuppliedFrames
from wavenet.engine import registry
from wavenet.generation.generator import Generator

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
README = ROOT / "README.md"
NOTEBOOK = ROOT / "examples" / "tour.ipynb"
RUN = [README, ROOT / "examples" / "README.md", *DOCS]
PROSE = [*RUN, ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "RESULTS.md"]
pytestmark = pytest.mark.skipif(not DOCS, reason="runs in a source tree only")

QUICK = {
    "preset": "tiny", "sample_rate": 8000, "layers": 6, "stacks": 1, "steps": 2, "batch": 1, "segment": 0.1,
    "validation_seconds": 0.1, "sample_seconds": 0.02, "device": "cpu", "precision": "fp32",
}  # fmt: skip
COMMANDS = ("train", "generate", "evaluate")

RECORDINGS = ("guitar/one", "guitar/two", "guitar/three", "guitar/four", "piano/one", "piano/two")
"""Training holds out two of these names."""

FRAMES = {"mel": torch.zeros(80, 64), "more": torch.ones(80, 32)}
"""Stand-ins for the frames of a text-to-speech model."""


def blocks(path: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


def sessions(path: Path) -> list[tuple[str, list[str]]]:
    """Return the commands of a document, each with the lines of output that are shown."""
    found: list[tuple[str, list[str]]] = []
    for block in blocks(path, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                found.append((line[2:].partition("  #")[0].strip(), []))
            elif line.strip() not in ("", "..."):
                found[-1][1].append(line)
    return found


def quickened(command: str, folder: Path) -> str:
    """Return a training command with two steps and an empty output folder."""
    words = shlex.split(command)
    if words[0] != "wavenet-train" or {"--plot", "--resume", "--help"} & set(words):
        return command
    if "--dry-run" not in words:
        out = Path(words[words.index("--out-dir") + 1]) if "--out-dir" in words else Path("checkpoints")
        # As on a first run.
        shutil.rmtree(folder / out, ignore_errors=True)
    command = re.sub(r"--(steps|max-time|preset|segment|sample-rate|batch) \S+", "", command)
    return (
        command
        + ("" if "--init-from" in words else " --config quick.json")
        + (" --steps 2 --segment 0.1 --batch 1 --device cpu" if "--init-from" in words else "")
    )


def run(command: str, folder: Path, capfd) -> tuple[int, str]:
    """Run a command line; commands of the package in this process, unless they are part of a pipe."""
    words = shlex.split(command, comments=True)
    name = words[0].removeprefix("wavenet-")
    if words[0].startswith("wavenet-") and not {"|", ">", "<", "&&"} & set(words):
        main = importlib.import_module(f"wavenet.cli.{name}").main
        capfd.readouterr()
        try:
            code = main([os.path.expanduser(word) for word in words[1:]])
        except SystemExit as end:
            code = end.code or 0
        return code, "".join(capfd.readouterr())
    result = subprocess.run(
        ["bash", "-c", command], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=100,
    )  # fmt: skip
    return result.returncode, result.stdout.decode()


def form(line: str) -> re.Pattern[str]:
    """Return a pattern for a line of output with arbitrary numbers."""
    # The home folder, the precision, and the side of a baseline vary.
    line = line.removesuffix("...")
    line = re.sub(r"/home/me/|(bf16|fp32)(?= on cpu)|below(?= the unigram)", "\0", line)
    parts = re.split(r"[-+]?\d[\d,.:]*\s*(?:ms|min|s|MB|GB|h)?\b", line.strip())
    escaped = [r"\s+".join(map(re.escape, re.split(r"\s+", part))) for part in parts]
    pattern = r"[-+]?\s*[\d,.:]+\s*\w*".join(escaped)
    return re.compile(pattern.replace(re.escape("\0"), r"\S+"))


def copy_examples(folder: Path) -> None:
    """Copy the examples with two short tunes, of which one is for validation."""
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("*.flac"))
    for name in ("irish-washerwoman.flac", "ode-to-joy.flac"):
        shutil.copy(ROOT / "examples" / "audio" / name, folder / "examples" / "audio")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A user's folder: recordings with scores in two subfolders, and stand-ins for missing programs."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(RECORDINGS):
        path = tmp_path / "recordings" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        sound = chord(1.5, 8000, 200.0 + 30 * number) + 0.02 * rng.standard_normal(12000)
        whole = np.concatenate([sound, np.zeros(8000 if number == 0 else 0), sound])
        write_wav(path, (0.7 * whole / np.abs(whole).max()).astype(np.float32), 8000)
        write_midi(tmp_path / "scores" / f"{name}.mid", tune(number, 1.5))
    (tmp_path / "quick.json").write_text(json.dumps(QUICK))
    copy_examples(tmp_path)
    write_wav(tmp_path / "take.wav", chord(0.5, 8000), 8000)
    tools = tmp_path / "tools"
    tools.mkdir()
    scripts = {
        "ffplay": "cat > /dev/null",
        "aplay": "cat > /dev/null",
        "python": f'exec "{sys.executable}" "$@"',
    }
    for name in COMMANDS:
        scripts[f"wavenet-{name}"] = f'exec "{sys.executable}" -m wavenet.cli.{name} "$@"'
    for name, script in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.skipif(registry.report()["cpu"] is not None, reason="the documents show the fast engine")
@pytest.mark.skipif(shutil.which("bash") is None, reason="the commands are a shell's")
@pytest.mark.parametrize("document", RUN, ids=lambda path: str(path.relative_to(ROOT)))
def test_documented_commands(document, place, capfd):
    pytest.importorskip("mido")
    for command, shown in sessions(document):
        code, output = run(quickened(command, place), place, capfd)
        assert code == 0, f"{command}\n{output}"
        for line in shown:
            assert form(line).search(output), f"{command}\nshown: {line}\n{output}"
    scope: dict[str, object] = dict(FRAMES)
    for block in blocks(document, "python"):
        exec(compile(block, str(document), "exec"), scope)


def test_all_documents_are_tested():
    assert len(DOCS) >= 5
    assert {path.name for path in RUN if not sessions(path) and not blocks(path, "python")} == {
        "troubleshooting.md"
    }
    # Sessions are marked as such, so that no command is missed.
    for path in RUN:
        assert not re.search(r"^```\n\$", path.read_text(encoding="utf-8"), re.M), path


@pytest.mark.parametrize("document", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_linked_files_exist(document):
    text = document.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in link:
            assert (document.parent / link).exists(), link
    for name in re.findall(r"`((?:wavenet|csrc|tests|benchmarks|examples)/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("document", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_functions_exist(document):
    for name in re.findall(r"`(wavenet(?:\.\w+)+)[`(]", document.read_text(encoding="utf-8")):
        module, _, attribute = name.rpartition(".")
        found = importlib.import_module(module)
        assert hasattr(found, attribute) or importlib.util.find_spec(name), name


def outputs(path: Path) -> list[tuple[str, list[str]]]:
    """Return the code cells of a notebook, each with the kinds of what it shows."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [
        (
            "".join(cell["source"]),
            [kind for each in cell["outputs"] for kind in each.get("data", [each.get("name")])],
        )
        for cell in cells
        if cell["cell_type"] == "code"
    ]


def test_notebook_outputs():
    shown = [kind for _, kinds in outputs(NOTEBOOK) for kind in kinds]
    assert shown.count("text/html") == 10 and shown.count("image/png") == 7
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert "bits per sample" in text and "data:audio/wav;base64" in text
    assert NOTEBOOK.stat().st_size < 1_000_000
    # Only folders of the documented user.
    assert not re.search(r"/(?:home/(?!me/)|tmp/|root/|work/)", text)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("mido")
    copy_examples(tmp_path)
    command = [sys.executable, ROOT / ".ci" / "run_notebook.py", "tour.ipynb", "steps = 300=>steps = 2"]
    path = os.pathsep.join([".", str(ROOT)])
    result = subprocess.run(
        command, cwd=tmp_path / "examples", capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    # Each cell has the same kinds of output as in the committed notebook.
    assert outputs(tmp_path / "examples" / "tour.ipynb") == outputs(NOTEBOOK)


@pytest.mark.parametrize("frames", [1, 7, 50])
def test_vocoder_is_independent_of_arrival(frames, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    vocoder = importlib.import_module("vocoder")
    generator = Generator(conditioned.network(conditioned.config("mel")), "reference")
    mel = np.random.default_rng(0).uniform(-1, 1, (6, 50)).astype(np.float32)
    supplied = SuppliedFrames(generator.config, torch.from_numpy(mel))
    gate_bias = generator.gate_bias_provider(supplied)
    state = generator.start(seed=3, gate_bias=gate_bias)
    whole = generator.decode(generator.generate(supplied.ready, state, gate_bias=gate_bias))[0].numpy()
    pieces = (mel[:, first : first + frames] for first in range(0, 50, frames))
    chunks = list(vocoder.vocode(generator, pieces, seed=3))
    assert len(chunks) > 1 or frames == 50
    assert np.array_equal(np.concatenate(chunks), whole)


def test_documented_flags_exist():
    known = {"--no-build-isolation", "--nproc-per-node", "--install"}
    for name in COMMANDS:
        known |= set(importlib.import_module(f"wavenet.cli.{name}").build_parser()._option_string_actions)
    scripts = [*ROOT.glob("examples/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob(".ci/*.py")]
    for path in scripts:
        known |= set(re.findall(r'"(--[a-z][\w-]*)"', path.read_text(encoding="utf-8")))
    for path in PROSE:
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", path.read_text(encoding="utf-8")))
        assert named <= known, path


# -- messages --------------------------------------------------------------------------------------------


def texts() -> list[str]:
    """Return the strings in the code, with NUL in place of values."""
    found = []
    for path in [*(ROOT / "wavenet").rglob("*.py"), ROOT / "setup.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_troubleshooting_quotes_real_messages():
    guide = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^### `(.*)`$", guide, re.M)
    assert len(quoted) > 20
    code = texts()
    for message in quoted:
        # Three dots replace the part that varies.
        pattern = re.compile(".*".join(map(re.escape, message.split("..."))), re.S)
        assert any(pattern.search(text) for text in code), message
