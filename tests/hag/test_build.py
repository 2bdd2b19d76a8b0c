"""`build_hag`: every program expands to its graph, and sums what the reference sums."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

import hag_plugin as hp
from hag_plugin.hag import cost
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import SELF_LOOPS, Program
from hag_plugin.kernels import _cpu

from .. import reference

METHODS = ("auto", "greedy", "none")


@st.composite
def graphs(draw: st.DrawFn, most_nodes: int = 12) -> tuple[torch.Tensor, int]:
    """Directed multigraphs with self-loops and isolated nodes, ids in any order."""
    n = draw(st.integers(1, most_nodes))
    node = st.integers(0, n - 1)
    edges = draw(st.lists(st.tuples(node, node), max_size=5 * n))
    for members in draw(st.lists(st.sets(node, min_size=1), max_size=3)):  # cliques
        edges += list(itertools.permutations(members, 2))
    if draw(st.booleans()):
        edges += [(b, a) for a, b in edges]
    return torch.tensor(edges, dtype=torch.long).reshape(-1, 2).t(), n


def assert_right(hag: HAG, edge_index: torch.Tensor) -> None:
    """Both directions, all modes: expands to the graph, and computes its sums and maxima."""
    hag.check(edge_index)
    for direction, edges in ((hag, edge_index), (hag.transpose(), edge_index.flip(0))):
        x = torch.randn(direction.num_src, 3, dtype=torch.float64)
        for mode in SELF_LOOPS if direction.is_square else (False,):
            direction.check(edges, mode)
            for reduce in ("sum", "max"):
                program = direction.program(mode, idempotent=reduce != "sum")
                got = reference.run_program(program, x, reduce)
                want = reference.aggregate(x, edges, direction.num_dst, reduce, self_loops=mode)
                torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@given(graph=graphs())
@settings(max_examples=60)
def test_hostile_graphs(method: str, graph: tuple[torch.Tensor, int]) -> None:
    edge_index, n = graph
    assert_right(hp.build_hag(edge_index, num_nodes=n, method=method), edge_index)


@given(graph=graphs())
@settings(max_examples=60)
def test_subtraction(graph: tuple[torch.Tensor, int]) -> None:
    edge_index, n = graph
    hag = hp.build_hag(edge_index, num_nodes=n, allow_subtraction=True)
    assert_right(hag, edge_index)
    program = hag.program(False)
    assert program.diagonal == (-1 if (program.target < 0).any() else 0)  # a plain one needs none
    assert hag.program("add").diagonal == hag.program(False, idempotent=True).diagonal == 0


@given(graph=graphs(), extra=st.integers(0, 4), method=st.sampled_from(METHODS))
@settings(max_examples=40)
def test_bipartite(graph: tuple[torch.Tensor, int], extra: int, method: str) -> None:
    edge_index, n = graph
    hag = hp.build_hag(edge_index, size=(n + extra, n), method=method, targets_first=True)
    assert_right(hag, edge_index)
    x = torch.randn(n + extra, 2, dtype=torch.float64)
    for mode in SELF_LOOPS:
        hag.check(edge_index, mode)
        got = reference.run_program(hag.program(mode), x)
        torch.testing.assert_close(got, reference.aggregate(x, edge_index, n, self_loops=mode))


@given(graph=graphs(), extra=st.integers(1, 40), method=st.sampled_from(METHODS))
@settings(max_examples=40)
def test_gradients_where_targets_are_the_first_sources(
    graph: tuple[torch.Tensor, int], extra: int, method: str
) -> None:
    edge_index, n = graph
    hag = hp.build_hag(edge_index, size=(n + extra, n), method=method, targets_first=True)
    for mode in SELF_LOOPS:
        for reduce in ("sum", "mean", "max"):
            x = torch.randn(n + extra, 2, dtype=torch.float64, requires_grad=True)
            grad = torch.randn(n, 2, dtype=torch.float64)
            y = hp.aggregate(x, hag, reduce, self_loops=mode)
            expected = reference.aggregate(x, edge_index, n, reduce, self_loops=mode)
            got = torch.autograd.grad(y, x, grad)
            torch.testing.assert_close(got, torch.autograd.grad(expected, x, grad))


def clique(n: int, first: int = 0) -> torch.Tensor:
    pairs = list(itertools.permutations(range(first, first + n), 2))
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).t()


@pytest.mark.parametrize("size", [1, 2, 4, 5, 6, 64, 65, 130])
def test_cliques_with_an_outside(size: int) -> None:
    outside = torch.stack([torch.arange(size), torch.full((size,), size)])
    edge_index = torch.cat([clique(size), outside, outside.flip(0)], 1)
    permuted = torch.randperm(size + 1)[edge_index]
    for edges in (clique(size), edge_index, permuted):
        assert_right(hp.build_hag(edges, num_nodes=size + 1), edges)


def test_clique_costs_what_the_design_says() -> None:
    """A: prefix and suffix sums, each read by two, 6c - 12 rows. A + I: one sum and its copies."""
    hag = hp.build_hag(clique(50), num_nodes=50)
    assert hag.stats().rows_read == 6 * 50 - 12
    assert hag.stats("add").rows_read == 100


@pytest.mark.parametrize("method", ["auto", "none"])
@pytest.mark.parametrize("inward", [True, False])
def test_hubs(method: str, inward: bool) -> None:
    """A star of 10^5: the long row is cut into partial sums of bounded length."""
    n = 100_001
    edge_index = torch.stack([torch.arange(1, n), torch.zeros(n - 1, dtype=torch.long)])
    edge_index = edge_index if inward else edge_index.flip(0)
    hag = hp.build_hag(edge_index, num_nodes=n, method=method)
    hag.check(edge_index)
    hag.check(edge_index, "fill")
    hag.transpose().check(edge_index.flip(0))
    program = (hag if inward else hag.transpose()).program()
    assert program.hub_row.tolist() == [0]
    assert program.op_ptr.diff().max() <= 4096
    x = torch.randn(n, 2, dtype=torch.float64)
    torch.testing.assert_close(
        hp.aggregate(x, hag), reference.aggregate(x, edge_index, n), rtol=1e-12, atol=1e-10
    )


def large_graph(seed: int, rows: int, clusters: int) -> torch.Tensor:
    """Overlapping cliques in one component, in permuted order: more rows than a tile holds."""
    random = np.random.default_rng(seed)
    members = [random.choice(rows, random.integers(3, 30), replace=False) for _ in range(clusters)]
    edges = [(a, b) for group in members for a in group for b in group if a != b]
    chain = np.arange(rows - 1)
    edge_index = np.concatenate(
        [np.array(edges).T, np.stack([chain, chain + 1]), np.stack([chain + 1, chain])], 1
    )
    return torch.from_numpy(np.unique(random.permutation(rows)[edge_index], axis=1))


@pytest.mark.parametrize("method", METHODS)
def test_graphs_that_are_cut(method: str) -> None:
    edge_index = large_graph(0, 1500, 250)
    hag = hp.build_hag(edge_index, num_nodes=1500, method=method)
    for mode in SELF_LOOPS:
        hag.check(edge_index, mode)
    if method == "auto":
        assert hag.stats("add").rows_read < 0.75 * hag.stats("add").rows_read_before
    directed = edge_index[:, edge_index[0] % 3 != 0]
    hag = hp.build_hag(directed, num_nodes=1500, method=method)
    hag.check(directed)
    hag.transpose().check(directed.flip(0), "add")


def covers(program: Program) -> list[list[frozenset[int]]]:
    """The set of sources behind each row of scratch, tile by tile, in order."""
    out = []
    for first, last in itertools.pairwise(program.tile_ptr.tolist()):
        tile: list[frozenset[int]] = []
        for op in range(first, last):
            sources = program.source[program.op_ptr[op] : program.op_ptr[op + 1]].tolist()
            if program.target[op] < 0:
                tile.append(
                    frozenset().union(*(frozenset({s}) if s >= 0 else tile[~s] for s in sources))
                )
        out.append(tile)
    return out


def naive_covers(edge_index: torch.Tensor, n: int, capacity: int) -> list[frozenset[int]]:
    rows: list[set[int]] = [set() for _ in range(n)]
    for source, target in edge_index.t().tolist():
        rows[target].add(source)
    found: list[frozenset[int]] = []
    for pair in reference.greedy_merges(rows, n, capacity):
        parts = [frozenset({i}) if i < n else found[i - n] for i in pair]
        found.append(parts[0] | parts[1])
    return found


@given(graph=graphs(), capacity=st.integers(0, 12))
@settings(max_examples=150)
def test_greedy_is_algorithm_3(graph: tuple[torch.Tensor, int], capacity: int) -> None:
    edge_index, n = graph
    hag = hp.build_hag(edge_index, num_nodes=n, method="greedy", capacity=capacity)
    naive = naive_covers(edge_index, n, capacity)
    tiles = covers(hag.program())
    assert sum(map(len, tiles)) == len(naive)
    for tile in tiles:  # a component's merges are those of the whole graph, in their order
        sources = frozenset().union(*tile)
        assert tile == [cover for cover in naive if cover <= sources]


@pytest.mark.slow
def test_greedy_is_algorithm_3_on_a_large_component() -> None:
    edge_index = large_graph(1, 1100, 40)
    hag = hp.build_hag(edge_index, num_nodes=1100, method="greedy", capacity=60)
    assert covers(hag.program()) == [naive_covers(edge_index, 1100, 60)]


@pytest.mark.parametrize("seed", range(3))
def test_greedy_is_algorithm_3_where_many_partners_tie(seed: int) -> None:
    """Dense rows of very different lengths: partners of an item are many, and their order turns."""
    random = np.random.default_rng(seed)
    n = 70
    adjacent = random.random((n, n)) < random.random((n, 1)) * 0.8
    edge_index = torch.from_numpy(np.argwhere(adjacent).T.copy())
    hag = hp.build_hag(edge_index, num_nodes=n, method="greedy", capacity=10**9)
    naive = naive_covers(edge_index, n, 10**9)
    assert len(naive) > 200
    assert covers(hag.program()) == [naive]


def test_greedy_without_a_cap_on_complete_graphs() -> None:
    """Prior work: no cap gives an intermediate chain and one copy a row."""
    hag = hp.build_hag(clique(20), num_nodes=20, method="greedy", capacity=10**9)
    assert hag.stats("add").aggregations == 19


def test_default_capacity_is_a_quarter_of_the_nodes() -> None:
    hag = hp.build_hag(clique(40), num_nodes=40, method="greedy")
    assert hag.stats("add").intermediates == 10


def test_search_does_not_depend_on_threads_or_edge_order() -> None:
    edge_index = large_graph(2, 2000, 300)
    before = torch.get_num_threads()
    programs = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for edges in (edge_index, edge_index[:, torch.randperm(edge_index.shape[1])]):
                programs.append(hp.build_hag(edges.int(), num_nodes=2000).program())
    finally:
        torch.set_num_threads(before)
    for program in programs[1:]:
        assert all(map(torch.equal, program.arrays, programs[0].arrays))


def test_plain_where_nothing_is_shared() -> None:
    n = 300
    ring = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])
    auto, none = (hp.build_hag(ring, num_nodes=n, method=m).program() for m in ("auto", "none"))
    assert all(map(torch.equal, auto.arrays, none.arrays))


@pytest.mark.parametrize("edge_index", [torch.empty(2, 0, dtype=torch.long)])
@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("method", METHODS)
def test_no_edges(edge_index: torch.Tensor, n: int, method: str) -> None:
    hag = hp.build_hag(edge_index, num_nodes=n, method=method)
    assert_right(hag, edge_index)
    assert hp.aggregate(torch.ones(n, 2), hag).shape == (n, 2)


def test_ptr() -> None:
    edge_index = torch.cat([clique(6), clique(7, first=6)], 1)
    hag = hp.build_hag(edge_index, num_nodes=13, ptr=torch.tensor([0, 6, 13]))
    hag.check(edge_index)
    with pytest.raises(ValueError, match=r"edge crosses ptr: a target in 0\.\.4 has source 5"):
        hp.build_hag(edge_index, num_nodes=13, ptr=[0, 5, 13])
    with pytest.raises(ValueError, match="increase from 0 to the number of nodes, 13"):
        hp.build_hag(edge_index, num_nodes=13, ptr=[0, 6])


EDGES = torch.tensor([[0, 1], [1, 2]])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"edge_index": torch.tensor([[0, 9], [1, 2]])}, ValueError, r"\[0, 1\] is 9; expected 0"),
        ({"edge_index": torch.tensor([[0, 1], [1, -2]])}, ValueError, r"\[1, 1\] is -2; expected"),
        ({"edge_index": EDGES.float()}, TypeError, "dtype torch.float32; expected int32 or int64"),
        ({"edge_index": EDGES[0]}, ValueError, r"shape \(2,\); expected \[2, E\]"),
        ({"edge_index": torch.zeros(3, 4, dtype=torch.long)}, ValueError, r"expected \[2, E\]"),
        ({"edge_index": [[0], [1]]}, TypeError, "is a list; expected a torch.Tensor"),
        ({"edge_index": EDGES.to_sparse()}, TypeError, "expected a dense tensor"),
        ({"num_nodes": -1}, ValueError, "num_nodes is -1; expected 0"),
        ({"num_nodes": 2.5}, TypeError, "num_nodes is 2.5; expected an int"),
        ({"num_nodes": 2**31}, ValueError, "expected 0 to 2"),
        ({"size": (3, 3)}, ValueError, "num_nodes and size were both given"),
        ({"num_nodes": None, "size": (3,)}, ValueError, r"expected \(num_src, num_dst\)"),
        ({"method": "best"}, ValueError, "'best'; expected one of"),
        ({"method": "greedy", "capacity": -1}, ValueError, "capacity is -1; expected 0 to"),
        ({"method": "greedy", "capacity": 1.5}, TypeError, "capacity is 1.5; expected an int"),
        ({"capacity": 5}, ValueError, 'for method="greedy" only'),
        ({"width": 0}, ValueError, "width is 0; expected 1 to"),
        ({"dtype": torch.int64}, ValueError, "expected a floating-point"),
        ({"self_loops": "all"}, ValueError, "'all'; expected one of"),
        ({"targets_first": True}, ValueError, "needs size="),
        (
            {"num_nodes": None, "size": (2, 3), "targets_first": True},
            ValueError,
            "at most as many targets",
        ),
        (
            {"num_nodes": None, "size": (4, 3), "self_loops": "add"},
            ValueError,
            "4 sources and 3 targets",
        ),
    ],
)
def test_bad_input(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"edge_index": EDGES, "num_nodes": 3, **arguments}
    with pytest.raises(error, match=message):
        hp.build_hag(**arguments)  # type: ignore[arg-type]


def test_progress_bar(capfd: pytest.CaptureFixture[str]) -> None:
    hp.build_hag(large_graph(3, 3000, 600), num_nodes=3000, progress=True)
    assert "searching" in capfd.readouterr().err
    hp.build_hag(EDGES, num_nodes=3)
    assert capfd.readouterr().err == ""


# Real graphs ----------------------------------------------------------------------------------

REAL = [
    "MUTAG",
    "IMDB-MULTI",
    "BZR_MD",
    "COLLAB_ego_recon",
    "Cora",
    "PPI_ohmnet_brain",
    "ca-HepPh",
    "REDDIT-BINARY",
    "AmazonPhoto",
]
GREEDY = ["MUTAG", "BZR_MD", "IMDB-MULTI", "Cora", "ca-HepPh", "COLLAB_ego_recon"]


@functools.cache
def real_graph(shared_data: Path, name: str) -> tuple[torch.Tensor, int]:
    from hag_plugin.data import datasets

    graph = datasets.load(str(shared_data / "npz" / f"{name}.npz"))
    return graph.edge_index, graph.num_nodes


@pytest.mark.mostly_slow("MUTAG-*", "Cora-*", "AmazonPhoto-*", "BZR_MD-*")
@pytest.mark.parametrize(
    ("name", "method"),
    [(n, m) for n in REAL for m in ("auto", "none")] + [(n, "greedy") for n in GREEDY],
)
def test_real_graphs(shared_data: Path, name: str, method: str) -> None:
    edge_index, n = real_graph(shared_data, name)
    hag = hp.build_hag(edge_index, num_nodes=n, method=method)
    for mode in (False, "add"):
        hag.check(edge_index, mode)
    # A directed half, so that the transpose is another graph.
    half = edge_index[:, edge_index[0] < edge_index[1]]
    if half.shape[1] < 3_000_000 and method != "greedy":
        hag = hp.build_hag(half, num_nodes=n, method=method)
        hag.transpose().check(half.flip(0))
        hag.transpose().check(half.flip(0), "fill")
    else:
        hag.transpose().check(edge_index.flip(0))


# Rows read, fewer by: A + I; A; A with allow_subtraction.
FEWER = {
    "COLLAB_ego_recon": (15, 9, 13),
    "BZR_MD": (10, 3.5, 6.9),
    "IMDB-MULTI": (4.5, 1.9, 2.9),
    "ca-HepPh": (2.9, None, None),
    "AmazonPhoto": (1.4, None, None),
}


@pytest.mark.mostly_slow("BZR_MD", "IMDB-MULTI", "ca-HepPh")
@pytest.mark.parametrize("name", FEWER)
def test_real_rows_read(shared_data: Path, name: str) -> None:
    edge_index, n = real_graph(shared_data, name)
    closed, given_, subtracted = FEWER[name]
    hag = hp.build_hag(edge_index, num_nodes=n)
    stats = hag.stats("add")
    assert stats.rows_read_before >= closed * stats.rows_read
    if given_ is not None:
        stats = hag.stats()
        assert stats.rows_read_before >= given_ * stats.rows_read
        stats = hp.build_hag(edge_index, num_nodes=n, allow_subtraction=True).stats()
        assert stats.rows_read_before >= subtracted * stats.rows_read


@pytest.mark.mostly_slow("fb100-*")
@pytest.mark.parametrize("name", ["fb100-Amherst41", "ogbl-ddi"])
def test_the_work_bound_costs_at_most_5_percent_of_what_is_saved(
    shared_data: Path, name: str
) -> None:
    """Dense graphs without twins, against merging without a bound in the same tiles."""
    edge_index, n = real_graph(shared_data, name)
    hag = hp.build_hag(edge_index, num_nodes=n, method="none")
    prices = cost.prices(64)
    rows_read = []
    for work in (prices.work_per_edge, 1 << 30):
        arrays, _ = _cpu.search_program(
            hag.row_ptr.numpy(), hag.col.numpy(), n, "add", False, True,
            **asdict(replace(prices, work_per_edge=work)), threads=2,
        )  # fmt: skip
        assert arrays is not None
        rows_read.append(len(arrays[2]))
    plain = edge_index.shape[1] + n
    assert plain - rows_read[0] >= 0.95 * (plain - rows_read[1])


MEMORY = """
import resource, sys, torch
import hag_plugin as hp
from hag_plugin.data import datasets
graph = datasets.load(sys.argv[1])
edge_index, n = graph.edge_index, graph.num_nodes
hp.build_hag(edge_index[:, :1000], num_nodes=n)  # threads and libraries are there
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def now():
    import psutil
    return psutil.Process().memory_info().rss
# The peak before must not hide the growth: fill memory up to it.
filler = torch.ones(max(0, peak() - now()) // 4 + 1)
before = max(now(), peak())
hag = hp.build_hag(edge_index, num_nodes=n, self_loops=eval(sys.argv[2]), method=sys.argv[3])
print((peak() - before) / (8 * (n + 1) + 4 * edge_index.shape[1]))
"""


@pytest.mark.parametrize("name", ["COLLAB_ego_recon", "REDDIT-BINARY", "ogbl-ddi"])
@pytest.mark.parametrize(("method", "self_loops"), [("auto", "add"), ("none", False)])
def test_real_memory(
    shared_data: Path, name: str, self_loops: hp.hag.SelfLoops, method: str
) -> None:
    """`build_hag` grows memory by at most six times the CSR."""
    path = shared_data / "npz" / f"{name}.npz"
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path), repr(self_loops), method],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(run.stdout) <= 6.0
