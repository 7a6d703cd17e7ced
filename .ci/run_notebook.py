"""Run the code cells of a notebook in order, without a kernel, and store their outputs in it.

Usage: run_notebook.py NOTEBOOK [OLD=>NEW ...], with replacements in the code, for example to shorten a run.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import sys
import types
from pathlib import Path
from typing import Any


class Audio:
    """A replacement of IPython.display.Audio."""

    def __init__(self, data: Any, rate: int):
        import numpy as np
        import soundfile

        file = io.BytesIO()
        soundfile.write(file, np.asarray(data), rate, format="WAV", subtype="PCM_16")
        sound = base64.b64encode(file.getvalue()).decode()
        self.html = f'<audio controls src="data:audio/wav;base64,{sound}"></audio>'


class Outputs:
    """The outputs of a cell in the notebook format."""

    def __init__(self) -> None:
        self.shown: list[dict[str, Any]] = []

    def display(self, value: Any) -> None:
        self._add({"text/html": [value.html]} if isinstance(value, Audio) else {"text/plain": [repr(value)]})

    def figure(self) -> None:
        import matplotlib.pyplot as plt

        file = io.BytesIO()
        plt.savefig(file, format="png", dpi=54, bbox_inches="tight")
        plt.close("all")
        self._add({"image/png": base64.b64encode(file.getvalue()).decode() + "\n"})

    def text(self, text: str) -> None:
        if text:
            lines = text.splitlines(keepends=True)
            self.shown.append({"output_type": "stream", "name": "stdout", "text": lines})

    def _add(self, data: dict[str, Any]) -> None:
        self.shown.append({"output_type": "display_data", "metadata": {}, "data": data})


def run(notebook: dict[str, Any], replacements: dict[str, str]) -> None:
    """Run all code cells in one namespace and store the outputs of each."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    outputs = Outputs()
    plt.show = lambda *_, **__: outputs.figure()
    ipython, shown = (types.ModuleType(name) for name in ("IPython", "IPython.display"))
    # matplotlib uses these attributes.
    ipython.__dict__.update(get_ipython=lambda: None, version_info=(9, 0))
    shown.__dict__.update(Audio=Audio, display=outputs.display)
    sys.modules.update({"IPython": ipython, "IPython.display": shown})
    scope: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        code = "".join(cell["source"])
        for old, new in replacements.items():
            code = code.replace(old, new)
        printed = io.StringIO()
        outputs.shown = []
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            exec(compile(code, f"cell {number}", "exec"), scope)
        outputs.text(printed.getvalue())
        cell.update(outputs=outputs.shown, execution_count=number)


def main(arguments: list[str]) -> None:
    path = Path(arguments[0])
    notebook = json.loads(path.read_text(encoding="utf-8"))
    run(notebook, dict(text.split("=>", 1) for text in arguments[1:]))
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
