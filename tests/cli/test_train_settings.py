"""`wavenet-train`: settings from a file, a limit of time, and starting from another network."""

from __future__ import annotations

import json
import shlex

import pytest
import torch
from support.commands import NETWORK_FLAGS, assert_one_line_error, make_audio, run
from support.trainers import equal, metrics, weights

from wavenet import WaveNet, WaveNetConfig
from wavenet.cli.train_options import build_parser
from wavenet.cli.train_settings import DEFAULTS, complete, read_settings, seconds
from wavenet.config import ConditioningConfig
from wavenet.errors import ConfigError

# Together more than ten seconds: left to those who ask for it, as continuous integration does.
pytestmark = pytest.mark.slow

SHORT = shlex.split(
    "--steps 6 --batch 1 --segment 0.05 --validate-every 3 --validation-seconds 0.5 --checkpoint-every 3 "
    "--sample-every 0 --device cpu --threads 1"
)


def train(*arguments, cwd):
    return run("train", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with recordings, and a run in `run`."""
    home = tmp_path_factory.mktemp("home")
    make_audio(home / "audio")
    result = train("--audio-dir", "audio", "--out-dir", "run", *NETWORK_FLAGS, *SHORT, cwd=home)
    assert result.returncode == 0, result.stderr
    return home


def parsed(*arguments):
    return complete(build_parser().parse_args([str(each) for each in arguments]))


def settings_file(folder, values):
    path = folder / "run.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


# -- a file of settings ----------------------------------------------------------------------------------


def test_nothing_given_leaves_the_defaults():
    options = vars(parsed())
    assert {name: options[name] for name in DEFAULTS} == DEFAULTS
    assert not {"batch", "layers", "preset", "silence_db", "schedule"} & options.keys()


def test_the_command_line_wins_over_the_file(tmp_path):
    path = settings_file(
        tmp_path, {"batch": 3, "lr": 1, "out_dir": "x", "silence_db": None, "max_time": "2h", "layers": 8}
    )
    options = parsed("--config", path, "--batch", 5)
    assert (options.batch, options.lr, str(options.out_dir), options.silence_db) == (5, 1, "x", None)
    assert (options.max_time, options.layers, options.device) == ("2h", 8, "auto")
    # A size asked for by name is not mixed with the file's.
    assert not hasattr(parsed("--config", path, "--preset", "base"), "layers")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batchs": 3}, "unknown key 'batchs'; did you mean 'batch'"),
        ({"frobnicate": 3}, "unknown key 'frobnicate'; known keys: .*audio_dir"),
        ({"resume": True}, "unknown key 'resume'"),
        ({"batch": 1.5}, "batch = 1.5 is of the wrong type"),
        ({"batch": "4"}, 'batch = "4" is of the wrong type'),
        ({"preset": None}, "preset = null is of the wrong type"),
        ({"device": 3}, "device = 3 is of the wrong type"),
        ({"audio_dir": 3}, "audio_dir = 3 is of the wrong type"),
        ([1], "must hold a JSON object"),
        ("{", "is not JSON"),
        ("\udcff", "is not JSON"),
    ],
)
def test_files_that_cannot_be_meant_are_refused(tmp_path, values, message):
    path = tmp_path / "run.json"
    text = values if isinstance(values, str) else json.dumps(values)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=message) as caught:
        read_settings(path)
    assert str(caught.value).startswith(f"--config {path}: ")


def test_a_file_that_is_missing_is_one_line(home):
    result = train("--config", "none.json", cwd=home)
    assert_one_line_error(result, "--config none.json: cannot be read: no such file")


def test_saved_settings_repeat_the_run(home):
    effective = json.loads((home / "run" / "effective.json").read_text())
    expected = {"layers": 6, "stacks": 1, "steps": 6, "lr": 4e-3, "schedule": "cosine", "device": "cpu"}
    assert {name: effective[name] for name in expected} == expected
    assert effective["precision"] in ("fp32", "bf16") and effective["threads"] == 1
    result = train("--config", "run/effective.json", "--out-dir", "again", cwd=home)
    assert result.returncode == 0, result.stderr
    assert metrics(home / "again") == metrics(home / "run")
    assert json.loads((home / "again" / "effective.json").read_text()) == effective


def test_a_settings_file_may_stay_when_a_run_resumes(home, tmp_path):
    path = settings_file(tmp_path, {**json.loads((home / "run/effective.json").read_text()), "steps": 8})
    begun = train("--config", path, "--out-dir", "part", "--steps", 2, "--validate-every", 0, cwd=home)
    assert begun.returncode == 0, begun.stderr
    result = train("--config", path, "--out-dir", "part", "--resume", cwd=home)
    assert result.returncode == 0 and "done: 8 steps" in result.stderr, result.stderr


# -- a limit of time -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1h1m1s", 3661),
        ("0.5H", 1800),
        ("1h1s", 3601),
    ],
)
def test_lengths_of_time(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize(
    "text", ["", "90", "h", "0s", "-1h", "1d", "30m1h", "1.2.3s", "nan s", "infs", "2 h 3"]
)
def test_what_is_no_length_of_time(text):
    with pytest.raises(ConfigError, match="must be a length of time like 90s, 30m, 2h or 1h30m"):
        seconds(text)


def test_a_run_at_its_time_limit_can_be_resumed(home):
    arguments = [*NETWORK_FLAGS, *SHORT, "--steps", "1000000", "--checkpoint-every", "0"]
    result = train("--audio-dir", "audio", "--out-dir", "timed", *arguments, "--max-time", "1s", cwd=home)
    assert result.returncode == 0, result.stderr
    assert "--max-time 1s is over: saving a checkpoint" in result.stderr
    *_, told, words = result.stderr.splitlines()
    assert told.startswith("stopped and saved at step ") and told.endswith("continue with:")
    step = int(told.split()[5].rstrip(",;"))
    assert [path.name for path in (home / "timed").glob("step-*")] == [f"step-{step:08d}"]
    program, *again = shlex.split(words)
    result = train(*again, "--steps", step + 2, cwd=home)
    assert program == "wavenet-train" and f"done: {step + 2} steps" in result.stderr, result.stderr


# -- starting from another network -----------------------------------------------------------------------


def test_initial_network_gives_weights_and_format(home):
    result = train(
        "--audio-dir", "audio", "--init-from", "run", "--out-dir", "tuned", *SHORT, "--steps", 1,
        "--lr", "1e-9", cwd=home,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (
        "start    from run/step-00000006: 6 layers, 4,648 parameters, 4000 Hz, 64 classes, normalization none"
        in result.stderr
    )
    assert "4000 Hz mono, 64 mu-law classes" in result.stderr
    before, after = weights(home / "run/step-00000006"), weights(home / "tuned/step-00000001")
    assert all(bool((before[name] - after[name]).abs().max() < 1e-6) for name in before)
    effective = json.loads((home / "tuned/effective.json").read_text())
    assert effective["init_from"] == str(home / "run") and effective["layers"] == 6
    # The run is one like any other: it goes on without the network that it started from.
    progress = json.loads((home / "tuned/step-00000001/training.json").read_text())
    assert progress["progress"]["step"] == 1 and progress["source"]["init_from"] == str(home / "run")
    for more in ([], ["--config", "tuned/effective.json"]):
        result = train("--resume", "--out-dir", "tuned", "--steps", 2, *more, cwd=home)
        assert result.returncode == 0 and "start    from" not in result.stderr, result.stderr
    assert not equal(weights(home / "tuned/step-00000002"), before)


def test_a_score_network_continues_without_scores(home, tmp_path):
    """The conditioner is left out; what the network was where it was told nothing, it stays."""
    torch.manual_seed(0)
    told = WaveNet(
        WaveNetConfig(
            sample_rate=4000, layers=3, stacks=1, residual_channels=8, dilation_channels=8,
            conditioning=ConditioningConfig(features="score", hop=40, conditioning_channels=4),
        )
    )  # fmt: skip
    told.save_pretrained(home / "told")
    more = [
        "--sample-every",
        "0",
        "--validate-every",
        "0",
        "--batch",
        "1",
        "--segment",
        "0.1",
        "--steps",
        "1",
    ]
    first = ["--audio-dir", "audio", "--init-from", "told", "--out-dir", str(tmp_path / "untold"), *more]
    result = train(*first, cwd=home)
    assert_one_line_error(
        result,
        "--init-from told: its network needs a score for each recording",
        "--midi-dir DIR",
        "--features none",
    )
    result = train(*first, "--features", "none", "--lr", "1e-12", cwd=home)
    assert result.returncode == 0, result.stderr
    found, before = WaveNet.from_pretrained(tmp_path / "untold" / "step-00000001"), told.state_dict()
    assert found.config.conditioning is None
    for name, value in found.state_dict().items():
        assert torch.allclose(value, before[name], atol=1e-6), name
    # Its settings can be given again.
    again = train(
        "--config", tmp_path / "untold" / "effective.json", "--out-dir", tmp_path / "again", cwd=home
    )
    assert again.returncode == 0 and "start    from" in again.stderr, again.stderr


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (
            ["--init-from", "run", "--layers", "8", "--skip-channels", "16", "--head-channels", "32"],
            ["--init-from run: its network has layers 6, not 8; head_channels 16, not 32: leave"],
        ),
        (["--init-from", "run", "--preset", "tiny"], ["layers 6, not 16"]),
        (["--init-from", "run", "--sample-rate", "8000"], ["sample_rate 4000, not 8000"]),
        (["--init-from", "nowhere"], ["nowhere: does not exist"]),
        (["--init-from", "audio"], ["audio: contains no checkpoint"]),
        (["--init-from", "run", "--resume"], ["--init-from starts a run and --resume continues one"]),
        (["--max-time", "soon"], ["--max-time soon: must be"]),
        (["--dropout", "1"], ["dropout = 1"]),
        (["--schedule", "exponential", "--final-lr-fraction", "0"], ["final_lr_fraction = 0"]),
    ],
)
def test_refusals_are_one_line(home, arguments, fragments):
    result = train("--audio-dir", "audio", "--out-dir", "new", *arguments, cwd=home)
    assert_one_line_error(result, *fragments)
    assert not (home / "new").exists()
