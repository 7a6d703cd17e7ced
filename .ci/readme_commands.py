"""Print the commands of a README's first fenced sh block, one per line."""

import re
import sys
from pathlib import Path

block = re.search(r"^```sh\n(.*?)^```", Path(sys.argv[1]).read_text(encoding="utf-8"), re.M | re.S)
if block is None:
    sys.exit(f"{sys.argv[1]}: no fenced sh block")
for line in block[1].replace("\\\n", " ").splitlines():
    if line.strip() and not line.startswith("#"):
        print(" ".join(line.split()))
