"""Where the GPU kernels run: in Triton's interpreter, on a card, or not at all."""

from __future__ import annotations

import os

import pytest
import torch

from hag_plugin.ops import gpu

pytest.importorskip("triton", reason="Triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# tests/kernels/triton/kernels runs where kernels can: test_interpreter.py starts it in a process
# of its own, whose Triton interprets, and a machine with a card runs it once more on the card.
collect_ignore = [] if INTERPRETED or torch.cuda.is_available() else ["kernels"]


@pytest.fixture
def kernel_device(monkeypatch: pytest.MonkeyPatch) -> str:
    """The device of tensors that the kernels take: "cpu" under the interpreter, else "cuda"."""
    if not INTERPRETED:
        return "cuda"
    monkeypatch.setattr(gpu, "is_home", lambda x: True)
    return "cpu"
