"""What gives the same bits, as `docs/determinism.md` has it.

    python -m tests.determinism          # the table of that page
    python -m tests.determinism FILE     # the results of this process, for the tests

Inputs are integers and fractions of numpy's generator: no operator of torch's, whose own bits may
depend on threads, comes in.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import hag_plugin as hp
from hag_plugin.hag.build import build_hags
from hag_plugin.kernels import _cpu
from hag_plugin.ops.attention import attend
from hag_plugin.ops.weights import weighted_aggregate

ROOT = Path(__file__).parents[1]
THREADS = (1, 2, 3, 8)
NODES = 3000
# What decides which program runs: the model, with the constants that come with the package.
ENVIRONMENT = {"HAG_PLUGIN_CHOOSE": "model", "HAG_PLUGIN_COSTS": "", "PYTHONHASHSEED": "0"}
SAME = "the same bits"


class Inputs:
    """A graph with much to share, a long row and enough edges for several threads."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        groups = self.rng.integers(0, NODES, (60, 30))
        pairs = np.stack([np.repeat(groups, 30, 1).ravel(), np.tile(groups, (1, 30)).ravel()])
        others = self.rng.integers(0, NODES, (2, 60_000))
        hub = np.stack([self.rng.integers(0, NODES, 6000), np.full(6000, 7)])
        self.edges = torch.from_numpy(np.concatenate([pairs, others, hub], axis=1))
        self.x, self.grad = self.numbers(NODES, 48), self.numbers(NODES, 48)

    def numbers(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.rng.standard_normal(shape).astype(np.float32))

    def hag(self, method: str = "auto") -> hp.HAG:
        return hp.build_hag(self.edges, num_nodes=NODES, method=method)  # type: ignore[arg-type]


def _graph(given: Inputs) -> Iterable[Tensor]:
    hag = hp.build_hag(given.edges, num_nodes=NODES, method="none")
    reverse = hag.transpose()
    return hag.row_ptr, hag.col, reverse.row_ptr, reverse.col


def _search(given: Inputs) -> Iterable[Tensor]:
    hag = given.hag()
    return *hag.program().arrays, *hag.program("fill").arrays, *hag.transpose().program().arrays


def _greedy(given: Inputs) -> Iterable[Tensor]:
    few = given.edges[:, ::10]
    return hp.build_hag(few, num_nodes=NODES, method="greedy").program().arrays


def _batch(given: Inputs) -> Iterable[Tensor]:
    parts = [part.contiguous() % 40 for part in given.edges.split(400, 1)]
    return hp.batch(build_hags(parts, [40] * len(parts))).program().arrays


def _file(given: Inputs) -> Iterable[Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        given.hag().save(Path(folder) / "hag.npz")
        with np.load(Path(folder) / "hag.npz") as file:
            yield from (torch.from_numpy(file[name]) for name in file.files if name != "header")


def _sequence(given: Inputs) -> Iterable[Tensor]:
    tree = hp.sequence.build_sequence(given.edges, num_nodes=NODES)
    return tree.level_ptr, tree.parent, tree.source, tree.edge, tree.end


def _plan(given: Inputs) -> Iterable[Tensor]:
    from torch_geometric.data import Data
    from torch_geometric.nn import GCN

    data = Data(x=given.x, edge_index=given.edges)
    torch.manual_seed(0)
    found = hp.parallel.plan(GCN(48, 64, 2, 8), data, "pcie4x4")
    yield torch.frombuffer(bytearray(json.dumps(found.as_dict()).encode()), dtype=torch.uint8)


def _sums(reduce: str) -> Callable[[Inputs], Iterable[Tensor]]:
    def call(given: Inputs) -> Iterable[Tensor]:
        x = given.x.clone().requires_grad_()
        y = hp.aggregate(x, given.hag(), reduce)  # type: ignore[arg-type]
        return y.detach(), *torch.autograd.grad(y, x, given.grad)

    return call


def _weighted(given: Inputs) -> Iterable[Tensor]:
    hag = given.hag("none")
    x, weight = given.x.clone().requires_grad_(), given.numbers(hag.num_edges).requires_grad_()
    y = weighted_aggregate(x, hag, weight)
    return y.detach(), *torch.autograd.grad(y, (x, weight), given.grad)


def _attention(given: Inputs) -> Iterable[Tensor]:
    hag = given.hag("none")
    names = "value", "key", "query", "weight"
    some = [given.numbers(*shape).requires_grad_() for shape in ((NODES, 4, 12),) * 3 + ((4, 12),)]
    y = attend(hag, **dict(zip(names, some, strict=True)), score="vector", slope=0.2)
    return y.detach(), *torch.autograd.grad(y, some, given.grad.view_as(y))


ROWS: dict[str, Callable[[Inputs], Iterable[Tensor]]] = {
    "a graph's arrays and their reverse": _graph,
    "searches": _search,
    'searches with `method="greedy"`': _greedy,
    "searches of many small graphs, and their batch": _batch,
    "files, but for the seconds of the search in their headers": _file,
    "prefix trees of LSTMs": _sequence,
    "plans for several devices": _plan,
    "sums and their gradients": _sums("sum"),
    "means and their gradients": _sums("mean"),
    "max, and who gets its gradient": _sums("max"),
    "sums with edge weights and their gradients": _weighted,
    "attention and its gradients": _attention,
}


def results(threads: int) -> dict[str, list[np.ndarray]]:
    """The arrays of every row."""
    torch.set_num_threads(threads)
    return {name: [t.numpy() for t in call(Inputs())] for name, call in ROWS.items()}


def digest(arrays: Iterable[np.ndarray]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype} {array.shape} ".encode() + array.tobytes())
    return found.hexdigest()


def write(path: Path) -> None:
    """Digests of each row by threads, and the arrays on one thread."""
    every = {threads: results(threads) for threads in THREADS}
    named = {f"{name}/{i}": a for name, rows in every[1].items() for i, a in enumerate(rows)}
    digests = {name: {n: digest(rows[name]) for n, rows in every.items()} for name in ROWS}
    np.savez(path, digests=json.dumps(digests), **named)


class Process:
    """The results of a process of its own."""

    def __init__(self, **environment: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "results.npz"
            subprocess.run(
                [sys.executable, "-m", "tests.determinism", str(path)], cwd=ROOT, check=True,
                env={**os.environ, **ENVIRONMENT, **environment},
            )  # fmt: skip
            with np.load(path) as file:
                self.digests: dict[str, dict[str, str]] = json.loads(str(file["digests"]))
                self.arrays = {name: file[name] for name in file.files if name != "digests"}

    def of(self, row: str) -> list[np.ndarray]:
        return [array for name, array in self.arrays.items() if name.rpartition("/")[0] == row]


def apart(one: Process, other: Process, row: str) -> float | None:
    """The largest difference, in the largest number of its array; None where arrays are no sums."""
    pairs = list(zip(one.of(row), other.of(row), strict=True))
    if all(a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs):
        return 0.0
    if any(a.shape != b.shape or a.dtype.kind != "f" for a, b in pairs):
        return None
    wide = [(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs]
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in wide)


def by_instruction_set() -> dict[str, Process]:
    return {isa: Process(HAG_PLUGIN_ISA=isa) for isa in _cpu.instruction_sets()}


def table(processes: dict[str, Process]) -> Iterator[str]:
    """The table of the page, from what was found."""
    *others, last = processes
    heads = ["1, 2, 3 and 8 threads, processes", *(f"{other} and {last}" for other in others)]
    yield f"| | {' | '.join(heads)} |"
    yield "|---" * (2 + len(others)) + "|"
    for row in ROWS:
        found = [apart(processes[last], processes[other], row) for other in others]
        told = ["others" if f is None else f"{f:.0e} apart" if f else SAME for f in found]
        yield f"| {row} | {SAME} | {' | '.join(told)} |"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write(Path(sys.argv[1]))
    else:
        print("\n".join(table(by_instruction_set())))
