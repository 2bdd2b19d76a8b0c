"""What strategies send, compute and hold, against counts by hand, and the rules that follow."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hag_plugin.parallel.graphs.stats import GraphStats, measure
from hag_plugin.parallel.layouts import (
    COLUMNS,
    REPLICATED,
    ROWS,
    Layout,
    chunk_sizes,
    held,
    reshard,
    sent_bytes,
)
from hag_plugin.parallel.model.opgraph import Op, OpGraph, convolution
from hag_plugin.parallel.strategies.convolution import AGGREGATE, TRANSFORM
from hag_plugin.parallel.strategies.registry import (
    REGISTRY,
    Config,
    Problem,
    Terms,
    configs_of,
    terms_of,
)

S = 4  # bytes a value


def problem(
    devices: int, width_in: int, width: int, stats: GraphStats, **changes: object
) -> Problem:
    op = convolution("conv", 0, width_in, width, **changes)
    graph = OpGraph.of([Op("x", "input", width=width_in), op], {"A": stats}, S)
    return Problem(graph, op, devices)


def terms(case: Problem, strategy: str, **wanted: object) -> Terms:
    """The terms of the one configuration of a strategy with these settings."""
    found = [
        c
        for c in configs_of(case)[0]
        if c.strategy == strategy and all(getattr(c, k) == v for k, v in wanted.items())
    ]
    assert len(found) == 1, found
    return terms_of(case, found[0])


def sent(case: Problem, strategy: str, **wanted: object) -> int:
    """Bytes that the busiest device sends, weights left out."""
    return int(np.max(terms(case, strategy, hag="off", **wanted).sent("forward", "backward")))


# Layouts --------------------------------------------------------------------------------------


def owners(layout: Layout, rows: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """For each device, which values `[N, width]` it has."""
    P = len(rows)
    columns = {"rows": 1, "columns": P}.get(layout.kind, layout.columns)
    row_of = np.repeat(np.arange(P), rows) // columns
    column_of = np.repeat(np.arange(columns), chunk_sizes(width, columns))
    for p in range(P):
        if layout.kind == "replicated":
            yield np.ones((rows.sum(), width), bool)
        else:
            yield np.outer(row_of == p // columns, column_of == p % columns)


LAYOUTS = [REPLICATED, ROWS, COLUMNS, Layout("grid", 2)]


@pytest.mark.parametrize("rows", [[3, 3, 3, 3], [3, 3, 3, 1], [5, 0, 2, 4]])
@pytest.mark.parametrize("width", [8, 10])
def test_all_to_alls_send_what_changes_its_owner(rows: list[int], width: int) -> None:
    parts = np.array(rows)
    pairs = [(ROWS, COLUMNS), (COLUMNS, ROWS), (ROWS, LAYOUTS[3]), (LAYOUTS[3], ROWS)]
    for before, after in pairs:
        [message] = reshard(before, after, parts, width, S, "forward")
        have, want = list(owners(before, parts, width)), list(owners(after, parts, width))
        for p, q in itertools.permutations(range(4), 2):
            assert not (have[p] & have[q]).any()
        expected = [
            S * sum(int((have[p] & want[q]).sum()) for q in range(4) if q != p) for p in range(4)
        ]
        assert message.sent.tolist() == expected
        assert message.collective == "all_to_all"


@pytest.mark.parametrize("before", LAYOUTS[1:])
def test_gathers_send_the_padded_shard_to_all(before: Layout) -> None:
    parts, width = np.array([3, 3, 3, 1]), 10
    [message] = reshard(before, REPLICATED, parts, width, S, "forward")
    largest = held(before, parts, width)
    shapes = [(o.any(axis=1).sum(), o.any(axis=0).sum()) for o in owners(before, parts, width)]
    assert largest == max(a for a, _ in shapes) * max(b for _, b in shapes)
    assert message.sent.tolist() == [3 * largest * S] * 4


def test_slicing_sends_nothing_and_grids_reach_columns_by_rows() -> None:
    parts = np.array([4, 4, 4, 4])
    for after in LAYOUTS:
        assert reshard(REPLICATED, after, parts, 8, S, "forward") == []
        assert reshard(after, after, parts, 8, S, "forward") == []
    assert len(reshard(Layout("grid", 2), COLUMNS, parts, 8, S, "forward")) == 2


@given(st.integers(1, 200), st.integers(1, 32))
def test_chunks_are_torchs(total: int, parts: int) -> None:
    sizes = [len(c) for c in torch.arange(total).chunk(parts)]
    assert chunk_sizes(total, parts).tolist() == sizes + [0] * (parts - len(sizes))


def test_ring_bytes() -> None:
    assert sent_bytes("all_gather", 100, 4) == 300
    assert sent_bytes("all_reduce", 100, 4) == 150
    with pytest.raises(ValueError, match="collective is 'exchange'"):
        sent_bytes("exchange", 1, 2)


# Halos ----------------------------------------------------------------------------------------


def cut(edges: np.ndarray, owner: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Halos and minimum vertex covers, by sets and by networkx."""
    networkx = pytest.importorskip("networkx")
    halo, cover = np.zeros((2, parts, parts), int)
    for p, q in itertools.permutations(range(parts), 2):
        pairs = {(a, b) for a, b in edges.T.tolist() if owner[b] == p and owner[a] == q}
        halo[p, q] = len({a for a, _ in pairs})
        graph = networkx.Graph([(("source", a), ("target", b)) for a, b in pairs])
        top = {n for n in graph if n[0] == "source"}
        cover[p, q] = len(networkx.bipartite.maximum_matching(graph, top)) // 2
    return halo, cover


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(4, 30), st.integers(0, 120), st.integers(2, 4))
def test_partitions_are_counted_exactly(seed: int, nodes: int, count: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    edges = rng.integers(0, nodes, (2, count))
    stats = measure(torch.from_numpy(edges), nodes, self_loops="add", hag=False)
    owner = np.repeat(np.arange(parts), chunk_sizes(nodes, parts))
    partition = stats.partition(parts)
    halo, cover = cut(edges, owner, parts)
    assert partition.halo.tolist() == halo.tolist()
    assert partition.cover is not None
    assert partition.cover.tolist() == cover.tolist()
    degrees = np.bincount(owner[edges[1]], minlength=parts)
    assert partition.edges.tolist() == (degrees + partition.rows).tolist()
    if parts == 4:
        merged = stats.partition(4, 2)
        assert merged.halo.tolist() == cut(edges, owner // 2, 2)[0].tolist()


def test_parts_can_be_given() -> None:
    edges = torch.tensor([[0, 3, 1], [3, 0, 2]])
    stats = measure(edges, 4, part=lambda parts: np.array([0, 0, 0, 1]), hag=False)
    assert stats.partition(2).rows.tolist() == [3, 1]
    assert stats.partition(2).halo.tolist() == [[0, 1], [1, 0]]
    wrong = measure(edges, 4, part=lambda parts: np.array([1, 0, 0, 1]), hag=False)
    with pytest.raises(ValueError, match="increasing"):
        wrong.partition(2)
    with pytest.raises(ValueError, match="4 nodes cannot be cut into 5"):
        stats.partition(5)


def test_hags_of_parts_and_of_the_whole_on_a_real_graph(shared_data: Path) -> None:
    from hag_plugin.data import datasets

    data = datasets.load("IMDB-BINARY", shared_data / "npz")
    stats = measure(data.edge_index, data.num_nodes, self_loops="fill")
    assert stats.hag is not None
    assert stats.hag.rows_read < 0.5 * stats.edges  # cliques share
    partition = stats.partition(4)
    assert partition.hags is not None
    for counts, edges in zip(partition.hags, partition.edges, strict=True):
        assert counts.rows_read <= edges
    assert sum(h.rows_read for h in partition.hags) >= 0.9 * stats.hag.rows_read
    assert partition.cover is not None
    assert (partition.cover <= partition.halo).all()
    assert stats.without_hags().partition(4).hags is None


def test_halo_messages_are_counted_by_device() -> None:
    rng = np.random.default_rng(0)
    edges = rng.integers(0, 50, (2, 300))
    stats = measure(torch.from_numpy(edges), 50, hag=False)
    halo = stats.partition(4).halo
    case = problem(4, 16, 8, stats)
    for order, width in ((AGGREGATE, 16), (TRANSFORM, 8)):
        forward, backward, update = terms(case, "rows, halo", order=order).messages
        assert forward.sent.tolist() == (halo.sum(axis=0) * width * S).tolist()
        assert backward.sent.tolist() == (halo.sum(axis=1) * width * S).tolist()
        assert update.sent.tolist() == [2 * 3 * 16 * 8 * S // 4] * 4


# Rules ----------------------------------------------------------------------------------------


def test_flops_of_one_device() -> None:
    N, E, F, G = 1000, 20_000, 24, 40
    stats = GraphStats.assumed(N, E)
    for input_grad, first, second in (
        (True, 4 * E * F + 6 * N * F * G, 4 * E * G + 6 * N * F * G),
        (False, 2 * E * F + 4 * N * F * G, 4 * E * G + 4 * N * F * G),
    ):
        case = problem(1, F, G, stats, input_grad=input_grad)
        assert terms(case, "replicate", order=AGGREGATE).flops == first
        assert terms(case, "replicate", order=TRANSFORM).flops == second


@pytest.mark.parametrize("P", [2, 4, 8, 16])
def test_all_to_all_sends_two_pths_of_an_all_gather(P: int) -> None:
    case = problem(P, 64, 64, GraphStats.assumed(1600, 20_000))
    columns = sent(case, "all-to-all around aggregation", source=ROWS, target=ROWS, order=AGGREGATE)
    rows = sent(case, "rows, all-gather", order=AGGREGATE)
    assert columns * P == 2 * rows


@pytest.mark.parametrize("P", [2, 4, 8])
@pytest.mark.parametrize("ratio", [0.1, 0.9, 1.1, 1.7, 1.9, 4.0])
def test_columns_beat_halos_iff_halos_are_large(P: int, ratio: float) -> None:
    stats = GraphStats.assumed(16_000, 200_000, halo_ratio=ratio)
    case, r = problem(P, 64, 64, stats), stats.partition(P).halo_ratio
    columns = sent(case, "all-to-all around aggregation", source=ROWS, target=ROWS, order=AGGREGATE)
    halo = sent(case, "rows, halo", order=AGGREGATE)
    assert (columns < halo) == (r > 2 * (P - 1) / P)


@pytest.mark.parametrize("G", [8, 16, 24, 32, 64, 128])
def test_row_split_weights_win_iff_the_output_is_narrow(G: int) -> None:
    P, F = 8, 128
    case = problem(P, F, G, GraphStats.assumed(16_000, 200_000))
    split = sent(case, "columns, row-split weights", target=ROWS)
    both_ways = {"source": ROWS, "target": ROWS, "order": AGGREGATE}
    copies = sent(case, "all-to-all around aggregation", **both_ways)
    assert (split < copies) == (G < 2 * F / P)


@pytest.mark.parametrize("strategy", ["rows, halo", "rows, all-gather"])
def test_the_narrower_side_is_sent_and_fixed_input_sends_once(strategy: str) -> None:
    stats = GraphStats.assumed(16_000, 200_000, halo_ratio=1.0)
    for F, G in ((64, 32), (32, 64)):
        case = problem(4, F, G, stats)
        both = {o: terms(case, strategy, order=o, hag="off") for o in (AGGREGATE, TRANSFORM)}
        smaller = min(both, key=lambda o: int(np.max(both[o].sent("forward", "backward"))))
        assert smaller == min(both, key=lambda o: both[o].flops)
        assert smaller == (TRANSFORM if G < F else AGGREGATE)
    fixed = problem(4, 64, 64, stats, input_grad=False)
    assert sent(fixed, strategy, order=AGGREGATE) == 0  # in a step
    assert sent(fixed, strategy, order=TRANSFORM) > 0
    found = terms(fixed, strategy, order=AGGREGATE)
    assert len(found.laid_out) == 1
    assert len(found.aggregations) == 1  # none backward
    assert not terms(fixed, strategy, order=TRANSFORM).laid_out


def test_the_pair_never_sends_its_hidden_width() -> None:
    P, hidden, classes, N = 8, 4096, 16, 8000
    stats = GraphStats.assumed(N, 100_000)
    first = problem(P, 64, hidden, stats, input_grad=False)
    second = problem(P, hidden, classes, stats)
    one = terms(first, "column-split weights", source=REPLICATED)
    two = terms(second, "columns, row-split weights", target=ROWS)
    assert one.messages == []
    n = N // P
    assert int(np.max(two.sent("forward", "backward"))) == 2 * (P - 1) * n * classes * S
    assert int(np.max(two.sent("update"))) == 0  # no bias, weights without copies


def test_columns_are_balanced_and_rows_are_not() -> None:
    E, P = 80_000, 8
    case = problem(P, 64, 64, GraphStats.assumed(8000, E, imbalance=3.0))
    columns = terms(case, "all-to-all around aggregation", source=ROWS, target=ROWS,
                    order=AGGREGATE)  # fmt: skip
    rows = terms(case, "rows, halo", order=AGGREGATE)
    assert {(a.rows_read, a.width) for a in columns.aggregations} == {(E, 64 // P)}
    assert {(a.rows_read, a.width) for a in rows.aggregations} == {(3 * E // P, 64)}


def test_hags_shorten_aggregations_and_change_no_message() -> None:
    stats = GraphStats.assumed(8000, 80_000, hag=0.25, hag_parts=0.5)
    case = problem(4, 64, 64, stats)
    for name, hag, share in (
        ("rows, halo", "part", 0.5),
        ("all-to-all around aggregation", "whole", 0.25),
        ("columns, row-split weights", "whole", 0.25),
        ("column-split weights", "whole", 0.25),
    ):
        configs = [c for c in configs_of(case)[0] if c.strategy == name]
        plain = next(c for c in configs if c.hag == "off")
        shared = Config(name, plain.source, plain.target, plain.order, hag)
        assert shared in configs
        with_hag, without = terms_of(case, shared), terms_of(case, plain)
        assert with_hag.aggregations[0].rows_read == share * without.aggregations[0].rows_read
        pairs = zip(with_hag.messages, without.messages, strict=True)
        assert all((a.sent == b.sent).all() for a, b in pairs)


def test_grid_exchanges_a_slice_among_fewer_rows() -> None:
    rng = np.random.default_rng(1)
    edges = rng.integers(0, 60, (2, 400))
    stats = measure(torch.from_numpy(edges), 60, hag=False)
    case = problem(4, 10, 6, stats)
    config = Config("2-D grid", Layout("grid", 2), Layout("grid", 2), AGGREGATE)
    forward, backward, scatter, gather, update = terms_of(case, config).messages
    halo, widths = stats.partition(4, 2).halo, [5, 5]
    assert forward.sent.tolist() == [
        int(halo[:, i].sum()) * widths[j] * S for i in range(2) for j in range(2)
    ]
    assert backward.sent.sum() == forward.sent.sum()
    assert scatter.sent.tolist() == gather.sent.tolist() == [30 * 3 * S] * 4
    assert update.sent.tolist() == [5 * 6 * S] * 4
    assert (forward.columns, scatter.columns) == (-2, 2)


def test_relations_are_dealt_out_in_blocks() -> None:
    stats = GraphStats(100, 1000, "x", relation_edges=(500, 200, 150, 100, 50), _cut=None)
    from hag_plugin.parallel.strategies.grid import Relations

    op = convolution("conv", 0, 8, 8, relations=5)
    graph = OpGraph.of([Op("x", "input", width=8), op], {"A": stats}, S)
    assert Relations().busiest(Problem(graph, op, 2)) == (850, 3)


# Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "strategy", "words"),
    [
        ({"width_in": 3, "width": 64}, "columns, row-split weights", "3 features cannot be split"),
        ({"width": 5}, "column-split weights", "5 features cannot be split over 4"),
        ({"reduce": ("max",), "commutes": False}, "rows, vertex-cover halo", "sum or mean"),
        ({"reduce": ("max",), "commutes": False}, "column-split weights", "before the aggregation"),
        ({}, "relations", "1 relations, fewer than 4"),
        ({"relations": 2}, "all-to-all around aggregation", "split relations"),
        ({"transform": False}, "columns, row-split weights", "no weights"),
        ({"edge_products": ((4, 4),), "commutes": False}, "2-D grid", "no one pair"),
    ],
)
def test_what_cannot_be_split_is_refused(changes: dict, strategy: str, words: str) -> None:
    sizes = {"width_in": 64, "width": 64} | changes
    case = problem(4, sizes.pop("width_in"), sizes.pop("width"),
                   GraphStats.assumed(100, 1000), **sizes)  # fmt: skip
    configs, reasons = configs_of(case)
    assert words in reasons[strategy]
    assert strategy not in {c.strategy for c in configs}


def test_heads_are_split_evenly_or_not_at_all() -> None:
    stats = GraphStats.assumed(100, 1000)
    op = Op("conv", "attention", (0,), 24, 16, graph="A", heads=6)
    graph = OpGraph.of([Op("x", "input", width=16), op], {"A": stats}, S)
    assert "heads" in configs_of(Problem(graph, op, 4))[1]
    heads = [c for c in configs_of(Problem(graph, op, 3))[0] if c.strategy == "heads"]
    assert [c.target for c in heads] == [COLUMNS, COLUMNS]
    split, whole = (
        terms_of(Problem(graph, op, 3), c)
        for c in (heads[0], Config("replicate", REPLICATED, REPLICATED))
    )
    assert 3 * split.flops == whole.flops


def test_every_entry_says_what_it_is() -> None:
    for (kind, name), strategy in REGISTRY.items():
        assert kind in strategy.kinds
        assert strategy.executor == name == strategy.name
        assert set(strategy.soap) <= set("SOAP")
        assert type(strategy).__doc__
    wanted = {
        "replicate", "rows, all-gather", "rows, halo", "rows, vertex-cover halo",
        "columns, row-split weights", "all-to-all around aggregation", "column-split weights",
        "2-D grid", "relations",
    }  # fmt: skip
    assert {name for kind, name in REGISTRY if kind == "convolution"} == wanted
    assert ("attention", "heads") in REGISTRY
    case = problem(2, 4, 4, GraphStats.assumed(10, 10))
    with pytest.raises(ValueError, match="'conv' has strategy 'magic'"):
        terms_of(case, Config("magic", ROWS, ROWS))
