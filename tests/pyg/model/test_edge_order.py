"""What depends on the order of edges, found among all of PyG: with a HAG the same, or an error."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import nn as pyg
from torch_geometric.explain.algorithm.utils import set_masks
from torch_geometric.nn import aggr

import hag_plugin as hp
from hag_plugin.limits import Limits
from hag_plugin.pyg import accelerate, restore
from hag_plugin.pyg.model import edge_order
from hag_plugin.testing import limits

NODES, WIDTH, EDGES = 12, 4, 40

AGGREGATIONS: dict[str, Callable[[], Any]] = {
    "MultiAggregation": lambda: aggr.MultiAggregation(["mean", "max", "median"]),
    "Set2Set": lambda: aggr.Set2Set(WIDTH, 2),
    "LSTMAggregation": lambda: aggr.LSTMAggregation(WIDTH, 3),
    "GRUAggregation": lambda: aggr.GRUAggregation(WIDTH, 3),
    "DegreeScalerAggregation": lambda: aggr.DegreeScalerAggregation(
        "median", "linear", torch.ones(9)
    ),
    "SortAggregation": lambda: aggr.SortAggregation(3),
    "GraphMultisetTransformer": lambda: aggr.GraphMultisetTransformer(WIDTH, 2),
    "AttentionalAggregation": lambda: aggr.AttentionalAggregation(nn.Linear(WIDTH, 1)),
    "EquilibriumAggregation": lambda: aggr.EquilibriumAggregation(WIDTH, 3, [5], grad_iter=2),
    "MLPAggregation": lambda: aggr.MLPAggregation(
        WIDTH, 3, max_num_elements=EDGES, num_layers=1, plain_last=True
    ),
    "DeepSetsAggregation": lambda: aggr.DeepSetsAggregation(nn.Linear(WIDTH, 5), nn.Linear(5, 3)),
    "SetTransformerAggregation": lambda: aggr.SetTransformerAggregation(WIDTH, heads=2),
    "LCMAggregation": lambda: aggr.LCMAggregation(WIDTH, 3),
    "PatchTransformerAggregation": lambda: aggr.PatchTransformerAggregation(
        WIDTH, 3, patch_size=2, hidden_channels=4, num_transformer_blocks=1, heads=2
    ),
    "QuantileAggregation": lambda: aggr.QuantileAggregation(0.3),
    # Several at once, one of which reads in an order.
    "lstm among others": lambda: aggr.MultiAggregation(
        ["mean", "lstm"], [{}, {"in_channels": WIDTH, "out_channels": 3}]
    ),
    "scaled gru": lambda: aggr.DegreeScalerAggregation(
        "gru", "linear", torch.ones(9), aggr_kwargs={"in_channels": WIDTH, "out_channels": 3}
    ),
}
NAMES = sorted({*aggr.__all__, *AGGREGATIONS} - {"Aggregation"})


class UserConv(pyg.MessagePassing):
    """A user's layer that accelerate knows nothing of."""

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        return self.propagate(edge_index, x=x)

    def message(self, x_j: Tensor) -> Tensor:
        return x_j * 2


@hp.hag_layer
class DeclaredConv(UserConv):
    """One that was declared."""


def by_target(edge_index: Tensor) -> Tensor:
    """As several aggregations want their edges; else as they are."""
    return edge_index[:, edge_index[1].argsort(stable=True)]


def differ(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return any(differ(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return any(differ(x, y) for x, y in zip(a, b, strict=True))
    if not isinstance(a, Tensor):
        return False
    return a.shape != b.shape or not torch.allclose(a.double(), b.double(), atol=1e-6)


def seeded(layer: Any, *args: Any, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return layer(*args, **kwargs)


def edges() -> Tensor:
    return by_target(torch.randint(NODES, (2, EDGES)))


def reordered(edge_index: Tensor) -> Tensor:
    return by_target(edge_index.flip([1]))


def test_every_aggregation_is_tried() -> None:
    for name in NAMES:
        made(name)


def made(name: str) -> Any:
    return (AGGREGATIONS[name] if name in AGGREGATIONS else getattr(aggr, name))()


@pytest.mark.slow
@pytest.mark.parametrize("layer", [pyg.SimpleConv, UserConv, DeclaredConv])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_aggregations(name: str, layer: Any, training: bool) -> None:
    stock = layer(aggr=made(name)).double().train(training)
    x, edge_index = torch.randn(NODES, WIDTH).double(), edges()
    hag = hp.build_hag(edge_index, num_nodes=NODES)
    expected = seeded(stock, x, edge_index)
    depends = differ(expected, seeded(stock, x, reordered(edge_index)))
    ours = accelerate(copy.deepcopy(stock))
    assert edge_order.has_free_aggregation(stock) == (not depends and name != "SortAggregation")
    for _ in range(2):
        if depends or name == "SortAggregation":  # of equal ones it takes the first
            with pytest.raises(ValueError, match="depends on the order of edges"):
                ours(x, hag)
        else:
            torch.testing.assert_close(seeded(ours, x, hag), expected)
        assert not differ(seeded(ours, x, edge_index), expected)
    if name in ("LSTMAggregation", "GRUAggregation", "MLPAggregation", "LCMAggregation",
                "PatchTransformerAggregation", "lstm among others", "scaled gru"):  # fmt: skip
        assert depends


def test_what_is_the_same_for_all_rows_tells_nothing() -> None:
    """The first call could not show it: neither does the error wait for features that do."""
    stock = pyg.SimpleConv(aggr=aggr.GRUAggregation(WIDTH, 3))
    for parameter in stock.parameters():
        nn.init.zeros_(parameter)
    edge_index = edges()
    with pytest.raises(ValueError, match="depends on the order of edges"):
        accelerate(stock)(torch.ones(NODES, WIDTH), hp.build_hag(edge_index, num_nodes=NODES))


@pytest.mark.parametrize("size", [0, Limits().few_messages])
@pytest.mark.parametrize("name", ["lstm", "gru", ["mean", "lstm"]], ids=str)
def test_few_messages_are_asked_too(name: Any, size: int) -> None:
    with limits(few_messages=size):
        _asked_too(name)


def _asked_too(name: Any) -> None:
    one = {"in_channels": WIDTH, "out_channels": WIDTH}
    kwargs = {"aggrs_kwargs": [{}, one]} if isinstance(name, list) else one
    conv = accelerate(pyg.SAGEConv(WIDTH, 3, aggr=name, aggr_kwargs=kwargs))
    edge_index, x = edges(), torch.randn(NODES, WIDTH)
    hag = hp.build_hag(edge_index, num_nodes=NODES)
    with pytest.raises(ValueError, match="depends on the order of edges"):
        conv(x, hag)
    if name == "lstm":
        with pytest.raises(ValueError, match=r"or the tree of hag_plugin\.sequence\.build_seq"):
            conv(x, hag)
        tree = hp.sequence.build_sequence(edge_index, num_nodes=NODES)
        torch.testing.assert_close(conv(x, tree), conv(x, edge_index))


def test_relations() -> None:
    edge_index, kinds, x = edges(), torch.randint(2, (EDGES,)), torch.randn(NODES, WIDTH)
    hags = hp.pyg.relation_hags(edge_index, kinds, 2, (NODES, NODES))
    for aggregation in ("mul", aggr.GRUAggregation(WIDTH, WIDTH)):
        stock = pyg.RGCNConv(WIDTH, 3, 2, aggr=aggregation)
        ours = accelerate(copy.deepcopy(stock))
        if aggregation == "mul":
            torch.testing.assert_close(ours(x, hags), stock(x, edge_index, kinds))
            continue
        with pytest.raises(ValueError, match="depends on the order of edges"):
            ours(x, hags)


# Layers of users' own ----------------------------------------------------------------------------


class PerEdge(pyg.MessagePassing):
    """With a parameter for each edge."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(EDGES))

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        return self.propagate(edge_index, x=x, w=self.weight)

    def message(self, x_j: Tensor, w: Tensor) -> Tensor:
        return x_j * w.view(-1, 1)


class First(pyg.MessagePassing):
    """With an aggregation of its own: the first message of each node, or all of them."""

    def __init__(self, reduce: str) -> None:
        super().__init__()
        self.reduce = reduce

    def forward(self, x: Tensor, *rest: Any, **options: Any) -> Tensor:
        return self.propagate(rest[0], x=x)

    def aggregate(self, inputs: Tensor, index: Tensor, dim_size: int) -> Tensor:
        if self.reduce == "first":
            order = torch.arange(len(index), device=index.device).flip(0)
            out = inputs.new_zeros(dim_size, inputs.shape[1])
            for i in order.tolist():
                out[index[i]] = inputs[i]
            return out
        return inputs.new_zeros(dim_size, inputs.shape[1]).index_add(0, index, inputs)


class Numbered(pyg.MessagePassing):
    """That takes whole numbers only, and float32 at that."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(NODES, WIDTH)

    def forward(self, numbers: Tensor, edge_index: Any, scale: Tensor) -> Tensor:
        assert scale.dtype == torch.float32
        return self.propagate(edge_index, x=self.table(numbers) * scale)


class Keeping(UserConv):
    """That keeps its last messages."""

    def message(self, x_j: Tensor) -> Tensor:
        self.kept = x_j * self.scale
        return self.kept

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize("reduce", ["sum", "gru"])
def test_where_nothing_can_be_told_it_is_asked_again(reduce: str) -> None:
    """Each node has one source in the first graph."""
    x = torch.randn(NODES, WIDTH)
    one = hp.build_hag(torch.arange(NODES).expand(2, -1), num_nodes=NODES)
    edge_index = edges()
    kwargs = {"aggr_kwargs": {"in_channels": WIDTH, "out_channels": 3}} if reduce == "gru" else {}
    stock = Keeping(aggr=reduce, **kwargs)
    ours = accelerate(copy.deepcopy(stock))
    hag = hp.build_hag(edge_index, num_nodes=NODES)
    torch.testing.assert_close(ours(x, one), stock(x, one.edge_index))
    assert edge_order.FOUND_FREE not in ours.__dict__
    for _ in range(2):
        if reduce == "gru":
            with pytest.raises(ValueError, match="with aggr='gru'"):
                ours(x, hag)
        else:
            torch.testing.assert_close(ours(x, hag), stock(x, edge_index))
            assert edge_order.FOUND_FREE in ours.__dict__
            assert ours.kept.requires_grad
    assert edge_order.FOUND_FREE not in restore(ours).__dict__


@pytest.mark.parametrize("layer", ["PerEdge", "First", "Sum", "Numbered"])
def test_users_layers(layer: str) -> None:
    edge_index, x = edges(), torch.randn(NODES, WIDTH)
    hag = hp.build_hag(edge_index, num_nodes=NODES)
    made: dict[str, Callable[[], Any]] = {
        "PerEdge": PerEdge,
        "First": lambda: First("first"),
        "Sum": lambda: First("sum"),
        "Numbered": Numbered,
    }
    stock = made[layer]()
    ours = accelerate(copy.deepcopy(stock))
    args = (torch.arange(NODES), hag, torch.tensor(2.0)) if layer == "Numbered" else (x, hag)
    plain = [edge_index if a is hag else a for a in args]
    state = torch.random.get_rng_state()
    if layer in ("PerEdge", "First"):
        with pytest.raises(ValueError, match="in another one it gives another result"):
            ours(*args)
    else:
        torch.testing.assert_close(ours(*args), stock(*plain))
        twin = copy.deepcopy(pickle.loads(pickle.dumps(ours)))
        compiled = torch.compile(twin, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(*args), stock(*plain))  # known from before
        calls: list[int] = []
        ours.register_forward_hook(lambda *_: calls.append(1))
        ours(*args)
        assert calls == [1]  # it is not tried again, and no trial is seen
    torch.testing.assert_close(ours(*plain), stock(*plain))
    assert torch.equal(state, torch.random.get_rng_state())


# Values of edges ---------------------------------------------------------------------------------

WITH_ATTENTION = {
    "GATConv": lambda: pyg.GATConv(WIDTH, 3),
    "GATv2Conv": lambda: pyg.GATv2Conv(WIDTH, 3),
    "TransformerConv": lambda: pyg.TransformerConv(WIDTH, 3),
    "FAConv": lambda: pyg.FAConv(WIDTH),
}


def test_all_that_return_attention_are_tried() -> None:
    found = {
        name
        for name in pyg.conv.__all__
        if "return_attention_weights" in inspect.signature(getattr(pyg, name).forward).parameters
    }
    # RGATConv takes a HAG of each relation: see test_rgat.py.
    assert found - {"CuGraphGATConv", "RGATConv"} == set(WITH_ATTENTION)


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_attention_weights(name: str) -> None:
    stock = WITH_ATTENTION[name]().eval()
    ours = accelerate(copy.deepcopy(stock))
    edge_index, x = edges(), torch.randn(NODES, WIDTH)
    hag = hp.build_hag(edge_index, num_nodes=NODES)
    before = (x, x) if name == "FAConv" else (x,)
    with pytest.raises(ValueError, match=f"{name} got a HAG.*a value for each edge"):
        ours(*before, hag, return_attention_weights=True)
    plain = stock(*before, edge_index, return_attention_weights=True)
    assert not differ(ours(*before, edge_index, return_attention_weights=True), plain)
    torch.testing.assert_close(ours(*before, hag), plain[0])


def test_explanations() -> None:
    """A mask over edges is in the order of edge_index."""
    stock = pyg.GCN(WIDTH, 5, 2, 3)
    model = accelerate(copy.deepcopy(stock))
    edge_index, x = edges(), torch.randn(NODES, WIDTH)
    mask = torch.rand(EDGES)
    for each in (stock, model):
        set_masks(each, mask, edge_index)
    torch.testing.assert_close(model(x, edge_index), stock(x, edge_index))
    for given in (hp.build_hag(edge_index, num_nodes=NODES),) * 2:
        with pytest.raises(ValueError, match="being explained"):
            model(x, given)


def test_layers_cut_by_place() -> None:
    model = accelerate(pyg.GraphSAGE(WIDTH, 5, 2, 3))
    hag = hp.build_hag(edges(), num_nodes=NODES)
    with pytest.raises(ValueError, match="by their place"):
        model(torch.randn(NODES, WIDTH), hag, num_sampled_nodes_per_hop=[4, 4, 4],
              num_sampled_edges_per_hop=[20, 20])  # fmt: skip
