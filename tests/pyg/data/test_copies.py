"""`ToHAG(copies=...)`: batches of overlapping subgraphs, as models and loaders take them."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, GINConv, SAGEConv
from torch_geometric.transforms import RootedEgoNets

import hag_plugin as hp
from hag_plugin.ops.aggregate import aggregate

from ... import reference
from ...cases import bags


def bag_batch(width: int = 8) -> tuple[Batch, Tensor]:
    edges, _ = bags(30, 1, 7)
    nodes = int(edges.max()) + 1
    x = torch.randn(nodes, width)
    data = Data(x=x, edge_index=edges, n_id=torch.arange(nodes))
    each = [data.subgraph(torch.arange(nodes) != left) for left in range(nodes)]
    return Batch.from_data_list(each), x


LAYERS = {
    "SAGE": lambda: SAGEConv(8, 8),
    "GIN": lambda: GINConv(torch.nn.Linear(8, 8)),
    "GCN": lambda: GCNConv(8, 8),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_a_model(name: str) -> None:
    data, _ = bag_batch()
    layers = torch.nn.ModuleList([LAYERS[name](), LAYERS[name]()])
    stock = copy.deepcopy(layers)
    hp.accelerate(layers)
    given = hp.pyg.ToHAG(copies="n_id", choose="hag")(data)
    h = z = data.x
    for layer, twin in zip(layers, stock, strict=True):
        h, z = layer(h, given.hag).relu(), twin(z, data.edge_index).relu()
        torch.testing.assert_close(h, z)
    h.sum().backward()
    z.sum().backward()
    for mine, theirs in zip(layers.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    if name != "GCN":  # its norm differs from bag to bag
        assert "copies" in str(hp.explain(layers[:1]))
        assert "copies" not in str(hp.explain(layers[1:]))


@pytest.mark.parametrize("workers", [0, 1])
def test_bags_in_a_loader(workers: int) -> None:
    """Bags made once for each graph, then batched: copies stay copies."""
    to_hag = hp.pyg.ToHAG(copies="n_id", choose="hag", self_loops=False)
    graphs = []
    for seed in range(4):
        edges, ids = bags(9, 4, seed)
        x = torch.randn(9, 8)
        graphs.append(to_hag(Data(x=x[ids], edge_index=edges, n_id=ids)))
    met = 0
    for data in DataLoader(graphs, batch_size=2, num_workers=workers):
        hag = data.hag
        expected = reference.aggregate(data.x, data.edge_index, data.num_nodes, "mean")
        torch.testing.assert_close(aggregate(data.x, hag, "mean"), expected)
        assert "copies" in hag.ran(False, False).why
        met += 1
    assert met == 2


def test_ego_nets() -> None:
    """PyG's own k-hop bags; nodes with the same features stand for one another."""
    edges, _ = bags(10, 1, 8, density=0.2)
    nodes = int(edges.max()) + 1
    with warnings.catch_warnings():  # of sparse tensors
        warnings.simplefilter("ignore")
        data = RootedEgoNets(2)(Data(x=torch.randn(nodes, 4), edge_index=edges)).map_data()
    hag = hp.pyg.ToHAG(copies="x", choose="hag")(data).hag
    y = aggregate(data.x, hag)
    assert "copies" in hag.ran(False, False).why
    expected = reference.aggregate(data.x, data.edge_index, data.num_nodes)
    torch.testing.assert_close(y, expected)


def test_what_is_no_name_of_copies() -> None:
    data, _ = bag_batch()
    with pytest.raises(ValueError, match="copies=") as refusal:
        hp.pyg.ToHAG()(data)
    assert "Batch" in str(refusal.value)
    with pytest.raises(ValueError, match=r"no_id.*n_id"):
        hp.pyg.ToHAG(copies="no_id")(data)
    with pytest.raises(TypeError, match="copies"):
        hp.pyg.ToHAG(copies=3)  # type: ignore[arg-type]
    assert "copies='n_id'" in repr(hp.pyg.ToHAG(copies="n_id"))
