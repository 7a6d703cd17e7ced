"""Builds the optional extension `wavenet._C`; everything else about the package stands in pyproject.toml.

The environment variable WAVENET_BUILD decides what is compiled:

    auto  (default) what this machine can compile and use: the CUDA engine too if nvcc is there and torch is
          built with CUDA; without a compiler, pure Python and a warning
    none  nothing
    cpu   the CPU engine, or the installation fails
    cuda  the CUDA engine too, whatever torch is built with, or the installation fails

CXX names the compiler (GCC or Clang), CXXFLAGS adds flags to every file; NVCC names CUDA's compiler.

pip hides what a successful build prints: `pip install -v` shows the warning. Whatever pip showed, the reason
is installed with the package, and the commands repeat it when they miss the engine.
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
# A free-threaded Python has no stable ABI of its own yet, and its Python.h refuses to be asked for one; the
# extension then gets the ordinary suffix.
STABLE = not sysconfig.get_config_var("Py_GIL_DISABLED")
# The stable ABI as of torch 2.11 and of Python 3.10: one library for every later version of either.
ABI_FLAGS = [
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    *(["-DPy_LIMITED_API=0x030a0000"] if STABLE else []),
]
# The kernels write every fused multiply-add by hand, so that rounding does not depend on the compiler.
COMMON_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-DNDEBUG",
    "-pthread",
]
# Every instruction set is compiled, whatever the building machine has; the engine selects one when it runs.
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

    A file's name ends with its instruction set (`kernel_avx2.cpp`), or with none.
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


# Machine code for these; later devices compile the last one's PTX.
CUDA_ARCHITECTURES = ("75", "80", "86", "90")


class Unmet(Exception):
    """Something that compiling needs and that is not there."""


def requested() -> str:
    """Return the value of WAVENET_BUILD, checked."""
    value = os.environ.get("WAVENET_BUILD", "") or "auto"
    if value not in CHOICES:
        raise SystemExit(f"error: WAVENET_BUILD = {value!r}: choose from {', '.join(CHOICES)}")
    return value


def find_compiler() -> list[str]:
    """Return the command of the C++ compiler."""
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
    """Return the directory of a torch that is new enough, without the seconds that importing it takes."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise Unmet("torch is not installed where the build runs (pip has --no-build-isolation)")
    directory = Path(spec.submodule_search_locations[0])
    version = re.search(r"__version__ = '((\d+)\.(\d+)[^']*)'", (directory / "version.py").read_text())
    if version is None or (int(version[2]), int(version[3])) < OLDEST_TORCH:
        found = version[1] if version else "unknown"
        raise Unmet(f"torch {found} is too old, {'.'.join(map(str, OLDEST_TORCH))} or newer is needed")
    return directory


def find_nvcc() -> str:
    """Return the path of a CUDA compiler that starts."""
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
    """Return the path of the CUDA compiler to use; `Unmet` with the reason if there is to be no CUDA."""
    if build == "cpu":
        raise Unmet("it was left out (WAVENET_BUILD=cpu)")
    if build == "auto" and not re.search(r"^cuda\b.*= '", (find_torch() / "version.py").read_text(), re.M):
        raise Unmet("the torch it was built for has no CUDA (WAVENET_BUILD=cuda builds it all the same)")
    return find_nvcc()


def find_tools() -> tuple[list[str], Path]:
    """Return the compiler's command and torch's directory."""
    if sys.platform == "win32":
        raise Unmet("the extension is not built on Windows yet")
    return find_compiler(), find_torch()


def write_build_info(package: Path, reason: str | None, **more: str | None) -> None:
    """Record beside the package whether the extension was built, for `wavenet.engine.registry.report`."""
    package.mkdir(parents=True, exist_ok=True)
    info = {"extension": reason is None, "reason": reason, **more}
    beside = package / f"{BUILD_INFO}.new"
    beside.write_text(json.dumps(info) + "\n")
    beside.replace(package / BUILD_INFO)


def warn(reason: str) -> None:
    """Say once what is missing, and how to have it otherwise."""
    print(
        f"WARNING: wavenet is installed without its fast engine: {reason}. Numba generates instead: one "
        "stream about as fast, many streams slower, in fp32 only. "
        "WAVENET_BUILD=cpu makes this an error, WAVENET_BUILD=none silences it.",
        file=sys.stderr,
        flush=True,
    )


def run(command: list[str]) -> None:
    """Run a compiler command; `CompileError` with its first error line if it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.stderr.write(result.stderr)
        lines = [line for line in result.stderr.splitlines() if "error" in line.lower()] or ["no message"]
        raise CompileError(f"{command[0]} failed: {lines[0].strip()}")


def object_path(folder: Path, source: str) -> str:
    """Return where a source's object goes: named by the whole path, as folders share names of files."""
    return str(folder / (source.replace("/", "-") + ".o"))


def host_compiler(compiler: list[str]) -> list[str]:
    """Return the flags that make nvcc use a C++ compiler, if that is a single word."""
    return ["-ccbin", compiler[0]] if len(compiler) == 1 else []


def cuda_flags() -> list[str]:
    """Return how the kernels are compiled: no multiply-add is fused but those written so."""
    flags = ["-std=c++17", "-O3", "-fmad=false", "-DNDEBUG", f"-I{ROOT / 'csrc'}"]
    flags += ["-Xcompiler", "-fPIC,-fvisibility=hidden", "--threads", "0"]
    for number in CUDA_ARCHITECTURES:
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
    newest = CUDA_ARCHITECTURES[-1]
    flags += ["-gencode", f"arch=compute_{newest},code=compute_{newest}"]
    names = " ".join(f"{number[:-1]}.{number[-1]}" for number in CUDA_ARCHITECTURES)
    return [*flags, f'-DWAVENET_CUDA_ARCHITECTURES="{names}"']


class BuildExtension(build_ext):
    """Compiles each source with its own flags: one kernel source, several instruction sets."""

    choice = "auto"

    def run(self) -> None:
        # The base class clears `inplace` while it builds, and copies the result to the sources afterwards.
        self.to_sources = bool(self.inplace)
        super().run()

    def copy_file(self, infile: str, outfile: str, *options: Any, **more: Any) -> tuple[str, bool]:
        # Beside and renamed: a process that starts meanwhile finds the old library or the new one, whole.
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
            # One left by an earlier build would be installed in place of this one.
            target.unlink(missing_ok=True)
            write_build_info(package, str(error))
            warn(str(error))
            return
        write_build_info(package, None, cuda=without_cuda)

    def compile(self, target: Path) -> str | None:
        """Compile and link the extension; return None, or why it has no CUDA."""
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
            # A runtime whose symbols are seen from outside could be taken for torch's, or torch's for it.
            linker = [nvcc, *host_compiler(compiler), "-cudart", "static", "-Xlinker", "--exclude-libs=ALL"]
            link += ["-Xcompiler", "-pthread", "-ldl"]
        else:
            linker, link = compiler, [*link, "-pthread"]
        if sys.platform == "darwin":
            link = ["-bundle", "-undefined", "dynamic_lookup", *link[1:]]
        # Linked beside and renamed: a process that has the old library mapped keeps a whole one.
        beside = target.with_suffix(".new")
        run([*linker, *built, *kernels, *link, "-o", str(beside)])
        beside.replace(target)
        return without_cuda

    def compile_kernels(self, compiler: list[str], objects: Path) -> tuple[str | None, list[str], str | None]:
        """Return the CUDA compiler and the objects it made, or None, none and why."""
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
    """Records, where nothing is compiled, why not."""

    reason: str | None = None
    chosen = False

    def run(self) -> None:
        super().run()
        if self.reason is not None:
            # Said here and not in main, which every step of an installation goes through.
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
