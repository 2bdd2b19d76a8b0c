"""What is imported at the start: nothing that is heavy, or that a user need not have."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    *("torch._dynamo", "torch._inductor", "torch.distributed.nn", "triton"),
    *("torch_geometric", "dgl", "matplotlib", "scipy", "pyarrow", "sklearn", "networkx"),
)
STARTS = {
    "the package": "import hag_plugin",
    "a help text": "from hag_plugin.cli import main; main(['stats', '--help'])",
}


@pytest.mark.parametrize("start", STARTS)
def test_nothing_heavy_is_imported(start: str) -> None:
    code = f"{STARTS[start]}; import sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
