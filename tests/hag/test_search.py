"""The native search: when it is given up, the order that it comes to, plain programs by order."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

import hag_plugin as hp
from hag_plugin.data import generators
from hag_plugin.hag import cost, search
from hag_plugin.hag.graph import canonical_graph
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import Options
from hag_plugin.kernels import _cpu

PRICES = cost.prices(64)
MODES = ("", "add", "fill")
HUB = 4096  # longer rows are in parts


def matrix(edges: np.ndarray, num_src: int, num_dst: int) -> tuple[Any, Any, int]:
    return (*canonical_graph(torch.from_numpy(edges), num_src, num_dst), num_src)


def check(arrays: Any, graph: tuple[Any, Any, int], mode: str, idempotent: bool = False) -> None:
    """Raises unless this is the program of the graph."""
    row_ptr, col, num_src = graph
    program = _cpu.Program(*arrays, num_src, len(row_ptr) - 1, 0)
    _cpu.check_program(program, row_ptr, col, mode, idempotent, 1)


def searched(graph: tuple[Any, Any, int], mode: str, threads: int = 1, **changes: Any) -> Any:
    prices = asdict(replace(PRICES, **changes))
    square = len(graph[0]) - 1 == graph[2]
    return _cpu.search_program(*graph, mode, False, square, **prices, threads=threads)


def ratio(graph: tuple[Any, Any, int], mode: str, arrays: Any) -> float:
    """What a search found costs, in what the plain program does, without hubs: they are plain."""
    lengths = np.diff(graph[0])
    lengths = lengths[lengths <= HUB]
    plain = int(lengths.sum()) + (len(lengths) if mode else 0)
    op_ptr, target = arrays[1], arrays[3]
    parts = int(arrays[5][-1])
    reads = int(op_ptr[len(target) - parts])
    return float(reads + PRICES.intermediate * int((target < 0).sum())) / max(plain, 1)


# Giving up -------------------------------------------------------------------------------------


def random_graph(nodes: int, degree: float, seed: int) -> np.ndarray:
    pairs = np.random.default_rng(seed).integers(0, nodes, (2, int(nodes * degree)))
    return np.unique(np.concatenate([pairs, pairs[::-1]], 1), axis=1)


def regular(nodes: int, degree: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    turns = [random.permutation(nodes) for _ in range(degree)]
    return np.unique(np.concatenate([np.stack([np.arange(nodes), t]) for t in turns], 1), axis=1)


def with_hub(edges: np.ndarray, nodes: int) -> np.ndarray:
    hub = np.stack([np.arange(1, nodes), np.zeros(nodes - 1, edges.dtype)])
    return np.unique(np.concatenate([edges, hub, hub[::-1]], 1), axis=1)


UNSHARED = {
    "power law": lambda: (generators.power_law(12_000, degree=5, exponent=2.5, seed=1), 12_000),
    "sparse": lambda: (random_graph(10_000, 3, 0), 10_000),
    "regular": lambda: (regular(8_000, 6, 0), 8_000),
    "with a hub": lambda: (with_hub(random_graph(9_000, 3, 1), 9_000), 9_000),
    "ring": lambda: (np.stack([np.arange(5_000), (np.arange(5_000) + 1) % 5_000]), 5_000),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", UNSHARED)
def test_given_up_where_nothing_is_shared(name: str, mode: str) -> None:
    edges, nodes = UNSHARED[name]()
    graph = matrix(edges, nodes, nodes)
    assert searched(graph, mode) == (None, None)
    whole, _ = searched(graph, mode, worth_it=math.inf)
    assert ratio(graph, mode, whole) > PRICES.worth_it


def test_given_up_on_bipartite_graphs() -> None:
    random = np.random.default_rng(0)
    edges = np.stack([random.integers(0, 20_000, 30_000), random.integers(0, 6_000, 30_000)])
    assert searched(matrix(edges, 20_000, 6_000), "") == (None, None)


def cliques_in_part(
    nodes: int, share: float, size: int, where: str, degree: float, seed: int
) -> np.ndarray:
    """Cliques among a share of the nodes, at the start, in the middle, at the end or scattered."""
    random = np.random.default_rng(seed)
    count = int(nodes * share) // size * size
    first = {"start": 0, "middle": (nodes - count) // 2, "end": nodes - count}.get(where)
    members = random.permutation(nodes)[:count] if first is None else first + np.arange(count)
    groups = members.reshape(-1, size)
    source = np.repeat(groups, size, axis=1).ravel()
    target = np.tile(groups, (1, size)).ravel()
    cliques = np.stack([source, target])[:, source != target]
    return np.unique(np.concatenate([cliques, random_graph(nodes, degree, seed)], 1), axis=1)


@pytest.mark.parametrize("where", ["start", "middle", "end", "scattered"])
@pytest.mark.parametrize("nodes", [2_500, 9_000])
@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize("size", [20, 60])
def test_not_given_up_where_a_part_pays(where: str, nodes: int, share: float, size: int) -> None:
    """Whatever a search of all tiles brings under 0.80 is found: the twin is that search."""
    for degree, mode in ((1.0, "add"), (3.0, ""), (3.0, "add")):
        graph = matrix(cliques_in_part(nodes, share, size, where, degree, size), nodes, nodes)
        whole, of_whole = searched(graph, mode, worth_it=math.inf)
        found, order = searched(graph, mode)
        if ratio(graph, mode, whole) <= 0.80:
            assert found is not None
            if (order is None) == (of_whole is None):  # looks leave no trace
                assert all(map(np.array_equal, found, whole))
        if found is not None:
            assert ratio(graph, mode, found) <= PRICES.worth_it
            assert order is None or np.array_equal(np.sort(order), np.arange(nodes))


def test_looks_do_not_depend_on_threads() -> None:
    graphs = [
        matrix(random_graph(10_000, 3, 2), 10_000, 10_000),
        matrix(cliques_in_part(6_000, 0.2, 30, "scattered", 3.0, 0), 6_000, 6_000),
    ]
    for graph in graphs:
        one, two = (searched(graph, "add", threads) for threads in (1, 2))
        assert (one[0] is None) == (two[0] is None)
        if one[0] is not None:
            assert all(map(np.array_equal, one[0], two[0]))
            assert (one[1] is None) == (two[1] is None)


# The order ---------------------------------------------------------------------------------------


def order_of(arrays: Any, num_dst: int) -> list[int]:
    """The rows as the tiles of a program write them, then its hubs."""
    target = arrays[3]
    return [*target[(target >= 0) & (target < num_dst)].tolist(), *arrays[4].tolist()]


def test_the_order_is_that_of_the_tiles() -> None:
    nodes = 6_000
    edges = with_hub(cliques_in_part(nodes, 0.6, 40, "scattered", 2.0, 0), nodes)
    graph = matrix(edges, nodes, nodes)
    arrays, order = searched(graph, "add", reorder=0.0)
    assert arrays is not None
    assert order is not None
    assert order.dtype == np.int32
    assert np.array_equal(np.sort(order), np.arange(nodes))
    place = np.empty(nodes, np.int64)
    place[order] = np.arange(nodes)
    tile_ptr, target = arrays[0], arrays[3]
    last = -1
    for first, end in itertools.pairwise(tile_ptr):  # tiles take stretches of it
        rows = target[first:end]
        rows = rows[(rows >= 0) & (rows < nodes)]
        if len(rows):
            places = np.sort(place[rows])
            assert np.array_equal(places, np.arange(last + 1, last + 1 + len(rows)))
            last = int(places[-1])
    assert order.tolist()[last + 1 :] == arrays[4].tolist() == [0]
    _, own = searched(graph, "add", reorder=math.inf)
    assert own is None


def test_a_search_in_python_says_the_same() -> None:
    nodes = 4_000
    edges = torch.from_numpy(cliques_in_part(nodes, 0.5, 40, "scattered", 2.0, 0))
    hag = hp.build_hag(edges, num_nodes=nodes, method="none")
    found = search.search(hag, Options(), "add", False)
    arrays, order = searched(hag_matrix(hag), "add")
    assert found.program is not None
    assert all(map(np.array_equal, found.program.numpy(), arrays))
    assert found.order is not None
    assert found.order.tolist() == order.tolist()
    assert found.seconds > 0
    ring = hp.build_hag(torch.tensor([[0, 1, 2], [1, 2, 0]]), num_nodes=3, method="none")
    assert search.search(ring, Options(), False, False)[:2] == (None, None)
    assert search.search(hag, Options(method="none"), False, False)[:2] == (None, None)
    plain = search.plain_program(hag, "add", rows=found.order)
    assert order_of(plain.numpy(), nodes) == found.order.tolist()


def hag_matrix(hag: HAG) -> tuple[Any, Any, int]:
    return hag.row_ptr.numpy(), hag.col.numpy(), hag.num_src


# Plain programs by order -------------------------------------------------------------------------


@given(data=st.data(), nodes=st.integers(0, 12), mode=st.sampled_from(MODES))
@settings(max_examples=60)
def test_plain_program_by_order(data: st.DataObject, nodes: int, mode: str) -> None:
    node = st.integers(0, max(nodes - 1, 0))
    edges = data.draw(st.lists(st.tuples(node, node), max_size=5 * nodes))
    graph = matrix(np.array(edges, np.int64).reshape(-1, 2).T, nodes, nodes)
    rows = np.array(data.draw(st.permutations(range(nodes))), np.int32)
    arrays = _cpu.plain_program(*graph, mode, False, rows)
    assert order_of(arrays, nodes) == rows.tolist()
    check(arrays, graph, mode)
    increasing = np.arange(nodes, dtype=np.int32)
    plain = _cpu.plain_program(*graph, mode, False)
    assert all(map(np.array_equal, plain, _cpu.plain_program(*graph, mode, False, increasing)))


def test_plain_program_by_order_with_a_hub() -> None:
    nodes = 5_000
    graph = matrix(with_hub(random_graph(nodes, 2, 0), nodes), nodes, nodes)
    rows = np.random.default_rng(0).permutation(nodes).astype(np.int32)
    arrays = _cpu.plain_program(*graph, "add", False, rows=rows)
    assert order_of(arrays, nodes) == [*rows[rows != 0].tolist(), 0]
    check(arrays, graph, "add")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 1, 2, 0], r"rows\[3\] is 0, which stands there twice"),
        ([0, 3, 1], r"rows\[1\] is 3; expected 0 to 2"),
        ([0, -1, 1], r"rows\[1\] is -1; expected 0 to 2"),
        ([2, 1, 2], r"rows\[2\] is 2, which stands there twice"),
    ],
)
def test_rows_that_are_not_distinct_rows(rows: list[int], message: str) -> None:
    graph = matrix(np.array([[0, 1], [1, 2]]), 3, 3)
    with pytest.raises(ValueError, match=message):
        _cpu.plain_program(*graph, "", False, np.array(rows, np.int32))


@pytest.mark.parametrize("name", ["pack_rows", "cut_rows"])
@pytest.mark.parametrize("rows", [0, 65_536])
def test_rows_of_a_tile_out_of_range(name: str, rows: int) -> None:
    graph = matrix(np.array([[0, 1], [1, 2]]), 3, 3)
    with pytest.raises(ValueError, match=rf"{name} .*{rows}.*expected 1 to 65535"):
        searched(graph, "", **{name: rows})


# Merging -----------------------------------------------------------------------------------------


def adjacency(seed: int) -> np.ndarray:
    """Bit sets of several words, whose partners tie; and of so many that no byte holds a count."""
    random = np.random.default_rng(seed)
    if seed == 3:
        return random.random((4, 2300)) < 0.99
    n = 90 + 40 * seed
    drawn: np.ndarray = random.random((n, n)) < random.random((n, 1)) * (0.15 + 0.25 * seed)
    return drawn


@pytest.mark.parametrize("seed", range(4))
def test_merging_kernels_against_algorithm_3(seed: int) -> None:
    """By rows and by words."""
    from ..reference import greedy_merges

    adjacent = adjacency(seed)
    n, num_dst = adjacent.shape
    source, target = (a.astype(np.int64) for a in np.nonzero(adjacent))
    hag = hp.build_hag(torch.from_numpy(np.stack([source, target])), size=(n, num_dst),
                       method="greedy", capacity=150)  # fmt: skip
    rows = [set(source[target == v].tolist()) for v in range(num_dst)]
    found: list[frozenset[int]] = []
    for pair in greedy_merges(rows, n, 150):
        found.append(frozenset().union(*({i} if i < n else found[i - n] for i in pair)))
    program = SimpleNamespace(**dict(zip(("tile", "op", "source", "target"),
                                         hag.program().numpy(), strict=False)))  # fmt: skip
    scratch: list[frozenset[int]] = []
    for op in range(len(program.target)):
        sources = program.source[program.op[op] : program.op[op + 1]].tolist()
        if program.target[op] < 0:
            scratch.append(frozenset().union(*({s} if s >= 0 else scratch[~s] for s in sources)))
    assert scratch == found


# Beside the paper's search -----------------------------------------------------------------------


def both_ways(adjacent: np.ndarray) -> tuple[np.ndarray, int]:
    """The pairs of a matrix `[N, N]`, in both directions, without loops; and the nodes."""
    linked = adjacent | adjacent.T
    np.fill_diagonal(linked, False)
    return np.stack(np.nonzero(linked)), len(linked)


def overlapping(nodes: int, count: int, size: int) -> tuple[np.ndarray, int]:
    random = np.random.default_rng(0)
    member = np.zeros((nodes, count), int)
    for clique in range(count):
        member[random.choice(nodes, size, replace=False), clique] = 1
    return both_ways(member @ member.T > 0)


def bipartite(left: int, right: int) -> tuple[np.ndarray, int]:
    is_left = np.arange(left + right) < left
    return both_ways(is_left[:, None] & ~is_left)


def blocks(count: int, size: int, inside: float) -> tuple[np.ndarray, int]:
    block = np.arange(count * size) // size
    chance = np.where(block[:, None] == block, inside, 0.01)
    return both_ways(np.triu(np.random.default_rng(0).random(chance.shape) < chance, 1))


def twins(nodes: int, degree: float, copies: int) -> tuple[np.ndarray, int]:
    drawn = np.random.default_rng(0).random((nodes, nodes)) < degree / nodes
    return both_ways(np.tile(drawn, (copies, copies)))


def stars(count: int, leaves: int) -> tuple[np.ndarray, int]:
    node = np.arange(count * (leaves + 1))
    star = node // (leaves + 1)
    return both_ways((star[:, None] == star) & (node % (leaves + 1) == 0))


FAMILY: dict[str, Any] = {
    f"{count} cliques of {size}, {bridges} bridges": lambda c=count, s=size, b=bridges: (
        generators.cliques(c, s, b),
        c * s,
    )
    for count, size in ((40, 5), (100, 8), (50, 20), (10, 50))
    for bridges in (0, 1, 5)
} | {
    "overlapping, small": lambda: overlapping(600, 200, 8),
    "overlapping, middle": lambda: overlapping(400, 60, 20),
    "overlapping, large": lambda: overlapping(60, 6, 30),
    "bipartite": lambda: bipartite(5, 7),
    "bipartite, large": lambda: bipartite(100, 30),
    "blocks, dense": lambda: blocks(10, 30, 0.9),
    "blocks": lambda: blocks(10, 60, 0.5),
    "twins": lambda: twins(100, 10, 4),
    "many twins": lambda: twins(300, 8, 3),
    "stars": lambda: stars(20, 30),
    "star": lambda: stars(1, 300),
    "random": lambda: (generators.erdos_renyi(500, 20.0), 500),
    "random, dense": lambda: (generators.erdos_renyi(200, 80.0), 200),
    "power law": lambda: (generators.power_law(500, 20.0), 500),
}


@pytest.mark.parametrize("mode", [False, "fill"])
@pytest.mark.parametrize("name", FAMILY)
def test_no_dearer_than_the_papers_search(name: str, mode: Any) -> None:
    """By the cost model, at the usual width; or it saves too little for a HAG to pay."""
    edges, nodes = FAMILY[name]()

    def stats(method: str, capacity: int | None = None) -> hp.Stats:
        return hp.build_hag(torch.from_numpy(edges), num_nodes=nodes, method=method,
                            self_loops=mode, capacity=capacity).stats(mode)  # fmt: skip

    found = stats("auto")
    # A quarter of the nodes, all that is shared, and what is cheapest or next to it.
    for capacity, times in ((None, 1.001), (10**9, 1.001), (nodes, 1.015)):
        greedy = stats("greedy", capacity).predicted_seconds
        if found.intermediates:
            assert found.predicted_seconds <= times * greedy
        else:
            assert greedy > PRICES.worth_it * found.predicted_seconds
