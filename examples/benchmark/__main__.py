"""Entry: `python examples/benchmark`, or `python -m examples.benchmark` from the root."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__:
    from .command import main
else:  # started by folder: Python knows no package, so its parent goes where the folder stood
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from benchmark.command import main

if __name__ == "__main__":
    sys.exit(main())
