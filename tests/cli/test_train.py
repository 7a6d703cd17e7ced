"""`wavenet-train` as a person meets it: what it writes, what it says, how it stops and goes on."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.commands import (
    NETWORK_FLAGS,
    assert_one_line_error,
    chord,
    command,
    environment,
    make_audio,
    run,
)

import wavenet.training.environment
from wavenet.audio.wav import write_wav
from wavenet.training.metrics import TIMED

SHORT = NETWORK_FLAGS + shlex.split(
    "--steps 5 --batch 1 --segment 0.05 --validate-every 2 --validation-seconds 0.5 --checkpoint-every 2 "
    "--sample-every 5 --sample-seconds 0.1"
)


def train(*arguments, cwd, **settings):
    return run("train", *arguments, cwd=cwd, **settings)


def metrics(folder: Path) -> list[dict]:
    """The account of a run without the one number that no two runs share."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


def steps_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".old"))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with recordings, the run they gave in `run`, and what was said."""
    home = tmp_path_factory.mktemp("trained")
    make_audio(home / "audio")
    result = train("--audio-dir", "audio", "--out-dir", "run", *SHORT, cwd=home)
    assert result.returncode == 0, result.stderr
    return home, result


@pytest.fixture
def home(trained, tmp_path):
    """The trained folder as a copy of one's own; its checkpoints still name the first folder's audio."""
    return shutil.copytree(trained[0], tmp_path / "home")


# -- a run -----------------------------------------------------------------------------------------------


def test_from_a_folder_to_a_run(trained):
    home, result = trained
    assert result.stdout == b""
    assert steps_in(home / "run") == ["step-00000004", "step-00000005"]
    assert sorted(os.listdir(home / "run" / "best")) == ["config.json", "model.safetensors", "training.json"]
    validations = [line for line in metrics(home / "run") if "validation_bits" in line]
    assert [line["step"] for line in validations] == [2, 4, 5]
    audio, rate = soundfile.read(home / "run" / "samples" / "step-00000005.wav")
    assert (len(audio), rate) == (400, 4000)
    assert not leftovers(home)
    # An independent witness of the first losses: a network that knows nothing needs log2(64) bits.
    assert all(abs(line["validation_bits"] - 6) < 0.2 for line in validations)


def test_messages_of_a_run(trained):
    _, result = trained
    labels = {line[:12].rstrip() for line in result.stderr.splitlines()}
    assert {"data", "files", "audio", "source", "becomes", "level", "silence", "bits/sample"} <= labels
    for text in (
        "3 found, 3 used", "4000 Hz mono, 64 mu-law classes", "uniform 6.00; unigram", "network  6 layers",
        "receptive field 64 samples", "step 2: validation", "step 5: wrote run/samples/step-00000005.wav",
        "done: 5 steps", "wavenet-generate --checkpoint run",
    ):  # fmt: skip
        assert text in result.stderr, text


def test_the_run_generates_a_wav(trained, tmp_path):
    home, _ = trained
    result = run("generate", "--checkpoint", "run", "--seconds", 0.25, tmp_path / "out.wav", cwd=home)
    assert result.returncode == 0 and "run/step-00000005" in result.stderr
    audio, rate = soundfile.read(tmp_path / "out.wav")
    assert (len(audio), rate) == (1000, 4000) and audio.std() > 0


def test_dry_run_reports_the_time_and_writes_no_run(tmp_path):
    make_audio(tmp_path / "audio")
    result = train("--audio-dir", "audio", "--out-dir", "new", "--dry-run", *SHORT, cwd=tmp_path)
    assert result.returncode == 0 and "3 found, 3 used" in result.stderr
    assert "dry run  one step took" in result.stderr and "5 steps take about" in result.stderr
    assert not (tmp_path / "new").exists()


def test_its_own_output_is_not_trained_on(home):
    shutil.copytree(home / "audio", home / "own" / "cache")
    result = train(
        "--audio-dir", ".", "--out-dir", "run", "--cache-dir", "own", "--dry-run", *SHORT, cwd=home
    )
    assert (home / "run" / "samples" / "step-00000005.wav").exists()
    assert result.returncode == 0 and "3 found, 3 used" in result.stderr


def test_prepared_audio_needs_no_audio_library(home):
    shutil.rmtree(home / "audio")
    code = (
        "import sys\n"
        "for name in ('soundfile', 'librosa', 'soxr', 'numba'): sys.modules[name] = None\n"
        "from wavenet.cli.train import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["--cache-dir", "xdg/wavenet", "--out-dir", "bare", *SHORT]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=home, env=environment(), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert metrics(home / "bare") == metrics(home / "run")


# -- stopping and going on -------------------------------------------------------------------------------


def test_an_existing_run_is_not_written_over(home):
    before = {path: path.read_bytes() for path in (home / "run").rglob("*") if path.is_file()}
    result = train("--audio-dir", "audio", "--out-dir", "run", *SHORT, cwd=home)
    assert_one_line_error(result, "run: contains a run already (step-00000005)", "--resume", "--out-dir")
    assert {path: path.read_bytes() for path in (home / "run").rglob("*") if path.is_file()} == before


def test_a_finished_run_continues_with_more_steps(home):
    before = metrics(home / "run")
    weights = (home / "run/step-00000005/model.safetensors").read_bytes()
    result = train("--resume", "--out-dir", "run", cwd=home)
    assert result.returncode == 0 and "done: 5 steps" in result.stderr
    assert metrics(home / "run") == before
    assert (home / "run/step-00000005/model.safetensors").read_bytes() == weights
    result = train("--resume", "--out-dir", "run", "--steps", 8, cwd=home)
    assert result.returncode == 0 and "resuming from run/step-00000005" in result.stderr
    assert "done: 8 steps" in result.stderr
    assert steps_in(home / "run") == ["step-00000006", "step-00000008"]
    assert metrics(home / "run")[: len(before)] == before
    assert [line["step"] for line in metrics(home / "run") if "validation_bits" in line] == [2, 4, 5, 6, 8]


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--layers", "8"], ["--layers 8", "has 6"]),
        (["--preset", "base"], ["has 6", "--layers 30"]),
        (["--normalization", "peak"], ["--normalization peak", "has none"]),
        (["--sample-rate", "8000"], ["--sample-rate 8000", "has 4000"]),
        (["--validation-fraction", "0.5"], ["--validation-fraction 0.5", "has 0.1"]),
        (["--silence-db", "3"], ["--silence-db 3", "has 40"]),
        (["--keep-silence"], ["--silence-db None", "has 40"]),
    ],
)
def test_resuming_with_another_network_is_refused(trained, arguments, fragments):
    result = train("--resume", "--out-dir", "run", *arguments, cwd=trained[0])
    assert_one_line_error(result, *fragments, "when resuming")


def test_a_run_resumes_without_its_recordings(trained, tmp_path):
    shutil.copytree(trained[0] / "audio", tmp_path / "audio")
    arguments = ["--cache-dir", "cache", "--out-dir", "run"]
    assert train("--audio-dir", "audio", *arguments, *SHORT, cwd=tmp_path).returncode == 0
    shutil.rmtree(tmp_path / "audio")
    assert_one_line_error(train("--resume", "--out-dir", "run", cwd=tmp_path), "audio", "does not exist")
    result = train("--resume", *arguments, "--steps", 6, cwd=tmp_path)
    assert result.returncode == 0 and "has changed" not in result.stderr, result.stderr


def test_resuming_uses_as_many_threads_as_before(home):
    result = train("--resume", "--out-dir", "run", "--steps", 6, cwd=home, env={"OMP_NUM_THREADS": "2"})
    assert result.returncode == 0, result.stderr
    assert json.loads((home / "run/step-00000006/training.json").read_text())["threads"] == 1


def test_large_pages_are_the_default(monkeypatch):
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    wavenet.training.environment.prepare()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    wavenet.training.environment.prepare()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"


def test_waiting_threads_sleep_by_default(trained, monkeypatch):
    home, _ = trained
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)

    def looks(**env):
        """How often a waiting thread looks before it sleeps, as GNU's OpenMP tells when torch loads it."""
        told = train(
            "--audio-dir", "audio", "--dry-run", *SHORT, cwd=home, env={"OMP_DISPLAY_ENV": "verbose", **env}
        )
        assert told.returncode == 0, told.stderr
        found = re.search(r"GOMP_SPINCOUNT = '(\w+)'", told.stderr)
        if found is None:
            pytest.skip("this torch brings another OpenMP")
        return found[1]

    assert looks() == "0"
    assert looks(OMP_WAIT_POLICY="ACTIVE") != "0"


def test_resuming_where_there_is_nothing(trained):
    home, _ = trained
    for place in ("nowhere", "audio/take-0.wav"):
        result = train("--resume", "--out-dir", place, cwd=home)
        assert_one_line_error(result, place, "no checkpoint to resume from")
    assert not (home / "nowhere").exists() and len(os.listdir(home / "audio")) == 3


def test_a_torn_checkpoint_is_passed_over(home):
    torn = home / "run/step-00000005/training_state.safetensors"
    torn.write_bytes(torn.read_bytes()[:1000])
    result = train("--resume", "--out-dir", "run", cwd=home)
    assert result.returncode == 0 and "warning: run/step-00000005" in result.stderr
    assert "resuming from run/step-00000004" in result.stderr and "done: 5 steps" in result.stderr
    whole = json.loads((home / "run/step-00000005/training.json").read_text())
    assert whole["progress"]["step"] == 5 and metrics(home / "run")[2]["step"] == 5


LONG = NETWORK_FLAGS + shlex.split(
    "--steps 300 --batch 1 --segment 0.05 --validate-every 100 --validation-seconds 0.5 --checkpoint-every 0 "
    "--sample-every 0 --threads 1"
)


@pytest.fixture(scope="module")
def uninterrupted(trained):
    home, _ = trained
    result = train("--audio-dir", "audio", "--out-dir", "whole", *LONG, cwd=home)
    assert result.returncode == 0, result.stderr
    return home / "whole"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_resumes_to_the_bit(trained, uninterrupted, number):
    home, _ = trained
    name = f"it's {number.name}"
    process = subprocess.Popen(
        command("train", "--audio-dir", "audio", "--out-dir", name, *LONG), cwd=home,
        env=environment(XDG_CACHE_HOME=str(home / "xdg")), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    account, deadline = home / name / "metrics.jsonl", time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if account.exists() and account.read_text().count("\n") >= 2:
            break
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    *_, told, words = errors.splitlines()
    assert told.startswith("stopped and saved at step ") and told.endswith("continue with:")
    step = int(told.split()[5].rstrip(",;"))
    assert 0 < step < 300 and steps_in(home / name) == [f"step-{step:08d}"]
    program, *arguments = shlex.split(words)
    assert program == "wavenet-train"
    result = train(*arguments, cwd=home)
    assert result.returncode == 0 and "done: 300 steps" in result.stderr, result.stderr
    assert metrics(home / name) == metrics(uninterrupted)
    for file in ("step-00000300/model.safetensors", "best/model.safetensors"):
        assert (home / name / file).read_bytes() == (uninterrupted / file).read_bytes()
    assert not leftovers(home / name)


def limit_file_size():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_full_disk_leaves_no_half_checkpoint(home):
    result = train("--audio-dir", "audio", "--out-dir", "full", *SHORT, cwd=home, preexec_fn=limit_file_size)
    assert_one_line_error(result, "full: the checkpoint of step 5 could not be written", "free some space")
    assert "warning: no checkpoint at step 2" in result.stderr
    assert not steps_in(home / "full") and not (home / "full/best").exists() and not leftovers(home)
    weights = (home / "run/step-00000005/model.safetensors").read_bytes()
    result = train("--resume", "--out-dir", "run", "--steps", 6, cwd=home, preexec_fn=limit_file_size)
    assert_one_line_error(result, "run: the checkpoint of step 6", "resume from step-00000005")
    assert (home / "run/step-00000005/model.safetensors").read_bytes() == weights
    assert not leftovers(home)


# -- what it refuses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--steps", "0"], ["steps = 0"]),
        (["--lr", "nan"], ["lr = nan"]),
        (["--lr", "-1"], ["lr = -1"]),
        (["--segment", "0"], ["segment = 0"]),
        (["--batch", "-1"], ["batch = -1"]),
        (["--layers", "0"], ["layers = 0"]),
        (["--sample-rate", "1"], ["sample_rate = 1"]),
        (["--validation-fraction", "1"], ["validation_fraction = 1"]),
        (["--silence-db", "nan"], ["silence_db = nan"]),
        (["--threads", "0"], ["--threads 0"]),
        (["--threads", "99999999999"], ["--threads 99999999999"]),
        (["--validation-seconds", "inf"], ["validation_seconds = inf"]),
        (
            ["--batch", "65536", "--segment", "3600"],
            ["batch=65536 segment=3600", "GB", "try batch=1"],
        ),
        (["--device", "toaster"], ["--device toaster", "cpu"]),
        (["--device", "cuda:99"], ["--device cuda:99", "cpu"]),
        (["--audio-dir", "missing"], ["missing", "does not exist"]),
        (["--audio-dir", "empty"], ["empty", "add recordings"]),
        (["--audio-dir", "texts"], ["texts", "2 txt", "flac"]),
        (["--audio-dir", "pipe.wav"], ["pipe.wav", "not a folder"]),
        (["--out-dir", "audio/take-0.wav"], ["--out-dir audio/take-0.wav", "not a folder"]),
        (["--out-dir", "audio/take-0.wav/run"], ["--out-dir audio/take-0.wav/run", "not a folder"]),
        (["--cache-dir", "audio/take-0.wav"], ["audio/take-0.wav", "--cache-dir"]),
    ],
)
def test_refusals_are_one_line(refusing, arguments, fragments):
    before = sorted(refusing.rglob("*"))
    # Of a flag given twice the last counts.
    result = train("--audio-dir", "audio", "--out-dir", "new", *arguments, cwd=refusing)
    assert_one_line_error(result, *fragments)
    assert sorted(refusing.rglob("*")) == before


@pytest.fixture(scope="module")
def refusing(tmp_path_factory):
    home = tmp_path_factory.mktemp("refusing")
    make_audio(home / "audio")
    (home / "empty").mkdir()
    (home / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (home / "texts" / name).write_text("words")
    os.mkfifo(home / "pipe.wav")
    return home


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_an_unwritable_folder_is_reported_first(refusing):
    result = train("--audio-dir", "audio", "--out-dir", "/proc/wavenet/run", cwd=refusing)
    assert_one_line_error(result, "--out-dir /proc/wavenet/run", "choose another place")
    assert "found" not in result.stderr and not (refusing / "xdg").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_without_permission(tmp_path):
    make_audio(tmp_path / "audio").chmod(0)
    try:
        result = train("--audio-dir", "audio", cwd=tmp_path)
        assert_one_line_error(result, "audio", "permission denied")
    finally:
        (tmp_path / "audio").chmod(0o755)


def test_usage_errors_exit_with_2(refusing):
    for arguments in (
        ["--frobnicate"], ["--audio", "audio"], ["--step", "5"], ["--steps", "many"], ["audio"],
        ["--preset", "huge"], ["--keep-silence", "--silence-db", "40"],
    ):  # fmt: skip
        result = train(*arguments, cwd=refusing)
        assert result.returncode == 2 and "usage:" in result.stderr, arguments


def test_without_a_folder(refusing):
    assert_one_line_error(train(cwd=refusing), "--audio-dir DIR")
    result = train("--cache-dir", "nothing", cwd=refusing)
    assert_one_line_error(result, "no prepared audio", "nothing", "--audio-dir")


def test_verbose_shows_the_traceback(refusing):
    result = train("-v", "--audio-dir", "missing", cwd=refusing)
    assert result.returncode == 1 and "Traceback" in result.stderr


def test_files_that_are_no_recordings(tmp_path):
    folder = tmp_path / "audio"
    folder.mkdir()
    (folder / "text.wav").write_bytes(b"these are my lyrics\n" * 100)
    (folder / "pack.wav").write_bytes(b"PK\x03\x04" + bytes(range(256)) * 20)
    (folder / "page.wav").write_bytes(b"<!DOCTYPE html><html><body>404 Not Found</body></html>")
    result = train("--audio-dir", "audio", *SHORT, cwd=tmp_path)
    assert_one_line_error(result, "none of the 3", "pack.wav", "page.wav", "text.wav", "not audio")
    assert not (tmp_path / "checkpoints").exists()


def test_silence_is_no_recording(tmp_path):
    write_wav(make_audio(tmp_path / "audio", files=0) / "still.wav", np.zeros(8000, np.float32), 4000)
    result = train("--audio-dir", "audio", *SHORT, cwd=tmp_path)
    assert_one_line_error(result, "none of the 1", "still.wav", "silent")


def test_damaged_files_are_skipped_and_named(tmp_path):
    folder = make_audio(tmp_path / "audio", files=4)
    whole = (folder / "take-3.wav").read_bytes()
    (folder / "take-3.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "text.wav").write_bytes(b"text")
    os.mkfifo(folder / "pipe.wav")
    (folder / "zero.wav").symlink_to("/dev/zero")
    (folder / "loop").symlink_to(".")
    strange = os.path.join(os.fsencode(folder), b"caf\xe9\n.wav")
    write_wav(folder / "plain.wav", chord(2.0), 4000)
    os.rename(folder / "plain.wav", strange)
    with open(os.path.join(os.fsencode(folder), b"\xff.wav"), "wb") as file:
        file.write(b"text")
    result = train("--audio-dir", "audio", "--out-dir", "run", *SHORT, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    place = lines.index("warning     3 of 7 recordings skipped:")
    assert [line.strip() for line in lines[place + 1 : place + 3]] == [
        "2 not audio that can be read (format not recognised): text.wav, \\xff.wav",
        "1 cut short (it ends before its header says): take-3.wav",
    ]
    assert "7 found, 4 used" in result.stderr
    assert "done: 5 steps" in result.stderr
