"""How a command reports errors: one line, with the flag of the argument that the library names."""

from __future__ import annotations

import errno
import pickle

import pytest

from wavenet.cli import evaluate, generate, train
from wavenet.cli.common import USER_ERROR, Parser, describe, run
from wavenet.errors import AudioError, ConfigError


@pytest.mark.parametrize(
    ("parser", "argument", "flag"),
    [
        (train.build_parser(), "cache_dir", "--cache-dir"),
        (train.build_parser(), "classes", "--classes"),
        (generate.build_parser(), "classes", "--class"),
        (evaluate.build_parser(), "patterns", "--exclude"),
        (generate.build_parser(), "midi_dir", "midi_dir"),
    ],
)
def test_an_argument_becomes_its_flag(parser, argument, flag):
    error = AudioError("is full; free some space", argument=argument)
    assert str(error) == "is full; free some space"
    assert describe(error, parser) == f"{flag}: is full; free some space"


def test_an_error_keeps_its_argument_when_pickled():
    error = pickle.loads(pickle.dumps(ConfigError("is not 1", argument="batch")))
    assert (type(error), str(error), error.argument) == (ConfigError, "is not 1", "batch")


def test_an_error_is_one_line_and_exit_code_1(capsys):
    def fail(options):
        raise ConfigError("is\nnot 1", argument="verbose")

    assert run(Parser(prog="command"), fail, []) == USER_ERROR
    assert capsys.readouterr().err == "command: error: --verbose: is not 1\n"


def test_a_full_disk_says_what_to_do():
    error = OSError(errno.ENOSPC, "No space left on device", "out.wav")
    assert describe(error) == "out.wav: no space left on device; free some space, or write elsewhere"
