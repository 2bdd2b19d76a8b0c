"""What ranks have of a graph: put together, it is the graph, and what is sent is what is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hag_plugin as hp
from hag_plugin.parallel.execution.graphs.graph_parts import ELSEWHERE, Halo, LocalGraph
from hag_plugin.parallel.execution.graphs.local_graphs import LocalGraphs
from hag_plugin.parallel.graphs.stats import measure
from hag_plugin.parallel.layouts import chunk_sizes

CPU = torch.device("cpu")
LOOPS = (False, "add", "fill")


def random_graph(seed: int, nodes: int, count: int) -> Tensor:
    """Edges with duplicates, self-loops and isolated nodes."""
    rng = np.random.default_rng(seed)
    edges = rng.integers(0, max(nodes * 3 // 4, 1), (2, count))
    return torch.from_numpy(np.concatenate([edges, edges[:, : count // 4]], axis=1))


def all_ranks(edges: Tensor, rows: np.ndarray, **options: object) -> list[LocalGraphs]:
    return [LocalGraphs(edges, rows, p, **options) for p in range(len(rows))]


def expected(edges: Tensor, nodes: int, x: Tensor, loops: object) -> Tensor:
    hag = hp.build_hag(edges, num_nodes=nodes, method="none")
    return hp.aggregate(x, hag, self_loops=loops)


def summed(graph: LocalGraph, x: Tensor, method: str = "none") -> Tensor:
    return hp.aggregate(x, graph.hag(method, CPU))


GRAPHS = st.tuples(st.integers(0, 10_000), st.integers(4, 24), st.integers(0, 90))


@settings(max_examples=40)
@given(GRAPHS, st.integers(1, 4), st.sampled_from(LOOPS), st.booleans())
def test_parts_have_the_edges_of_the_graph(
    graph: tuple[int, int, int], parts: int, loops: object, search: bool
) -> None:
    seed, nodes, count = graph
    edges, rows = random_graph(seed, nodes, count), chunk_sizes(nodes, parts)
    x = torch.randn(nodes, 3, dtype=torch.float64)
    method = "auto" if search else "none"
    want = expected(edges, nodes, x, loops)
    ranks = all_ranks(edges, rows, self_loops=loops)
    assert torch.allclose(summed(ranks[0].whole(), x, method), want)
    for own_first in (False, True):
        pieces = [r.gathered(own_first) for r in ranks]
        parts_of = [summed(g, x[torch.from_numpy(g.sources)], method) for g in pieces]
        assert torch.allclose(torch.cat(parts_of), want)
        assert [g.targets.tolist() for g in pieces] == [
            block.tolist() for block in np.split(np.arange(nodes), np.cumsum(rows)[:-1])
        ]
    graphs = [r.halo().graph for r in ranks]
    parts_of = [summed(g, x[torch.from_numpy(g.sources)], method) for g in graphs]
    assert torch.allclose(torch.cat(parts_of), want)
    assert torch.equal(torch.cat([torch.from_numpy(g.targets) for g in graphs]),
                       torch.arange(nodes))  # fmt: skip


def exchanged(halos: list[Halo], x: list[Tensor]) -> list[Tensor]:
    """What each receives when all send what they say."""
    sent = [
        torch.split(part[torch.from_numpy(h.send)], h.send_counts)
        for h, part in zip(halos, x, strict=True)
    ]
    return [torch.cat([sent[q][p] for q in range(len(halos))]) for p in range(len(halos))]


@settings(max_examples=40)
@given(GRAPHS, st.sampled_from([(2, 1), (3, 1), (4, 1), (4, 2)]))
def test_what_is_sent_is_what_is_read(graph: tuple[int, int, int], split: tuple[int, int]) -> None:
    seed, nodes, count = graph
    parts, columns = split
    edges, rows = random_graph(seed, nodes, count), chunk_sizes(nodes, parts)
    ranks = all_ranks(edges, rows)[::columns]  # one of each block
    halos = [r.merged(columns).halo() for r in ranks]
    blocks = torch.split(torch.arange(nodes), rows.reshape(-1, columns).sum(axis=1).tolist())
    for halo, block, received in zip(halos, blocks, exchanged(halos, list(blocks)), strict=True):
        assert halo.graph.sources.tolist() == torch.cat([block, received]).tolist()
    counted = measure(edges, nodes, hag=False).partition(parts, columns)
    assert [h.receive_counts for h in halos] == [tuple(r) for r in counted.halo.tolist()]
    assert [h.send_counts for h in halos] == [tuple(r) for r in counted.halo.T.tolist()]


@settings(max_examples=40)
@given(GRAPHS, st.integers(1, 4), st.sampled_from(LOOPS), st.booleans())
def test_covers_send_the_fewest_rows_and_lose_no_edge(
    graph: tuple[int, int, int], parts: int, loops: object, search: bool
) -> None:
    seed, nodes, count = graph
    edges, rows = random_graph(seed, nodes, count), chunk_sizes(nodes, parts)
    x = torch.randn(nodes, 3, dtype=torch.float64)
    own = torch.split(x, rows.tolist())
    covers = [r.cover() for r in all_ranks(edges, rows, self_loops=loops)]
    method = "auto" if search else "none"
    sent = [
        torch.split(summed(c.send, part, method), c.send_counts)
        for c, part in zip(covers, own, strict=True)
    ]
    out = [
        summed(c.graph, torch.cat([own[p], *(sent[q][p] for q in range(parts))]), method)
        for p, c in enumerate(covers)
    ]
    assert torch.allclose(torch.cat(out), expected(edges, nodes, x, loops))
    counted = measure(edges, nodes, hag=False).partition(parts).cover
    assert counted is not None
    assert [c.receive_counts for c in covers] == [tuple(r) for r in counted.tolist()]
    assert [c.send_counts for c in covers] == [tuple(r) for r in counted.T.tolist()]
    numbers = np.concatenate([n for c in covers for n in (c.graph.edges, c.send.edges)])
    listed = LocalGraphs(edges, rows, 0, self_loops=loops).listed()[1]
    assert np.sort(numbers[numbers != ELSEWHERE]).tolist() == listed.sort().values.tolist()


@pytest.mark.parametrize("loops", LOOPS)
def test_degrees_are_those_of_the_whole_graph(loops: object) -> None:
    edges = random_graph(3, 20, 60)
    hag = hp.build_hag(edges, num_nodes=20, method="none")
    for graphs in all_ranks(edges, chunk_sizes(20, 3), self_loops=loops):
        assert torch.equal(graphs.in_degree(), hag.degree(loops))
        assert torch.equal(graphs.out_degree(), torch.bincount(edges[0], minlength=20))


def test_edges_keep_their_numbers_and_relations() -> None:
    edges, kinds = random_graph(1, 12, 50), torch.randint(3, (62,))
    for graphs in all_ranks(edges, chunk_sizes(12, 3), edge_type=kinds):
        for graph in (graphs.whole(), graphs.gathered(), graphs.halo().graph):
            ends = np.stack([graph.sources[graph.index[0]], graph.targets[graph.index[1]]])
            assert np.array_equal(ends, edges[:, graph.edges].numpy())
            assert np.array_equal(graph.types, kinds[graph.edges].numpy())
            count = sum(graph.hag("none", CPU, r).num_edges for r in range(3))
            assert count == graph.index.shape[1]


def test_listed_loops_are_numbered_behind_the_edges() -> None:
    edges = torch.tensor([[0, 1, 2], [1, 1, 0]])
    graphs = LocalGraphs(edges, np.array([2, 2]), 0, self_loops="fill")
    index, number = graphs.listed()
    assert index.tolist() == [[0, 2, 0, 1, 2, 3], [0, 0, 1, 1, 2, 3]]
    assert number.tolist() == [3, 2, 0, 4, 5, 6]  # the loop that was given is gone


def test_parts_may_be_empty() -> None:
    edges = torch.tensor([[0, 1], [1, 0]])
    for graphs in all_ranks(edges, np.array([2, 0]), self_loops="add"):
        own = torch.ones(int(graphs.rows[graphs.rank]), 1)
        assert summed(graphs.halo().graph, own).flatten().tolist() == [2.0] * len(own)
        assert graphs.halo().receive_counts == graphs.cover().send_counts == (0, 0)
        assert summed(graphs.gathered(True), torch.ones(2, 1)).shape == (len(own), 1)


def test_layers_on_one_graph_share_it() -> None:
    graphs = LocalGraphs(random_graph(0, 8, 20), np.array([4, 4]), 1)
    assert graphs.halo() is graphs.halo()
    assert graphs.halo().graph.hag("auto", CPU) is graphs.halo().graph.hag("auto", CPU)


def test_wrong_arguments_are_named() -> None:
    edges, rows = torch.tensor([[0, 4], [1, 0]]), np.array([2, 2])
    with pytest.raises(ValueError, match="ids 0 to 4; expected 0 to 3"):
        LocalGraphs(edges, rows, 0)
    with pytest.raises(ValueError, match="rank is 2"):
        LocalGraphs(edges, rows, 2)
    with pytest.raises(ValueError, match=r"edge_type has shape \[3\]; expected \[2\]"):
        LocalGraphs(edges % 4, rows, 0, edge_type=torch.ones(3))


def test_parts_of_a_real_graph(shared_data: Path) -> None:
    from hag_plugin.data import datasets

    data = datasets.load("Cora", shared_data / "npz")
    rows = chunk_sizes(data.num_nodes, 8)
    x = torch.randn(data.num_nodes, 4, dtype=torch.float64)
    ranks = all_ranks(data.edge_index, rows, self_loops="fill")
    parts = [summed(r.halo().graph, x[r.halo().graph.sources], "auto") for r in ranks]
    assert torch.allclose(torch.cat(parts), expected(data.edge_index, data.num_nodes, x, "fill"))
    sent = sum(sum(r.cover().send_counts) for r in ranks)
    assert sent < 0.95 * sum(sum(r.halo().send_counts) for r in ranks)


@settings(max_examples=60)
@given(
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 14), st.integers(1, 14)),
    st.integers(0, 60),
    st.sampled_from([(1, 1), (2, 1), (3, 1), (4, 1), (4, 2)]),
    st.booleans(),
)
def test_edges_between_two_types_of_nodes(
    seed: int, sizes: tuple[int, int], count: int, split: tuple[int, int], search: bool
) -> None:
    """There may be fewer nodes of a type than parts."""
    rng, (parts, columns) = np.random.default_rng(seed), split
    edges = torch.from_numpy(np.stack([rng.integers(0, n, count) for n in sizes]))
    own, rows = (chunk_sizes(n, parts) for n in sizes)
    x = torch.randn(sizes[0], 3, dtype=torch.float64)
    want = torch.zeros(sizes[1], 3, dtype=torch.float64).index_add(0, edges[1], x[edges[0]])
    method = "auto" if search else "none"
    ranks = all_ranks(edges, rows, sources=own)
    assert torch.equal(ranks[0].in_degree(), torch.bincount(edges[1], minlength=sizes[1]))
    assert torch.equal(ranks[0].out_degree(), torch.bincount(edges[0], minlength=sizes[0]))
    assert torch.allclose(summed(ranks[0].whole(), x, method), want)
    for own_first in (False, True):
        pieces = [r.gathered(own_first) for r in ranks]
        out = [summed(g, x[torch.from_numpy(g.sources)], method) for g in pieces]
        assert torch.allclose(torch.cat(out), want)
    counted = measure(edges, sizes[1], hag=False, sources=sizes[0]).partition(parts, columns)
    blocks = torch.split(torch.arange(sizes[0]), own.reshape(-1, columns).sum(axis=1).tolist())
    assert counted.own.tolist() == [len(block) for block in blocks]
    halos = [r.merged(columns).halo() for r in ranks[::columns]]
    out = []
    for halo, block, received in zip(halos, blocks, exchanged(halos, list(blocks)), strict=True):
        assert halo.graph.sources.tolist() == torch.cat([block, received]).tolist()
        pieces = [(g, torch.from_numpy(g.sources)) for g in halo.apart()]
        assert [len(which) for _, which in pieces] == [len(block), len(received)]
        out.append(sum(summed(g, x[which]) for g, which in pieces))
    assert torch.allclose(torch.cat(out), want)
    assert [h.receive_counts for h in halos] == [tuple(r) for r in counted.halo.tolist()]
    assert [h.send_counts for h in halos] == [tuple(r) for r in counted.halo.T.tolist()]
    if columns == 1:
        covers, mine = [r.cover() for r in ranks], torch.split(x, own.tolist())
        sent = [
            torch.split(summed(c.send, part, method), c.send_counts)
            for c, part in zip(covers, mine, strict=True)
        ]
        out = [
            summed(c.graph, torch.cat([mine[p], *(sent[q][p] for q in range(parts))]), method)
            for p, c in enumerate(covers)
        ]
        assert torch.allclose(torch.cat(out), want)
        assert [c.receive_counts for c in covers] == [tuple(r) for r in counted.cover.tolist()]
