"""Graphs that an accelerated model meets first: equal to stock, and nothing of them is left."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch_geometric import EdgeIndex
from torch_geometric.utils import trim_to_layer

from examples.benchmark.sample_batches import Sampler
from hag_plugin.pyg import accelerate, explain
from hag_plugin.pyg.model import choice
from hag_plugin.testing import count_programs, limits

from ...cases import random_graph
from ..recipes.test_table import (
    CONFIGURATIONS,
    STOCK,
    WIDTH,
    assert_close,
    count_calls,
    run,
    variants,
)

WEIGHTED: dict[str, Callable[[], Any]] = {
    "gcn": lambda: pyg.GCNConv(WIDTH, 4),
    "gcn-improved": lambda: pyg.GCNConv(WIDTH, 4, improved=True),
    "graph": lambda: pyg.GraphConv(WIDTH, 4),
    "graph-mean": lambda: pyg.GraphConv(WIDTH, 4, aggr="mean"),
    "tag": lambda: pyg.TAGConv(WIDTH, 4),
    "gcn2": lambda: pyg.GCN2Conv(WIDTH, 0.1),
}
NUM_NODES = 20


class Twice(nn.Module):
    """One graph, two layers."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([first, second])

    def forward(self, x: Tensor, edge_index: Any, *args: Any) -> Tensor:
        for layer in self.layers:
            x = layer(x, edge_index, *args)
        return x


def sage(dtype: torch.dtype = torch.float64, **how: Any) -> Twice:
    return Twice(pyg.SAGEConv(WIDTH, WIDTH, **how), pyg.SAGEConv(WIDTH, WIDTH, **how)).to(dtype)


def features(rows: int = NUM_NODES, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64).to(dtype)


def edges_of(seed: int, count: int = 60) -> Tensor:
    return random_graph(NUM_NODES, NUM_NODES, count, seed)


def assert_met(stock: nn.Module, x: Tensor, *args: Any, reason: str = choice.MET) -> None:
    """The first call of an accelerated copy equals stock's and runs no code of stock's."""
    ours = accelerate(copy.deepcopy(stock))
    given = x.clone().requires_grad_()
    # Gradients of stock's with int32 are wrong in some versions: torch's gather reads elsewhere.
    wide = [a.long() if isinstance(a, Tensor) and a.dtype == torch.int32 else a for a in args]
    expected = run(stock, [given], given, *wide)
    for found, of_stock in zip(run(ours, [given], given, *args), expected, strict=True):
        assert_close(found, of_stock)
    for row in explain(ours):
        assert row.calls.counts == {"plain": 1}, row
        assert row.calls.reasons == {"plain": reason}


@pytest.mark.parametrize("graph", ["multigraph"], indirect=True)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_layer_equals_stock(name: str, graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = CONFIGURATIONS[name]().double()
    accelerated = accelerate(copy.deepcopy(stock))
    x = features(graph.num_src).requires_grad_()
    plain, _ = variants(stock, x, graph)
    expected = run(stock, [x], *plain)
    calls = count_calls(type(stock), monkeypatch)
    for ours, theirs in zip(run(accelerated, [x], *plain), expected, strict=True):
        assert_close(ours, theirs)
    if not getattr(stock, "cached", False):  # stock fills a cache
        assert bool(calls) == (name in STOCK), explain(accelerated)


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("learned", [False, True])
def test_edge_weights(name: str, learned: bool) -> None:
    stock = WEIGHTED[name]().double()
    edge_index, x = edges_of(1), features()
    weight = torch.rand(edge_index.shape[1], dtype=torch.float64).requires_grad_(learned)
    given = [x, x.flip(0)] if name == "gcn2" else [x]
    assert_met(stock, *given, edge_index, weight, reason=choice.MET_WEIGHTS)
    if learned:
        ours = accelerate(copy.deepcopy(stock))
        assert_close(
            run(ours, [weight], *given, edge_index, weight)[1],
            run(stock, [weight], *given, edge_index, weight)[1],
        )


LIES: dict[str, Callable[[Tensor], Any]] = {
    "int32": lambda e: e.int(),
    "flipped": lambda e: e.flip(0),
    "transposed": lambda e: e.t().contiguous().t(),
    "narrowed": lambda e: torch.cat([e, e], dim=1).narrow(1, 7, e.shape[1]),
    "no edges": lambda e: e[:, :0],
    "EdgeIndex": lambda e: EdgeIndex(e),
    "EdgeIndex of a size": lambda e: EdgeIndex(e, sparse_size=(NUM_NODES, NUM_NODES)),
    "EdgeIndex by row": lambda e: EdgeIndex(e).sort_by("row").values,
    "EdgeIndex by column": lambda e: (
        EdgeIndex(e, sparse_size=(NUM_NODES, NUM_NODES)).sort_by("col").values.fill_cache_()
    ),
    "EdgeIndex, undirected": lambda e: EdgeIndex(
        torch.cat([e, e.flip(0)], dim=1), is_undirected=True
    ),
}


@pytest.mark.parametrize("lies", LIES)
@pytest.mark.parametrize("aggr", ["mean", "max"])
def test_however_edges_lie(lies: str, aggr: str) -> None:
    assert_met(sage(aggr=aggr), features(), LIES[lies](edges_of(2)))


def overwritten(edges: Tensor) -> Any:
    """An `EdgeIndex` whose caches are of the edges that it held before."""
    kept = EdgeIndex(edges_of(9), sparse_size=(NUM_NODES, NUM_NODES))
    kept = kept.sort_by("col").values.fill_cache_()
    kept.as_tensor().numpy()[:] = edges.numpy()
    return kept


def of_another(edges: Tensor) -> Any:
    """The same with the caches of another, some of which lead nowhere."""
    told = EdgeIndex(edges, sparse_size=(NUM_NODES, NUM_NODES), sort_order="row")
    told._indptr = torch.full((NUM_NODES + 1,), 10**12)
    told._T_perm = torch.full((edges.shape[1],), -5)
    told._T_index = (edges[0] + 10**9, edges[1] - 10**9)
    told._T_indptr = torch.zeros(3, dtype=torch.int64)
    return told


UNTRUE: dict[str, Callable[[Tensor], Any]] = {
    "by column": lambda e: EdgeIndex(e, sort_order="col"),
    "by row": lambda e: EdgeIndex(e, sort_order="row"),
    "undirected": lambda e: EdgeIndex(
        e, sort_order="col", is_undirected=True, sparse_size=(NUM_NODES, NUM_NODES)
    ),
    "overwritten": overwritten,
    "of another": of_another,
}


@pytest.mark.parametrize("untrue", UNTRUE)
@pytest.mark.parametrize("name", ["sage", "max", "graph", "gcn"])
def test_edge_indices_that_do_not_tell_the_truth(untrue: str, name: str) -> None:
    """What an `EdgeIndex` says of its order and holds in its caches changes nothing."""
    makes = {
        "sage": lambda: pyg.SAGEConv(WIDTH, WIDTH),
        "max": lambda: pyg.SAGEConv(WIDTH, WIDTH, aggr="max"),
        "graph": lambda: pyg.GraphConv(WIDTH, WIDTH),
        "gcn": lambda: pyg.GCNConv(WIDTH, WIDTH),
    }
    if (untrue, name) == ("overwritten", "graph"):
        return  # stock multiplies by its caches, and may
    stock = Twice(makes[name](), makes[name]()).double()
    told = UNTRUE[untrue](edges_of(2))
    model, x = accelerate(copy.deepcopy(stock)), features().requires_grad_()
    expected = run(stock, [x], x, told.as_tensor())
    for _ in range(3):
        for found, of_stock in zip(run(model, [x], x, told), expected, strict=True):
            assert_close(found, of_stock)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_an_edge_index_with_caches() -> None:
    """Stock multiplies by it: it is left to stock where it comes first, and gets its HAG later."""
    stock = pyg.GraphConv(WIDTH, 4)
    edges = EdgeIndex(edges_of(2), sparse_size=(NUM_NODES, NUM_NODES)).sort_by("col").values
    for filled, first in ((False, choice.MET), (True, choice.SORTED)):
        edge_index = edges.clone()
        if filled:
            edge_index.fill_cache_()
        ours, x = accelerate(copy.deepcopy(stock)), features(dtype=torch.float32).requires_grad_()
        expected = run(stock, [x], x, EdgeIndex(edge_index.as_tensor()))
        for reason in (first, choice.BACK):
            for found, of_stock in zip(run(ours, [x], x, edge_index), expected, strict=True):
                torch.testing.assert_close(found, of_stock, rtol=1e-4, atol=1e-5)
            assert reason in str(explain(ours)[0].calls.reasons)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    stock = pyg.GraphConv(WIDTH, 4).to(dtype)
    ours = accelerate(copy.deepcopy(stock))
    x, edge_index = features(dtype=dtype), edges_of(3)
    y, expected = ours(x, edge_index), stock(x, edge_index)
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected, atol=20 * torch.finfo(dtype).eps, rtol=0.05)


def test_two_sets_of_nodes() -> None:
    stock = pyg.SAGEConv((WIDTH, 3), 4).double()
    edge_index = random_graph(20, 8, 50)
    for pair in ((features(), features(8)[:, :3]), (features(), None)):
        size = None if pair[1] is not None else (20, 8)
        ours = accelerate(copy.deepcopy(stock))
        assert_close(ours(pair, edge_index, size), stock(pair, edge_index, size))
        assert explain(ours)[0].calls.counts == {"plain": 1}


def test_one_node() -> None:
    assert_met(sage(), features(1), torch.zeros(2, 1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("edges", "size"),
    [([[0, 20], [1, 1]], None), ([[0, -1], [1, 1]], None), ([[0, 1], [1, 1]], (20, 21))],
)
def test_errors_are_stocks(edges: Any, size: Any) -> None:
    stock = pyg.SAGEConv(WIDTH, 4).double()
    said = []
    for conv in (stock, accelerate(copy.deepcopy(stock))):
        with pytest.raises((IndexError, RuntimeError, ValueError)) as caught:
            conv(features(), torch.tensor(edges), size)
        said.append((type(caught.value), str(caught.value)))
    assert said[0] == said[1]


# What is made, and how often --------------------------------------------------------------------


def session_of(model: Any) -> Any:
    return model.layers[0]._hag_session


def test_made_once_for_all_layers() -> None:
    model = accelerate(sage())
    with count_programs() as ran:
        model(features().requires_grad_(), edges_of(0)).sum().backward()
    assert ran.searches == 2  # one for each direction
    assert ran.plain == 4
    assert ran.hag == 0


def test_a_graph_that_comes_back_gets_its_hag() -> None:
    model, edge_index = accelerate(sage()), torch.arange(NUM_NODES).repeat(2, NUM_NODES)
    edge_index[1] = edge_index[1].sort().values  # everybody has all the same sources
    with torch.no_grad():
        outs = [model(features(), edge_index) for _ in range(3)]
    torch.testing.assert_close(outs[0], outs[2])
    calls = model.layers[0]._hag_calls
    assert calls.counts == {"plain": 1, "HAG": 2}
    assert calls.reasons["plain"] == choice.MET
    assert calls.reasons["HAG"].startswith(choice.BACK)
    assert session_of(model).num_hags == 1


def test_what_stands_at_the_address_of_another_graph() -> None:
    """Memory comes back, with other edges: nothing of the first graph is taken for theirs."""
    stock = sage()
    model, x = accelerate(copy.deepcopy(stock)), features()
    addresses = set()
    for seed in range(30):
        edge_index = edges_of(seed)
        addresses.add(edge_index.data_ptr())
        torch.testing.assert_close(model(x, edge_index), stock(x, edge_index))
        del edge_index
    assert len(addresses) < 30
    assert session_of(model).num_hags == 0
    gc.collect()
    assert len(session_of(model).graphs) == 0
    assert model.layers[0]._hag_calls.counts == {"plain": 30}


@pytest.mark.parametrize("unseen", [False, True])
def test_written_to_between_calls(unseen: bool) -> None:
    stock = sage()
    model, x, edge_index = accelerate(copy.deepcopy(stock)), features(), edges_of(0)
    for layer in (model, model.layers[0], model):  # a second forward, and within one
        torch.testing.assert_close(
            layer(x, edge_index), (stock if layer is model else stock.layers[0])(x, edge_index)
        )
        (edge_index.data if unseen else edge_index)[0, :20] = torch.randint(NUM_NODES, (20,))
        torch.testing.assert_close(
            layer(x, edge_index), (stock if layer is model else stock.layers[0])(x, edge_index)
        )


def test_modes() -> None:
    stock = sage()
    model, x = accelerate(copy.deepcopy(stock)), features()
    for seed, mode in enumerate((torch.no_grad, torch.inference_mode, torch.enable_grad)):
        edge_index = edges_of(seed)
        with mode():
            torch.testing.assert_close(model(x, edge_index), stock(x, edge_index))
    with torch.inference_mode():
        edge_index = edges_of(0)
        torch.testing.assert_close(model(x, edge_index), stock(x, edge_index))
    with torch.no_grad():
        torch.testing.assert_close(model(x, edge_index), stock(x, edge_index))


def test_two_forwards_and_one_backward() -> None:
    stock = sage()
    model, x = accelerate(copy.deepcopy(stock)), features()
    for m in (stock, model):
        (m(x, edges_of(0)) + m(x, edges_of(1))).sum().backward()
    for p, q in zip(stock.parameters(), model.parameters(), strict=True):
        assert_close(q.grad, p.grad)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    stock = sage()
    model, edge_index = accelerate(copy.deepcopy(stock)), edges_of(0)
    for gain in (0.0, float("inf"), 0.0):
        found = []
        for m in (stock, model):
            x = features().requires_grad_()
            with limits(passing_gain=gain):
                y = checkpoint(m, x, edge_index.clone(), use_reentrant=reentrant)
            with limits(passing_gain=float("inf") - gain if gain else float("inf")):
                y.sum().backward()
            found.append(x.grad)
        assert_close(found[1], found[0])


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(how: Callable[[Any], Any]) -> None:
    model, edge_index = accelerate(sage()), edges_of(0)
    expected = model(features(), edge_index)
    torch.testing.assert_close(how(model)(features(), edge_index), expected)


def test_few_messages_are_left_to_stock() -> None:
    model = accelerate(sage())
    with limits(passing_gain=1.0), torch.no_grad():
        model(features(), edges_of(0))
    assert model.layers[0]._hag_calls.reasons == {"stock": choice.MET_FEW}


def test_too_many_edges_to_search() -> None:
    model, edge_index = accelerate(sage()), edges_of(0)
    with limits(searched_edges=50), torch.no_grad():
        first = model(features(), edge_index)
        with pytest.warns(UserWarning, match="call hag_plugin.build_hag once"):
            second = model(features(), edge_index)
        third = model(features(), edge_index)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first, third)
    assert model.layers[0]._hag_calls.reasons == {"plain": choice.MANY_MET}
    assert session_of(model).num_hags == 0


# Sampled batches --------------------------------------------------------------------------------


class NoMessages(TorchDispatchMode):
    """Fails where a tensor of a row for every edge is made."""

    def __init__(self, num_edges: int, width: int) -> None:
        super().__init__()
        self.most = num_edges * width

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            assert not isinstance(each, Tensor) or each.numel() < self.most, func
        return out


class Trimmed(nn.Module):
    """Three layers over a sampled batch, each over the nodes and edges that it needs."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([make() for _ in range(3)])

    def forward(self, x: Tensor, batch: Any) -> Tensor:
        edge_index = batch.edge_index
        sizes = batch.num_sampled_nodes, batch.num_sampled_edges
        for i, layer in enumerate(self.layers):
            x, edge_index, _ = trim_to_layer(i, *sizes, x, edge_index)
            x = layer(x, edge_index).relu()
        return x


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "SAGE": lambda: pyg.SAGEConv(8, 8),
    "GCN": lambda: pyg.GCNConv(8, 8),
    "GIN": lambda: pyg.GINConv(nn.Linear(8, 8)),
    "GraphConv": lambda: pyg.GraphConv(8, 8),
}


@pytest.mark.parametrize("name", LAYERS)
def test_batches_of_a_loader(name: str) -> None:
    edges = random_graph(300, 300, 6000)
    sampler, random = Sampler(edges, 300, [9, 6, 3]), np.random.default_rng(0)
    stock = Trimmed(LAYERS[name]).double()
    model = accelerate(copy.deepcopy(stock))
    for _ in range(3):
        batch = sampler.batch(random.permutation(300)[:20])
        assert (batch.edge_index[1].diff() >= 0).all()
        of_batch, of_graph = batch.n_id[batch.edge_index], edges[0] * 300 + edges[1]
        assert torch.isin(of_batch[0] * 300 + of_batch[1], of_graph).all()
        x = torch.randn(len(batch.n_id), 8, dtype=torch.float64)
        found = []
        for m in (stock, model):
            given = x.clone().requires_grad_()
            m.zero_grad()
            y = m(given, batch)
            y[:20].sum().backward()
            found.append([y.detach(), given.grad, *(p.grad for p in m.parameters())])
        for ours, theirs in zip(found[1], found[0], strict=True):
            assert_close(ours, theirs)
    assert {"plain"} == set(model.layers[0]._hag_calls.counts)


@pytest.mark.parametrize("name", LAYERS)
def test_no_message_is_made(name: str) -> None:
    edges = random_graph(40, 40, 4000)
    x = torch.randn(40, 8).requires_grad_()
    stock = Twice(LAYERS[name](), LAYERS[name]())
    for model in (stock, accelerate(copy.deepcopy(stock))):
        y = None
        try:
            with NoMessages(edges.shape[1] // 2, 8):
                y = model(x, edges)
                y.sum().backward()
        except AssertionError:
            assert model is stock
        else:
            assert model is not stock


@pytest.mark.slow
def test_memory_does_not_grow() -> None:
    import psutil

    process, model = psutil.Process(), accelerate(sage(torch.float32))
    x = torch.randn(2000, WIDTH)
    used = []
    for i in range(600):
        edge_index = torch.randint(2000, (2, 10_000))
        model(x, edge_index).sum().backward()
        if i in (100, 599):
            used.append(process.memory_info().rss)
    assert used[1] - used[0] < 20 << 20
