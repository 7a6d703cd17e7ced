"""`.ci/run` runs the README's commands in a clone and stops at the first failure; its tools are replaced."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.skipif(not (ROOT / ".ci").is_dir(), reason="runs in a source tree only"),
    pytest.mark.skipif(not (shutil.which("bash") and shutil.which("git")), reason="needs bash and git"),
]

README = """# A project

```sh
# set up
printf sound > out.wav; echo "the first in $PWD"
echo the \\
  second
```

```sh
echo never
```
"""
CHECKS = ("ruff", "pyright", "lint-imports", "pip", "pytest")


def git(tree: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def tree(tmp_path):
    """A small repository with the real scripts."""
    tree = tmp_path / "tree"
    (tree / "csrc" / "checks").mkdir(parents=True)
    for engine, message in (("cpu", "sanitized"), ("cuda", "compiled")):
        (tree / "csrc" / "checks" / f"check_{engine}.sh").write_text(f"echo {message}\n")
    shutil.copytree(ROOT / ".ci", tree / ".ci", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "README.md").write_text(README)
    git(tree, "init", "--quiet")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "all")
    return tree


def run(tree: Path, failing: str = "") -> subprocess.CompletedProcess:
    """Run .ci/run with checks that print their name, and a python3 whose environments are empty."""
    tools, temporary = tree.parent / "tools", tree.parent / "temporary"
    for each in (tools, temporary):
        each.mkdir(exist_ok=True)
    scripts = {name: f'echo "{name} $*"; exit {int(name == failing)}' for name in CHECKS}
    scripts["python3"] = 'mkdir -p "$3/bin"; touch "$3/bin/activate"'
    scripts["nvcc"] = "exit 0"
    scripts["python"] = f'exec "{sys.executable}" "$@"'
    for name, script in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "TMPDIR": str(temporary)}
    result = subprocess.run(
        ["bash", tree / ".ci" / "run"],
        env=environment,
        cwd=tree.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not list(temporary.iterdir())
    return result


def test_every_step_in_a_clone(tree):
    result = run(tree)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert any(line.startswith(f"the first in {tree.parent / 'temporary'}") for line in lines)
    assert "+ echo the second" in lines and "the second" in lines and "never" not in lines
    found = [line for line in lines if line.split(" ")[0] in (*CHECKS, "sanitized", "compiled")]
    assert [line.split(" ")[0] for line in found] == [
        "ruff", "ruff", "pyright", "lint-imports", "pip", "pytest", "sanitized", "pip",
        "compiled", "pytest",  # with a CUDA compiler
        "pip", "pytest",
    ]  # fmt: skip
    assert lines[-1] == found[-1]
    assert git(tree, "status", "--porcelain", "--ignored") == ""


@pytest.mark.parametrize("failing", CHECKS)
def test_stops_at_the_first_failure(tree, failing):
    result = run(tree, failing)
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1].startswith(failing)


def test_uncommitted_files_are_listed(tree):
    with (tree / "README.md").open("a") as readme:
        readme.write("more\n")
    (tree / "new.py").write_text("")
    result = run(tree)
    assert result.returncode == 0
    assert "not committed" in result.stderr
    assert "README.md" in result.stderr and "new.py" in result.stderr


@pytest.mark.parametrize("kind", ["detached", "worktree", "shallow"])
def test_any_kind_of_checkout(tree, kind):
    (tree / "README.md").write_text(README.replace("the first", "the latest"))
    git(tree, "commit", "--quiet", "-am", "more")
    started = tree
    if kind == "detached":
        git(tree, "checkout", "--quiet", "--detach", "HEAD")
        git(tree, "commit", "--quiet", "--allow-empty", "-m", "on no branch")
    elif kind == "worktree":
        started = tree.parent / "linked"
        git(tree, "worktree", "add", "--quiet", "--detach", str(started))
    else:
        started = tree.parent / "shallow"
        git(tree.parent, "clone", "--quiet", "--depth", "1", tree.as_uri(), str(started))
    result = run(started)
    assert result.returncode == 0, result.stderr
    assert "the latest in" in result.stdout


@pytest.mark.parametrize("text", ["# none\n", README.replace("echo the \\\n  second\n", "")])
def test_readme_without_two_commands_fails(tree, text):
    (tree / "README.md").write_text(text)
    git(tree, "commit", "--quiet", "-am", "less")
    result = run(tree)
    assert result.returncode == 1
    assert "README.md: " in result.stderr
    assert "ruff" not in result.stdout
