"""Lines on standard error."""

import io

from wavenet.utils.console import Console


def test_console_escapes_controls_and_needs_no_stream(monkeypatch):
    stream = io.StringIO()
    console = Console(stream)
    console.line("a\x1b[31m\r\udce9\ud800 \u00e9\nb\t\u202e")
    assert stream.getvalue() == "a\\x1b[31m\\r\\xe9\\ud800 \u00e9\nb\\t\\u202e\n"
    monkeypatch.setattr("sys.stderr", None)
    silent = Console()
    silent.interval = silent._next = 0
    silent.line("x")
    silent.status("x")
    silent.clear()
