"""Layers in plans, by name: the kind of operation each is, and the results of one process."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import nn as pyg
from torch_geometric.data import Data

import hag_plugin as hp
from hag_plugin.parallel.model.opgraph import Op
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.planner import planned

from ..equality import Allow, check, space_with
from ..models import CLASSES, FEATURES, RELATIONS
from ..run_ranks import run_threads
from .test_models import data as plain_data

pytestmark = pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
F_IN, OUT, EDGE = FEATURES, 8, 3
Call = Callable[[Any, Tensor, Data], Tensor]


def data() -> Data:
    """With features of edges, weights and positions."""
    found, generator = plain_data(), torch.Generator().manual_seed(2)
    options: Any = {"generator": generator, "dtype": torch.float64}
    found.edge_attr = torch.rand(found.num_edges, EDGE, **options)
    found.edge_weight = torch.rand(found.num_edges, **options)
    found.pos = torch.rand(found.num_nodes, 3, **options)
    size = (found.num_nodes, found.num_nodes)
    edges = found.edge_index[:, found.edge_index[0] != found.edge_index[1]].unique(dim=1)
    values = torch.ones(edges.shape[1], dtype=torch.float64)
    found.adj_t = torch.sparse_coo_tensor(edges.flip(0), values, size).to_sparse_csr()
    found.batch = torch.arange(found.num_nodes) // 16
    return found


def plain(layer: Any, h: Tensor, d: Data) -> Tensor:
    return layer(h, d.edge_index)


def attributes(layer: Any, h: Tensor, d: Data) -> Tensor:
    return layer(h, d.edge_index, d.edge_attr)


def weights(layer: Any, h: Tensor, d: Data) -> Tensor:
    return layer(h, d.edge_index, d.edge_weight)


def types(layer: Any, h: Tensor, d: Data) -> Tensor:
    return layer(h, d.edge_index, d.edge_type)


def first(layer: Any, h: Tensor, d: Data) -> Tensor:
    return layer(h, d.x, d.edge_index)


def sparse(layer: Any, h: Tensor, d: Data) -> Tensor:
    size = (d.num_nodes, d.num_nodes)
    adj_t = torch.sparse_coo_tensor(d.edge_index.flip(0), d.edge_weight, size).coalesce()
    return layer(h, adj_t.to_sparse_csr())


def ones(layer: Any, h: Tensor, d: Data) -> Tensor:
    return layer(h, d.adj_t)


def pair(layer: Any, h: Tensor, d: Data) -> Tensor:
    return layer((h, h.relu()), d.edge_index)


def whole(make: Callable[[], nn.Module], call: Call = plain) -> Any:
    return make, call, "opaque"


def halo(make: Callable[[], nn.Module], call: Call = plain) -> Any:
    return make, call, "halo"


def split(make: Callable[[], nn.Module], call: Call = plain, kind: str = "convolution") -> Any:
    return make, call, kind


GAT = {"heads": 2, "edge_dim": EDGE}
LAYERS: dict[str, Any] = {
    "SGConv, weights": split(lambda: pyg.SGConv(F_IN, OUT, K=2), weights),
    "DirGNNConv": split(lambda: pyg.DirGNNConv(pyg.GCNConv(F_IN, OUT))),
    "GCNConv, cached": split(lambda: pyg.GCNConv(F_IN, OUT, cached=True)),
    "GCNConv, other flow": whole(lambda: pyg.GCNConv(F_IN, OUT, flow="target_to_source")),
    "GCNConv, adj_t": split(lambda: pyg.GCNConv(F_IN, OUT), sparse),
    "GCNConv, adj_t of ones": split(lambda: pyg.GCNConv(F_IN, OUT), ones),
    "SAGEConv, adj_t": split(lambda: pyg.SAGEConv(F_IN, OUT), sparse),
    "GATConv, adj_t": whole(lambda: pyg.GATConv(F_IN, 4), ones),
    "SAGEConv, several": halo(lambda: pyg.SAGEConv(F_IN, OUT, aggr=["mean", "max"])),
    "SAGEConv, learned": halo(
        lambda: pyg.SAGEConv(F_IN, OUT, aggr="softmax", aggr_kwargs={"learn": True})
    ),
    "SAGEConv, projected": halo(lambda: pyg.SAGEConv(F_IN, OUT, project=True)),
    "SAGEConv, pair": split(lambda: pyg.SAGEConv(F_IN, OUT), pair),
    "GATv2Conv, pair": halo(lambda: pyg.GATv2Conv(F_IN, OUT, add_self_loops=False), pair),
    "GATConv, pair": halo(lambda: pyg.GATConv((F_IN, F_IN), OUT, add_self_loops=False), pair),
    "GATConv, two weights": halo(lambda: pyg.GATConv((F_IN, F_IN), OUT)),
    "GATConv, edges": halo(lambda: pyg.GATConv(F_IN, 4, **GAT), attributes),
    "GATv2Conv": halo(lambda: pyg.GATv2Conv(F_IN, 4, heads=2)),
    "GATv2Conv, edges": halo(lambda: pyg.GATv2Conv(F_IN, 4, **GAT), attributes),
    "TransformerConv": halo(lambda: pyg.TransformerConv(F_IN, 4, heads=2, beta=True)),
    "TransformerConv, edges": halo(lambda: pyg.TransformerConv(F_IN, 4, **GAT), attributes),
    "SuperGATConv": whole(lambda: pyg.SuperGATConv(F_IN, OUT)),
    "AGNNConv": whole(pyg.AGNNConv),
    "FAConv": whole(lambda: pyg.FAConv(F_IN), first),
    "RGATConv": halo(lambda: pyg.RGATConv(F_IN, OUT, RELATIONS), types),
    "FeaStConv": halo(lambda: pyg.FeaStConv(F_IN, OUT)),
    "GPSConv": whole(lambda: pyg.GPSConv(F_IN, pyg.GCNConv(F_IN, F_IN), heads=2)),
    "GPSConv, batch": whole(
        lambda: pyg.GPSConv(F_IN, pyg.GCNConv(F_IN, F_IN), heads=2),
        lambda m, h, d: m(h, d.edge_index, d.batch),
    ),
    "GINEConv": halo(lambda: pyg.GINEConv(nn.Linear(F_IN, OUT), edge_dim=EDGE), attributes),
    "GENConv": whole(lambda: pyg.GENConv(F_IN, OUT)),
    "NNConv": halo(lambda: pyg.NNConv(F_IN, OUT, nn.Linear(EDGE, F_IN * OUT)), attributes),
    "CGConv": halo(lambda: pyg.CGConv(F_IN, EDGE), attributes),
    "GMMConv": halo(lambda: pyg.GMMConv(F_IN, OUT, EDGE, 2), attributes),
    "PDNConv": whole(lambda: pyg.PDNConv(F_IN, OUT, EDGE, 4), attributes),
    "APPNP": split(lambda: pyg.APPNP(3, 0.1)),
    "SSGConv": split(lambda: pyg.SSGConv(F_IN, OUT, alpha=0.1, K=2)),
    "TAGConv": split(lambda: pyg.TAGConv(F_IN, OUT)),
    "ChebConv": split(lambda: pyg.ChebConv(F_IN, OUT, K=3)),
    "ARMAConv": split(lambda: pyg.ARMAConv(F_IN, OUT, num_stacks=2, num_layers=2)),
    "GCN2Conv": split(lambda: pyg.GCN2Conv(F_IN, alpha=0.1), first),
    "MixHopConv": whole(lambda: pyg.MixHopConv(F_IN, OUT)),
    "ChebConv, weights": split(
        lambda: pyg.ChebConv(F_IN, OUT, K=2, normalization="rw"),
        lambda m, h, d: m(h, d.edge_index, d.edge_weight, lambda_max=2.5),
    ),
    "ARMAConv, shared": split(
        lambda: pyg.ARMAConv(F_IN, OUT, num_layers=2, shared_weights=True, act=None), weights
    ),
    "GCN2Conv, two weights": split(
        lambda: pyg.GCN2Conv(F_IN, 0.1, 0.5, 1, shared_weights=False), first
    ),
    "ClusterGCNConv": split(lambda: pyg.ClusterGCNConv(F_IN, OUT)),
    "ClusterGCNConv, diagonal": split(lambda: pyg.ClusterGCNConv(F_IN, OUT, diag_lambda=0.5)),
    "GatedGraphConv, wider": split(lambda: pyg.GatedGraphConv(F_IN + 4, 1)),
    "EGConv": whole(lambda: pyg.EGConv(F_IN, OUT, num_heads=4)),
    "EdgeConv": halo(lambda: pyg.EdgeConv(nn.Linear(2 * F_IN, OUT))),
    "GatedGraphConv": split(lambda: pyg.GatedGraphConv(F_IN, 2)),
    "ResGatedGraphConv": halo(lambda: pyg.ResGatedGraphConv(F_IN, OUT)),
    "FiLMConv": halo(lambda: pyg.FiLMConv(F_IN, OUT)),
    "MFConv": halo(lambda: pyg.MFConv(F_IN, OUT)),
    "LEConv": halo(lambda: pyg.LEConv(F_IN, OUT)),
    "FastRGCNConv": halo(lambda: pyg.FastRGCNConv(F_IN, OUT, RELATIONS), types),
    "SignedConv": whole(
        lambda: pyg.SignedConv(F_IN, OUT, True),
        lambda m, h, d: m(h, d.edge_index, d.edge_index.flip(0)),
    ),
    "HypergraphConv": whole(lambda: pyg.HypergraphConv(F_IN, OUT)),
    "PointNetConv": whole(
        lambda: pyg.PointNetConv(nn.Linear(F_IN + 3, OUT)),
        lambda m, h, d: m(h, d.pos, d.edge_index),
    ),
}


SINGLE = ("ClusterGCNConv", "ClusterGCNConv, diagonal")  # PyG's degrees are in single precision


class Model(nn.Module):
    """A layer between two linear ones."""

    def __init__(self, layer: nn.Module, call: Call, given: Data) -> None:
        super().__init__()
        self.first, self.layer, self.call = nn.Linear(F_IN, F_IN), layer, call
        with torch.no_grad():
            width = call(self.double().layer, self.first(given.x), given).shape[-1]
        if hasattr(layer, "reset_parameters") and getattr(layer, "cached", False):
            layer.reset_parameters()  # what it has cached
        for tensor in layer.parameters():  # RGATConv has some that are not set
            tensor.data.nan_to_num_(1.0, 1.0, 1.0).clamp_(-1e3, 1e3)
        self.last = nn.Linear(width, CLASSES)

    def forward(self, data: Data) -> Tensor:
        return self.last(self.call(self.layer, self.first(data.x), data).relu())


@pytest.mark.mostly_slow("SAGEConv, several", "GATv2Conv, edges", "GPSConv", "APPNP", "GCN2Conv")
@pytest.mark.parametrize("name", LAYERS)
def test_it_trains_as_one_process(name: str) -> None:
    make, call, kind = LAYERS[name]
    torch.manual_seed(0)
    model = Model(make(), call, data()).double()
    ops = [op for op in trace(model, data(), hag=False).ops if op.name.startswith("layer")]
    kinds = {"halo" if op.by_edges else op.kind for op in ops if splits(op) or not op.by_row}
    assert kind in kinds
    assert kind == "opaque" or "opaque" not in kinds
    for strategy in ("replicate", "rows, halo")[: 1 + (kind != "opaque")]:
        tolerance = 1e-5 if name in SINGLE else 1e-9
        found = check(model, data(), 2, by_strategy(strategy), tolerance=tolerance)
        chosen = {found.layer(op.name).config.strategy for op in ops if splits(op)}
        assert chosen <= {strategy}


def by_strategy(name: str) -> Allow:
    return lambda op, config: not splits(op) or config.strategy == name


def splits(op: Op) -> bool:
    """Whether it can be split by rows, and is an operation over edges."""
    return op.kind == "convolution" or op.by_edges


class Takes(nn.Module):
    """A layer of DGL's between two linear ones."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(F_IN, F_IN), layer
        self.last = nn.Linear(width, CLASSES)

    def forward(self, graph: Any, x: Tensor) -> Tensor:
        h = self.first(x)
        first = (h,) if "feat_0" in inspect.signature(self.layer.forward).parameters else ()
        return self.last(self.layer(graph, h, *first).flatten(1).relu())


HALO_OR = ("replicate", "rows, halo", "all-to-all around aggregation")
# Arguments, width of the output, and strategies in which it runs.
DGL: dict[str, tuple[tuple[Any, ...], int, tuple[str, ...]]] = {
    "GraphConv": ((F_IN, OUT), OUT, HALO_OR),
    "SAGEConv": ((F_IN, OUT, "mean"), OUT, HALO_OR),
    "SAGEConv, pool": ((F_IN, OUT, "pool"), OUT, ("replicate",)),
    "GINConv": ((None, "sum"), F_IN, HALO_OR),
    "GATConv": ((F_IN, 4, 2), OUT, ("replicate",)),
    "GATv2Conv": ((F_IN, 4, 2), OUT, ("replicate",)),
    "DotGatConv": ((F_IN, 4, 2), OUT, ("replicate",)),
    "SGConv": ((F_IN, OUT, 2), OUT, HALO_OR),
    "TAGConv": ((F_IN, OUT), OUT, HALO_OR),
    "APPNPConv": ((2, 0.1), F_IN, HALO_OR),
    "ChebConv": ((F_IN, OUT, 3), OUT, HALO_OR),
    "GCN2Conv": ((F_IN, 1, 0.1, 1.0, False), F_IN, HALO_OR),
    "GatedGraphConv": ((F_IN, F_IN + 4, 2, 1), F_IN + 4, HALO_OR),
    "EdgeConv": ((F_IN, OUT), OUT, ("replicate",)),
}


@pytest.mark.filterwarnings("ignore:lambda_max is not provided")
@pytest.mark.mostly_slow("GraphConv", "SAGEConv, pool", "TAGConv")
@pytest.mark.parametrize("name", DGL)
def test_layers_of_dgl(name: str) -> None:
    dgl = pytest.importorskip("dgl", reason="DGL is not installed")
    sizes, width, strategies = DGL[name]
    cls, given = getattr(dgl.nn.pytorch, name.partition(",")[0]), data()
    allowed = "allow_zero_in_degree" in inspect.signature(cls).parameters
    torch.manual_seed(0)
    layer = cls(*sizes, **({"allow_zero_in_degree": True} if allowed else {}))
    dtype = torch.float32 if name == "APPNPConv" else torch.float64  # it takes no other
    model = Takes(layer, width).to(dtype)
    close = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}

    def both() -> Any:  # each rank has a graph of its own
        graph = dgl.graph(tuple(given.edge_index), num_nodes=given.num_nodes)
        return graph, given.x.to(dtype)

    expected = model(*both())
    expected.square().mean().backward()
    traced = trace(model, both(), hag=False)
    ops = [op for op in traced.ops if op.name.startswith("layer")]
    split = "convolution" in {op.kind for op in ops}
    assert split == (len(strategies) > 1)
    assert not split or all(op.by_row for op in ops if op.kind == "opaque")
    wanted = [p.grad for p in model.parameters()]
    for strategy in strategies:
        space = space_with(traced, 2, by_strategy(strategy))
        plan = planned(space, space.cheapest().configs)

        def case(rank: int, plan: Any = plan) -> Any:
            ours = hp.parallel.parallelize(model, both(), plan)
            out = ours()
            ours.parallel.mean(out.square()).backward()
            grads = [None if p.grad is None else p.grad.full_tensor() for p in ours.parameters()]
            return ours.parallel.gather(out), grads

        for out, grads in run_threads(2, case):
            torch.testing.assert_close(out, expected.detach(), **close)
            torch.testing.assert_close(grads, wanted, **close)
