"""`wavenet-evaluate` as a person meets it: what it prints and writes, what it refuses, how it ends."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys

import pytest
from support.commands import (
    CONFIG,
    assert_one_line_error,
    chord,
    command,
    environment,
    make_audio,
    make_checkpoint,
    run,
    temporaries,
)
from support.datasets import prepare_dataset
from support.trainers import write_record

from wavenet.audio.wav import write_wav
from wavenet.cli.evaluate import main
from wavenet.config import TrainingConfig
from wavenet.data.dataset import DataConfig
from wavenet.engine import registry
from wavenet.evaluation.scoring import bits_per_sample
from wavenet.models.wavenet import WaveNet
from wavenet.training.resume import fingerprint

TRAINING = TrainingConfig(silence_db=None, validation_fraction=0.5)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with recordings, and a checkpoint that says how they were divided."""
    folder = tmp_path_factory.mktemp("home")
    make_audio(folder / "audio", files=4, seconds=1.0)
    where = make_checkpoint(folder / "checkpoints" / "step-00000007")
    data = prepare_dataset(folder / "audio", folder / "cache", CONFIG, DataConfig(None, 0.5))
    assert data.report.split == "files" and data.report.validation_files == 2
    write_record(where, TRAINING, data=fingerprint(data), step=7)
    make_checkpoint(folder / "bare")
    return folder


def evaluate(home, monkeypatch, capsys, *arguments):
    """Run the command in this process, where torch is loaded; return exit code, output and errors."""
    monkeypatch.chdir(home)
    code = main([*map(str, arguments), "--cache-dir", "cache"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


DATA = ("--audio-dir", "audio")


# -- what it tells ------------------------------------------------------------------------------------


def test_scores_as_a_table_and_as_json(home):
    result = run("evaluate", *DATA, "--cache-dir", "cache", "--json", "found.json", "--threads", 1, cwd=home)
    assert result.returncode == 0, result.stderr
    found = json.loads((home / "found.json").read_text())
    assert set(found) == {
        "checkpoint", "step", "audio_dir", "part", "split", "sample_rate", "quantization_channels", "seconds",
        "seconds_available", "window_seconds", "samples", "uniform_bits", "unigram_bits", "linear_prediction",
        "scores", "confidence", "interval_method", "recordings",
    }  # fmt: skip
    assert (found["part"], found["split"], found["step"], found["samples"]) == (
        "validation",
        "files",
        7,
        8000,
    )
    assert found["uniform_bits"] == 6.0 and found["confidence"] == 0.95
    (score,) = found["scores"]
    assert (score["name"], score["device"]) == ("parallel fp32", "cpu") and "difference" not in score
    # The same by other means: other windows, and the mean over recordings of equal length.
    data = prepare_dataset(home / "audio", home / "cache", CONFIG, DataConfig(None, 0.5))
    model = WaveNet.from_pretrained(home / "checkpoints" / "step-00000007")
    assert score["bits_per_sample"] == pytest.approx(
        bits_per_sample(model, data.validation.windows(777)), rel=1e-5
    )
    assert found["unigram_bits"] == pytest.approx(data.report.validation_unigram_bits)
    recordings = found["recordings"]
    assert [each["name"] for each in recordings] == data.validation.names
    each = [each["bits_per_sample"]["parallel fp32"] for each in recordings]
    assert sum(each) / 2 == pytest.approx(score["bits_per_sample"])
    low, high = score["interval"]
    assert (low + high) / 2 == pytest.approx(score["bits_per_sample"])
    # Two recordings: t with one degree of freedom has its 97.5 % quantile at tan(0.475 pi).
    assert (high - low) / 2 == pytest.approx(math.tan(0.475 * math.pi) * abs(each[0] - each[1]) / 2)
    lines = {line.split("  ")[0]: line for line in result.stdout.decode().splitlines()}
    for name, bits in (
        ("uniform", 6.0),
        ("unigram", found["unigram_bits"]),
        ("parallel fp32", score["bits_per_sample"]),
        ("linear prediction", found["linear_prediction"]["bits_per_sample"]),
        (recordings[1]["name"], each[1]),
    ):
        assert f"{bits:.4f}" in lines[name]
    assert "4 of 4 recordings used" in result.stderr and "scoring  validation" in result.stderr
    assert "warning" not in result.stderr and not temporaries(home)


@pytest.mark.skipif(registry.report()["cpu"] is not None, reason="the reference computes in fp32 only")
def test_the_price_of_precision_in_one_command(home, monkeypatch, capsys):
    code, output, _ = evaluate(
        home, monkeypatch, capsys, *DATA, "--precision", "int8", "fp32", "bf16", "--seconds", 2, "--json", "-"
    )
    assert code == 0
    scores = {score["name"]: score for score in json.loads(output)["scores"]}
    assert list(scores) == ["cpu int8", "cpu fp32", "cpu bf16"]
    for name in ("cpu int8", "cpu bf16"):
        difference = scores[name]["difference"]
        assert difference["to"] == "cpu fp32" and difference["paired_over"] == "recordings"
        expected = scores[name]["bits_per_sample"] - scores["cpu fp32"]["bits_per_sample"]
        assert difference["bits_per_sample"] == pytest.approx(expected) and abs(expected) < 0.1
        assert difference["interval"][0] <= expected <= difference["interval"][1]
    code, output, _ = evaluate(
        home, monkeypatch, capsys, *DATA, "--precision", "fp32", "bf16", "--seconds", 0.5
    )
    assert code == 0 and "cpu bf16 beyond cpu fp32: " in output


def test_the_sample_loop_scores_as_the_parallel_form(home, monkeypatch, capsys):
    bits = []
    for backend in ("parallel", "reference"):
        code, output, _ = evaluate(
            home, monkeypatch, capsys, *DATA, "--backend", backend, "--seconds", 0.2, "--json", "-"
        )
        assert code == 0
        bits.append(json.loads(output)["scores"][0]["bits_per_sample"])
    assert bits[0] == pytest.approx(bits[1], rel=1e-5)


def test_parts_are_those_of_training(home, monkeypatch, capsys):
    samples = {}
    for part in ("validation", "train", "all"):
        code, output, errors = evaluate(home, monkeypatch, capsys, *DATA, "--part", part, "--json", "-")
        found = json.loads(output)
        assert code == 0 and found["part"] == part and "warning" not in errors
        samples[part] = {each["name"]: each["samples"] for each in found["recordings"]}
    assert samples["all"] == {**samples["validation"], **samples["train"]}
    assert len(samples["all"]) == 4 and set(samples["all"].values()) == {4000}


def test_a_checkpoint_without_a_training_record(home, monkeypatch, capsys):
    bare = ("--checkpoint", "bare", *DATA, "--seconds", 0.5)
    code, output, errors = evaluate(home, monkeypatch, capsys, *bare, "--json", "-")
    assert code == 0 and json.loads(output)["part"] == "all" and json.loads(output)["step"] is None
    assert "does not record the split of its recordings: scoring all" in errors
    code, _, errors = evaluate(home, monkeypatch, capsys, *bare, "--part", "validation")
    assert code == 0 and "warning: the checkpoint does not record the split" in errors


def test_other_audio_and_skipped_files_are_reported(home, monkeypatch, capsys):
    make_audio(home / "other", files=3, seconds=0.5)
    (home / "other" / "broken.wav").write_bytes(b"RIFF")
    code, _, errors = evaluate(home, monkeypatch, capsys, "--audio-dir", "other", "--seconds", 0.5)
    assert code == 0 and "3 of 4 recordings used" in errors
    assert "warning: this is not the audio" in errors
    assert "warning: skipped 1 " in errors and "broken.wav" in errors


def test_one_recording_has_no_interval(home, monkeypatch, capsys):
    write_wav(home / "alone.wav", chord(1.0), 4000)
    arguments = ("--audio-dir", "alone.wav", "--part", "all")
    code, output, _ = evaluate(home, monkeypatch, capsys, *arguments, "--json", "-")
    assert code == 0 and json.loads(output)["scores"][0]["interval"] is None
    code, output, _ = evaluate(home, monkeypatch, capsys, *arguments)
    assert code == 0 and "none: only one recording" in output


# -- what it refuses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ([], ["--audio-dir DIR"]),
        ([*DATA, "--seconds", "0"], ["--seconds 0"]),
        ([*DATA, "--seconds", "nan"], ["--seconds nan"]),
        ([*DATA, "--threads", "0"], ["--threads 0"]),
        ([*DATA, "--backend", "parallel", "--precision", "int8"], ["--precision int8", "--backend auto"]),
        ([*DATA, "--backend", "auto", "--device", "cuda"], ["--device cuda", "--backend parallel"]),
        ([*DATA, "--backend", "gpu"], ["unknown backend 'gpu'", "reference"]),
        ([*DATA, "--precision", "fp8"], ["unknown precision 'fp8'", "bf16"]),
        ([*DATA, "--device", "toaster"], ["--device toaster", "cpu or cuda"]),
        ([*DATA, "--checkpoint", "nowhere"], ["nowhere", "does not exist"]),
        ([*DATA, "--checkpoint", "audio"], ["audio: contains no checkpoint"]),
        (["--audio-dir", "nowhere"], ["nowhere", "does not exist"]),
        (["--audio-dir", "empty"], ["empty", "is empty"]),
        (["--audio-dir", "short"], ["none of the 1 recording(s)", "click.wav"]),
        (["--audio-dir", "a\x1b[31mb"], ["a\\x1b[31mb does not exist"]),
        ([*DATA, "--json", "audio"], ["audio: is a folder"]),
        ([*DATA, "--json", "missing/x.json"], ["missing/x.json", "does not exist"]),
        ([*DATA, "--json", "kept.json"], ["kept.json: exists", "--force"]),
    ],
)
def test_refusals_are_one_line(home, monkeypatch, capsys, arguments, fragments):
    (home / "empty").mkdir(exist_ok=True)
    (home / "short").mkdir(exist_ok=True)
    write_wav(home / "short" / "click.wav", chord(1.0)[1:2], 4000)
    (home / "kept.json").write_text("precious")
    monkeypatch.chdir(home)
    cache = [] if not arguments else ["--cache-dir", "cache"]
    code = main([*arguments, *cache])
    captured = capsys.readouterr()
    result = subprocess.CompletedProcess([], code, captured.out, captured.err)
    assert_one_line_error(result, *fragments)
    assert captured.out == "" and (home / "kept.json").read_text() == "precious"


def test_force_replaces_an_existing_file(home, monkeypatch, capsys):
    (home / "old.json").write_text("old")
    code, _, _ = evaluate(home, monkeypatch, capsys, *DATA, "--seconds", 0.2, "--json", "old.json", "--force")
    assert code == 0 and "scores" in json.loads((home / "old.json").read_text())


def test_usage_errors_exit_with_2(home):
    for arguments in (["--part", "test"], ["--second", "1"], ["stray"]):
        result = run("evaluate", *arguments, *DATA, cwd=home)
        assert result.returncode == 2 and "usage:" in result.stderr


# -- how it ends --------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_device_and_a_closed_output(home):
    arguments = command("evaluate", *DATA, "--cache-dir", "cache", "--seconds", 0.2)
    with open("/dev/full", "wb") as full:
        result = subprocess.run(arguments, cwd=home, env=environment(), stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 1 and b"Traceback" not in result.stderr and b"ignored" not in result.stderr
    assert b"standard output: no space left on device" in result.stderr
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", *arguments]
    result = subprocess.run(shell, cwd=home, env=environment(), capture_output=True)
    assert result.returncode == 1 and b"error: standard output is closed" in result.stderr


def test_an_interrupt_writes_nothing_half(home):
    make_audio(home / "long", files=4, seconds=60.0)
    arguments = ["--audio-dir", "long", "--cache-dir", "cache", "--part", "all", "--backend", "reference"]
    process = subprocess.Popen(
        command("evaluate", *arguments, "--json", "never.json"),
        cwd=home, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    for line in process.stderr:
        if line.startswith(b"scoring"):
            break
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and output == b""
    assert errors.splitlines()[-1] == b"wavenet-evaluate: interrupted" and b"Traceback" not in errors
    assert not (home / "never.json").exists() and not temporaries(home)


def test_parsing_arguments_loads_nothing_slow():
    code = (
        "import wavenet.cli.evaluate as e, sys; names = set(sys.modules)\n"
        "e.build_parser().parse_args([]); print(*sys.modules)\n"
        "print(*(name for name in names if name.startswith('wavenet')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    everything, own = result.stdout.splitlines()
    assert not {"torch", "numpy", "numba", "soundfile", "safetensors"} & set(everything.split())
    assert set(own.split()) == {"wavenet", "wavenet.cli", "wavenet.cli.evaluate"}


# -- several folders ------------------------------------------------------------------------------------


def test_several_folders_and_one_for_validation(home, tmp_path, monkeypatch, capsys):
    more, held = make_audio(tmp_path / "more", files=2), make_audio(tmp_path / "held", files=1)
    folders = (*DATA, more, "--val-dir", held)
    names = {}
    for part in ("validation", "train", "all"):
        code, output, errors = evaluate(home, monkeypatch, capsys, *folders, "--part", part, "--json", "-")
        assert code == 0, errors
        names[part] = [each["name"] for each in json.loads(output)["recordings"]]
    assert names["validation"] == ["held/take-0.wav"]
    assert sorted(names["train"]) == [
        *(f"audio/take-{number}.wav" for number in range(4)), "more/take-0.wav", "more/take-1.wav",
    ]  # fmt: skip
    assert sorted(names["all"]) == sorted([*names["train"], *names["validation"]])
    code, output, _ = evaluate(
        home, monkeypatch, capsys, *folders, "--exclude", "take-1*", "--part", "train", "--json", "-"
    )
    assert code == 0
    assert not [each for each in json.loads(output)["recordings"] if "take-1" in each["name"]]


def test_training_folders_are_split_as_in_training(home, tmp_path, monkeypatch, capsys):
    """What a run was told of its folders holds where the same ones are scored, and for no others."""
    held = make_audio(tmp_path / "held", files=2)
    where = make_checkpoint(tmp_path / "run" / "step-00000003")
    source = {"audio_dir": str(home / "audio"), "val_dir": str(held), "exclude": ["take-3.wav"]}
    write_record(where, TRAINING, source, step=3)

    def recordings(*arguments):
        chosen = ("--checkpoint", where, *arguments, "--part", "validation", "--json", "-")
        code, output, errors = evaluate(home, monkeypatch, capsys, *chosen)
        assert code == 0, errors
        return [each["name"] for each in json.loads(output)["recordings"]]

    assert recordings(*DATA) == ["held/take-0.wav", "held/take-1.wav"]
    assert recordings(*DATA, "--exclude", "take-1.wav") == ["held/take-0.wav"]
    other = make_audio(tmp_path / "other", files=4, seconds=1.0)
    assert "held/take-0.wav" not in recordings("--audio-dir", other)


def test_a_folder_for_validation_alone_is_refused(home, monkeypatch, capsys):
    code, _, errors = evaluate(home, monkeypatch, capsys, "--val-dir", "audio")
    assert code == 1
    assert "--val-dir audio: goes with --audio-dir; to score it alone: --audio-dir audio --part all" in errors


def test_scores_are_drawn(home, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    code, _, errors = evaluate(home, monkeypatch, capsys, *DATA, "--plot", "bars.png")
    assert code == 0, errors
    assert (home / "bars.png").read_bytes()[:4] == b"\x89PNG"
    for name, words in (
        ("bars.png", "exists"),
        ("bars.txt", "must end in"),
        ("no/bars.png", "does not exist"),
    ):
        code, _, errors = evaluate(home, monkeypatch, capsys, *DATA, "--plot", name)
        assert code == 1 and f"{name}: " in errors and words in errors
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, errors = evaluate(home, monkeypatch, capsys, *DATA, "--plot", "more.png")
    assert code == 1 and errors.endswith("pip install 'wavenet[plot]'\n")
