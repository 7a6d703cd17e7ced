"""`wavenet-generate` as a person meets it: what it writes, what it says, how it ends."""

from __future__ import annotations

import math
import os
import resource
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from support.commands import (
    CONFIG,
    assert_one_line_error,
    chord,
    command,
    environment,
    make_checkpoint,
    run,
    start,
    temporaries,
)
from support.engines import chain_model

from wavenet.audio.wav import write_wav
from wavenet.engine import registry

ENGINE = ["--backend", "auto"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a checkpoint where the command looks for one."""
    folder = tmp_path_factory.mktemp("home")
    make_checkpoint(folder / "checkpoints" / "step-00000001")
    write_wav(folder / "primer.wav", chord(1.0), 4000)
    write_wav(folder / "silence.wav", 0 * chord(1.0), 4000)
    return folder


def read(path):
    audio, rate = soundfile.read(path, dtype="int16")
    return audio, rate


# -- what it writes -----------------------------------------------------------------------------------


def test_a_wav_of_the_requested_length(home):
    result = run("generate", "--seconds", 0.5, "plain.wav", cwd=home)
    assert result.returncode == 0, result.stderr
    audio, rate = read(home / "plain.wav")
    assert (len(audio), rate) == (2000, 4000) and audio.std() > 0
    assert "checkpoint checkpoints/step-00000001" in result.stderr
    assert "x realtime" in result.stderr and "seed" in result.stderr
    assert result.stdout == b""
    info = soundfile.info(home / "plain.wav")
    assert (info.subtype, info.channels) == ("PCM_16", 1)


def test_same_seed_same_audio_and_another_without(home):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert run("generate", "--seconds", 0.2, "--seed", seed, f"seed-{name}.wav", cwd=home).returncode == 0
    a, b, c = ((home / f"seed-{name}.wav").read_bytes() for name in "abc")
    assert a == b != c
    drawn = [run("generate", "--seconds", 0.1, f"drawn-{i}.wav", cwd=home).stderr for i in range(2)]
    seeds = [text.split("seed ")[1].split()[0] for text in drawn]
    assert seeds[0] != seeds[1]


def test_a_batch_writes_one_file_for_each_take(home):
    assert run("generate", "--seconds", 0.2, "--seed", 3, "--batch", 3, "take.wav", cwd=home).returncode == 0
    assert run("generate", "--seconds", 0.2, "--seed", 3, "alone.wav", cwd=home).returncode == 0
    takes = [(home / f"take-{i}.wav").read_bytes() for i in range(3)]
    assert takes[0] == (home / "alone.wav").read_bytes() and len(set(takes)) == 3


def test_every_backend_writes_the_same(home):
    made = set()
    for name, reason in registry.report().items():
        if reason is None:
            result = run(
                "generate", "--seconds", 0.2, "--seed", 1, "--backend", name, f"{name}.wav", cwd=home
            )
            assert result.returncode == 0 and f"backend {name}" in result.stderr
            made.add((home / f"{name}.wav").read_bytes())
    assert len(made) == 1


@pytest.mark.skipif(registry.report()["cpu"] is not None, reason="the reference computes in fp32 only")
def test_precision_is_reported(home):
    for precision in ("bf16", "int8"):
        arguments = ["--seconds", 0.1, "--seed", 1, "--precision", precision, f"{precision}.wav"]
        result = run("generate", *arguments, cwd=home)
        assert result.returncode == 0 and f"backend cpu  {precision}  seed 1" in result.stderr


def test_priming_continues_a_recording(home):
    write_wav(home / "other.wav", chord(1.0, pitch=300), 4000)
    for name in ("primer", "other"):
        arguments = ["--seconds", 0.2, "--seed", 1, "--prime", f"{name}.wav", f"after-{name}.wav"]
        result = run("generate", *arguments, cwd=home)
        assert result.returncode == 0 and f"primed with the last 0.02 s of {name}.wav" in result.stderr
    assert len(read(home / "after-primer.wav")[0]) == 800
    assert (home / "after-primer.wav").read_bytes() != (home / "after-other.wav").read_bytes()


def test_a_short_primer_at_another_sample_rate(home):
    write_wav(home / "click.wav", chord(0.005, rate=8000), 8000)
    result = run("generate", "--seconds", 0.1, "--prime", "click.wav", "after-click.wav", cwd=home)
    assert result.returncode == 0, result.stderr


def test_temperature_zero_does_not_depend_on_the_seed(home):
    for seed in (1, 2):
        run("generate", "--seconds", 0.2, "--temperature", 0, "--seed", seed, f"greedy-{seed}.wav", cwd=home)
    assert (home / "greedy-1.wav").read_bytes() == (home / "greedy-2.wav").read_bytes()


def test_raw_is_the_wav_without_its_header(home):
    run("generate", "--seconds", 0.2, "--seed", 1, "whole.wav", cwd=home)
    assert (
        run("generate", "--seconds", 0.2, "--seed", 1, "--format", "raw", "whole.s16", cwd=home).returncode
        == 0
    )
    assert (home / "whole.wav").read_bytes()[44:] == (home / "whole.s16").read_bytes()


def test_standard_output_is_a_wav_stream(home):
    result = run("generate", "--seconds", 0.2, "--seed", 1, "-", cwd=home)
    assert result.returncode == 0
    head = struct.unpack("<4sI4s4sIHHIIHH4sI", result.stdout[:44])
    assert head == (
        b"RIFF", 0xFFFFFFFF, b"WAVE", b"fmt ", 16, 1, 1, 4000, 8000, 2, 16, b"data", 0xFFFFFFFF,
    )  # fmt: skip
    run("generate", "--seconds", 0.2, "--seed", 1, "same.wav", cwd=home)
    assert result.stdout[44:] == (home / "same.wav").read_bytes()[44:]
    raw = run("generate", "--seconds", 0.2, "--seed", 1, "--format", "raw", "-", cwd=home)
    assert raw.stdout == result.stdout[44:]


# -- how it ends --------------------------------------------------------------------------------------


def test_endless_stream_until_its_reader_leaves(home):
    process = start(home, "--seconds", 0, "-", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    received = process.stdout.read(44 + 2 * 9000)
    assert len(received) == 44 + 2 * 9000
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait(30) == 1
    assert (
        "the reader of standard output closed it" in errors
        and "Traceback" not in errors
        and "Exception ignored" not in errors
    )


def limit_file_size():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_full_disk_leaves_nothing_half_written(home):
    (home / "kept.wav").write_bytes(b"precious")
    result = run("generate", "--seconds", 60, "--force", "kept.wav", cwd=home, preexec_fn=limit_file_size)
    assert_one_line_error(result, "kept.wav")
    assert (home / "kept.wav").read_bytes() == b"precious"
    assert not temporaries(home)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_device(home):
    with open("/dev/full", "wb") as full:
        process = start(home, "--seconds", 1, "-", stdout=full, stderr=subprocess.PIPE)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and b"Traceback" not in errors
    assert b"standard output: no space left on device; free" in errors and b"ignored" not in errors


def test_appended_output_gets_no_second_header(home):
    run("generate", "--seconds", 0.2, "--seed", 1, "--force", "appended-is.wav", cwd=home)
    expected = (home / "appended-is.wav").read_bytes()
    for _ in range(2):
        with open(home / "appended.wav", "ab") as file:
            process = start(home, "--seconds", 0.2, "--seed", 1, "-", stdout=file, stderr=subprocess.DEVNULL)
            assert process.wait(60) == 0
    data = (home / "appended.wav").read_bytes()
    assert data[40:44] == b"\xff" * 4 and data[44 : len(expected)] == expected[44:]
    assert data == 2 * data[: len(expected)]


def through_shell(home, redirection, *arguments):
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", *command("generate", *arguments)]
    return subprocess.run(shell, cwd=home, env=environment(), capture_output=True, timeout=60)


def test_closed_standard_streams(home):
    result = through_shell(home, ">&-", "-")
    assert result.returncode == 1 and result.stderr.count(b"\n") == 1
    assert b"error: standard output is closed" in result.stderr
    # The recording would be opened under the number of standard error, and lose it while it is decoded.
    arguments = ["--seconds", 0.2, "--seed", 1, "--prime", "primer.wav"]
    for redirection in ("<&- 2>&-", "2>/dev/null"):
        result = through_shell(home, redirection, *arguments, "-")
        assert result.returncode == 0 and len(result.stdout) == 44 + 1600 and result.stderr == b""
    # What is wrong is not written into the audio either.
    for bad in (["-v", "--checkpoint", "nowhere", "-"], ["--batch", "none", "-"]):
        result = through_shell(home, "2>&-", *bad)
        assert result.returncode in (1, 2) and result.stdout == result.stderr == b""


# -- what it refuses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--seconds", "-1", "x.wav"], ["--seconds -1"]),
        (["--seconds", "nan", "x.wav"], ["--seconds nan"]),
        (["--seconds", "inf", "x.wav"], ["--seconds inf"]),
        (["--seconds", "1e12", "x.wav"], ["--seconds 1e+12"]),
        (["--seconds", "1e7", "x.wav"], ["4 GiB", "write raw samples"]),
        (["--seconds", "0", "x.wav"], ["--seconds 0", "-"]),
        (["--batch", "0", "x.wav"], ["--batch 0"]),
        (["--batch", "2", "-"], ["--batch 2"]),
        (["--batch", "1001", "x.wav"], ["--batch 1001", "1000"]),
        (["--batch", "9" * 30, "x.wav"], ["--batch 9", "1000"]),
        (["--temperature", "-1", "x.wav"], ["temperature = -1"]),
        (["--top-k", "-1", "x.wav"], ["top_k = -1"]),
        (["--top-k", "9" * 20, "x.wav"], ["top_k = 9999", "2147483647"]),
        (["--threads", "9" * 11, "x.wav"], ["threads = 9999", "1024"]),
        (["--top-p", "0", "x.wav"], ["top_p = 0"]),
        (["--seed", "-1", "x.wav"], ["--seed -1"]),
        (["--threads", "0", "x.wav"], ["threads = 0"]),
        (["--precision", "fp8", "x.wav"], ["unknown precision 'fp8'", "bf16"]),
        (["--precision", "int8", "--backend", "reference", "x.wav"], ["fp32 only", "int8"]),
        (["--backend", "gpu", "x.wav"], ["unknown backend 'gpu'", "reference"]),
        (["--device", "cuda", "x.wav"], ["cuda", "device 'cpu'"]),
        (["--device", "toaster", "x.wav"], ["toaster", "use cpu or cuda"]),
        (["--checkpoint", "nowhere", "x.wav"], ["nowhere", "does not exist"]),
        (["--checkpoint", "primer.wav", "x.wav"], ["primer.wav", "not a folder"]),
        (["--prime", "missing.wav", "x.wav"], ["missing.wav", "does not exist"]),
        (["--prime", "checkpoints", "x.wav"], ["checkpoints", "; give a file"]),
        (["--prime", "/dev/zero", "x.wav"], ["not a regular file; give a file"]),
        (["--prime", "silence.wav", "x.wav"], ["silence.wav: silent; give a recording with sound"]),
        (["--checkpoint", "a\x1b[31mb\x07", "x.wav"], ["a\\x1b[31mb\\x07: does"]),
        (["missing/x.wav"], ["missing/x.wav", "does not exist"]),
        (["checkpoints"], ["is a folder"]),
        (["primer.wav"], ["primer.wav", "exists", "--force"]),
        (["x.mp3"], ["x.mp3", "x.wav"]),
    ],
)
def test_refusals_are_one_line(home, arguments, fragments):
    assert_one_line_error(run("generate", *arguments, cwd=home), *fragments)
    assert not (home / "x.wav").exists() and not temporaries(home)


def test_a_low_limit_of_open_files_is_raised(home):
    def limits(soft, hard):
        return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    arguments = ["--seconds", 0.01, "--batch", 200, "--format", "raw", "many.s16"]
    assert_one_line_error(
        run("generate", *arguments, cwd=home, preexec_fn=limits(100, 100)), "--batch 200", "limit is 100"
    )
    assert run("generate", *arguments, cwd=home, preexec_fn=limits(100, 1000)).returncode == 0
    assert len(list(home.glob("many-*.s16"))) == 200


def test_a_folder_of_takes(home):
    settings = ["--seconds", 0.05, "--seed", 4, "--batch", 3]
    assert run("generate", *settings, "--out-dir", "new/takes", cwd=home).returncode == 0
    assert run("generate", *settings, "in-a-folder.wav", cwd=home).returncode == 0
    found = sorted((home / "new" / "takes").iterdir())
    assert [path.name for path in found] == ["0000.wav", "0001.wav", "0002.wav"]
    expected = [(home / f"in-a-folder-{number}.wav").read_bytes() for number in range(3)]
    assert [path.read_bytes() for path in found] == expected
    assert_one_line_error(run("generate", "--out-dir", "new/takes", cwd=home), "0000.wav: exists", "--force")
    # Of several processes each would draw a seed of its own.
    several = {"WORLD_SIZE": "2", "RANK": "1"}
    result = run("generate", "--out-dir", "new/takes", "--batch", 2, cwd=home, env=several)
    assert_one_line_error(result, "process 1: ", "add --seed N")


def test_usage_errors_exit_with_2(home):
    result = run("generate", "x.wav", "a\x1b[31mb", cwd=home)
    assert result.returncode == 2 and "\x1b" not in result.stderr and "a\\x1b[31mb" in result.stderr
    for arguments in ([], ["--second", "1", "x.wav"], ["--seconds", "four", "x.wav"], ["x.wav", "y.wav"]):
        result = run("generate", *arguments, cwd=home)
        assert result.returncode == 2 and "usage:" in result.stderr


@pytest.mark.parametrize(
    ("file", "content", "fragment"),
    [
        ("config.json", b'{"format": "wavenet", "version": 7, "network": {}}', "format version 7"),
        ("config.json", b"{", "not JSON"),
        ("model.safetensors", b"\x80\x02}q\x00.", "damaged"),
        ("model.safetensors", b"", "cut short"),
    ],
)
def test_damaged_checkpoints(tmp_path, file, content, fragment):
    make_checkpoint(tmp_path / "net")
    (tmp_path / "net" / file).write_bytes(content)
    assert_one_line_error(run("generate", "--checkpoint", "net", "x.wav", cwd=tmp_path), fragment, file)


@pytest.mark.parametrize("content", [b"", b"not audio at all", b"RIFF\x00\x00\x00\x00WAVE"])
def test_primers_that_are_no_audio(home, content):
    (home / "bad.wav").write_bytes(content)
    assert_one_line_error(run("generate", "--prime", "bad.wav", "x.wav", cwd=home), "bad.wav")


def test_verbose_shows_the_traceback(home):
    result = run("generate", "-v", "--checkpoint", "nowhere", "x.wav", cwd=home)
    assert result.returncode == 1 and "Traceback" in result.stderr


def test_raw_generation_needs_no_audio_library(home):
    code = (
        "import sys\n"
        "for name in ('soundfile', 'librosa', 'soxr', 'numba'): sys.modules[name] = None\n"
        "from wavenet.cli.generate import main\n"
        "sys.exit(main(['--seconds', '0.1', '--format', 'raw', '--force', 'bare.s16']))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=home, env=environment()).returncode == 0
    assert (home / "bare.s16").stat().st_size == 2 * round(0.1 * CONFIG.sample_rate)


def test_memory_does_not_grow_with_the_length(home):
    def peak(seconds):
        process = start(home, "--seconds", seconds, "-", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = 0
        assert status == 0
        return usage.ru_maxrss

    if registry.report()["cpu"] is not None and registry.report()["numba"] is not None:
        pytest.skip("too slow without a compiled engine")
    short, long = peak(1), peak(400)
    # 400 s are 3.2 MB of audio and 13 MB of classes.
    assert long - short < 3_000


# -- the silence before a take ------------------------------------------------------------------------


def test_leading_silence_is_skipped_by_default(tmp_path):
    """A network that leaves silence once in a thousand samples, for a sound without end."""
    never = -50.0
    sound = [[never, never, never, 0.0], [0.0, never, never, never]]
    silence = [math.log(1e-3), never, 0.0, never]
    model = chain_model([sound[0], sound[1], silence, sound[1]], sample_rate=8000)
    model.save_pretrained(tmp_path / "net")
    arguments = ["--checkpoint", "net", "--seed", 4, "--batch", 3, "--seconds", 1.5]
    result = run("generate", *arguments, "plain.wav", cwd=tmp_path)
    assert result.returncode == 0 and "skipped up to " in result.stderr, result.stderr
    assert run("generate", *arguments, "--keep-silence", "kept.wav", cwd=tmp_path).returncode == 0
    for take in range(3):
        plain, kept = (read(tmp_path / f"{name}-{take}.wav")[0] for name in ("plain", "kept"))
        assert len(plain) == len(kept) == 12_000
        # The sound swings over the full scale; it is looked for in steps of 1/32 s.
        start = np.flatnonzero(np.abs(kept) > 20_000)[0] // 250 * 250
        assert np.array_equal(kept[start:], plain[: len(kept) - start])
