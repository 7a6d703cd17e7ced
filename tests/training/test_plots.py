"""The curves of a run: what is drawn, and what is said where nothing can be."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from support.commands import assert_one_line_error, environment, run

from wavenet.errors import AudioError, ConfigError
from wavenet.evaluation.plots import draw_scores
from wavenet.generation.plots import draw_take, envelope
from wavenet.training.plots import draw_curves, series


def write(folder, records):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    return folder


@pytest.fixture
def account(tmp_path):
    """A run of 100 steps."""
    records = []
    for step in range(10, 101, 10):
        records.append(
            {"step": step, "train_bits": 8 - step / 20, "gradient_norm": 1 / step, "lr": step * 1e-5,
             "samples_per_second": 1000 + step, "skipped": 0}
        )  # fmt: skip
    records[3]["train_bits"] = records[3]["gradient_norm"] = None
    for step in (50, 100):
        records.append(
            {"step": step, "validation_bits": 6 - step / 50, "unigram_bits": 5.5, "uniform_bits": 8.0}
        )
    records.append({"step": 100, "final_validation_bits": 4.1})
    return write(tmp_path / "run", records)


def test_series_skip_missing_values(account):
    records = [json.loads(line) for line in (account / "metrics.jsonl").read_text().splitlines()]
    assert series(records, "train_bits")[0] == [10, 20, 30, 50, 60, 70, 80, 90, 100]
    assert series(records, "validation_bits") == ([50, 100], [5.0, 4.0])


def test_curves_show_everything(account, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    plain = figure.Figure.savefig
    monkeypatch.setattr(figure.Figure, "savefig", lambda f, *a, **k: (drawn.append(f), plain(f, *a, **k))[1])
    assert draw_curves(account) == account / "curves.png"
    assert (account / "curves.png").read_bytes().startswith(b"\x89PNG")
    bits, rate, norm, speed = drawn[0].axes
    lines = {line.get_label(): line for line in bits.get_lines()}
    assert list(lines) == ["training", "validation", "final", "unigram", "uniform"]
    assert list(lines["validation"].get_ydata()) == [5.0, 4.0]
    assert set(lines["unigram"].get_ydata()) == {5.5} and set(lines["uniform"].get_ydata()) == {8.0}
    assert list(rate.get_lines()[0].get_ydata()) == pytest.approx([s * 1e-5 for s in range(10, 101, 10)])
    assert norm.get_yscale() == "log" and len(norm.get_lines()[0].get_ydata()) == 9
    assert list(speed.get_lines()[0].get_xdata()) == list(range(10, 101, 10))


def test_plots_without_validation_or_with_torn_lines(tmp_path):
    pytest.importorskip("matplotlib")
    folder = write(tmp_path / "run", [{"step": 10, "train_bits": 5.0, "lr": 0.1}])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "train_b')
    assert draw_curves(folder).stat().st_size > 0


@pytest.mark.parametrize(("name", "head"), [("a.svg", b"<?xml"), ("b.PDF", b"%PDF")])
def test_other_formats_by_their_names(account, tmp_path, name, head):
    pytest.importorskip("matplotlib")
    assert draw_curves(account, tmp_path / name) == tmp_path / name
    assert (tmp_path / name).read_bytes().startswith(head) and not (account / "curves.png").exists()


def test_what_cannot_be_drawn_is_one_line(account, tmp_path):
    with pytest.raises(ConfigError, match=r"none.metrics.jsonl: cannot be read \(no such file"):
        draw_curves(tmp_path / "none")
    with pytest.raises(ConfigError, match="contains nothing to draw yet"):
        draw_curves(write(tmp_path / "new", [{"step": 4}]))
    pytest.importorskip("matplotlib")
    with pytest.raises(ConfigError, match=r"x.txt: must end in .png"):
        draw_curves(account, tmp_path / "x.txt")


def test_the_command_draws_and_needs_no_torch(account, tmp_path):
    pytest.importorskip("matplotlib")
    code = (
        "import sys\n"
        "from wavenet.cli.train import main\n"
        "code = main(sys.argv[1:])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)"
    )
    arguments = [sys.executable, "-c", code, "--plot", "run", "--plot-to", "here.png"]
    result = subprocess.run(arguments, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == "wrote here.png\n", result.stderr
    assert (tmp_path / "here.png").exists()


def test_without_matplotlib_the_extra_is_named(account, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"matplotlib is not installed: pip install 'wavenet\[plot\]'"):
        draw_curves(account)


def test_refusals_of_the_command(tmp_path):
    assert_one_line_error(
        run("train", "--plot", "none", cwd=tmp_path), "none/metrics.jsonl", "name a training run"
    )
    assert_one_line_error(run("train", "--plot-to", "x.png", cwd=tmp_path), "--plot-to x.png", "--plot RUN")


def test_an_envelope_holds_every_sample():
    random = np.random.default_rng(0)
    for count in (1, 5, 1600, 1601, 50_000):
        values = random.normal(size=count)
        low, high, mean = envelope(values)
        assert len(low) == len(high) == len(mean) == min(count, 1600)
        assert low.min() == values.min() and high.max() == values.max() and (low <= mean).all()
        sizes = np.diff(np.linspace(0, count, len(mean) + 1).astype(int))
        assert (mean * sizes).sum() == pytest.approx(values.sum(), abs=1e-6)
    assert [part.tolist() for part in envelope(np.zeros(0))] == [[0], [0], [0]]


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
@pytest.mark.parametrize("seconds", [0.001, 0.05, 3])
def test_a_take_of_any_length_is_drawn(tmp_path, kind, seconds):
    pytest.importorskip("matplotlib")
    count = round(seconds * 8000)
    random = np.random.default_rng(0)
    path = tmp_path / f"take.{kind}"
    draw_take(path, random.normal(size=count) / 10, 8000, random.uniform(0, 8, count), 256)
    heads = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    assert path.read_bytes().startswith(heads[kind])


def test_scores_are_drawn_beside_the_baselines(tmp_path):
    pytest.importorskip("matplotlib")
    scores = [("uniform", 8.0, None), ("unigram", 7.4, None), ("cpu fp32", 3.91, (3.5, 4.3))]
    draw_scores(tmp_path / "bars.svg", scores)
    text = (tmp_path / "bars.svg").read_text()
    assert all(f"<!-- {label} -->" in text for label in ("uniform", "cpu fp32", "3.910", "7.400"))
    with pytest.raises(ConfigError, match=r"bars\.txt: must end in \.png"):
        draw_scores(tmp_path / "bars.txt", scores)
    with pytest.raises(AudioError, match="folder does not exist"):
        draw_scores(tmp_path / "nowhere" / "bars.png", scores)
