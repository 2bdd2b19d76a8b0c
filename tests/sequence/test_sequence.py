"""Sequential HAGs: optimal prefix trees, and recurrent aggregates equal to the stock layers'."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hag_plugin as hp
from hag_plugin.data import datasets
from hag_plugin.sequence import (
    ORDERS,
    SequentialHAG,
    build_sequence,
    child_sum,
    lstm_aggregate,
)
from hag_plugin.sequence.cost import StepCounts, bucketed_counts, padded_counts

Lists = list[list[int]]


def edges_of(lists: Lists) -> Tensor:
    """The edges of neighbour lists, by target, each list in its order."""
    pairs = [(source, target) for target, row in enumerate(lists) for source in row]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t().contiguous()


def tree_of(lists: Lists, num_src: int, **kwargs: Any) -> SequentialHAG:
    return build_sequence(edges_of(lists), size=(num_src, len(lists)), **kwargs)


def lists_of(tree: SequentialHAG) -> Lists:
    """Every target's list, walked from its end to the root."""
    first = tree.level_ptr.tolist()
    found = []
    for end in tree.end.tolist():
        level = next(t for t in range(len(first) - 1) if first[t] <= end < first[t + 1])
        row = []
        for t in range(level, 0, -1):
            row.append(int(tree.source[end]))
            end = first[t - 1] + int(tree.parent[end])
        assert end == 0
        found.append(row[::-1])
    return found


def distinct_prefixes(lists: Lists) -> set[tuple[int, ...]]:
    return {tuple(row[:n]) for row in lists for n in range(1, len(row) + 1)}


def greedy_sequential(lists: Lists) -> int:
    """Aggregations left by Algorithm 3 of the HAG paper for a sequential aggregate, no capacity.

    While two nodes' lists begin with the same pair, make the most frequent such pair a node.
    """
    rows = [[str(s) for s in row] for row in lists]
    merges = 0
    while True:
        pairs = [(row[0], row[1]) for row in rows if len(row) > 1]
        count, pair = max(((pairs.count(p), p) for p in pairs), default=(0, ("", "")))
        if count <= 1:
            return merges + sum(max(len(row) - 1, 0) for row in rows)
        merges += 1
        rows = [
            [f"({row[0]} {row[1]})", *row[2:]] if tuple(row[:2]) == pair else row for row in rows
        ]


@st.composite
def neighbour_lists(draw: st.DrawFn) -> tuple[Lists, int]:
    """Lists with shared beginnings, duplicates and empty ones, and the number of sources."""
    num_src = draw(st.integers(1, 6))
    a_list = st.lists(st.integers(0, num_src - 1), max_size=6)
    stems = draw(st.lists(a_list, min_size=1, max_size=3))
    stem = st.sampled_from(stems)
    row = st.builds(lambda s, n, tail: s[:n] + tail, stem, st.integers(0, 6), a_list)
    return draw(st.lists(row, max_size=8)), num_src


# The tree ---------------------------------------------------------------------------------------


@given(neighbour_lists())
@settings(max_examples=150)
def test_the_tree_holds_the_lists_in_as_many_nodes_as_there_are_prefixes(
    graph: tuple[Lists, int],
) -> None:
    lists, num_src = graph
    tree = tree_of(lists, num_src)
    assert lists_of(tree) == lists
    assert torch.equal(tree.edge_index, edges_of(lists))
    prefixes = distinct_prefixes(lists)
    assert tree.num_prefixes == len(prefixes)
    stats = tree.stats()
    assert stats.aggregations == sum(len(p) > 1 for p in prefixes)
    assert stats.aggregations_before == sum(max(len(row) - 1, 0) for row in lists)
    assert stats.longest == max(map(len, lists), default=0)
    assert tree.list_lengths.tolist() == [len(row) for row in lists]


@given(neighbour_lists())
@settings(max_examples=60)
def test_no_fewer_aggregations_than_the_papers_search_and_no_more(
    graph: tuple[Lists, int],
) -> None:
    lists, num_src = graph
    assert tree_of(lists, num_src).stats().aggregations == greedy_sequential(lists)


@given(neighbour_lists())
@settings(max_examples=60)
def test_steps_with_and_without_padding(graph: tuple[Lists, int]) -> None:
    lists, num_src = graph
    tree = tree_of(lists, num_src)
    longest = max(map(len, lists), default=0)
    padded = [row + [-1] * (longest - len(row)) for row in lists]
    counts = padded_counts(tree)
    assert counts.steps == len(distinct_prefixes(padded))
    assert (counts.levels, counts.stock_steps) == (longest, longest * len(lists))
    counts = bucketed_counts(tree)
    assert (counts.steps, counts.stock_steps) == (tree.num_prefixes, tree.num_edges)
    assert counts.buckets == len({len(row) for row in lists} - {0})


def test_what_pays_depends_on_the_width_and_on_gradients() -> None:
    # BZR_MD's graph: two thirds of the steps. The host's kernel is better where rows are narrow.
    counts = StepCounts(145_954, 32, 208_608, 0)
    assert counts.pays(nn.LSTM(64, 64))
    assert not counts.pays(nn.LSTM(16, 16))
    # Few nodes: a level takes nearly as long as the steps it saves, of which the host's kernel
    # makes less where it keeps nothing for gradients.
    counts = StepCounts(1_000, 22, 4_500, 0)
    assert counts.pays(nn.LSTM(64, 64))
    with torch.no_grad():
        assert not counts.pays(nn.LSTM(64, 64))


def test_rows_read_of_a_known_tree() -> None:
    # (0 1 2) and (0 1 3) keep the state of (0 1): sources 0, 1, 2, 3, and the state twice. The
    # other two lists are that of one source, read for each, and (0 1), whose state is read.
    tree = tree_of([[0, 1, 2], [0, 1, 3], [0], [0, 1]], 4)
    # Prefixes of two or more: 3 rows. (0) is used by (0 1) and by target 2. (0 1): by three.
    assert tree.stats().rows_read == 3 + 2 + 3


def test_edges_of_prefixes_are_edges_of_the_graph() -> None:
    edges = torch.tensor([[3, 1, 1, 0, 3, 0], [1, 0, 1, 0, 0, 1]])
    tree = build_sequence(edges, num_nodes=4)
    assert tree.edge[0] == -1
    assert edges[0][tree.edge[1:]].tolist() == tree.source[1:].tolist()
    assert lists_of(tree) == [[1, 0, 3], [3, 1, 0], [], []]


@pytest.mark.parametrize("order", ORDERS)
def test_orders(order: Any) -> None:
    # Source 2 has the most edges (3), then 1 and 3 (2), then 0. In-degrees: 4, 2, 1, 1.
    edges = torch.tensor([[3, 2, 1, 0, 2, 3, 1, 2], [0, 0, 0, 0, 1, 1, 2, 3]])
    lists = {
        "stock": [[3, 2, 1, 0], [2, 3], [1], [2]],
        "id": [[0, 1, 2, 3], [2, 3], [1], [2]],
        "frequency": [[2, 1, 3, 0], [2, 3], [1], [2]],
        "degree": [[0, 1, 2, 3], [2, 3], [1], [2]],
    }
    assert lists_of(build_sequence(edges, num_nodes=4, order=order)) == lists[order]


@pytest.mark.slow
def test_a_list_of_ten_thousand_does_not_recurse() -> None:
    length, limit = 10_000, sys.getrecursionlimit()
    lists = [list(range(length)), list(range(length - 1)), []]
    sys.setrecursionlimit(300)
    try:
        tree = tree_of(lists, length)
    finally:
        sys.setrecursionlimit(limit)
    assert tree.num_prefixes == length
    x = torch.randn(length, 2, requires_grad=True)
    out = lstm_aggregate(x, tree, nn.LSTM(2, 2))
    torch.autograd.backward(out.sum())
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_memory_is_linear_in_distinct_prefixes() -> None:
    # A thousand equal lists of a hundred: a hundred prefixes, not a hundred thousand.
    tree = tree_of([list(range(100))] * 1000, 100)
    assert tree.num_prefixes == 100
    entries = sum(a.numel() for a in (tree.parent, tree.source, tree.edge, tree.level_ptr))
    assert entries < 500


@pytest.mark.mostly_slow("BZR_MD-*")
@pytest.mark.parametrize(
    ("name", "order", "loops", "least"),
    [
        ("BZR_MD", "frequency", False, 1.75),
        ("BZR_MD", "stock", True, 22.0),
        ("IMDB-MULTI", "frequency", False, 1.5),
        ("COLLAB_ego_recon", "frequency", False, 1.84),
    ],
)
def test_aggregations_saved_on_real_graphs(
    shared_data: Path, name: str, order: Any, loops: bool, least: float
) -> None:
    data = datasets.load(name, shared_data / "npz", features=False)
    edges = data.edge_index
    if loops:
        edges = torch.cat([edges, torch.arange(data.num_nodes).expand(2, -1)], 1)
        edges = edges[:, torch.sort(edges[0], stable=True).indices]  # neighbours by id
    stats = build_sequence(edges, num_nodes=data.num_nodes, order=order).stats()
    assert stats.aggregations_before / stats.aggregations > least


@pytest.mark.slow
def test_real_lists_have_as_many_prefixes_as_a_set_counts(shared_data: Path) -> None:
    data = datasets.load("IMDB-MULTI", shared_data / "npz", features=False)
    tree = build_sequence(data.edge_index, num_nodes=data.num_nodes, order="frequency")
    lists = lists_of(tree)
    assert tree.num_prefixes == len(distinct_prefixes(lists))
    edges = set(zip(*data.edge_index.tolist(), strict=True))
    assert {(s, t) for t, row in enumerate(lists) for s in row} == edges
    assert sum(map(len, lists)) == data.num_edges


# LSTM -------------------------------------------------------------------------------------------


def gradients(out: Tensor, *inputs: Tensor) -> list[Tensor]:
    """The output and the gradients of a weighted sum of it."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, generator=generator, dtype=out.dtype)
    found = torch.autograd.grad((out * weight).sum(), inputs, allow_unused=True)
    pairs = zip(found, inputs, strict=True)
    return [out, *(torch.zeros_like(x) if g is None else g for g, x in pairs)]


def assert_equal(ours: Sequence[Tensor], stock: Sequence[Tensor]) -> None:
    for a, b in zip(ours, stock, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def loop_lstm(x: Tensor, lists: Lists, lstm: nn.LSTM, padded: bool) -> Tensor:
    """The LSTM over one list at a time."""
    longest = max(map(len, lists), default=0)
    rows = []
    for row in lists:
        steps = x[torch.tensor(row, dtype=torch.int64)]
        if padded:
            steps = torch.cat([steps, x.new_zeros(longest - len(row), x.shape[1])])
        state = lstm(steps.unsqueeze(1))[0][-1, 0] if len(steps) else x.new_zeros(lstm.hidden_size)
        rows.append(state)
    return torch.stack(rows) if rows else x.new_zeros(0, lstm.hidden_size)


@given(
    neighbour_lists(),
    st.booleans(),
    st.sampled_from([{}, {"bias": False}, {"num_layers": 3}]),
)
@settings(max_examples=60)
def test_lstm_equals_one_list_at_a_time(
    graph: tuple[Lists, int], padded: bool, options: dict[str, Any]
) -> None:
    lists, num_src = graph
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 4, **options).double()
    x = torch.randn(num_src, 3, dtype=torch.float64, requires_grad=True)
    inputs = (x, *lstm.parameters())
    ours = lstm_aggregate(x, tree_of(lists, num_src), lstm, padded=padded)
    stock = loop_lstm(x, lists, lstm, padded)
    assert ours.shape == stock.shape
    if any(lists):
        assert_equal(gradients(ours, *inputs), gradients(stock, *inputs))
    else:
        assert not bool(ours.any())


def random_edges(num_src: int, num_dst: int, count: int) -> Tensor:
    """Edges with duplicates and isolated nodes, by target."""
    generator = torch.Generator().manual_seed(3)
    source = torch.randint(num_src, (count,), generator=generator)
    target = torch.randint(max(num_dst - 2, 1), (count,), generator=generator).sort().values
    return torch.stack([source, target])


@pytest.mark.parametrize(("num_src", "num_dst", "count"), [(9, 9, 40), (12, 7, 12), (5, 5, 5)])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}])
def test_pyg_aggregation_is_a_drop_in(
    num_src: int, num_dst: int, count: int, options: dict[str, Any]
) -> None:
    from torch_geometric.nn.aggr import LSTMAggregation

    edges = random_edges(num_src, num_dst, count)
    tree = build_sequence(edges, size=(num_src, num_dst))
    stock = LSTMAggregation(3, 4, **options).double()
    ours = hp.pyg.PrefixLSTMAggregation(3, 4, sequence=tree, **options).double()
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(num_src, 3, dtype=torch.float64, requires_grad=True)
    found = [
        gradients(layer(x[edges[0]], edges[1], dim_size=num_dst), x, *layer.parameters())
        for layer in (ours, stock)
    ]
    assert_equal(*found)


def test_sageconv_lstm_on_a_real_graph(shared_data: Path) -> None:
    from torch_geometric.nn import SAGEConv

    data = datasets.load("MUTAG", shared_data / "npz", features=False)
    by = torch.sort(data.edge_index[1], stable=True).indices
    edges = data.edge_index[:, by]
    stock = SAGEConv(5, 3, aggr="lstm").double()
    tree = build_sequence(edges, num_nodes=data.num_nodes)
    ours = SAGEConv(5, 3, aggr=hp.pyg.PrefixLSTMAggregation(5, 5, sequence=tree)).double()
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(data.num_nodes, 5, dtype=torch.float64, requires_grad=True)
    assert_equal(*(gradients(conv(x, edges), x, *conv.parameters()) for conv in (ours, stock)))


def test_pyg_aggregation_without_a_tree_is_stock_and_checks_the_graph() -> None:
    edges = random_edges(6, 6, 20)
    x = torch.randn(20, 3)
    layer = hp.pyg.PrefixLSTMAggregation(3, 3)
    stock = layer(x[edges[0]], edges[1], dim_size=6)
    layer.sequence = build_sequence(edges, num_nodes=6)
    torch.testing.assert_close(layer(x[edges[0]], edges[1], dim_size=6), stock)
    with pytest.raises(ValueError, match="20 edges of 7 targets; expected those of the tree"):
        layer(x[edges[0]], edges[1], dim_size=7)
    with pytest.raises(ValueError, match="not sorted"):
        layer(x[edges[0]], edges[1].flip(0), dim_size=6)
    with pytest.raises(ValueError, match="max_num_elements is 2"):
        layer(x[edges[0]], edges[1], dim_size=6, max_num_elements=2)


@pytest.mark.skipif(importlib.util.find_spec("dgl") is None, reason="DGL is not installed")
def test_dgl_sageconv_lstm() -> None:
    os.environ.setdefault("DGLBACKEND", "pytorch")
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import dgl
        from dgl.nn.pytorch import SAGEConv

        edges = random_edges(9, 9, 40)[:, torch.randperm(40)]
        graph = dgl.graph((edges[0], edges[1]), num_nodes=9)
        conv = SAGEConv(4, 3, "lstm").double()
        x = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
        stock = gradients(conv(graph, x), x, *conv.parameters())
        tree = build_sequence(torch.stack(graph.edges(order="eid")), num_nodes=9)
    neighbours = lstm_aggregate(x, tree, conv.lstm)
    ours = conv.fc_self(x) + conv.fc_neigh(neighbours)
    assert_equal(gradients(ours, x, *conv.parameters()), stock)


def test_what_an_lstm_may_be() -> None:
    tree, x = tree_of([[0, 1]], 2), torch.ones(2, 3)
    with pytest.raises(TypeError, match="lstm is a GRU"):
        lstm_aggregate(x, tree, nn.GRU(3, 3))  # type: ignore[arg-type]
    for options, words in (
        ({"bidirectional": True}, "bidirectional=True"),
        ({"proj_size": 2}, "proj_size=2"),
        ({"dropout": 0.5, "num_layers": 2}, "dropout=0.5 in training"),
    ):
        with pytest.raises(ValueError, match=words):
            lstm_aggregate(x, tree, nn.LSTM(3, 3, **options))
    assert lstm_aggregate(x, tree, nn.LSTM(3, 3, num_layers=2, dropout=0.5).eval()).shape == (1, 3)
    with pytest.raises(ValueError, match=r"x has shape \[3, 3\].*expected \[2, 3\]"):
        lstm_aggregate(torch.ones(3, 3), tree, nn.LSTM(3, 3))


# Tree-LSTM --------------------------------------------------------------------------------------


@given(neighbour_lists())
@settings(max_examples=60)
def test_child_sum_equals_a_loop(graph: tuple[Lists, int]) -> None:
    lists, num_src = graph
    torch.manual_seed(0)
    x = torch.randn(num_src, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(12, 5, 3, dtype=torch.float64, requires_grad=True)
    rows = [sum((weight[n] @ x[s] for n, s in enumerate(row)), x.new_zeros(5)) for row in lists]
    ours = child_sum(x, tree_of(lists, num_src), weight)
    assert ours.shape == (len(lists), 5)
    if any(lists):
        assert_equal(gradients(ours, x, weight), gradients(torch.stack(rows), x, weight))


def test_an_n_ary_tree_lstm_from_child_sums() -> None:
    """Equations 9 to 14 of Tai et al. (2015): gates by `child_sum`, against the formulas."""
    torch.manual_seed(0)
    lists, hidden, arity = [[0, 1], [0, 1], [0, 2], [3]], 3, 2
    h, c = torch.randn(2, 4, hidden, dtype=torch.float64)
    given_x = torch.randn(4, hidden, dtype=torch.float64)
    w = {g: torch.randn(hidden, hidden, dtype=torch.float64) for g in "ifou"}
    u = {g: torch.randn(arity, hidden, hidden, dtype=torch.float64) for g in "iou"}
    u_forget = torch.randn(arity, arity, hidden, hidden, dtype=torch.float64)

    tree = tree_of(lists, 4)
    gates = child_sum(h, tree, torch.cat([u["i"], u["o"], u["u"], *u_forget], dim=1))
    i, o, new, *forget = gates.chunk(3 + arity, 1)
    ours = (given_x @ w["i"].t() + i).sigmoid() * (given_x @ w["u"].t() + new).tanh()
    for target, row in enumerate(lists):
        for k, child in enumerate(row):
            gate = (w["f"] @ given_x[target] + forget[k][target]).sigmoid()
            ours[target] = ours[target] + gate * c[child]
    ours = (given_x @ w["o"].t() + o).sigmoid() * ours.tanh()

    for target, row in enumerate(lists):

        def total(matrices: Tensor, row: list[int] = row) -> Tensor:
            return torch.stack([matrices[n] @ h[s] for n, s in enumerate(row)]).sum(0)

        x = given_x[target]
        cell = (w["i"] @ x + total(u["i"])).sigmoid() * (w["u"] @ x + total(u["u"])).tanh()
        for k, child in enumerate(row):
            cell = cell + (w["f"] @ x + total(u_forget[k])).sigmoid() * c[child]
        expected = (w["o"] @ x + total(u["o"])).sigmoid() * cell.tanh()
        torch.testing.assert_close(ours[target], expected, rtol=1e-12, atol=1e-12)


def test_child_sum_says_what_does_not_fit() -> None:
    tree = tree_of([[0, 1]], 2)
    with pytest.raises(ValueError, match=r"length of the longest list, 2"):
        child_sum(torch.ones(2, 3), tree, torch.ones(1, 4, 3))


# What a call may pass ---------------------------------------------------------------------------


def test_wrong_graphs_are_named() -> None:
    edges = torch.tensor([[0, 5], [1, 0]])
    with pytest.raises(ValueError, match="holds source 5; expected 0 to 2"):
        build_sequence(edges, num_nodes=3)
    with pytest.raises(ValueError, match="order is 'alphabet'; expected one of"):
        build_sequence(edges, order="alphabet")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="both given"):
        build_sequence(edges, num_nodes=6, size=(6, 6))
    with pytest.raises(ValueError, match="one set of nodes; got 6 and 2"):
        build_sequence(edges, size=(6, 2), order="degree")
    with pytest.raises(ValueError, match="size is -1; expected 0 to"):
        build_sequence(edges, size=(-1, 2))
    with pytest.raises(TypeError, match="float32"):
        build_sequence(edges.float())


def test_moves() -> None:
    tree = tree_of([[0, 1], [0]], 2)
    assert tree.to("meta").source.device.type == "meta"
    assert tree.to("cpu").device.type == "cpu"
