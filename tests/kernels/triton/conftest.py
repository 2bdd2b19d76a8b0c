"""Where the GPU kernels run: in Triton's interpreter, on a card, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from hag_plugin.testing import limits

pytest.importorskip("triton", reason="Triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# tests/kernels/triton/kernels runs where kernels can: test_interpreter.py starts it in a process
# of its own, whose Triton interprets, and a machine with a card runs it once more on the card.
collect_ignore = [] if INTERPRETED or torch.cuda.is_available() else ["kernels"]


@pytest.fixture
def kernel_device() -> Iterator[str]:
    """The device of tensors that the kernels take: "cpu" under the interpreter, else "cuda"."""
    if INTERPRETED:
        with limits(kernels_anywhere=True):
            yield "cpu"
    else:
        yield "cuda"
