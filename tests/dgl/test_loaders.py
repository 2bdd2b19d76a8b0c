"""Accelerated models over DGL's loaders: equal to stock, batch after batch."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

dgl = pytest.importorskip("dgl", reason="DGL is not installed")
from dgl import dataloading  # noqa: E402
from dgl.nn.pytorch import (  # noqa: E402
    GATConv,
    GINConv,
    GraphConv,
    HeteroGraphConv,
    SAGEConv,
)

import hag_plugin as hp  # noqa: E402
from hag_plugin.dgl import ToHAG  # noqa: E402
from hag_plugin.dgl.aggregation.choice import FIRST, GIVEN, SCORED  # noqa: E402
from hag_plugin.testing import limits  # noqa: E402

WIDTH, OUT = 6, 4
SEEDS, BATCH = 24, 8  # three batches

LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "sage-mean": lambda width: SAGEConv(width, WIDTH, "mean"),
    "sage-pool": lambda width: SAGEConv(width, WIDTH, "pool"),
    "gcn": lambda width: GraphConv(width, WIDTH, allow_zero_in_degree=True),
    "gin": lambda width: GINConv(nn.Linear(width, WIDTH)),
    "gat": lambda width: GATConv(width, WIDTH // 2, 2, allow_zero_in_degree=True),
}


class Net(nn.Module):
    """Two layers, each over a block of its own or both over one graph; one of them may attend."""

    def __init__(self, name: str) -> None:
        super().__init__()
        first = "gcn" if name == "gat" else name
        self.layers = nn.ModuleList([LAYERS[first](WIDTH), LAYERS[name](WIDTH)])

    def forward(self, graphs: list[Any], x: Tensor) -> Tensor:
        for layer, graph in zip(self.layers, graphs, strict=True):
            x = layer(graph, x).flatten(1).tanh()
        return x


def graph(make: Callable[[], Any]) -> Any:
    found = make()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(found.num_nodes(), WIDTH, dtype=torch.float64, generator=generator)
    found.ndata["x"] = rows
    return found


def loader(graph: Any, seeds: Any, sampler: Any, workers: int = 0, **how: Any) -> Any:
    return dataloading.DataLoader(
        graph, seeds, sampler, batch_size=BATCH, shuffle=True, num_workers=workers, **how
    )


@pytest.fixture(autouse=True)
def no_advice() -> Any:
    """DGL advises to bind its workers to cores. Small graphs are attended over, too."""
    with warnings.catch_warnings(), limits(passing_gain=0.0):
        warnings.filterwarnings("ignore", message="Dataloader CPU affinity")
        yield


def results(model: nn.Module, graphs: list[Any], x: Tensor, score: Any) -> list[Tensor]:
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = score(model(graphs, x))
    y.square().sum().backward()
    grads = [x.grad, *(p.grad for p in model.parameters())]
    return [y.detach(), *(grad for grad in grads if grad is not None)]


def same(y: Tensor) -> Tensor:
    return y


class Sides:
    """A model and its accelerated copy, which are given the same batches."""

    def __init__(self, stock: nn.Module) -> None:
        self.stock = stock.double()
        self.ours = hp.accelerate(copy.deepcopy(self.stock))
        self.batches = 0

    def meet(self, graphs: list[Any], x: Tensor, score: Any = same) -> None:
        self.batches += 1
        expected = results(self.stock, graphs, x, score)
        found = results(self.ours, graphs, x, score)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs)

    def check(self, kinds: set[str], reason: str) -> None:
        """At the end: what all calls ran on, and why."""
        assert self.batches >= SEEDS // BATCH
        for row in hp.explain(self.ours):
            assert sum(row.calls.counts.values()) == self.batches
            if row.layer == "GATConv":  # on a graph that it meets first, too
                assert row.calls.reasons == {"plain": SCORED}
                continue
            assert set(row.calls.counts) <= kinds, row
            assert all(said.startswith(reason) for said in row.calls.reasons.values()), row


SAMPLERS: dict[str, Callable[[], Any]] = {
    "NeighborSampler": lambda: dataloading.NeighborSampler([4, 3]),
    "NeighborSampler, prefetching": lambda: dataloading.NeighborSampler(
        [4, 3], prefetch_node_feats=["x"]
    ),
    "MultiLayerFullNeighborSampler": lambda: dataloading.MultiLayerFullNeighborSampler(2),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_blocks(name: str, layer: str, multigraph: Any) -> None:
    sides = Sides(Net(layer))
    whole = graph(multigraph)
    for _, _, blocks in loader(whole, torch.arange(SEEDS), SAMPLERS[name]()):
        sides.meet(blocks, blocks[0].srcdata["x"])
    sides.check({"stock"}, FIRST)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_blocks_of_workers(name: str, multigraph: Any) -> None:
    sides = Sides(Net("sage-mean"))
    whole = graph(multigraph)
    for _, _, blocks in loader(whole, torch.arange(SEEDS), SAMPLERS[name](), workers=2):
        sides.meet(blocks, blocks[0].srcdata["x"])
    sides.check({"stock"}, FIRST)


NEGATIVES: dict[str, Any] = {
    "uniform": dataloading.negative_sampler.Uniform(2),
    "per source": dataloading.negative_sampler.PerSourceUniform(2),
}


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("layer", LAYERS)
def test_edge_prediction(layer: str, negatives: str, multigraph: Any) -> None:
    sides, whole = Sides(Net(layer)), graph(multigraph)
    sampler = dataloading.as_edge_prediction_sampler(
        dataloading.NeighborSampler([4, 3], prefetch_node_feats=["x"]),
        negative_sampler=NEGATIVES[negatives],
    )
    for _, pairs, others, blocks in loader(whole, torch.arange(SEEDS), sampler):

        def score(rows: Tensor, graphs: Any = (pairs, others)) -> Tensor:
            return torch.cat([dgl.ops.u_dot_v(each, rows, rows) for each in graphs])

        sides.meet(blocks, blocks[0].srcdata["x"], score)
    sides.check({"stock"}, FIRST)


def clusters(whole: Any, path: str) -> str:
    """A file of clusters, which are stretches of nodes: DGL's own way to find some fails beside
    NumPy 2."""
    begin = torch.arange(SEEDS + 1) * whole.num_nodes() // SEEDS
    with open(path, "wb") as file:
        pickle.dump((begin, torch.arange(whole.num_nodes())), file)
    return path


SUBGRAPHS: dict[str, Callable[[Any, str], tuple[Any, Any]]] = {
    "ShaDowKHopSampler": lambda whole, path: (
        torch.arange(SEEDS),
        dataloading.ShaDowKHopSampler([4, 3], prefetch_node_feats=["x"]),
    ),
    "SAINTSampler": lambda whole, path: (
        torch.arange(SEEDS),
        dataloading.SAINTSampler("node", 20, prefetch_ndata=["x"]),
    ),
    "ClusterGCNSampler": lambda whole, path: (
        torch.arange(SEEDS),
        dataloading.ClusterGCNSampler(whole, SEEDS, clusters(whole, path), prefetch_ndata=["x"]),
    ),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", SUBGRAPHS)
def test_subgraphs(name: str, layer: str, multigraph: Any, tmp_path: Any) -> None:
    """Both layers of a pass meet the same graph, which is not a coming back."""
    sides, whole = Sides(Net(layer)), graph(multigraph)
    seeds, sampler = SUBGRAPHS[name](whole, str(tmp_path / "clusters"))
    for batch in loader(whole, seeds, sampler):
        found = batch[-1] if isinstance(batch, list | tuple) else batch
        sides.meet([found, found], found.ndata["x"])
    sides.check({"stock"}, FIRST)


# Graphs with HAGs --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SAMPLERS, *SUBGRAPHS])
def test_samples_of_a_graph_with_a_hag_have_none(name: str, multigraph: Any, tmp_path: Any) -> None:
    sides, whole = Sides(Net("gcn")), ToHAG()(graph(multigraph))
    if name in SAMPLERS:
        seeds, sampler = torch.arange(SEEDS), SAMPLERS[name]()
    else:
        seeds, sampler = SUBGRAPHS[name](whole, str(tmp_path / "clusters"))
    for batch in loader(whole, seeds, sampler):
        if name in SAMPLERS:
            sides.meet(batch[-1], batch[-1][0].srcdata["x"])
        else:
            found = batch[-1] if isinstance(batch, list | tuple) else batch
            sides.meet([found, found], found.ndata["x"])
    sides.check({"stock"}, FIRST)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_blocks_that_get_hags(name: str, layer: str, multigraph: Any) -> None:
    """As a user does who keeps blocks over epochs."""
    sides, whole, convert = Sides(Net(layer)), graph(multigraph), ToHAG()
    for _, _, blocks in loader(whole, torch.arange(SEEDS), SAMPLERS[name]()):
        x = blocks[0].srcdata["x"]
        sides.meet([convert(block) for block in blocks], x)
    sides.check({"HAG", "plain", "stock"}, "" if layer == "sage-pool" else GIVEN)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("layer", LAYERS)
def test_batches_of_small_graphs(layer: str, workers: int) -> None:
    torch.manual_seed(0)
    graphs = ToHAG().dataset([graph(lambda n=n: dgl.rand_graph(n, 3 * n)) for n in range(8, 20)])
    sides = Sides(Net(layer))
    found = dataloading.GraphDataLoader(
        graphs, batch_size=4, shuffle=True, num_workers=workers, collate_fn=hp.dgl.collate
    )
    for batch in found:
        sides.meet([batch, batch], batch.ndata["x"])
    sides.check({"HAG", "plain", "stock"}, "" if layer == "sage-pool" else GIVEN)


# Graphs with types -------------------------------------------------------------------------------


def test_typed_blocks(hetero: Any) -> None:
    whole = hetero()
    for kind in whole.ntypes:
        whole.nodes[kind].data["x"] = torch.randn(whole.num_nodes(kind), WIDTH).double()
    stock = HeteroGraphConv({kind: SAGEConv(WIDTH, WIDTH, "mean") for kind in whole.etypes})
    ours = hp.accelerate(copy.deepcopy(stock.double()))
    seeds = {kind: torch.arange(whole.num_nodes(kind)) for kind in whole.ntypes}
    count = 0
    for _, _, (block,) in loader(whole, seeds, dataloading.NeighborSampler([3])):
        expected, found = (model(block, block.srcdata["x"]) for model in (stock, ours))
        for kind, rows in expected.items():
            torch.testing.assert_close(found[kind], rows)
        count += 1
    assert count >= 2
    for row in hp.explain(ours):
        assert set(row.calls.counts) == {"stock"}
        assert row.calls.reasons["stock"] == FIRST
