"""`wavenet-train`: which recordings are trained on and validated on, and what is done to them."""

from __future__ import annotations

import json
import shlex
import shutil

import pytest
from support.commands import NETWORK_FLAGS, assert_one_line_error, make_audio, run
from support.trainers import metrics

from wavenet.cli.train_options import build_parser
from wavenet.cli.train_settings import complete, read_settings
from wavenet.config import TrainingConfig
from wavenet.errors import ConfigError

SHORT = shlex.split(
    "--steps 4 --batch 2 --segment 0.05 --validate-every 2 --validation-seconds 0.5 --checkpoint-every 2 "
    "--sample-every 0 --device cpu --threads 1"
)
AUGMENTED = ["--augment-gain", "6", "--augment-polarity", "--augment-speed", "0.1"]


def train(*arguments, cwd):
    return run("train", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two folders, one for validation, and a run of them all with what can be done to segments."""
    home = tmp_path_factory.mktemp("home")
    for name, seconds in (("one", 1.0), ("two", 1.5), ("held", 0.5)):
        make_audio(home / name, seconds=seconds)
    shutil.copy(home / "one" / "take-0.wav", home / "one" / "draft.wav")
    result = train(
        "--audio-dir", "one", "two", "--val-dir", "held", "--exclude", "draft*", "*.mp3", "--weight", "one=3",
        "--out-dir", "run", *NETWORK_FLAGS, *SHORT, *AUGMENTED, cwd=home,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return home, result.stderr


def test_a_run_from_several_folders(home):
    home, told = home
    assert f"data        {home}/one, {home}/two; validation {home}/held" in told
    assert "9 found, 9 used (6 training, 3 validation); excluded 1 by 'draft*'" in told
    assert "warning     the exclude pattern '*.mp3' matches no recording" in told
    assert "from a separate folder" in told


def test_what_was_in_effect_makes_the_same_run(home):
    home, _ = home
    effective = json.loads((home / "run/effective.json").read_text())
    assert effective["audio_dir"] == [str(home / "one"), str(home / "two")]
    assert effective["val_dir"] == str(home / "held") and effective["exclude"] == ["draft*", "*.mp3"]
    assert effective["weight"] == ["one=3"]
    assert effective["augment_gain"] == 6 and effective["augment_polarity"] is True
    result = train("--config", "run/effective.json", "--out-dir", "again", cwd=home)
    assert result.returncode == 0, result.stderr
    assert metrics(home / "again") == metrics(home / "run")
    off = ("--augment-gain", 0, "--no-augment-polarity", "--augment-speed", 0)
    plain = train("--config", "run/effective.json", "--out-dir", "plain", *off, cwd=home)
    assert plain.returncode == 0, plain.stderr
    assert metrics(home / "plain") != metrics(home / "run")


@pytest.mark.parametrize("more", [[], ["--cache-dir", "xdg/wavenet"], ["--val-dir", "held"]])
def test_a_run_resumes_to_the_bit(home, more):
    home, _ = home
    shutil.copytree(home / "run", home / "part")
    shutil.rmtree(home / "part" / "step-00000004")
    result = train("--resume", "--out-dir", "part", *more, cwd=home)
    assert result.returncode == 0 and "has changed" not in result.stderr, result.stderr
    assert "resuming from part/step-00000002" in result.stderr
    name = "step-00000004/model.safetensors"
    assert (home / "part" / name).read_bytes() == (home / "run" / name).read_bytes()
    shutil.rmtree(home / "part")


def test_a_weight_for_no_folder_is_refused(home):
    home, _ = home
    result = train("--config", "run/effective.json", "--out-dir", "new", "--weight", "three=2", cwd=home)
    assert_one_line_error(
        result, "--weight: three=2: the training recordings have no such folder", "folders: one, two"
    )
    assert not (home / "new").exists()


def test_resuming_needs_the_same_validation_folder(home):
    home, _ = home
    result = train("--resume", "--out-dir", "run", "--val-dir", "one", cwd=home)
    assert_one_line_error(result, "--val-dir one", f"has {home}/held", "leave it out when resuming")


# -- flags and files -------------------------------------------------------------------------------------


def parsed(*arguments):
    return complete(build_parser().parse_args([str(each) for each in arguments]))


def test_flags_that_are_given_several_times(tmp_path):
    options = parsed("--audio-dir", "a", "--audio-dir", "b", "c", "--exclude", "x", "--exclude", "y", "z")
    assert [str(each) for each in options.audio_dir] == ["a", "b", "c"]
    assert options.exclude == ["x", "y", "z"] and options.val_dir is None
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"audio_dir": ["d", "e"], "exclude": "w", "val_dir": "v"}))
    options = parsed("--config", path, "--exclude", "x")
    assert [str(each) for each in options.audio_dir] == ["d", "e"]
    assert options.exclude == ["x"] and str(options.val_dir) == "v"
    path.write_text(json.dumps({"audio_dir": "d", "exclude": None}))
    options = parsed("--config", path)
    assert [str(each) for each in options.audio_dir] == ["d"] and options.exclude == []
    # Nothing of one command line is left to the next.
    assert parsed("--exclude", "x").exclude == ["x"] and parsed().exclude == []


@pytest.mark.parametrize("values", [{"audio_dir": [3]}, {"exclude": [None]}, {"val_dir": ["a"]}])
def test_lists_that_cannot_be_meant_are_refused(tmp_path, values):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="is of the wrong type"):
        read_settings(path)


@pytest.mark.parametrize("value", [-1, 61, float("nan"), float("inf")])
def test_gains_that_cannot_be_meant_are_refused(value):
    with pytest.raises(ConfigError, match=r"augment_gain = .*: must be from 0 to 60 dB"):
        TrainingConfig(augment_gain=value)
