"""A HAG is told by itself and owns its arrays: no memory that others hold can change what it is."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hag_plugin as hp
from hag_plugin.hag.hag import find
from hag_plugin.hag.program import ARRAYS
from hag_plugin.ops.weights import edge_slots, weighted_aggregate
from hag_plugin.testing import count_programs

NODES, NEAR = 50, 4
ROW_PTR = torch.arange(0, NODES * NEAR + 1, NEAR)


def neighbours() -> Tensor:
    """The columns of a k-nearest-neighbour graph: all such graphs have the same `row_ptr`."""
    rows = [torch.randperm(NODES)[:NEAR].sort()[0] for _ in range(NODES)]
    return torch.stack(rows).flatten().int()


def every_result(x: Tensor, hag: hp.HAG) -> list[Tensor]:
    """What all operators give on a HAG, with their gradients."""
    weight = torch.linspace(-1, 1, hag.num_edges, dtype=x.dtype).requires_grad_()
    found = []
    for mode in (False, "add", "fill"):
        leaf = x.clone().requires_grad_()
        ys = [hp.aggregate(leaf, hag, "sum", self_loops=mode)]
        ys += [hp.aggregate(leaf, hag, "mean", self_loops=mode)]
        for ties in ("even", "first", "last"):
            ys += [hp.aggregate(leaf, hag, r, self_loops=mode, ties=ties) for r in ("max", "min")]
        ys += [weighted_aggregate(leaf, hag, weight, self_loops=mode)]
        total = sum((y * torch.linspace(0, 1, y.numel()).view_as(y)).sum() for y in ys)
        found += [*ys, *torch.autograd.grad(total, [leaf, weight])]
    found += [hag.degree("fill"), hag.degree_scale(-0.5), hag.edge_index.clone()]
    found += [
        hag.row_ptr,
        hag.col,
        hag.transpose().col,
        torch.tensor([n >> 1 for n in hag.content_hash]),
    ]
    found += [torch.tensor(hag.is_symmetric), edge_slots(hag.edge_index.flip(1), hag)]
    return [f.detach() for f in found]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def features() -> Tensor:
    return torch.randn(NODES, 3, dtype=torch.float64)


# Finding ----------------------------------------------------------------------------------------


def compiled(x: Tensor, hag: hp.HAG) -> Tensor:
    torch._dynamo.reset()
    return torch.compile(hp.aggregate, backend="aot_eager", fullgraph=True)(x, hag, "mean")


def eager(x: Tensor, hag: hp.HAG) -> Tensor:
    return hp.aggregate(x, hag, "mean")


@pytest.mark.mostly_slow("*-eager")
@pytest.mark.parametrize("run", [eager, compiled])
@pytest.mark.parametrize(
    "arrays",
    [
        lambda row_ptr: (row_ptr, row_ptr),
        lambda row_ptr: (row_ptr, row_ptr[:]),
        lambda row_ptr: (row_ptr, torch.from_numpy(row_ptr.numpy())),
        lambda row_ptr: (row_ptr, row_ptr.share_memory_()),
        lambda row_ptr: torch.stack([row_ptr, row_ptr]),
        lambda row_ptr: torch.stack([row_ptr, row_ptr], dim=1).unbind(1),
    ],
    ids=["one", "slice", "NumPy", "shared", "rows", "columns"],
)
def test_graphs_on_one_row_ptr(arrays: Callable[[Tensor], Any], run: Any) -> None:
    x, cols = features(), [neighbours(), neighbours()]
    row_ptrs = arrays(ROW_PTR.clone())
    hags = [hp.HAG.from_csr(r, c, NODES) for r, c in zip(row_ptrs, cols, strict=True)]
    for _ in range(2):
        for hag, col in zip(hags, cols, strict=True):
            torch.testing.assert_close(run(x, hag), x[col.long()].view(NODES, NEAR, 3).mean(1))


@pytest.mark.parametrize("run", [eager, compiled])
def test_methods_on_one_graph(run: Any) -> None:
    """ "auto" and "none" over the same arrays run each its own program."""
    x, col = features(), torch.arange(NODES).repeat(NODES).int()
    row_ptr = torch.arange(0, NODES * NODES + 1, NODES)
    hags = {m: hp.HAG.from_csr(row_ptr, col, NODES, method=m) for m in ("auto", "none")}
    for method, hag in hags.items():
        torch.testing.assert_close(run(x, hag), x.mean(0, keepdim=True).expand(NODES, 3))
        assert (hag.stats().intermediates > 0) == (method == "auto")
        assert find(*hag.arrays) is hag


def test_addresses_that_come_back() -> None:
    """Graphs that are freed, and their memory taken by the next."""
    x = features()
    for _ in range(30):
        col = neighbours()
        hag = hp.HAG.from_csr(ROW_PTR.clone(), col, NODES)
        leaf = x.clone().requires_grad_()
        y = hp.aggregate(leaf, hag)
        del hag
        others = [hp.HAG.from_csr(ROW_PTR.clone(), neighbours(), NODES) for _ in range(3)]
        y.sum().backward()
        assert leaf.grad is not None
        assert torch.equal(leaf.grad[:, 0], torch.bincount(col, minlength=NODES).double())
        del others


def test_a_token_of_another_graph() -> None:
    """The arrays say what the graph is: never silently another's sums."""
    x, cols = features(), [neighbours(), neighbours()]
    hags = [hp.HAG.from_csr(ROW_PTR, c, NODES) for c in cols]
    for hag in hags:
        expected = hp.aggregate(x, hag)
        for token in (None, *(h.arrays.token for h in hags), torch.tensor(7)):
            y = torch.ops.hag_plugin.aggregate(
                x, hag.row_ptr, hag.col, None, None, NODES, "", False, "sum", token
            )
            torch.testing.assert_close(y, expected)
    row_ptr, col, token = hags[0].arrays
    assert find(row_ptr.clone(), col.clone(), token.clone()) is hags[0]
    assert find(row_ptr[:-1], col, token) is None
    assert find(row_ptr.int(), col, token) is None


def test_clones_in_compiled_code_are_found() -> None:
    def cloned(module: Any, inputs: Any) -> Any:
        return lambda *args: module.forward(*(a.clone() for a in args))

    hag, x = hp.HAG.from_csr(ROW_PTR, neighbours(), NODES), features()
    expected = hp.aggregate(x, hag)
    torch._dynamo.reset()
    with count_programs() as ran:
        y = torch.compile(hp.aggregate, backend=cloned, fullgraph=True)(x, hag)
    torch.testing.assert_close(y, expected)
    assert [run.program for run in ran.programs] == [hag.program()]


class Layer(torch.nn.Module):
    """Holds its graph."""

    def __init__(self, hag: hp.HAG) -> None:
        super().__init__()
        self.hag = hag

    def forward(self, x: Tensor) -> Tensor:
        return hp.aggregate(x, self.hag, "mean", self_loops="add").relu()


def _run_program(path: str, results: str) -> None:
    x, expected = torch.load(results)
    found = torch.export.load(path).module()(x)
    torch.testing.assert_close(found, expected)


def test_exported_programs_run_here_and_elsewhere(tmp_path: Path) -> None:
    x, layer = features(), Layer(hp.HAG.from_csr(ROW_PTR, neighbours(), NODES))
    path, results = str(tmp_path / "layer.pt2"), str(tmp_path / "results.pt")
    torch.export.save(torch.export.export(layer, (x,)), path)
    torch.save((x, layer(x)), results)
    _run_program(path, results)
    elsewhere = multiprocessing.get_context("spawn").Process(
        target=_run_program, args=(path, results)
    )
    elsewhere.start()
    elsewhere.join()
    assert elsewhere.exitcode == 0


# Memory -----------------------------------------------------------------------------------------

WRITES: dict[str, Callable[[Tensor], Any]] = {
    "fill_": lambda t: t.fill_(10**6),
    "numpy": lambda t: t.numpy().fill(-(10**6)),
    "data": lambda t: t.data.add_(10**6),
    "storage": lambda t: t.untyped_storage().fill_(0x7F),
    "other graph": lambda t: t.copy_(t.flip(0)),
    "resize_": lambda t: t.resize_(0),
}
SOURCES: dict[str, Callable[[hp.HAG], hp.HAG]] = {
    "from_csr": lambda hag: hag,
    "build_hag": lambda hag: hp.build_hag(hag.edge_index.clone(), num_nodes=NODES),
    "HAG": lambda hag: hp.HAG(hag.row_ptr, hag.col, NODES),
    "pickle": lambda hag: pickle.loads(pickle.dumps(hag)),
    "batch": lambda hag: hp.batch([hag]),
    "transpose": lambda hag: hag.transpose().transpose(),
    "flip": lambda hag: hag.flip(0),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("write", WRITES)
def test_writing_to_what_a_hag_hands_out(write: str, source: str) -> None:
    """Before anything is built, and after all is."""
    hag = SOURCES[source](hp.HAG.from_csr(ROW_PTR, neighbours(), NODES))
    edges, x = hag.edge_index.clone(), features()
    expected = every_result(x, hp.build_hag(edges, num_nodes=NODES))
    for _ in range(2):
        program = hag.program()
        handed_out = [hag.row_ptr, hag.col, hag.degree(), hag.degree_scale(-0.5)]
        for array in (*handed_out, *(getattr(program, name) for name in ARRAYS)):
            if array.dtype.is_floating_point or write != "resize_":
                WRITES[write](array)
        assert_same(every_result(x, hag), expected)
    hag.check(edges)


def test_writing_to_the_edge_index() -> None:
    hag, x = hp.HAG.from_csr(ROW_PTR, neighbours(), NODES), features()
    edges = hag.edge_index.clone()
    expected = every_result(x, hp.build_hag(edges, num_nodes=NODES))
    hag.edge_index.fill_(10**6)
    assert torch.equal(hag.edge_index, edges)
    assert_same(every_result(x, hag), expected)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("make", [hp.HAG.from_csr, hp.HAG])
def test_writing_to_what_a_hag_was_made_of(make: Any, write: str) -> None:
    row_ptr, col = ROW_PTR.clone(), neighbours()
    hag, x = make(row_ptr, col, NODES), features()
    expected = every_result(x, make(row_ptr.clone(), col.clone(), NODES))
    WRITES[write](row_ptr), WRITES[write](col)
    assert_same(every_result(x, hag), expected)


def test_refilling_one_buffer() -> None:
    """As a loader does that reads every graph into the same memory."""
    x, buffer = features(), np.zeros(NODES * NEAR, np.int32)
    hags, cols = [], []
    for _ in range(4):
        cols.append(neighbours())
        buffer[...] = cols[-1]
        hags.append(hp.HAG.from_csr(ROW_PTR, torch.from_numpy(buffer), NODES))
    for hag, col in zip(hags, cols, strict=True):
        for y in (hp.aggregate(x, hag), weighted_aggregate(x, hag, torch.ones(NODES * NEAR))):
            torch.testing.assert_close(y, x[col.long()].view(NODES, NEAR, 3).sum(1))


def _overwrite(queue: Any, done: Any) -> None:
    hag = queue.get()
    hag.program()
    for array in (hag.row_ptr, hag.col, *hag.arrays[:2]):
        array.fill_(10**6)
    done.put(hag.num_edges)


def test_another_process_has_memory_of_its_own() -> None:
    hag, x = hp.HAG.from_csr(ROW_PTR, neighbours(), NODES), features()
    expected = every_result(x, hag)
    context = torch.multiprocessing.get_context("fork")
    queue, done = context.Queue(), context.Queue()
    process = context.Process(target=_overwrite, args=(queue, done))
    process.start()
    queue.put(hag)
    assert done.get(timeout=60) == NODES * NEAR
    process.join()
    assert_same(every_result(x, hag), expected)


# Refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [hp.HAG.from_csr, hp.HAG])
def test_refuses(make: Any) -> None:
    row_ptr, col = ROW_PTR.clone(), neighbours()
    beyond, falls = row_ptr.clone(), row_ptr.clone()
    beyond[-1] += 1
    falls[3] = falls[5]
    wide = col.clone()
    wide[NEAR - 1] = NODES
    cases: list[tuple[type[Exception], str, Any, Any]] = [
        (TypeError, "col is torch.int64", row_ptr, col.long()),
        (TypeError, "row_ptr is torch.int32", row_ptr.int(), col),
        (TypeError, "col is a ndarray", row_ptr, col.numpy()),
        (TypeError, "torch.sparse_coo", row_ptr, col.to_sparse()),
        (ValueError, r"col has shape \[2, 100\]", row_ptr, col.view(2, -1)),
        (ValueError, r"row_ptr has shape \[\]", row_ptr[0], col),
        (ValueError, "row_ptr is on cpu and col on meta", row_ptr, col.to("meta")),
        (ValueError, "row_ptr", beyond, col),
        (ValueError, "row", falls, col),
        (ValueError, "col", row_ptr, wide),
        (ValueError, "increasing", row_ptr, col.flip(0)),
        (ValueError, "row_ptr", row_ptr[:0], col),
    ]
    for error, message, *arrays in cases:
        with pytest.raises(error, match=message):
            make(*arrays, NODES)


def test_arrays_with_strides() -> None:
    x, col = features(), neighbours()
    spread = torch.stack([col, col.flip(0)], dim=1)
    hag = hp.HAG.from_csr(ROW_PTR.repeat_interleave(2)[::2], spread[:, 0], NODES)
    torch.testing.assert_close(hp.aggregate(x, hag), x[col.long()].view(NODES, NEAR, 3).sum(1))


# Programs that take something off ---------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@pytest.mark.parametrize("mode", [False, "add", "fill"])
def test_subtraction_where_targets_are_the_first_sources(mode: Any, reduce: Any) -> None:
    edges = torch.cartesian_prod(torch.arange(9), torch.arange(6)).t()
    edges = edges[:, torch.rand(edges.shape[1]) > 0.2]
    options = {"size": (9, 6), "targets_first": True}
    results = []
    for subtract in (True, False):
        hag = hp.build_hag(edges, allow_subtraction=subtract, **options)
        x = torch.linspace(-1, 1, 27, dtype=torch.float64).view(9, 3).requires_grad_()
        y = hp.aggregate(x, hag, reduce, self_loops=mode)
        (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        grad.square().sum().backward()
        results.append([y.detach(), grad.detach(), x.grad])
        hag.check(edges, mode)
        hag.transpose().check(edges.flip(0), mode)
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)


# What is there once -----------------------------------------------------------------------------


@pytest.mark.parametrize("hub", [False, True], ids=["short rows", "a hub"])
@pytest.mark.parametrize("mode", [False, "add", "fill"])
def test_a_plain_program_shares_its_sources_with_the_graph(mode: Any, hub: bool) -> None:
    """Where they are the same in the same order; elsewhere, as every program, it has its own."""
    nodes = 600  # smaller graphs are kept in sets
    edges = torch.randint(nodes, (2, 3000))
    if hub:  # summed in parts, which stand behind the others
        edges = torch.cat([edges, torch.tensor([[1], [0]]).expand(2, 5000)], dim=1)
    hag = hp.build_hag(edges, num_nodes=nodes, method="none")
    for each, its_edges in ((hag, edges), (hag.transpose(), edges.flip(0))):
        own = each.program(mode).arrays[ARRAYS.index("source")]
        of_hub = hub and each.degree().max() > 4096
        assert (own.data_ptr() == each.arrays.col.data_ptr()) == (mode is False and not of_hub)
        each.check(its_edges, mode)
        given = each.program(mode).source  # a copy, as ever
        given.zero_()
        each.check(its_edges, mode)
