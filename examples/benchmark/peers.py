"""The peers: which are installed, and what a run says where one is missing."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import warnings
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Peer:
    """A package to compare with.

    Attributes:
        module: what to import.
        title: as tables call it.
        expected: the version that the goals are about; "" where they are not.
    """

    module: str
    title: str
    expected: str


PEERS = {
    "dgl": Peer("dgl", "DGL", "1.1.3"),
    "torch_scatter": Peer("torch_scatter", "torch_scatter", "2.1.2"),
    "torch_geometric": Peer("torch_geometric", "PyG", "2.8.1"),
    # Not on PyPI: its wheels are for torch and Python versions of its own.
    "pyg_lib": Peer("pyg_lib", "pyg-lib", ""),
}
_why: dict[str, str] = {}  # by peer that cannot be imported


class PeersMissing(RuntimeError):
    """`--require-peers` was given and a peer cannot be used."""


def load(name: str) -> Any:
    """The module of a peer, or None where it cannot be imported."""
    os.environ.setdefault("DGLBACKEND", "pytorch")
    try:
        # DGL writes to stdout and warns about its own use of torch.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(PEERS[name].module)
    except (ImportError, OSError, AttributeError) as e:
        _why[name] = f"{type(e).__name__}: {e}"
        return None


def why_missing(name: str) -> str:
    """Why a peer cannot be used, in the words of its import."""
    load(name)
    return f"{PEERS[name].module} cannot be imported ({_why.get(name, '')})"


def missing() -> list[str]:
    """A line for each peer that cannot be used, with what was expected."""
    return [
        f"{peer.title} {peer.expected}: {why_missing(name)}"
        for name, peer in PEERS.items()
        if load(name) is None
    ]


def other_versions() -> list[str]:
    """A line for each peer that is there in another version than expected."""
    lines = []
    for name, peer in PEERS.items():
        found = getattr(load(name), "__version__", peer.expected).partition("+")[0]
        if peer.expected and found != peer.expected:
            lines.append(f"{peer.title} is {found}; the goals are about {peer.expected}")
    return lines


def require() -> None:
    """Raises where a peer that the goals are about is missing.

    Raises:
        PeersMissing: names all of them.
    """
    lines = [f"{p.title} {p.expected}: {why_missing(name)}" for name, p in PEERS.items()
             if p.expected and load(name) is None]  # fmt: skip
    if lines:
        raise PeersMissing(
            "--require-peers: " + "; ".join(lines) + " (examples/benchmark/README.md says how)"
        )
