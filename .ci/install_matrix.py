"""Install the package in fresh environments, test it, and check that uninstalling removes every file.

Builds one wheel and installs it for every given Python with every given torch: runs `pip check`, generates
half a second of audio, and uninstalls it. Then installs from source without a compiler, in which case
generation has to use numba and report why. Prints a Markdown table.

This takes minutes and downloads every torch once for every Python, so continuous integration does not run it:

    python .ci/install_matrix.py --python python3.10 python3.13 --torch 2.13.0 2.11.0

The wheel is built for the first Python and the first torch and has to work with the others, so put the newest
torch first. `--find-links DIR` sets a folder of downloaded wheels, `--wheel FILE` uses an existing wheel,
`--only wheel` or `--only source` runs one part.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILDING = ("setuptools>=77", "wheel")
"""Requirements of a build without isolation, besides torch."""

SHELL = ("sh", "env", "uname", "ls", "cat", "grep", "sed", "git")
"""The only programs on the search path of the installation without a compiler."""

HEAD = ("installed", "Python", "torch", "pip check", "engine", "0.5 s of sound", "uninstalled")


class Failed(Exception):
    """A step failed."""


class Environment:
    """A fresh virtual environment with one torch, in its own folder.

    Parameters
    ----------
    folder : Path
    python : str
        The interpreter.
    torch : str
        A version.
    pip : list of str
        Additional arguments of every `pip install`.
    variables : mapping
        Environment variables of every command.
    """

    def __init__(self, folder: Path, python: str, torch: str, pip: list[str], variables: Mapping[str, str]):
        self.folder = folder
        self.pip = pip
        self.here = folder / "empty"
        self.variables = {**variables, "XDG_CACHE_HOME": str(folder / "cache")}
        run([python, "-m", "venv", str(folder / "venv")], variables)
        self.here.mkdir()
        self.install(f"torch=={torch}", *BUILDING)
        code = "import importlib.metadata as m, platform as p; print(p.python_version(), m.version('torch'))"
        self.python, self.torch = self.run("python", "-c", code).split()

    def run(self, name: str, *arguments: str) -> str:
        """Run a command of this environment in an empty folder; return its output."""
        return run([str(self.folder / "venv" / "bin" / name), *arguments], self.variables, self.here)

    def install(self, *requirements: str) -> None:
        """Install with pip."""
        self.run("python", "-m", "pip", "install", "--quiet", *self.pip, *requirements)

    def row(self, kind: str) -> list[str]:
        """Test the installed package, uninstall it, and return a row of the table."""
        checked = self.run("python", "-m", "pip", "check").strip()
        code = "from wavenet.engine import registry; print(registry.report()['cpu'] or '')"
        missing = self.run("python", "-c", code).strip()
        output = self.run("wavenet-generate", "--seconds", "0.5", "--seed", "1", "out.wav")
        engine = "cpu" if "backend cpu" in output else "numba" if "backend numba" in output else "none"
        if missing and missing not in output:
            raise Failed(f"wavenet-generate does not report why the C++ engine is missing: {output}")
        sound = (self.here / "out.wav").read_bytes()
        self.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", "wavenet")
        left = [str(path) for path in (self.folder / "venv").rglob("*wavenet*")]
        return [
            kind,
            self.python,
            self.torch,
            "clean" if "No broken requirements" in checked else checked,
            engine + (f" ({missing})" if missing else ""),
            f"{len(sound):,} bytes, SHA-256 {hashlib.sha256(sound).hexdigest()[:12]}",
            "nothing left" if not left else f"left: {' '.join(left)}",
        ]


def run(command: list[str], variables: Mapping[str, str], folder: Path | None = None) -> str:
    """Run a command and return its output; raise `Failed` with the output if it fails."""
    result = subprocess.run(
        command,
        env=variables,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode:
        raise Failed(f"{' '.join(command)}: exit code {result.returncode}\n{result.stdout}")
    return result.stdout


def sources(folder: Path) -> Path:
    """Copy the tracked files to a folder, without files of earlier builds."""
    names = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, names.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def clean() -> dict[str, str]:
    """Return the environment without variables that affect a build or an import."""
    changing = ("CC", "CXX", "CXXFLAGS", "NVCC", "CUDA_HOME", "PYTHONPATH", "VIRTUAL_ENV")
    return {
        name: value
        for name, value in os.environ.items()
        if name not in changing and not name.startswith("WAVENET_")
    }


def wheels(options: argparse.Namespace, work: Path) -> list[list[str]]:
    """Install a wheel in all environments; return the rows."""
    rows, wheel = [], options.wheel
    for torch in options.torch:
        for python in options.python:
            folder = work / f"{len(rows)}"
            print(f"+ a wheel, {python}, torch {torch}", file=sys.stderr, flush=True)
            here = Environment(folder, python, torch, options.pip, clean())
            if wheel is None:
                tree = sources(work / "tree")
                build = ["wheel", "--quiet", "--no-build-isolation", "--no-deps", "-w", str(work), str(tree)]
                here.run("python", "-m", "pip", *build)
                (wheel,) = work.glob("*.whl")
                print(f"built {wheel.name}", file=sys.stderr, flush=True)
                if options.keep_wheel:
                    shutil.copy(wheel, options.keep_wheel)
            here.install(str(wheel))
            rows.append(here.row("wheel"))
            shutil.rmtree(folder)
    return rows


def source(options: argparse.Namespace, work: Path) -> list[str]:
    """Install from source without a compiler; return the row."""
    python, torch = options.python[0], options.torch[0]
    print(f"+ source without a compiler, {python}, torch {torch}", file=sys.stderr, flush=True)
    tools = work / "tools"
    tools.mkdir()
    for name in SHELL:
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    variables = {**clean(), "PATH": str(tools)}
    here = Environment(work / "source", shutil.which(python) or python, torch, options.pip, variables)
    here.install("--no-build-isolation", str(sources(work / "bare")))
    return here.row("source, no compiler")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--python", nargs="+", default=[sys.executable], metavar="PROGRAM", help="interpreters"
    )
    parser.add_argument("--torch", nargs="+", default=["2.13.0", "2.11.0"], metavar="VERSION")
    parser.add_argument("--find-links", metavar="DIR", help="a folder of wheels for pip")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="use an existing wheel")
    parser.add_argument("--keep-wheel", type=Path, metavar="DIR", help="copy the built wheel to this folder")
    parser.add_argument("--only", choices=("wheel", "source"), help="run one part only")
    options = parser.parse_args(arguments)
    options.pip = ["--find-links", options.find_links] if options.find_links else []
    return options


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return 1 if a check failed."""
    options = parse(arguments)
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            if options.only != "source":
                rows += wheels(options, Path(folder))
            if options.only != "wheel":
                rows.append(source(options, Path(folder)))
        except Failed as error:
            print(error, file=sys.stderr)
    for cells in (HEAD, ["---"] * len(HEAD), *rows):
        print(f"| {' | '.join(cells)} |")
    expected = (options.only != "source") * len(options.python) * len(options.torch) + (
        options.only != "wheel"
    )
    good = all(row[3] == "clean" and row[6] == "nothing left" and row[4] != "none" for row in rows)
    return 0 if good and len(rows) == expected else 1


if __name__ == "__main__":
    sys.exit(main())
