"""`accelerate`, `restore`, `explain` and `hag_layer` on DGL models."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

dgl = pytest.importorskip("dgl", reason="DGL is not installed")
import dgl.function as fn  # noqa: E402
from dgl.heterograph import DGLBlock  # noqa: E402
from dgl.nn.pytorch import EdgeConv, GATConv, GraphConv, HeteroGraphConv, SAGEConv  # noqa: E402

import hag_plugin as hp  # noqa: E402
from hag_plugin.dgl import HagGraph, ToHAG  # noqa: E402
from hag_plugin.dgl.aggregation.relation import relations_of  # noqa: E402
from hag_plugin.dgl.model.session import Session  # noqa: E402
from hag_plugin.dgl.model.swap import SESSION  # noqa: E402
from hag_plugin.limits import limits as in_force  # noqa: E402
from hag_plugin.testing import limits  # noqa: E402


class Seen(SAGEConv):
    """Notes the graphs it is called with."""

    def forward(self, graph: Any, feat: Any, edge_weight: Any = None) -> Any:
        self.__dict__.setdefault("graphs", []).append(graph)
        return super().forward(graph, feat, edge_weight)


class Net(nn.Module):
    """Two layers; the second gets its graph by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Seen(3, 4, "mean")
        self.second = GraphConv(4, 2, allow_zero_in_degree=True)

    def forward(self, graph: Any, x: Tensor) -> Tensor:
        return self.second(graph=graph, feat=self.first(graph, x).relu())


def session_of(module: nn.Module) -> Session:
    (found,) = {vars(part)[SESSION] for part in module.modules() if SESSION in vars(part)}
    assert isinstance(found, Session)
    return found


def test_a_graph_that_comes_back(multigraph: Any) -> None:
    graph, x = multigraph(), torch.randn(57, 3)
    graph.ndata["kept"] = x
    model = Net()
    before = model(graph, x)
    model.first.graphs.clear()
    assert hp.accelerate(model) is model
    for _ in range(3):
        torch.testing.assert_close(model(graph, x), before)
    assert [isinstance(g, HagGraph) for g in model.first.graphs] == [False, True, True]
    first, second = (relations_of(g) for g in model.first.graphs[1:])
    assert first is second
    assert type(graph) is dgl.DGLGraph
    assert list(graph.ndata) == ["kept"]
    assert session_of(model).num_graphs == 1
    model.first.graphs.clear()
    assert hp.restore(model) is model
    model(graph, x)
    assert type(model.first.graphs[0]) is dgl.DGLGraph
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    assert type(model.second) is GraphConv


class Embeds(Net):
    """A model that is called by another method than its forward."""

    def embed(self, graph: Any, x: Tensor) -> Tensor:
        return self.forward(graph, x)


@pytest.mark.parametrize("step", [False, True])
def test_a_graph_that_comes_back_to_another_method(multigraph: Any, step: bool) -> None:
    """With the same features, or after a step of the optimizer; not in a second layer."""
    graph, x, model = multigraph(), torch.randn(57, 3), hp.accelerate(Embeds())
    for _ in range(3):
        model.embed(graph, x.clone() if step else x)
        if step:
            with torch.no_grad():
                model.second.weight.mul_(0.9)
    assert [isinstance(g, HagGraph) for g in model.first.graphs] == [False, True, True]
    assert session_of(model).num_graphs == 1
    hp.restore(model)
    assert not model._forward_hooks


def test_sampled_blocks_of_another_method(multigraph: Any) -> None:
    model = hp.accelerate(Embeds())
    for _ in range(4):
        model.embed(multigraph(), torch.randn(57, 3))
    assert session_of(model).num_graphs == 0


def test_a_changed_graph_is_another(multigraph: Any) -> None:
    graph, x = multigraph(), torch.randn(57, 3)
    model = hp.accelerate(Net())
    for _ in range(2):
        model(graph, x)
    graph.add_edges([0, 1], [5, 6])
    out = model(graph, x)
    assert type(model.first.graphs[-1]) is dgl.DGLGraph
    torch.testing.assert_close(out, copy.deepcopy(hp.restore(model))(graph, x))


@pytest.mark.filterwarnings("ignore:Dataloader CPU affinity")
def test_sampled_blocks_are_never_searched(multigraph: Any) -> None:
    sampler = dgl.dataloading.NeighborSampler([4])
    loader = dgl.dataloading.DataLoader(
        multigraph(), torch.arange(57), sampler, batch_size=16, shuffle=True
    )
    model = hp.accelerate(Seen(3, 4, "mean"))
    for _ in range(3):
        for _, _, (block,) in loader:
            model(block, torch.randn(block.num_src_nodes(), 3))
    assert {type(g) for g in model.graphs} == {DGLBlock}
    assert session_of(model).num_graphs == 0


def test_one_layer_and_a_graph_of_its_own() -> None:
    """The root is the layer itself; and a model may keep its graph, as DGL's old examples do."""

    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.graph = dgl.rand_graph(10, 40)
            self.conv = Seen(3, 4, "mean")

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.graph, x)

    conv, model = hp.accelerate(Seen(3, 4, "mean")), hp.accelerate(Keeps())
    for _ in range(2):
        conv(model.graph, torch.ones(10, 3))
        model(torch.ones(10, 3))
    for layer in (conv, model.conv):
        assert [isinstance(g, HagGraph) for g in layer.graphs] == [False, True]


def test_hetero(hetero: Any) -> None:
    graph = hetero()
    conv = HeteroGraphConv({etype: Seen(3, 4, "mean") for etype in graph.etypes})
    x = {ntype: torch.randn(graph.num_nodes(ntype), 3) for ntype in graph.ntypes}
    before = conv(graph, x)
    hp.accelerate(conv)
    for _ in range(3):
        after = conv(graph, x)
        for ntype, rows in before.items():
            torch.testing.assert_close(after[ntype], rows)
    graphs = conv.mods["plays"].graphs
    assert [isinstance(g, HagGraph) for g in graphs] == [False, False, True, True]
    assert graphs[-1].hag is graphs[-2].hag


def test_features_written_by_the_model_are_the_callers() -> None:
    @hp.hag_layer
    class Writes(nn.Module):
        def forward(self, graph: Any) -> None:
            graph.update_all(fn.copy_u("x", "m"), fn.sum("m", "y"))

    graph, model = dgl.rand_graph(10, 40), hp.accelerate(Writes())
    graph.ndata["x"] = torch.ones(10, 1)
    for _ in range(2):
        model(graph)
        assert torch.equal(graph.ndata.pop("y").flatten(), graph.in_degrees().float())


def test_copies_and_pickles(multigraph: Any) -> None:
    graph, x = multigraph(), torch.randn(57, 3)
    model = hp.accelerate(Net())
    expected = [model(graph, x) for _ in range(2)][-1]
    model.first.graphs.clear()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert session_of(other).occasions.forwards == 0
        for _ in range(2):
            torch.testing.assert_close(other(graph, x), expected)
        assert isinstance(other.first.graphs[-1], HagGraph)
        assert other.state_dict().keys() == Net().state_dict().keys()


def test_large_graphs_are_refused() -> None:
    graph, model = dgl.rand_graph(10, 40), hp.accelerate(Seen(3, 4, "mean"))
    with limits(searched_edges=30):
        model(graph, torch.ones(10, 3))
        with pytest.warns(UserWarning, match="40 edges came back"):
            model(graph, torch.ones(10, 3))
        model(graph, torch.ones(10, 3))
    assert session_of(model).num_graphs == 0


def test_few_graphs_are_remembered() -> None:
    model = hp.accelerate(Seen(3, 4, "mean"))
    graphs = [dgl.rand_graph(5, 10) for _ in range(in_force.dgl_graphs + 3)]
    for _ in range(2):
        for graph in graphs[:4]:
            model(graph, torch.ones(5, 3))
    assert session_of(model).num_graphs == 4
    for graph in graphs:
        model(graph, torch.ones(5, 3))
    assert len(session_of(model).graphs) == in_force.dgl_graphs


def test_explain_and_warnings() -> None:
    model = nn.ModuleList(
        [GraphConv(3, 4), SAGEConv(4, 4, "pool"), EdgeConv(4, 2), GATConv(4, 2, 1)]
    )
    rows = hp.explain(hp.accelerate(model))
    assert [row.layer for row in rows] == ["GraphConv", "SAGEConv", "EdgeConv", "GATConv"]
    assert [row.accelerated for row in rows] == [True, True, False, True]
    assert "D^-1/2 A D^-1/2" in str(rows)
    assert "call accelerate" not in str(rows)
    assert "call accelerate" in str(hp.explain(hp.restore(model)))
    with pytest.warns(UserWarning, match="nothing to accelerate"):
        hp.dgl.accelerate(nn.ModuleList([EdgeConv(4, 2)]))
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got a int"):
        hp.dgl.accelerate(3)


def test_both_frameworks_in_one_model() -> None:
    pyg = pytest.importorskip("torch_geometric.nn", reason="PyG is not installed")
    model = hp.accelerate(nn.ModuleList([GraphConv(3, 4), pyg.GCNConv(3, 4)]))
    assert [row.layer for row in hp.explain(model)] == ["GCNConv", "GraphConv"]
    assert all(row.accelerated for row in hp.explain(model))
    hp.restore(model)
    assert not any(row.accelerated and "call" not in row.reason for row in hp.explain(model))


def test_importing_imports_no_framework() -> None:
    code = (
        "import sys, hag_plugin, hag_plugin.dgl; print({'dgl', 'torch_geometric'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# A user's own layer -----------------------------------------------------------------------------


class Own(nn.Module):
    """A Python message of the source node, with parameters and dropout."""

    reduce = "sum"

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(3, 4)
        self.dropout = nn.Dropout(0.5)
        self.calls: list[int] = []

    def forward(self, graph: Any, x: Tensor) -> Tensor:
        with graph.local_scope():
            graph.srcdata["x"] = x
            graph.update_all(self.message, getattr(fn, self.reduce)("m", "y"))
            return graph.dstdata["y"]

    def message(self, edges: Any) -> dict[str, Tensor]:
        self.calls.append(len(edges.src["x"]))
        return {"m": self.dropout(self.gate(edges.src["x"]).tanh())}


@hp.dgl.hag_layer
class Declared(Own):
    """`Own`, declared."""

    def forward(self, graph: Any, x: Tensor) -> Tensor:
        return super().forward(graph, x)


class Below(Declared):
    """A subclass inherits the declaration."""

    reduce = "mean"


@pytest.mark.parametrize("cls", [Declared, Below])
def test_declared_layer(cls: type, multigraph: Any, block: Any) -> None:
    for plain in (multigraph(), block()):
        layer = cls().double().eval()
        results = []
        for graph in (plain, ToHAG()(plain)):
            layer.zero_grad()
            x = torch.randn(plain.num_src_nodes(), 3, dtype=torch.float64,
                            generator=torch.Generator().manual_seed(1))  # fmt: skip
            y = layer(graph, x.requires_grad_())
            y.square().sum().backward()
            results.append((y.detach(), x.grad, layer.gate.weight.grad))
        for stock, ours in zip(*results, strict=True):
            torch.testing.assert_close(ours, stock, rtol=1e-11, atol=1e-11)
        assert layer.calls[0] == plain.num_edges()
        assert layer.calls[-1] == plain.num_src_nodes()


def test_a_declared_layer_in_an_accelerated_model(multigraph: Any) -> None:
    graph, layer = multigraph(), hp.accelerate(Declared().train())
    for _ in range(3):
        layer(graph, torch.randn(57, 3))
    assert layer.calls[0] == graph.num_edges()
    assert layer.calls[-1] == 57
    assert layer.training
    assert layer.dropout.training
    assert next(iter(hp.explain(layer))).accelerated


def test_false_declarations(multigraph: Any) -> None:
    @hp.hag_layer
    class ReadsTarget(Own):
        def forward(self, graph: Any, x: Tensor) -> Tensor:
            return super().forward(graph, x)

        def message(self, edges: Any) -> dict[str, Tensor]:
            return {"m": edges.src["x"] - edges.dst["x"]}

    @hp.hag_layer
    class MixesNodes(Own):
        def forward(self, graph: Any, x: Tensor) -> Tensor:
            return super().forward(graph, x)

        def message(self, edges: Any) -> dict[str, Tensor]:
            return {"m": edges.src["x"] - edges.src["x"].mean(0)}

    graph, x = ToHAG()(multigraph()), torch.randn(57, 3)
    with pytest.raises(ValueError, match=r"ReadsTarget .* reads edges\.dst"):
        ReadsTarget()(graph, x)
    with pytest.raises(ValueError, match=r"MixesNodes .* differs"):
        MixesNodes()(graph, x)


def test_what_hag_layer_refuses() -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got 3"):
        hp.hag_layer(3)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="needs no hag_layer"):
        hp.hag_layer(GraphConv)
    with pytest.raises(TypeError, match="no forward of its own"):
        hp.hag_layer(type("Empty", (Own,), {}))


def test_calls_are_counted_where_nothing_is_accelerated() -> None:
    model = EdgeConv(4, 2)
    with pytest.warns(UserWarning, match="nothing to accelerate"):
        hp.dgl.accelerate(model)
    model(dgl.graph(([0, 1, 2], [1, 2, 0])), torch.ones(3, 4))
    (row,) = hp.dgl.explain(model)
    assert row.calls.counts == {"stock": 1}
    hp.dgl.restore(model)
    assert type(model) is EdgeConv
