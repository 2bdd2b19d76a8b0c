"""Whole models under torch.compile, and under PyG's name for it."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch_geometric import nn as pyg
from torch_geometric.data import Data
from torch_geometric.loader import ClusterData
from torch_geometric.nn import models

import hag_plugin as hp
from hag_plugin.hag.hag import EdgeHAG
from hag_plugin.limits import limits as in_force
from hag_plugin.pyg import ToHAG, accelerate
from hag_plugin.pyg.model import choice
from hag_plugin.pyg.model.compiled import NAME, hag_in_traced_code
from hag_plugin.testing import Ran

WIDTH = 6
REVERSE = "target_to_source"
MODELS: dict[str, Callable[[], nn.Module]] = {
    "GCN": lambda: models.GCN(WIDTH, 8, 2, 3),
    "GraphSAGE": lambda: models.GraphSAGE(WIDTH, 8, 2, 3),
    "GIN": lambda: models.GIN(WIDTH, 8, 2, 3),
}
REVERSED: dict[str, Callable[[], nn.Module]] = {
    "GCNConv": lambda: pyg.GCNConv(WIDTH, 3, flow=REVERSE),
    "SAGEConv": lambda: pyg.SAGEConv(WIDTH, 3, flow=REVERSE),
    "GraphConv max": lambda: pyg.GraphConv(WIDTH, 3, aggr="max", flow=REVERSE),
    "EGConv": lambda: pyg.EGConv(
        WIDTH, 4, ["symnorm", "max", "std"], num_heads=2, num_bases=2, flow=REVERSE
    ),
    "DirGNNConv": lambda: pyg.DirGNNConv(pyg.SAGEConv(WIDTH, 3)),
    "DirGNNConv of GCNConv": lambda: pyg.DirGNNConv(pyg.GCNConv(WIDTH, 3)),
    "DirGNNConv of GATConv": lambda: pyg.DirGNNConv(pyg.GATConv(WIDTH, 3, add_self_loops=False)),
    "HypergraphConv": lambda: pyg.HypergraphConv(WIDTH, 3),
}


def compiled(model: nn.Module, backend: Any, fullgraph: bool) -> nn.Module:
    torch._dynamo.reset()
    with warnings.catch_warnings():  # PyG's name is deprecated in favour of torch's
        warnings.simplefilter("ignore")
        made: nn.Module = torch_geometric.compile(model, backend=backend, fullgraph=fullgraph)
    return made


def edges_between(nodes: int, generator: torch.Generator) -> torch.Tensor:
    """Directed edges with duplicates; the last node has one on both sides."""
    edges = torch.randint(nodes, (2, 4 * nodes), generator=generator)
    edges[0, 0] = edges[1, -1] = nodes - 1
    return edges


@pytest.mark.mostly_slow("SAGEConv", "GCNConv")
@pytest.mark.parametrize("name", [*MODELS, *REVERSED])
def test_compiled_equals_stock(name: str) -> None:
    """Whole graphs, forward and backward; and not one compilation for each HAG."""
    generator = torch.Generator().manual_seed(0)
    stock = (MODELS | REVERSED)[name]().double()
    backend = CompileCounterWithBackend("aot_eager")
    ours = compiled(accelerate(copy.deepcopy(stock)), backend, fullgraph=True)
    for nodes in (20, 27, 33, 41):
        edge_index = edges_between(nodes, generator)
        if nodes == 33:  # a symmetric graph, which is its own reverse
            edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
        x = torch.randn(nodes, WIDTH, dtype=torch.float64)
        results = []
        for model, graph in (
            (ours, hp.build_hag(edge_index, num_nodes=nodes)),
            (stock, edge_index),
        ):
            leaf = x.clone().requires_grad_()
            model.zero_grad()
            y = model(leaf, graph)
            (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
            results.append([y, leaf.grad, *(p.grad for p in model.parameters())])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert backend.frame_count <= 2  # the second with sizes that vary


# Plain edge indices -----------------------------------------------------------------------------

# As `build_hag` serves them in compiled code; others run stock's code there.
OF_EDGES = {k: v for k, v in (MODELS | REVERSED).items() if "Dir" not in k and "Hyper" not in k}


def clique(nodes: int) -> torch.Tensor:
    """Nodes that are all each other's sources, and a chain of others."""
    inside = torch.cartesian_prod(torch.arange(12), torch.arange(12)).t()
    chain = torch.arange(11, nodes)
    return torch.cat([inside, torch.stack([chain[:-1], chain[1:]])], dim=1)


@pytest.mark.mostly_slow("SAGEConv")
@pytest.mark.parametrize("name", OF_EDGES)
def test_edges_that_come_back(name: str, ran: Ran) -> None:
    """One compilation for all graphs, and a HAG for each that comes back, forward and backward."""
    stock = OF_EDGES[name]().double()
    ours = accelerate(copy.deepcopy(stock))
    backend = CompileCounterWithBackend("aot_eager")
    run = compiled(ours, backend, fullgraph=True)
    graphs = [(nodes, clique(nodes)) for nodes in (20, 27, 33)]
    for epoch in range(3):
        for nodes, edge_index in graphs:
            x = torch.randn(nodes, WIDTH, dtype=torch.float64)
            results = []
            for model, call in ((ours, run), (stock, stock)):
                leaf = x.clone().requires_grad_()
                model.zero_grad()
                y = call(leaf, edge_index)
                (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
                results.append([y, leaf.grad, *(p.grad for p in model.parameters())])
            for a, b in zip(*results, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        assert session_of(ours).num_hags == (len(graphs) if epoch else 0)
        assert (ran.hag > 0) == (epoch > 0)
        with torch.no_grad():  # a step of an optimizer
            for model in (stock, ours):
                for p in model.parameters():
                    p.mul_(0.9)
    assert backend.frame_count <= 2  # the second with sizes that vary
    assert "once it came back" in str(hp.explain(ours))


WEIGHTED: dict[str, Callable[[], nn.Module]] = {
    "GCNConv": lambda: pyg.GCNConv(WIDTH, 3),
    "GCNConv improved": lambda: pyg.GCNConv(WIDTH, 3, improved=True),
    "GCNConv without loops": lambda: pyg.GCNConv(WIDTH, 3, add_self_loops=False),
    "TAGConv": lambda: pyg.TAGConv(WIDTH, 3),
    "LGConv": lambda: pyg.LGConv(),
    "APPNP": lambda: pyg.APPNP(2, 0.1),
    "GCN": lambda: models.GCN(WIDTH, 8, 2, 3),
}
LEFT = {
    "GraphConv": (lambda: pyg.GraphConv(WIDTH, 3), choice.COMPILED_BARE),
    "GCNConv bare": (lambda: pyg.GCNConv(WIDTH, 3, normalize=False), choice.COMPILED_BARE),
    "GraphConv max": (lambda: pyg.GraphConv(WIDTH, 3, aggr="max"), choice.COMPILED),
    "GCNConv reversed": (lambda: pyg.GCNConv(WIDTH, 3, flow=REVERSE), choice.COMPILED),
    "ChebConv": (lambda: pyg.ChebConv(WIDTH, 3, 2), choice.COMPILED),
}


def with_weights(call: Any, model: nn.Module, x: Any, edges: Any, weight: Any) -> list[Any]:
    leaves = [x.clone().requires_grad_(), weight.detach().requires_grad_(weight.requires_grad)]
    model.zero_grad()
    y = call(leaves[0], edges, leaves[1])
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return [y, leaves[0].grad, leaves[1].grad, *(p.grad for p in model.parameters())]


@pytest.mark.mostly_slow("*GCNConv-True")
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", WEIGHTED)
def test_edge_weights(name: str, learned: bool) -> None:
    """Learned ones, too; loops among the edges keep theirs. Whole graphs, and one compilation for
    all sizes."""
    generator = torch.Generator().manual_seed(0)
    stock = WEIGHTED[name]().double()
    ours, backend = accelerate(copy.deepcopy(stock)), CompileCounterWithBackend("aot_eager")
    run = compiled(ours, backend, fullgraph=True)
    for nodes in (20, 27, 33):
        edge_index = edges_between(nodes, generator)
        edge_index[:, 2:4] = torch.tensor([[5, 7], [5, 7]])
        weight = torch.rand(edge_index.shape[1], dtype=torch.float64, generator=generator)
        weight.requires_grad_(learned)
        x = torch.randn(nodes, WIDTH, dtype=torch.float64, generator=generator)
        for _ in range(2):  # of the edges, where each lies is known again
            found = with_weights(run, ours, x, edge_index, weight)
            expected = with_weights(stock, stock, x, edge_index, weight)
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert backend.frame_count <= 2
    assert choice.COMPILED_WEIGHTS in str(hp.explain(ours))


def test_weights_of_edges_that_are_written_to() -> None:
    """Where edges lie is found anew."""
    stock = pyg.GCNConv(WIDTH, 3).double()
    ours = accelerate(copy.deepcopy(stock))
    run = compiled(ours, "eager", fullgraph=True)
    edge_index = edges_between(20, torch.Generator().manual_seed(0))
    x, weight = torch.randn(20, WIDTH, dtype=torch.float64), torch.rand(80, dtype=torch.float64)
    for write in (None, edge_index, edge_index.data, torch.from_numpy(edge_index.numpy())):
        if write is not None:
            write.copy_(write.flip(1).roll(3, 1))
        for _ in range(2):
            torch.testing.assert_close(run(x, edge_index, weight), stock(x, edge_index, weight))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, where stock's graph breaks
@pytest.mark.parametrize("name", LEFT)
def test_weights_that_stay_with_stock(name: str) -> None:
    make, reason = LEFT[name]
    stock = make().double()
    ours = accelerate(copy.deepcopy(stock))
    run = compiled(ours, "eager", fullgraph=False)
    edge_index = edges_between(20, torch.Generator().manual_seed(0))
    x, weight = torch.randn(20, WIDTH, dtype=torch.float64), torch.rand(80, dtype=torch.float64)
    torch.testing.assert_close(run(x, edge_index, weight), stock(x, edge_index, weight))
    assert reason in str(hp.explain(ours))


def session_of(model: nn.Module) -> Any:
    return next(m._hag_session for m in model.modules() if hasattr(m, "_hag_session"))


def test_sampled_batches_compile_once() -> None:
    """Of sizes that change; the tensors are gone before the backward."""
    stock = models.GraphSAGE(WIDTH, 8, 2, 3)
    ours, backend = accelerate(copy.deepcopy(stock)), CompileCounterWithBackend("aot_eager")
    run = compiled(ours, backend, fullgraph=True)
    generator = torch.Generator().manual_seed(0)
    for nodes in range(20, 28):
        edge_index = edges_between(nodes, generator)
        x = torch.randn(nodes, WIDTH)
        expected = stock(x, edge_index)
        found = run(x, edge_index)
        torch.testing.assert_close(found, expected)
        expected.sum().backward()
        del edge_index
        found.sum().backward()
    for a, b in zip(ours.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
    assert backend.frame_count <= 2
    assert session_of(ours).num_hags == 0


def test_compiled_inference() -> None:
    """Where nothing is written to, after as many calls as a loop may take; or in inference mode,
    whose tensors are not known again."""
    stock = models.GCN(WIDTH, 8, 2, 3).eval()
    ours = accelerate(copy.deepcopy(stock))
    run = compiled(ours, "eager", fullgraph=True)
    edge_index, x = clique(20), torch.randn(20, WIDTH)
    with torch.no_grad():
        for calls in range(in_force.loop_calls + 2):
            torch.testing.assert_close(run(x, edge_index), stock(x, edge_index))
            assert session_of(ours).num_hags == (calls >= in_force.loop_calls)
    with torch.inference_mode():
        unknown, x = clique(21), torch.randn(21, WIDTH)
        for _ in range(2):
            torch.testing.assert_close(run(x, unknown), stock(x, unknown))
    assert session_of(ours).num_hags == 1


def test_what_stands_for_a_hag_outside_of_compiled_code() -> None:
    conv = accelerate(pyg.SAGEConv(WIDTH, 3))
    edge_index = edges_between(20, torch.Generator().manual_seed(0))
    told, hag = (
        hag_in_traced_code(conv, edge_index, (20, 20)),
        hp.build_hag(edge_index, num_nodes=20),
    )
    x = torch.randn(20, WIDTH)
    for a, b in ((told, hag), (told.transpose(), hag.transpose())):
        torch.testing.assert_close(hp.aggregate(x, a), hp.aggregate(x, b))
        assert a.num_edges == b.num_edges
        assert a.num_src == a.num_dst == 20
        for loops in (False, "add", "fill"):
            assert torch.equal(a.degree(loops), b.degree(loops))
        a.check(b.edge_index)
    assert told.matches(edge_index)
    torch.testing.assert_close(conv(x, told), conv(x, edge_index))
    other = hp.build_hag(edge_index[:, 1:], num_nodes=20)  # whose token says nothing of these edges
    lost = EdgeHAG(edge_index, told.arrays.row_ptr, other.arrays.token, 20)
    torch.testing.assert_close(hp.aggregate(x, lost), hp.aggregate(x, hag))


def test_copies_are_called_by_names_of_their_own() -> None:
    conv = accelerate(pyg.SAGEConv(WIDTH, 3))
    copies = [copy.deepcopy(conv), copy.copy(conv), pickle.loads(pickle.dumps(conv))]
    assert len({int(c.__dict__[NAME]) for c in (conv, *copies)}) == 4
    hp.restore(conv)
    assert NAME not in conv.__dict__


class Through(nn.Module):
    """Turns its graph round, and does something that no compiled graph holds, in between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = pyg.GCNConv(WIDTH, 3)

    def forward(self, x: torch.Tensor, edge_index: Any) -> torch.Tensor:
        back = edge_index.flip([0])
        torch._dynamo.graph_break()
        out: torch.Tensor = self.conv(x, back)
        return out


def test_a_reversed_graph_leaves_compiled_code() -> None:
    edge_index = edges_between(20, torch.Generator().manual_seed(0))
    x, stock = torch.randn(20, WIDTH), Through()
    ours = compiled(accelerate(copy.deepcopy(stock)), "eager", fullgraph=False)
    hag = hp.build_hag(edge_index, num_nodes=20)
    torch.testing.assert_close(ours(x, hag), stock(x, edge_index))


def test_a_hag_for_each_fixed_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts as ClusterData cuts them; METIS itself is in packages that are not installed here."""
    edge_index = torch.randint(40, (2, 200))
    data = Data(x=torch.randn(40, WIDTH), edge_index=edge_index)
    monkeypatch.setattr(
        ClusterData, "_metis", lambda self, edges, n: torch.arange(int(n)) * 4 // int(n)
    )
    clusters = ClusterData(data, num_parts=4, log=False)
    parts = [ToHAG()(part) for part in clusters]
    stock = models.GraphSAGE(WIDTH, 8, 2, 3)
    ours = accelerate(copy.deepcopy(stock))
    assert len(parts) == 4
    assert sum(part.hag.num_edges for part in parts) > 0
    for part in parts:
        assert part.hag.num_dst == part.num_nodes == 10
        torch.testing.assert_close(ours(part.x, part.hag), stock(part.x, part.edge_index))
