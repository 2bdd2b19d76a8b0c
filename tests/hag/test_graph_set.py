"""Many small graphs in one call: as each built alone, and batches as the union of their graphs."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import hag_plugin as hp
from hag_plugin.hag import constants
from hag_plugin.hag.build import build_hags
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import SELF_LOOPS, SelfLoops
from hag_plugin.kernels import _cpu

# Edges and the number of nodes: empty, one node with and without a loop, isolated nodes,
# duplicates, loops, directed, cliques (of which much is shared), a path (nothing is).
KINDS: dict[str, tuple[list[tuple[int, int]], int]] = {
    "empty": ([], 0),
    "one node": ([], 1),
    "one loop": ([(0, 0)], 1),
    "isolated": ([(3, 1), (1, 3)], 6),
    "duplicates": ([(0, 1), (0, 1), (2, 1), (0, 2), (0, 2), (2, 2)], 3),
    "directed": ([(i, j) for i in range(5) for j in range(5, 12)], 12),
    "clique": ([(i, j) for i in range(9) for j in range(9) if i != j], 9),
    "looped clique": ([(i, j) for i in range(7) for j in range(7)], 7),
    "path": ([e for i in range(8) for e in ((i, i + 1), (i + 1, i))], 9),
    "large clique": ([(i, j) for i in range(20) for j in range(20) if i != j], 20),
    "cliques": (
        [(i, j) for i in range(200) for j in range(200) if i != j and i // 40 == j // 40],
        200,
    ),
}


def _graphs(names: Sequence[str], dtype: torch.dtype = torch.int64) -> list[tuple[Tensor, int]]:
    return [
        (torch.tensor(edges, dtype=dtype).reshape(-1, 2).T, nodes)
        for edges, nodes in map(KINDS.__getitem__, names)
    ]


def _union(graphs: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, int]:
    first, parts = 0, []
    for edge_index, nodes in graphs:
        parts.append(edge_index.long() + first)
        first += nodes
    return torch.cat(parts, dim=1), first


def _check(hag: HAG, edge_index: Tensor) -> None:
    hag.check(edge_index)
    assert hag.matches(edge_index)
    for mode in SELF_LOOPS:
        hag.check(edge_index, mode)
        reverse = hag.transpose()
        reverse.check(edge_index.flip(0), mode)


@pytest.mark.parametrize("method", ["auto", "none"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_each_is_as_built_alone(dtype: torch.dtype, method: str) -> None:
    graphs = _graphs(list(KINDS), dtype)
    hags = build_hags(*map(list, zip(*graphs, strict=True)), method=method, self_loops=SELF_LOOPS,
                      transpose=True)  # fmt: skip
    for hag, (edge_index, nodes) in zip(hags, graphs, strict=True):
        alone = hp.build_hag(edge_index, num_nodes=nodes, method=method)
        assert hag.content_hash == alone.content_hash
        assert hag.is_symmetric == alone.is_symmetric
        for mode in SELF_LOOPS:
            for a, b in zip(hag.program(mode).arrays, alone.program(mode).arrays, strict=True):
                assert torch.equal(a, b)
        _check(hag, edge_index)


BATCHES = {
    "all": list(KINDS),
    "plain": ["path", "empty", "one node", "path", "isolated"],
    "loopless": ["clique", "path", "directed", "cliques", "clique"],
    "one": ["clique"],
    "nothing": ["empty", "empty"],
}


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("names", BATCHES.values(), ids=BATCHES)
def test_a_batch_is_the_union(names: list[str], apart: bool) -> None:
    """Graphs of one set, and graphs that were built each for itself; and batches of batches."""
    known = build_hags(*map(list, zip(*_graphs(list(KINDS)), strict=True)))
    graphs = _graphs(names)
    if apart:
        hags = [hp.build_hag(edges, num_nodes=nodes) for edges, nodes in graphs]
    else:
        hags = [known[list(KINDS).index(name)] for name in names]
    whole = hp.batch(hags)
    _check(whole, _union(graphs)[0])
    twice = hp.batch([whole, hags[0]])
    _check(twice, _union([*graphs, graphs[0]])[0])
    back = pickle.loads(pickle.dumps(whole))
    _check(back, _union(graphs)[0])


@pytest.mark.parametrize("mode", SELF_LOOPS)
@pytest.mark.parametrize("names", BATCHES.values(), ids=BATCHES)
def test_a_program_of_a_batch_needs_no_check(names: list[str], mode: SelfLoops) -> None:
    """It knows what one that is checked finds out."""
    hags = build_hags(*map(list, zip(*_graphs(names), strict=True)))
    whole = hp.batch(hags)
    program = whole.program(mode)
    checked = _cpu.Program(*program.numpy(), whole.num_src, whole.num_dst, 0)
    for fact in ("num_tiles", "num_ops", "num_partials", "scratch_rows", "num_src", "num_dst"):
        assert getattr(program.native, fact) == getattr(checked, fact)
    assert program.native.count_reads() == checked.count_reads()


@pytest.mark.parametrize("mode", SELF_LOOPS)
@pytest.mark.parametrize("names", BATCHES.values(), ids=BATCHES)
def test_a_batch_chooses_by_the_seconds_of_its_graphs(names: list[str], mode: SelfLoops) -> None:
    """Those that each takes alone, whether the graphs are of one set or of many, or handed over."""
    graphs = _graphs(names)
    hags = build_hags(*map(list, zip(*graphs, strict=True)), choose="model")
    apart = [hp.build_hag(edges, num_nodes=nodes, choose="model") for edges, nodes in graphs]
    handed_over = pickle.loads(pickle.dumps(hp.batch(hags)))
    for whole in (hp.batch(hags), hp.batch(apart), handed_over):
        choices = [hag.choice(64, self_loops=mode).seconds for hag in hags]
        shares = [seconds for seconds in choices if seconds]
        found = whole.choice(64, self_loops=mode).seconds
        assert bool(found) == bool(shares)
        call = constants.in_force().call
        for name, seconds in found.items():
            expected = sum(each[name] - call for each in shares) + call
            assert seconds == pytest.approx(expected)


@pytest.mark.parametrize("mode", SELF_LOOPS)
@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_batches_aggregate_as_the_union(reduce: str, mode: SelfLoops) -> None:
    names = BATCHES["all"]
    graphs = _graphs(names)
    union, nodes = _union(graphs)
    whole = hp.batch(build_hags(*map(list, zip(*graphs, strict=True)), self_loops=mode))
    plain = hp.build_hag(union, num_nodes=nodes, method="none")
    x = torch.randn(nodes, 5, dtype=torch.float64)
    found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = hp.aggregate(found, whole, reduce, self_loops=mode)
    z = hp.aggregate(expected, plain, reduce, self_loops=mode)
    torch.testing.assert_close(y, z)
    weight = torch.randn_like(y)
    y.backward(weight)
    z.backward(weight)
    torch.testing.assert_close(found.grad, expected.grad)


def test_what_nothing_is_shared_in_costs_its_edges() -> None:
    """The program of a batch reads no row of a plain graph twice."""
    hags = build_hags(*map(list, zip(*_graphs(["path", "large clique"]), strict=True)))
    assert hags[0].program().is_plain
    assert not hags[1].program().is_plain
    alone, both = hags[1].program(), hp.batch(hags).program()
    assert both.source.numel() - alone.source.numel() == hags[0].num_edges
    assert both.target.numel() - alone.target.numel() == hags[0].num_dst


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"graph 1: edge_index\[1, 0\] is 3"):
        build_hags([torch.zeros(2, 0, dtype=torch.long), torch.tensor([[0], [3]])], [2, 3])
    with pytest.raises(TypeError, match="expected int32 or int64"):
        build_hags([torch.zeros(2, 1)], [1])
    with pytest.raises(ValueError, match="expected as many"):
        build_hags([torch.zeros(2, 0, dtype=torch.long)], [1, 2])


def test_what_is_no_set_is_refused() -> None:
    for call in (_cpu.batch_graphs, _cpu.gather, lambda s, g: _cpu.batch_programs(s, g, "", False)):
        with pytest.raises(ValueError, match="sets holds None"):
            call([None], [0])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="programs holds None"):
        _cpu.concatenate([None])  # type: ignore[list-item]
