"""What `explain` says that calls ran on is what ran, for every layer and way of calling it."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

dgl = pytest.importorskip("dgl", reason="DGL is not installed")
import dgl.function as fn  # noqa: E402
from dgl.nn import EdgeConv, GraphConv, HeteroGraphConv, SAGEConv  # noqa: E402

import hag_plugin as hp  # noqa: E402
from hag_plugin.dgl import ToHAG  # noqa: E402
from hag_plugin.dgl.aggregation import choice  # noqa: E402
from hag_plugin.dgl.aggregation.rows import why_not_taken  # noqa: E402
from hag_plugin.explanation import Calls  # noqa: E402
from hag_plugin.testing import Ran, count_programs  # noqa: E402

from ..every_layer import LAYERS, Data, disordered  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # DGL's own
NODES = 15


def clique() -> Any:
    """All nodes have nearly all sources in common; a node's edges are sorted by source."""
    nodes = torch.arange(NODES)
    return dgl.graph(tuple(torch.cartesian_prod(nodes, nodes).T))


def ring() -> Any:
    """Nothing to share."""
    nodes = torch.arange(NODES)
    return dgl.graph((nodes, nodes.roll(1)))


def changed(graph: Any) -> Any:
    """A graph that lost its HAG, with as many edges as before."""
    given = ToHAG()(graph)
    given.remove_edges([0])
    given.add_edges([0], [1])
    return given


# The graph of each of three calls.
WAYS: dict[str, Callable[[], Iterator[Any]]] = {
    "a plain graph": lambda: iter([clique()] * 3),
    "a plain graph without sums to share": lambda: iter([ring()] * 3),
    "unsorted edges": lambda: iter([disordered()] * 3),
    "graphs that are new": lambda: (clique() for _ in range(3)),
    "ToHAG": lambda: iter([ToHAG()(clique())] * 3),
    "ToHAG, unsorted edges": lambda: iter([ToHAG()(disordered())] * 3),
    "ToHAG, with loops added": lambda: iter([dgl.add_self_loop(ToHAG()(clique()))] * 3),
    "blocks": lambda: (dgl.to_block(clique()) for _ in range(3)),
    "ToHAG of a block": lambda: iter([ToHAG()(dgl.to_block(clique()))] * 3),
    "changed": lambda: iter([changed(clique())] * 3),
}


def kind_of(ran: Ran) -> str:
    if ran.hag or ran.trees:
        return "HAG"
    return "plain" if ran.plain else "stock"


def calls_of(module: nn.Module, name: str = "") -> Calls:
    return next((row.calls for row in hp.explain(module) if row.name == name), Calls())


def called(function: Callable[..., Any], *arguments: Any) -> Ran:
    with count_programs() as ran:
        function(*arguments)
    return ran


def told(calls: Calls, before: dict[Any, int], ran: Ran) -> tuple[str, str]:
    """The kind of a layer's last call, and why, as it is told; it must be what ran, once."""
    new = [kind for kind in calls.counts if calls.counts[kind] != before.get(kind, 0)]
    assert new == [kind_of(ran)], (str(calls), ran)
    assert sum(calls.counts.values()) == sum(before.values()) + 1
    assert calls.reasons[new[0]]
    return new[0], calls.reasons[new[0]]


def counted(module: nn.Module, *arguments: Any) -> tuple[str, str]:
    """Calls a layer, and returns what is told of the call."""
    before = {**calls_of(module).counts}
    ran = called(module, *arguments)
    return told(calls_of(module), before, ran)


class Model(nn.Module):
    """A layer, and one beside it that is known and not called."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.known = layer, GraphConv(4, 4)

    def forward(self, *arguments: Any) -> Any:
        return self.layer(*arguments)


@pytest.mark.mostly_slow("*-True")
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(name: str, grad: bool, always_pays: None) -> None:
    make, arguments = LAYERS[name]
    for way, graphs in WAYS.items():
        torch.default_generator.manual_seed(0)
        model = hp.accelerate(Model(make()))
        rows = [row.name for row in hp.explain(model)][:-1]
        if not rows or (rows[0] != "layer" and len(rows) > 1):
            return  # no layer whose calls are all that runs
        counts, given = 0, None
        for graph in graphs():
            given = given or arguments(Data(clique() if graph.is_block else graph, torch.float32))
            before = {**calls_of(model, rows[0]).counts}
            try:
                with torch.set_grad_enabled(grad):
                    ran = called(model, graph, *given)
            except Exception:
                break  # a call that the layer does not take
            counts += 1
            calls = calls_of(model, rows[0])
            told(calls, before, ran)
            if "a plain graph" in way and counts == 1:
                assert calls.counts == {"stock": 1}
        assert sum(calls_of(model, rows[0]).counts.values()) == counts
        assert counts or way in ("blocks", "ToHAG of a block")


# Reasons --------------------------------------------------------------------------------------


X = torch.rand(NODES, 4)


def test_graphs() -> None:
    conv = hp.accelerate(GraphConv(4, 3))
    assert not calls_of(conv).counts
    graph, given = clique(), ToHAG()(clique())
    assert counted(conv, graph, X) == ("stock", choice.FIRST)
    assert counted(conv, graph, X) == ("HAG", choice.BACK)
    assert counted(conv, given, X) == ("HAG", choice.GIVEN)
    assert counted(conv, changed(clique()), X) == ("stock", choice.CHANGED)
    assert counted(conv, ToHAG()(ring()), X) == ("plain", choice.GIVEN)
    assert "2 HAG" in str(hp.explain(conv))
    assert "2 stock (the graph was changed" in str(hp.explain(conv))


def test_edge_weights() -> None:
    conv, graph = hp.accelerate(GraphConv(4, 3, norm="none")), ToHAG()(clique())
    product = torch.rand(NODES)[graph.edges()[0]] * torch.rand(NODES)[graph.edges()[1]]
    other = torch.rand(graph.num_edges())
    learned = other.clone().requires_grad_()
    plain = "plain", choice.GIVEN + choice.WEIGHTED
    assert counted(conv, graph, X, None, product) == ("stock", choice.FIRST_WEIGHTED)
    assert counted(conv, graph, X, None, product) == ("HAG", choice.GIVEN + choice.FACTORS)
    for weight in (other, other, other, learned, learned):
        assert counted(conv, graph, X, None, weight) == plain


def test_extrema() -> None:
    conv = hp.accelerate(SAGEConv(4, 3, "pool"))
    unsorted = ToHAG()(disordered())
    assert counted(conv, ToHAG()(clique()), X) == ("HAG", choice.GIVEN)
    assert counted(conv, unsorted, X) == ("stock", choice.UNSORTED.format("max"))
    with torch.no_grad():
        assert counted(conv, unsorted, X)[0] != "stock"
        # Found out only once the program ran.
        conv(ToHAG()(clique()), torch.full_like(X, float("inf")))
    assert calls_of(conv).reasons["stock"] == choice.NOT_FINITE


def test_dtypes_and_functions() -> None:
    @hp.hag_layer
    class Own(nn.Module):
        def forward(self, graph: Any, x: Tensor, **how: Any) -> None:
            with graph.local_scope():
                graph.ndata["x"] = x
                graph.update_all(self.message, fn.sum("m", "y"), **how)

        def message(self, edges: Any) -> dict[str, Tensor]:
            return {"m": edges.src["x"].tanh()}

    own, graph = hp.accelerate(Own()), ToHAG()(clique())
    assert counted(own, graph, X) == ("HAG", choice.GIVEN)
    assert why_not_taken(torch.ones(2, device="meta")) == "DGL's own kernels run on meta"
    own(graph, X, apply_node_func=lambda nodes: {})
    assert calls_of(own).reasons["stock"] == choice.NODE_FUNCTION


@pytest.mark.parametrize("cross", ["sum", "max"])
def test_edge_types(cross: str, hetero: Any) -> None:
    graph = ToHAG()(hetero())
    conv = HeteroGraphConv(
        {etype: SAGEConv(4, 3, "mean") for etype in graph.etypes}, aggregate=cross
    )
    model, x = hp.accelerate(conv), {n: torch.randn(graph.num_nodes(n), 4) for n in graph.ntypes}
    for _ in range(2):
        assert counted(model, graph, x)[0] != "stock"
    inner = [row.calls.counts for row in hp.explain(model) if row.name]
    assert [sum(counts.values()) for counts in inner] == [2, 2, 2]


# What is counted ------------------------------------------------------------------------------


def test_layers_without_a_recipe() -> None:
    model = hp.accelerate(nn.ModuleList([GraphConv(4, 4), EdgeConv(4, 2)]))
    for graph in (clique(), ToHAG()(clique())):
        assert kind_of(called(model[1], graph, X)) == "stock"
    assert calls_of(model, "1").counts == {"stock": 2}


def test_calls_that_raise() -> None:
    class Twice(nn.Module):
        """Catches an error of the first layer, and calls the second."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = GraphConv(4, 3), GraphConv(4, 3)

        def forward(self, graph: Any, x: Tensor) -> Any:
            try:
                self.first(graph, x[:, :2])
            except RuntimeError:
                return self.second(graph, x)

    model, graph = hp.accelerate(Twice()), ToHAG()(clique())
    model(graph, X)
    assert not calls_of(model, "first").counts
    assert calls_of(model, "second").counts == {"HAG": 1}
    try:
        raise ValueError
    except ValueError:  # handled outside, not of the call
        model.first(graph, X)
    assert calls_of(model, "first").counts == {"HAG": 1}


def test_forward_itself_is_as_a_call() -> None:
    conv, graph = hp.accelerate(GraphConv(4, 3)), clique()
    for expected in ("stock", "HAG", "HAG"):
        assert kind_of(called(conv.forward, graph, X)) == expected
    assert kind_of(called(conv.forward, ToHAG()(graph), X)) == "HAG"
    assert calls_of(conv).counts == {"stock": 1, "HAG": 3}


class Interrupted(GraphConv):  # type: ignore[misc]
    """Its calls can be interrupted before they do anything."""

    now = False

    def forward(self, graph: Any, feat: Tensor) -> Tensor:
        if self.now:
            raise KeyboardInterrupt
        return super().forward(graph, feat)


def test_an_interrupt_leaves_nothing_behind() -> None:
    model = hp.accelerate(nn.ModuleList([Interrupted(4, 3), GraphConv(4, 3)]))
    graph = ToHAG()(clique())
    model[0].now = True
    with pytest.raises(KeyboardInterrupt):
        model[0](graph, X)
    model[0].now = False
    for layer in (*model, *model):
        layer(graph, X)
    assert [row.calls.counts for row in hp.explain(model)] == [{"HAG": 2}] * 2


def test_restored_copied_and_saved() -> None:
    conv, graph = hp.accelerate(GraphConv(4, 3)), ToHAG()(clique())
    conv(graph, X)
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert not calls_of(other).counts
        assert counted(other, graph, X)[0] == "HAG"
        assert calls_of(other).counts == {"HAG": 1}
    assert calls_of(conv).counts == {"HAG": 1}
    hp.restore(conv)
    conv(graph, X)
    assert not calls_of(conv).counts
    assert type(conv) is GraphConv
    assert "counted once accelerate was called" in str(hp.explain(conv))
    assert "counted once" not in str(hp.explain(hp.accelerate(conv)))


def test_checkpoints_count_once() -> None:
    conv, graph = hp.accelerate(GraphConv(4, 3)), ToHAG()(clique())
    x = X.clone().requires_grad_()
    for reentrant in (False, True):
        y = checkpoint(lambda v: conv(graph, v), x, use_reentrant=reentrant)
        y.sum().backward()
    assert calls_of(conv).counts == {"HAG": 2}


def test_threads() -> None:
    conv, graph = hp.accelerate(GraphConv(4, 3)), ToHAG()(clique())

    def run(own: Any) -> None:
        for _ in range(50):
            conv(own, X)

    # A graph of DGL is for one thread at a time: its frames change.
    threads = [threading.Thread(target=run, args=(graph.local_var(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls_of(conv).counts == {"HAG": 200}


def test_traced_calls_count() -> None:
    conv, graph = hp.accelerate(GraphConv(4, 3)), ToHAG()(clique())

    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(graph, x)

    traced = torch.jit.trace(Holds(), (X,), check_trace=False)
    torch.testing.assert_close(traced(X), conv(graph, X))
    assert calls_of(conv).counts == {"HAG": 2}
