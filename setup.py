"""Builds the optional extension `wavenet._C`; pyproject.toml configures everything else.

The environment variable WAVENET_BUILD selects what is compiled:

    auto  (default) what this machine can compile and use: the CPU engine; also the CUDA engine if nvcc is
          available and torch is built with CUDA. Without a compiler, a pure Python package and a warning
    none  nothing
    cpu   the CPU engine; the installation fails without it
    cuda  both engines, even if torch is built without CUDA; the installation fails without them

CXX sets the C++ compiler (GCC or Clang), CXXFLAGS adds flags for every C++ file, NVCC sets the CUDA compiler.

pip hides the output of a successful build; `pip install -v` shows the warning. The reason is also stored in
the package, and the commands report it when the engine is missing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
CHOICES = ("auto", "none", "cpu", "cuda")
BUILD_INFO = "_build_info.json"
OLDEST_TORCH = (2, 11)
# A free-threaded Python has no stable ABI yet, and its Python.h rejects Py_LIMITED_API; the extension then
# has the ordinary suffix.
STABLE = not sysconfig.get_config_var("Py_GIL_DISABLED")
# The stable ABIs of torch 2.11 and Python 3.10, so that one library works with all later versions.
ABI_FLAGS = [
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    *(["-DPy_LIMITED_API=0x030a0000"] if STABLE else []),
]
# -ffp-contract=off: only explicit fused multiply-adds, so that rounding does not depend on the compiler.
COMMON_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-DNDEBUG",
    "-pthread",
]
# All instruction sets are compiled, independent of the building machine; the engine selects one at run time.
AVX2_FLAGS = ["-mavx2", "-mfma"]
AVX512_FLAGS = [*AVX2_FLAGS, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
X86_FLAGS: dict[str, list[str]] = {
    "avx2": AVX2_FLAGS,
    "avx512": AVX512_FLAGS,
    "avx512vnni": [*AVX512_FLAGS, "-mavx512vnni"],
    "avx512bf16": [*AVX512_FLAGS, "-mavx512bf16"],
}
ARM_FLAGS: dict[str, list[str]] = {"neon": [], "neondot": ["-march=armv8.2-a+dotprod"]}
INSTRUCTION_SETS = {"x86_64": X86_FLAGS, "AMD64": X86_FLAGS, "aarch64": ARM_FLAGS, "arm64": ARM_FLAGS}


def cpu_sources(machine: str) -> dict[str, list[str]]:
    """Return the sources of the CPU engine for a processor, each with the flags of its instruction set.

    The suffix of a file's name is its instruction set (`kernel_avx2.cpp`); files without one get no flags.
    """
    flags = INSTRUCTION_SETS.get(machine, {})
    others = (X86_FLAGS.keys() | ARM_FLAGS.keys() | {"cuda"}) - flags.keys()
    sources = {}
    for folder in ("bindings", "core", "cpu"):
        for path in sorted(ROOT.glob(f"csrc/{folder}/**/*.cpp")):
            ending = path.stem.rpartition("_")[2]
            if ending not in others:
                sources[path.relative_to(ROOT).as_posix()] = flags.get(ending, [])
    return sources


def cuda_sources(pattern: str) -> list[str]:
    """Return the sources of the CUDA engine whose names match."""
    found = [*ROOT.glob(f"csrc/cuda/**/{pattern}"), *ROOT.glob(f"csrc/bindings/*_cuda{pattern[1:]}")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


# Compute capabilities with machine code; later devices compile the PTX of the last one.
CUDA_ARCHITECTURES = ("75", "80", "86", "90")


class Unmet(Exception):
    """A requirement of the build is missing."""


def requested() -> str:
    """Return the value of WAVENET_BUILD; exit with an error if it is invalid."""
    value = os.environ.get("WAVENET_BUILD", "") or "auto"
    if value not in CHOICES:
        raise SystemExit(f"error: WAVENET_BUILD = {value!r}: choose from {', '.join(CHOICES)}")
    return value


def find_compiler() -> list[str]:
    """Return the command of the C++ compiler; raise `Unmet` if there is none."""
    named = shlex.split(os.environ.get("CXX", ""))
    if named:
        if shutil.which(named[0]) is None:
            raise Unmet(f"no C++ compiler: CXX = {shlex.join(named)!r} was not found")
        return named
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise Unmet("no C++ compiler was found (looked for c++, g++, clang++; CXX names another)")


def find_torch() -> Path:
    """Return torch's directory, without importing torch; raise `Unmet` if it is missing or too old."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise Unmet("torch is not installed in the build environment (use pip install --no-build-isolation)")
    directory = Path(spec.submodule_search_locations[0])
    version = re.search(r"__version__ = '((\d+)\.(\d+)[^']*)'", (directory / "version.py").read_text())
    if version is None or (int(version[2]), int(version[3])) < OLDEST_TORCH:
        found = version[1] if version else "unknown"
        raise Unmet(f"torch {found} is too old, {'.'.join(map(str, OLDEST_TORCH))} or newer is needed")
    return directory


def find_nvcc() -> str:
    """Return the path of a working CUDA compiler; raise `Unmet` if there is none."""
    named = os.environ.get("NVCC", "")
    if named and shutil.which(named) is None:
        raise Unmet(f"no CUDA compiler: NVCC = {named!r} was not found")
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    candidates = [named] if named else ["nvcc", *(f"{home}/bin/nvcc" for home in homes if home)]
    for candidate in candidates:
        path = shutil.which(candidate)
        if path and subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0:
            return path
    raise Unmet("no CUDA compiler was found (looked for nvcc; NVCC names another)")


def cuda_wanted(build: str) -> str:
    """Return the path of the CUDA compiler; raise `Unmet` with the reason if CUDA is not to be built."""
    if build == "cpu":
        raise Unmet("it was left out (WAVENET_BUILD=cpu)")
    if build == "auto" and not re.search(r"^cuda\b.*= '", (find_torch() / "version.py").read_text(), re.M):
        raise Unmet("torch is built without CUDA (WAVENET_BUILD=cuda builds the engine anyway)")
    return find_nvcc()


def find_tools() -> tuple[list[str], Path]:
    """Return the command of the C++ compiler and torch's directory."""
    if sys.platform == "win32":
        raise Unmet("the extension is not built on Windows yet")
    return find_compiler(), find_torch()


def write_build_info(package: Path, reason: str | None, **more: str | None) -> None:
    """Record in the package whether the extension was built, for `wavenet.engine.registry.report`."""
    package.mkdir(parents=True, exist_ok=True)
    info = {"extension": reason is None, "reason": reason, **more}
    beside = package / f"{BUILD_INFO}.new"
    beside.write_text(json.dumps(info) + "\n")
    beside.replace(package / BUILD_INFO)


def warn(reason: str) -> None:
    """Print why the engine is missing and which settings change that."""
    print(
        f"WARNING: wavenet is installed without its fast engine: {reason}. Numba generates instead, in fp32 "
        "only: as fast for one stream, slower for many. "
        "WAVENET_BUILD=cpu turns this into an error, WAVENET_BUILD=none hides it.",
        file=sys.stderr,
        flush=True,
    )


def run(command: list[str]) -> None:
    """Run a compiler command; raise `CompileError` with its first error line if it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.stderr.write(result.stderr)
        lines = [line for line in result.stderr.splitlines() if "error" in line.lower()] or ["no message"]
        raise CompileError(f"{command[0]} failed: {lines[0].strip()}")


def object_path(folder: Path, source: str) -> str:
    """Return the path of a source's object file; it contains the folders, since file names repeat."""
    return str(folder / (source.replace("/", "-") + ".o"))


def host_compiler(compiler: list[str]) -> list[str]:
    """Return the flags that set nvcc's host compiler, if its command is a single word."""
    return ["-ccbin", compiler[0]] if len(compiler) == 1 else []


def cuda_flags() -> list[str]:
    """Return the flags for CUDA kernels; -fmad=false: only explicit fused multiply-adds."""
    flags = ["-std=c++17", "-O3", "-fmad=false", "-DNDEBUG", f"-I{ROOT / 'csrc'}"]
    flags += ["-Xcompiler", "-fPIC,-fvisibility=hidden", "--threads", "0"]
    for number in CUDA_ARCHITECTURES:
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
    newest = CUDA_ARCHITECTURES[-1]
    flags += ["-gencode", f"arch=compute_{newest},code=compute_{newest}"]
    names = " ".join(f"{number[:-1]}.{number[-1]}" for number in CUDA_ARCHITECTURES)
    return [*flags, f'-DWAVENET_CUDA_ARCHITECTURES="{names}"']


class BuildExtension(build_ext):
    """Compiles each source with its own flags, as the instruction sets require."""

    choice = "auto"

    def run(self) -> None:
        # The base class clears `inplace` during the build and copies the result to the sources afterwards.
        self.to_sources = bool(self.inplace)
        super().run()

    def copy_file(self, infile: str, outfile: str, *options: Any, **more: Any) -> tuple[str, bool]:
        # Copied to a temporary file and renamed, so that other processes always find a complete library.
        beside = f"{outfile}.new"
        super().copy_file(infile, beside, *options, **more)
        os.replace(beside, outfile)
        return outfile, True

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        package = ROOT / "wavenet" if self.to_sources else target.parent
        try:
            without_cuda = self.compile(target)
        except (Unmet, CompileError, OSError) as error:
            if not ext.optional:
                raise CompileError(str(error)) from None
            # Otherwise the library of an earlier build would be installed.
            target.unlink(missing_ok=True)
            write_build_info(package, str(error))
            warn(str(error))
            return
        write_build_info(package, None, cuda=without_cuda)

    def compile(self, target: Path) -> str | None:
        """Compile and link the extension; return None, or why it is built without CUDA."""
        compiler, torch = find_tools()
        objects = Path(self.build_temp)
        objects.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{ROOT / 'csrc'}", "-isystem", str(torch / "include")]
        includes += ["-isystem", sysconfig.get_path("include")]
        user_flags = shlex.split(os.environ.get("CXXFLAGS", ""))
        sources = cpu_sources(platform.machine())
        nvcc, kernels, without_cuda = self.compile_kernels(compiler, objects)
        if nvcc:
            sources |= {source: [] for source in cuda_sources("*.cpp")}

        def compile_one(source: str) -> str:
            built = object_path(objects, source)
            flags = [*COMMON_FLAGS, *ABI_FLAGS, *user_flags, *sources[source]]
            run([*compiler, *flags, *includes, "-c", str(ROOT / source), "-o", built])
            return built

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            built = list(pool.map(compile_one, sources))
        link = ["-shared", f"-L{torch / 'lib'}", "-ltorch_cpu"]
        if nvcc:
            # Hides the symbols of the CUDA runtime, which could otherwise conflict with those of torch.
            linker = [nvcc, *host_compiler(compiler), "-cudart", "static", "-Xlinker", "--exclude-libs=ALL"]
            link += ["-Xcompiler", "-pthread", "-ldl"]
        else:
            linker, link = compiler, [*link, "-pthread"]
        if sys.platform == "darwin":
            link = ["-bundle", "-undefined", "dynamic_lookup", *link[1:]]
        # Linked to a temporary file and renamed, so that a process that uses the old library keeps it intact.
        beside = target.with_suffix(".new")
        run([*linker, *built, *kernels, *link, "-o", str(beside)])
        beside.replace(target)
        return without_cuda

    def compile_kernels(self, compiler: list[str], objects: Path) -> tuple[str | None, list[str], str | None]:
        """Return the CUDA compiler, its objects and None; or None, no objects and the reason."""
        sources = cuda_sources("*.cu")
        built = [object_path(objects, source) for source in sources]
        try:
            nvcc = cuda_wanted(self.choice)
            for source, to in zip(sources, built, strict=True):
                run([nvcc, *host_compiler(compiler), *cuda_flags(), "-c", str(ROOT / source), "-o", to])
        except (Unmet, CompileError, OSError) as error:
            if self.choice == "cuda":
                raise
            if not isinstance(error, Unmet):
                print(
                    f"WARNING: wavenet is built without its CUDA engine: {error}", file=sys.stderr, flush=True
                )
            return None, [], str(error)
        return nvcc, built, None


class BuildPython(build_py):
    """Writes the build information if nothing is compiled."""

    reason: str | None = None
    chosen = False

    def run(self) -> None:
        super().run()
        if self.reason is not None:
            # The warning is not in `main`, which runs in every step of an installation.
            if not self.chosen:
                warn(self.reason)
            package = ROOT / "wavenet" if self.editable_mode else Path(self.build_lib) / "wavenet"
            write_build_info(package, self.reason)


def main() -> None:
    build = requested()
    reason = "it was left out (WAVENET_BUILD=none)" if build == "none" else None
    if build != "none":
        try:
            find_tools()
            if build == "cuda":
                find_nvcc()
        except Unmet as error:
            if build != "auto":
                raise SystemExit(f"error: WAVENET_BUILD = {build!r}: {error}") from None
            reason = str(error)
    BuildPython.reason, BuildPython.chosen = reason, build == "none"
    BuildExtension.choice = build
    sources = list(cpu_sources(platform.machine()))
    extension = Extension("wavenet._C", sources, py_limited_api=STABLE, optional=build == "auto")
    setup(
        license="MIT",
        ext_modules=[] if reason else [extension],
        cmdclass={"build_ext": BuildExtension, "build_py": BuildPython},
        options={"bdist_wheel": {"py_limited_api": "cp310"}} if STABLE and not reason else {},
    )


main()
