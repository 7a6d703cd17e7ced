"""What setup.py builds under each WAVENET_BUILD, with stand-ins for the compiler."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wavenet import extension

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="runs in a source tree only"),
    pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins are shell scripts"),
]

BUILD = (
    "import sys; from setuptools import build_meta; print('built', getattr(build_meta, sys.argv[1])('dist'))"
)
FREE_THREADED = """
import sysconfig
real = sysconfig.get_config_var
sysconfig.get_config_var = lambda name: 1 if name == "Py_GIL_DISABLED" else real(name)
"""


@pytest.fixture
def tree(tmp_path):
    """A copy of what a build needs, without anything that was built before."""
    built = shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__")
    for name in ("csrc", "wavenet"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=built)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "README.md").write_text("wavenet\n")
    return tmp_path


def build(
    tree: Path, kind: str = "build_wheel", before: str = "", **environment: str
) -> subprocess.CompletedProcess:
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("WAVENET_BUILD", "CXX", "CXXFLAGS", "NVCC", "CUDA_HOME")
    }
    return subprocess.run(
        [sys.executable, "-c", before + BUILD, kind],
        cwd=tree,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def wheel(tree: Path) -> tuple[str, list[str], dict]:
    """Return the name of the one wheel built, its files, and what it says about the build."""
    (path,) = (tree / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return path.name, archive.namelist(), json.loads(archive.read("wavenet/_build_info.json"))


def stand_in(tree: Path, script: str) -> str:
    """Return the path of a compiler made of a shell script; "$out" is the file asked for."""
    path = tree / "stand-in-c++"
    find_out = 'previous=; for word; do [ "$previous" = -o ] && out="$word"; previous="$word"; done\n'
    path.write_text(f"#!/bin/sh\n{find_out}{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_none_gives_a_pure_wheel(tree):
    result = build(tree, WAVENET_BUILD="none", CXX="/nonexistent/c++")
    assert result.returncode == 0, result.stderr
    assert "WARNING: wavenet" not in result.stdout + result.stderr
    name, files, info = wheel(tree)
    assert name.endswith("-py3-none-any.whl")
    assert "wavenet/engine/cpu.py" in files and not [file for file in files if file.endswith(".so")]
    assert info == {"extension": False, "reason": "it was left out (WAVENET_BUILD=none)"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("fast", "WAVENET_BUILD = 'fast': choose from auto, none, cpu, cuda"),
        ("cuda", "CXX = '/nonexistent/c++' was not found"),
        ("cpu", "CXX = '/nonexistent/c++' was not found"),
    ],
)
def test_what_cannot_be_met_fails(tree, value, message):
    result = build(tree, WAVENET_BUILD=value, CXX="/nonexistent/c++")
    assert result.returncode != 0
    assert message in result.stderr
    assert not (tree / "dist").exists() or not list((tree / "dist").glob("*.whl"))


def test_auto_without_a_compiler_warns_and_installs(tree):
    result = build(tree, CXX="/nonexistent/c++")
    assert result.returncode == 0, result.stderr
    assert (result.stdout + result.stderr).count("WARNING: wavenet") == 1
    _, files, info = wheel(tree)
    assert not [file for file in files if file.endswith(".so")]
    assert info["extension"] is False and "no C++ compiler" in info["reason"]


def test_auto_with_an_empty_search_path(tree):
    result = build(tree, PATH=str(tree / "empty"))
    assert result.returncode == 0, result.stderr
    assert "no C++ compiler was found" in wheel(tree)[2]["reason"]


@pytest.mark.parametrize("value", ["auto", "cpu"])
def test_a_compiler_that_fails(tree, value):
    compiler = stand_in(tree, 'echo "kernel.cpp:1: error: out of patience" >&2; exit 1')
    result = build(tree, WAVENET_BUILD=value, CXX=compiler)
    if value == "cpu":
        assert result.returncode != 0
        assert "out of patience" in result.stderr
        return
    assert result.returncode == 0, result.stderr
    assert (result.stdout + result.stderr).count("WARNING: wavenet") == 1
    _, files, info = wheel(tree)
    assert not [file for file in files if file.endswith(".so")]
    assert info["extension"] is False and "out of patience" in info["reason"]


def test_the_wheel_serves_any_python_and_any_processor(tree):
    compiler = stand_in(tree, f'echo "$@" >> {tree}/log; echo built > "$out"')
    result = build(tree, WAVENET_BUILD="cpu", CXX=compiler)
    assert result.returncode == 0, result.stderr
    name, files, info = wheel(tree)
    assert "-cp310-abi3-" in name
    assert "wavenet/_C.abi3.so" in files
    assert not [file for file in files if file.startswith(("csrc", "tests"))]
    assert info == {"extension": True, "reason": None, "cuda": "it was left out (WAVENET_BUILD=cpu)"}
    commands = (tree / "log").read_text().splitlines()
    assert not [command for command in commands if "-march=" in command or "-ffast-math" in command]
    (binding,) = (command for command in commands if "operators.cpp" in command and " -c " in command)
    assert "-DTORCH_TARGET_VERSION=0x020b000000000000" in binding


@pytest.mark.parametrize(
    ("machine", "kernels"),
    [
        ("x86_64", {"avx2": "-mavx2", "avx512": "-mavx512f", "avx512vnni": "-mavx512vnni"}),
        ("aarch64", {"neon": "", "neondot": "-march=armv8.2-a+dotprod"}),
        ("arm64", {"neon": "", "neondot": "-march=armv8.2-a+dotprod"}),
        ("riscv64", {}),
    ],
)
def test_each_kind_of_processor_gets_its_kernels(tree, machine, kernels):
    compiler = stand_in(tree, f'echo "$@" >> {tree}/log; echo built > "$out"')
    before = f"import platform; platform.machine = lambda: {machine!r}; "
    result = build(tree, before=before, WAVENET_BUILD="cpu", CXX=compiler)
    assert result.returncode == 0, result.stderr
    found = {}
    for command in (tree / "log").read_text().splitlines():
        if name := re.search(r"/kernel_(\w+)\.cpp", command):
            found[name[1]] = command
    assert set(found) == {"base", *kernels}
    for name, command in found.items():
        special = [word for word in command.split() if word.startswith("-m")]
        assert (kernels.get(name, "") in special) if kernels.get(name) else not special


def torch_with_cuda(tree: Path) -> str:
    """Return a search path on which stands what the build reads of a torch with CUDA."""
    package = tree / "site" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "version.py").write_text("__version__ = '2.11.0'\ncuda: Optional[str] = '12.8'\n")
    return str(package.parent)


@pytest.mark.parametrize("value", ["cuda", "auto"])
def test_kernels_are_linked_with_their_runtime(tree, value):
    compiler = stand_in(tree, f'echo "$0 $@" >> {tree}/log; [ -z "$out" ] || echo built > "$out"')
    path = torch_with_cuda(tree) if value == "auto" else ""
    result = build(tree, WAVENET_BUILD=value, CXX=compiler, NVCC=compiler, PYTHONPATH=path)
    assert result.returncode == 0, result.stderr
    assert wheel(tree)[2] == {"extension": True, "reason": None, "cuda": None}
    commands = (tree / "log").read_text().splitlines()
    for source in ("engine.cu", "peak_rates.cu"):
        (kernels,) = (command for command in commands if source in command and " -c " in command)
        for number in (75, 80, 86, 90):
            assert f"arch=compute_{number},code=sm_{number}" in kernels
        assert "code=compute_90 " in kernels and "-fmad=false" in kernels
    link = commands[-1]
    assert "cuda-engine.cu.o" in link and "peak_rates.cu.o" in link and "operators_cuda.cpp.o" in link
    assert "-cudart static" in link and "--exclude-libs=ALL" in link


def test_auto_leaves_cuda_out_where_torch_has_none(tree):
    package = Path(torch_with_cuda(tree)) / "torch" / "version.py"
    package.write_text("__version__ = '2.11.0+cpu'\ncuda: Optional[str] = None\n")
    nvcc = stand_in(tree, 'echo "nobody asks for this" >&2; exit 1')
    compiler = shutil.copy(nvcc, tree / "stand-in-g++")
    Path(compiler).write_text(Path(nvcc).read_text().replace("exit 1", 'echo built > "$out"'))
    result = build(tree, CXX=str(compiler), NVCC=nvcc, PYTHONPATH=str(package.parents[1]))
    assert result.returncode == 0, result.stderr
    info = wheel(tree)[2]
    assert info["extension"] is True and info["cuda"].startswith("torch is built without CUDA")


@pytest.mark.parametrize("value", ["cuda", "auto"])
def test_kernels_that_do_not_compile(tree, value):
    """Under auto the rest is built, and says what it lacks."""
    script = 'case "$*" in *engine.cu*) echo "error: no such architecture" >&2; exit 1;; esac'
    compiler = stand_in(tree, f'{script}; [ -z "$out" ] || echo built > "$out"')
    path = torch_with_cuda(tree) if value == "auto" else ""
    result = build(tree, WAVENET_BUILD=value, CXX=compiler, NVCC=compiler, PYTHONPATH=path)
    if value == "cuda":
        assert result.returncode != 0 and "no such architecture" in result.stderr
        return
    assert result.returncode == 0, result.stderr
    assert (result.stdout + result.stderr).count("WARNING: wavenet is built without its CUDA engine") == 1
    info = wheel(tree)[2]
    assert info["extension"] is True and "no such architecture" in info["cuda"]


def test_cuda_without_its_compiler_fails(tree):
    compiler = stand_in(tree, 'echo built > "$out"')
    result = build(tree, WAVENET_BUILD="cuda", CXX=compiler, NVCC="/nonexistent/nvcc")
    assert result.returncode != 0
    assert "no CUDA compiler: NVCC = '/nonexistent/nvcc' was not found" in result.stderr


def test_stable_abi_only_where_python_has_it(tree):
    compiler = stand_in(tree, f'echo "$@" >> {tree}/log; echo built > "$out"')
    result = build(tree, WAVENET_BUILD="cpu", CXX=compiler)
    assert result.returncode == 0, result.stderr
    limited = "-DPy_LIMITED_API=0x030a0000"
    free_threaded = sysconfig.get_config_var("Py_GIL_DISABLED")
    assert (limited in (tree / "log").read_text()) is not bool(free_threaded)
    for built in ("log", "dist", "build"):
        path = tree / built
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    result = build(tree, before=FREE_THREADED, WAVENET_BUILD="cpu", CXX=compiler)
    assert result.returncode == 0, result.stderr
    assert "Py_LIMITED_API" not in (tree / "log").read_text()
    name, files, _ = wheel(tree)
    assert "abi3" not in name
    assert [file for file in files if file.endswith(".so") and "abi3" not in file]


@pytest.mark.parametrize(("value", "reason"), [("auto", "no C++ compiler"), ("none", "WAVENET_BUILD=none")])
def test_editable_without_the_engine_says_why(tree, value, reason, monkeypatch):
    (tree / "wavenet" / "_C.abi3.so").write_text("left by an earlier build")
    result = build(tree, "build_editable", WAVENET_BUILD=value, CXX="/nonexistent/c++")
    assert result.returncode == 0, result.stderr
    monkeypatch.setattr(extension, "_PACKAGE", tree / "wavenet")
    found = extension.load_extension.__wrapped__()
    assert found is not None and found.startswith("the extension was not built: ") and reason in found


def tracked() -> list[str]:
    """Return the files that git knows of."""
    git = ["git", "-C", str(ROOT), "ls-files", "-z"]
    try:
        listed = subprocess.run(git, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git and its repository")
    return [name for name in listed.split("\0") if name and (ROOT / name).exists()]


def test_the_source_distribution_is_whole(tmp_path):
    names = tracked()
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for leaving in ("csrc/run.o.so", "tests/__pycache__/naive.cpython-310.pyc"):
        (tmp_path / leaving).parent.mkdir(exist_ok=True)
        (tmp_path / leaving).write_text("left by a build")
    result = build(tmp_path, "build_sdist", WAVENET_BUILD="none")
    assert result.returncode == 0, result.stderr
    (path,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        files = {member.name.partition("/")[2] for member in archive if member.isfile()}
    folders = ("tests/", "csrc/", "examples/", "benchmarks/", "docs/", "wavenet/", ".ci/")
    needed = {name for name in names if name.startswith(folders)}
    needed |= {"setup.py", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"}
    assert needed <= files
    assert not [name for name in files if name.endswith((".so", ".pyc", "_build_info.json"))]
    # Most of it the example tunes, the piano and what the notebook plays.
    assert path.stat().st_size < 6_000_000


@pytest.mark.parametrize("works", [True, False])
def test_editable_puts_the_library_beside_the_sources(tree, works):
    (tree / "wavenet" / "_C.abi3.so").write_text("left by an earlier build")
    compiler = stand_in(tree, 'echo built > "$out"' if works else "exit 1")
    result = build(tree, "build_editable", CXX=compiler)
    assert result.returncode == 0, result.stderr
    info = json.loads((tree / "wavenet" / "_build_info.json").read_text())
    assert info["extension"] is works
    if works:
        assert (tree / "wavenet" / "_C.abi3.so").read_text() == "built\n"


def test_a_rebuild_leaves_no_moment_without_the_engine(tree):
    """Who starts while it is built anew finds the old library or the new one, each whole."""
    library, info = tree / "wavenet" / "_C.abi3.so", tree / "wavenet" / "_build_info.json"
    library.write_text("old")
    info.write_text('{"extension": true}')
    seen, done = set(), threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.add(library.stat().st_size if library.exists() else None)
            json.loads(info.read_text())

    compiler = stand_in(tree, 'head -c 50000000 /dev/zero > "$out"')
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        result = build(tree, "build_editable", CXX=compiler)
        done.set()
        looking.result()
    assert result.returncode == 0, result.stderr
    assert seen == {3, 50000000}
    assert not list(tree.glob("wavenet/*.new"))


def test_the_engine_says_why_it_is_not_there(tmp_path, monkeypatch):
    load = extension.load_extension.__wrapped__
    monkeypatch.setattr(extension, "_PACKAGE", tmp_path)
    assert "was not built" in load()
    (tmp_path / "_C.abi3.so").write_text("not a library")
    assert "could not be loaded" in load()
    # What the last build says counts for more than what an earlier one left.
    (tmp_path / "_build_info.json").write_text('{"extension": false, "reason": "no C++ compiler"}')
    assert load() == "the extension was not built: no C++ compiler"


@pytest.mark.parametrize("name", ["avx2", "avx512", "avx512vnni"])
def test_special_objects_share_no_functions(tmp_path, name):
    """A weak symbol compiled for AVX could be the copy that every processor runs."""
    compiler = shutil.which("c++")
    if not compiler or not shutil.which("nm") or platform.machine() != "x86_64":
        pytest.skip("needs a C++ compiler and nm, on x86-64")
    flags = ["-mavx2", "-mfma"]
    if name.startswith("avx512"):
        flags += ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
    if name == "avx512vnni":
        flags.append("-mavx512vnni")
    source = ROOT / "csrc" / "cpu" / "generate" / f"kernel_{name}.cpp"
    command = [
        compiler,
        "-std=c++17",
        "-O1",
        *flags,
        f"-I{ROOT / 'csrc'}",
        "-c",
        source,
        "-o",
        tmp_path / "kernel.o",
    ]
    subprocess.run(command, check=True)
    listed = subprocess.run(
        ["nm", "-C", tmp_path / "kernel.o"], capture_output=True, text=True, check=True
    ).stdout
    defined = [
        line
        for line in listed.splitlines()
        if " U " not in line and line.split()[1] not in ("t", "r", "b", "d")
    ]
    functions = {line.partition(f"::{name}::")[2].partition("(")[0] for line in defined}
    assert functions == {"run_group", "frame_bias", "read_words", "multiply_adds"} and len(defined) == 4
