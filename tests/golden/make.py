"""Write the golden network and its expected values, which support/naive.py computes in float64."""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from support import naive  # noqa: E402
from support.engines import model_of  # noqa: E402

SHAPE = naive.Shape(
    classes=16, residual=6, dilation=7, skip=9, head=8, kernel_size=2, stacks=2, layers_per_stack=4
)


def main() -> None:
    rng = np.random.default_rng(2016)
    weights = naive.random_weights(SHAPE, rng)
    model_of(SHAPE, weights).save_pretrained(HERE / "network")
    for path in (HERE / "network").iterdir():
        path.replace(HERE / path.name)
    (HERE / "network").rmdir()
    inputs = rng.integers(0, 16, 50).tolist()
    samples = [8] * (SHAPE.context + 1) + inputs
    last = naive.logits(SHAPE, weights, np.array(samples[:-1]))[-1]
    words = np.random.Philox(key=np.array([123, 4], dtype=np.uint64)).random_raw(50 + 60)[50:]
    for word in words:
        row = naive.logits(SHAPE, weights, np.array(samples[-SHAPE.context - 1 :]))[-1]
        samples.append(naive.draw(row, (int(word) >> 40) / 2**24, 0.9, 12, 0.97))
    expected = {"inputs": inputs, "last_logits": last.tolist(), "samples": samples[-60:]}
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


main()
