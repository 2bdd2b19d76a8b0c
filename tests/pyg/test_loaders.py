"""Accelerated models over PyG's loaders: equal to stock, batch after batch.

Where a loader needs pyg-lib or torch-sparse, `samplers` draws in their place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import (
    CachedLoader,
    ClusterLoader,
    DataLoader,
    DynamicBatchSampler,
    GraphSAINTEdgeSampler,
    GraphSAINTNodeSampler,
    GraphSAINTRandomWalkSampler,
    HGTLoader,
    ImbalancedSampler,
    LinkNeighborLoader,
    NeighborLoader,
    RandomNodeLoader,
    ShaDowKHopSampler,
    graph_saint,
    hgt_loader,
    shadow,
)
from torch_geometric.utils import trim_to_layer

from hag_plugin.pyg import accelerate, explain
from hag_plugin.pyg.model import choice

from ..cases import random_graph
from .recipes.test_table import assert_close
from .samplers import Matrix, PythonSampler, StretchData, ego_nets

WIDTH = 8
BATCHES = 3
Forward = Callable[[nn.Module, Any], Tensor]


class Net(nn.Module):
    """A layer of each kind, over one graph."""

    def __init__(self) -> None:
        super().__init__()
        perceptron = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(
            [
                pyg.SAGEConv(WIDTH, WIDTH),
                pyg.GCNConv(WIDTH, WIDTH),
                pyg.GINConv(perceptron),
                pyg.GraphConv(WIDTH, WIDTH, aggr="max"),
                pyg.SAGEConv(WIDTH, WIDTH, aggr="sum", flow="target_to_source"),
            ]
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, edge_index).tanh()
        return x


class Weighted(nn.Module):
    """Layers that take a weight for each edge."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([pyg.GCNConv(WIDTH, WIDTH), pyg.GraphConv(WIDTH, WIDTH)])

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, edge_index, edge_weight).tanh()
        return x


class Trimmed(nn.Module):
    """Each layer over the nodes and edges of a sampled batch that it needs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([pyg.SAGEConv(WIDTH, WIDTH), pyg.GCNConv(WIDTH, WIDTH)])

    def forward(self, batch: Any) -> Tensor:
        x, edge_index, weight = batch.x, batch.edge_index, batch.edge_weight
        sizes = batch.num_sampled_nodes, batch.num_sampled_edges
        for i, layer in enumerate(self.layers):
            x, edge_index, weight = trim_to_layer(i, *sizes, x, edge_index, weight)
            x = layer(x, edge_index).tanh()
        return x[: batch.batch_size]


def graph(num_nodes: int = 60, num_edges: int = 400, seed: int = 0) -> Data:
    edge_index = random_graph(num_nodes, num_nodes, num_edges, seed)
    generator = torch.Generator().manual_seed(seed)
    return Data(
        x=torch.randn(num_nodes, WIDTH, dtype=torch.float64, generator=generator),
        edge_index=edge_index,
        edge_weight=torch.rand(edge_index.shape[1], dtype=torch.float64, generator=generator),
        y=torch.randint(3, (num_nodes,), generator=generator),
    )


def small_graphs() -> list[Data]:
    found = [graph(10 + i % 3, 20 + i, seed=i) for i in range(12)]
    for i, data in enumerate(found):
        data.y = torch.tensor([int(i < 3)])
    return found


def sampler(data: Any, **how: Any) -> PythonSampler:
    return PythonSampler(data, [4, 3], **how)


def neighbours(data: Data, workers: int = 0, **how: Any) -> NeighborLoader:
    drawn = sampler(data, **how)
    return NeighborLoader(
        data, [4, 3], torch.arange(30), neighbor_sampler=drawn, batch_size=10, num_workers=workers
    )


def links(data: Data, workers: int, how: str) -> LinkNeighborLoader:
    return LinkNeighborLoader(
        data, [4, 3], data.edge_index[:, :30], neighbor_sampler=sampler(data), batch_size=10,
        neg_sampling=how, num_workers=workers,
    )  # fmt: skip


LOADERS: dict[str, Callable[[int], Iterable[Any]]] = {
    "DataLoader": lambda workers: DataLoader(
        small_graphs(), batch_size=4, shuffle=True, num_workers=workers
    ),
    "ImbalancedSampler": lambda workers: DataLoader(
        small_graphs(),
        batch_size=4,
        sampler=ImbalancedSampler(torch.cat([data.y for data in small_graphs()])),
        num_workers=workers,
    ),
    "DynamicBatchSampler": lambda workers: DataLoader(
        small_graphs(),
        batch_sampler=DynamicBatchSampler(small_graphs(), max_num=45),  # type: ignore[arg-type]
        num_workers=workers,
    ),
    "RandomNodeLoader": lambda workers: RandomNodeLoader(
        graph(), num_parts=BATCHES, shuffle=True, num_workers=workers
    ),
    "ClusterLoader": lambda workers: ClusterLoader(
        StretchData(graph(), num_parts=6, log=False), batch_size=2, num_workers=workers
    ),
    "NeighborLoader": lambda workers: neighbours(graph(), workers),
    "NeighborLoader, bidirectional": lambda workers: neighbours(
        graph(), workers, subgraph_type="bidirectional"
    ),
    "LinkNeighborLoader": lambda workers: links(graph(), workers, "binary"),
    "LinkNeighborLoader of triplets": lambda workers: links(graph(), workers, "triplet"),
}


def results(model: nn.Module, batch: Any, forward: Forward) -> list[Tensor]:
    """The rows of a batch, and the gradients of its features and of the parameters."""
    batch = copy.copy(batch)
    leaves = [store for store in batch.stores if "x" in store]
    for store in leaves:
        store.x = store.x.clone().requires_grad_()
    model.zero_grad()
    y = forward(model, batch)
    y.square().sum().backward()
    grads = [*(store.x.grad for store in leaves), *(p.grad for p in model.parameters())]
    return [y.detach(), *(grad for grad in grads if grad is not None)]


def assert_equal_over(loader: Iterable[Any], stock: nn.Module, forward: Forward) -> nn.Module:
    """Every batch of a loader, to an accelerated copy of a model, which is returned; all of them
    are met first, and none of stock's code runs."""
    stock = stock.double()
    ours, count = accelerate(copy.deepcopy(stock)), 0
    for batch in loader:
        count += 1
        expected = results(stock, batch, forward)
        found = results(ours, batch, forward)
        assert len(found) == len(expected)
        for mine, theirs in zip(found, expected, strict=True):
            assert_close(mine, theirs)
    assert count >= BATCHES
    for row in explain(ours):
        assert row.calls.counts == {"plain": count}, row
        (reason,) = row.calls.reasons.values()
        assert reason in (choice.MET, choice.MET_WEIGHTS)
    return ours


def on_edges(model: nn.Module, batch: Any) -> Tensor:
    return model(batch.x, batch.edge_index)


def on_weights(model: nn.Module, batch: Any) -> Tensor:
    return model(batch.x, batch.edge_index, batch.edge_weight)


@pytest.mark.parametrize("name", LOADERS)
def test_loaders(name: str) -> None:
    assert_equal_over(LOADERS[name](0), Net(), on_edges)
    assert_equal_over(LOADERS[name](0), Weighted(), on_weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADERS)
def test_workers(name: str) -> None:
    assert_equal_over(LOADERS[name](2), Net(), on_edges)


def test_trimmed_to_layers() -> None:
    loader = neighbours(graph())
    assert_equal_over(loader, Trimmed(), lambda model, batch: model(batch))
    nets = pyg.GraphSAGE(WIDTH, WIDTH, num_layers=2), pyg.GCN(WIDTH, WIDTH, num_layers=2)
    for net in (*nets, pyg.GIN(WIDTH, WIDTH, num_layers=2)):
        assert_equal_over(
            loader,
            net,
            lambda model, batch: model(
                batch.x,
                batch.edge_index,
                num_sampled_nodes_per_hop=batch.num_sampled_nodes,
                num_sampled_edges_per_hop=batch.num_sampled_edges,
            )[: batch.batch_size],
        )


def test_batches_that_are_kept_get_hags() -> None:
    """`CachedLoader` yields the same tensors again."""
    loader = CachedLoader(neighbours(graph()))
    model = assert_equal_over(loader, Net(), on_edges)
    for batch in loader:
        on_edges(model, batch)
    for row in explain(model):
        assert sum(row.calls.counts.values()) == 2 * BATCHES
        assert any(reason.startswith(choice.BACK) for reason in row.calls.reasons.values())


# Samplers of torch-sparse -----------------------------------------------------------------------

SAMPLED: dict[str, Callable[[Data, int], Iterable[Any]]] = {
    "GraphSAINTNodeSampler": lambda data, workers: GraphSAINTNodeSampler(
        data, 20, num_steps=BATCHES, num_workers=workers
    ),
    "GraphSAINTNodeSampler, normalised": lambda data, workers: GraphSAINTNodeSampler(
        data, 20, num_steps=BATCHES, sample_coverage=3, log=False, num_workers=workers
    ),
    "GraphSAINTEdgeSampler": lambda data, workers: GraphSAINTEdgeSampler(
        data, 20, num_steps=BATCHES, num_workers=workers
    ),
    "GraphSAINTRandomWalkSampler": lambda data, workers: GraphSAINTRandomWalkSampler(
        data, 10, walk_length=2, num_steps=BATCHES, num_workers=workers
    ),
    "ShaDowKHopSampler": lambda data, workers: ShaDowKHopSampler(
        data, 2, 4, torch.arange(30), batch_size=10, num_workers=workers
    ),
}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Data:
    """A graph whose samples are drawn in Python in place of torch-sparse."""
    for module in (graph_saint, shadow):
        monkeypatch.setattr(module, "SparseTensor", Matrix)
    monkeypatch.setattr(shadow, "WITH_TORCH_SPARSE", True)
    stand_in = SimpleNamespace(
        ego_k_hop_sample_adj=ego_nets,
        ptr2ind=lambda ptr, count: torch.arange(len(ptr) - 1).repeat_interleave(ptr.diff()),
    )
    monkeypatch.setattr(torch.ops, "torch_sparse", stand_in, raising=False)
    return graph()


@pytest.mark.parametrize("name", SAMPLED)
def test_samplers_of_subgraphs(name: str, drawn: Data) -> None:
    loader = SAMPLED[name](drawn, 0)
    assert_equal_over(loader, Net(), on_edges)
    assert_equal_over(loader, Weighted(), on_weights)
    if "normalised" in name:  # as GraphSAINT's example multiplies them
        assert_equal_over(
            loader,
            Weighted(),
            lambda model, batch: model(
                batch.x, batch.edge_index, batch.edge_norm.double() * batch.edge_weight
            ),
        )


def test_what_shadow_draws(drawn: Data) -> None:
    """Edges of the graph, inside one ego net each, whose root is its own."""
    for batch in SAMPLED["ShaDowKHopSampler"](drawn, 0):
        source, target = batch.edge_index
        assert torch.equal(batch.batch[source], batch.batch[target])
        assert torch.equal(batch.batch[batch.root_n_id], torch.arange(10))
        for end, whole in ((source, drawn.edge_index[0]), (target, drawn.edge_index[1])):
            assert torch.isin(batch.x[end][:, 0], drawn.x[whole][:, 0]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLED)
def test_workers_with_samplers_of_subgraphs(name: str, drawn: Data) -> None:
    assert_equal_over(SAMPLED[name](drawn, 2), Net(), on_edges)


# Graphs with types ------------------------------------------------------------------------------


def typed_graph() -> HeteroData:
    data, generator = HeteroData(), torch.Generator().manual_seed(0)
    for kind, count in (("paper", 40), ("author", 25)):
        data[kind].x = torch.randn(count, WIDTH, dtype=torch.float64, generator=generator)
    data["paper", "cites", "paper"].edge_index = random_graph(40, 40, 150)
    data["author", "writes", "paper"].edge_index = random_graph(25, 40, 150)
    data["paper", "by", "author"].edge_index = random_graph(25, 40, 150).flip(0)
    return data


TYPED: dict[str, Callable[[HeteroData, int], Iterable[HeteroData]]] = {
    "NeighborLoader": lambda data, workers: NeighborLoader(
        data, [4, 3], ("paper", torch.arange(30)), neighbor_sampler=sampler(data), batch_size=10,
        num_workers=workers,
    ),
    "LinkNeighborLoader": lambda data, workers: LinkNeighborLoader(
        data, [4, 3],
        (("author", "writes", "paper"), data["author", "writes", "paper"].edge_index[:, :30]),
        neighbor_sampler=sampler(data), batch_size=10, neg_sampling="binary", num_workers=workers,
    ),
    "HGTLoader": lambda data, workers: HGTLoader(
        data, [4, 3], ("paper", torch.arange(30)), batch_size=10, num_workers=workers
    ),
    "RandomNodeLoader": lambda data, workers: RandomNodeLoader(
        data, num_parts=BATCHES, shuffle=True, num_workers=workers
    ),
}  # fmt: skip


class Typed(nn.Module):
    """Two layers of relations."""

    def __init__(self, data: HeteroData) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                pyg.HeteroConv({kind: pyg.SAGEConv(WIDTH, WIDTH) for kind in data.edge_types}),
                pyg.HeteroConv(
                    {kind: pyg.GraphConv((WIDTH, WIDTH), WIDTH) for kind in data.edge_types}
                ),
            ]
        )

    def forward(self, batch: HeteroData, trims: bool = False) -> Tensor:
        x, edges = batch.x_dict, batch.edge_index_dict
        for i, layer in enumerate(self.layers):
            if trims:
                sizes = batch.num_sampled_nodes_dict, batch.num_sampled_edges_dict
                x, edges, _ = trim_to_layer(i, *sizes, x, edges)
            x = {kind: rows.tanh() for kind, rows in layer(x, edges).items()}
        return torch.cat(list(x.values()))


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> HeteroData:
    """A graph whose batches HGTLoader yields, as a sampler other than torch-sparse's draws them."""
    monkeypatch.setattr(
        hgt_loader, "HGTSampler", lambda data, num_samples, **how: PythonSampler(data, num_samples)
    )
    return typed_graph()


@pytest.mark.parametrize("name", TYPED)
def test_loaders_of_typed_graphs(name: str, typed: HeteroData) -> None:
    loader = TYPED[name](typed, 0)
    assert_equal_over(loader, Typed(typed), lambda model, batch: model(batch))
    if name == "NeighborLoader":
        assert_equal_over(loader, Typed(typed), lambda model, batch: model(batch, trims=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPED)
def test_workers_with_typed_graphs(name: str, typed: HeteroData) -> None:
    loader = TYPED[name](typed, 2)
    assert_equal_over(loader, Typed(typed), lambda model, batch: model(batch))
