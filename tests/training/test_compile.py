"""Training with --compile: the same numbers where torch can, and one line where it cannot."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
from support.commands import NETWORK_FLAGS, assert_one_line_error, make_audio, run
from support.trainers import TRAINING, trainer

from wavenet.errors import ConfigError
from wavenet.training.compile import explain_compile_errors

QUICK = [
    *NETWORK_FLAGS,
    *("--audio-dir", "audio", "--cache-dir", "cache", "--device", "cpu", "--threads", "1"),
    *("--batch", "1", "--segment", "0.1", "--precision", "fp32", "--compile", "--dry-run"),
]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 0.1}, "not supported with dropout"),
        ({"checkpoint_layers": True}, "not supported with checkpoint_layers"),
    ],
)
def test_what_does_not_go_together_is_refused(data, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        trainer(data, tmp_path, dataclasses.replace(TRAINING, compile=True, **settings))


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shape"), explain_compile_errors():
        raise RuntimeError("shape mismatch")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch compiles for the CPU with a C++ compiler")
def test_a_compiled_network_learns_the_same(data, tmp_path):
    training = dataclasses.replace(TRAINING, steps=3, validate_every=0)
    plain = trainer(data, tmp_path / "plain", training)
    compiled = trainer(data, tmp_path / "compiled", dataclasses.replace(training, compile=True))
    for _ in range(3):
        expected, found = plain.step(), compiled.step()
        assert found == pytest.approx(expected, rel=1e-4)
    # What is saved has the same names, and loads into a network that is not compiled.
    plain.model.load_state_dict(compiled.model.state_dict())


@pytest.mark.slow
def test_without_a_compiler_one_line_says_so(tmp_path):
    make_audio(tmp_path / "audio")
    bare = {"CXX": "/nonexistent/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    result = run("train", *QUICK, cwd=tmp_path, env=bare)
    assert_one_line_error(result, "compile: torch cannot compile the network here", "leave it out")
