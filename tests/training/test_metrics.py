"""Records of a run: whole lines, whatever the disk and a kill do."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.commands import environment

from wavenet.training.metrics import Metrics, read


def test_lines_come_back_in_order(tmp_path):
    metrics = Metrics(tmp_path, pytest.fail)
    records = [{"step": 1, "lr": 0.5}, {"step": 2, "name": "ß"}]
    for record in records:
        metrics.add(record)
    metrics.sync()
    assert read(tmp_path / "metrics.jsonl") == records
    assert metrics.contains(2, "name") and not metrics.contains(1, "name") and not metrics.contains(3, "lr")


def test_partial_lines_and_later_steps_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 5}\n{"ste\n[1]\n{"lr": 1}\n{"step": 3, "x": 1}\n{"step": 2')
    Metrics(tmp_path, pytest.fail).trim(3)
    assert path.read_text() == '{"step": 1}\n{"step": 3, "x": 1}\n'
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_failed_write_leaves_no_partial_line(tmp_path):
    """In a process whose files may not grow beyond 100 bytes, as a full disk stops them."""
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from wavenet.training.metrics import Metrics\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "metrics = Metrics(Path('.'), print)\n"
        "for step in range(9): metrics.add({'step': step, 'text': 'x' * 20})\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "warning: metrics.jsonl: " in result.stdout
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1]


def test_unwritable_metrics_are_reported(tmp_path):
    told = []
    metrics = Metrics(tmp_path / "missing", told.append)
    metrics.add({"step": 1})
    metrics.write_beside("effective.json", {})
    metrics.trim(1)
    assert len(told) == 2 and all("no such file" in each for each in told)
