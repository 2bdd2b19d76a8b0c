"""DGL's `SAGEConv("lstm")` over the prefix tree of its graph."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

dgl = pytest.importorskip("dgl", reason="DGL is not installed")
import dgl.function as fn  # noqa: E402
from dgl.nn.pytorch import HeteroGraphConv, SAGEConv  # noqa: E402

import hag_plugin as hp  # noqa: E402
from hag_plugin.dgl import ToHAG, explain  # noqa: E402
from hag_plugin.sequence import SequentialHAG  # noqa: E402

WIDTH = 5


def conv() -> Any:
    return SAGEConv(WIDTH, 3, "lstm").double()


def results(layer: nn.Module, graph: Any, x: Tensor, *args: Any) -> list[Tensor]:
    """Output and the gradients of features and parameters."""
    x = x.clone().requires_grad_()
    y = layer(graph, x, *args)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()])]


def assert_equal(ours: list[Tensor], stock: list[Tensor]) -> None:
    for a, b in zip(ours, stock, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("idtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("kind", ["multigraph", "block"])
def test_a_layer_that_comes_back_runs_on_the_tree(
    kind: str,
    idtype: torch.dtype,
    request: pytest.FixtureRequest,
    walks: list[SequentialHAG],
    always_pays: None,
) -> None:
    graph = request.getfixturevalue(kind)(idtype)
    x = torch.randn(graph.num_src_nodes(), WIDTH, dtype=torch.float64)
    layer = conv()
    stock = results(layer, graph, x)
    graph = ToHAG()(graph)
    for call in range(3):
        assert_equal(results(layer, graph, x), stock)
        assert bool(walks) == (call > 0)
    assert walks[0] is walks[1]
    with torch.no_grad():
        torch.testing.assert_close(layer(graph, x), stock[0])
    assert len(walks) == 3


def test_a_plain_graph_that_comes_back(
    multigraph: Any, walks: list[SequentialHAG], always_pays: None
) -> None:
    graph, x = multigraph(), torch.randn(57, WIDTH, dtype=torch.float64)
    layer = conv()
    stock = results(layer, graph, x)
    hp.accelerate(layer)
    for _ in range(4):
        assert_equal(results(layer, graph, x), stock)
    assert walks
    hp.restore(layer)
    walks.clear()
    assert_equal(results(layer, graph, x), stock)
    assert not walks


def test_real_graphs(real_graph: Any, walks: list[SequentialHAG], always_pays: None) -> None:
    seeds = torch.arange(min(real_graph.num_nodes(), 300))
    graph = dgl.node_subgraph(real_graph, seeds)
    x = torch.randn(graph.num_nodes(), WIDTH, dtype=torch.float64)
    layer = conv()
    stock = results(layer, graph, x)
    graph = ToHAG()(graph)
    for _ in range(2):
        assert_equal(results(layer, graph, x), stock)
    assert len(walks) == 1


def test_loops_added_to_a_graph_on_its_hag_come_last(
    multigraph: Any, walks: list[SequentialHAG], always_pays: None
) -> None:
    plain = dgl.add_self_loop(multigraph())
    x = torch.randn(57, WIDTH, dtype=torch.float64)
    layer = conv()
    stock = results(layer, plain, x)
    graph = dgl.add_self_loop(ToHAG()(multigraph()))
    for _ in range(2):
        assert_equal(results(layer, graph, x), stock)
    assert walks[0].num_edges == plain.num_edges()


def test_reversed_and_batched_graphs_have_trees_of_their_own(
    multigraph: Any, walks: list[SequentialHAG], always_pays: None
) -> None:
    plain, layer = multigraph(), conv()
    hags = ToHAG()(plain)
    pairs = [
        (hp.dgl.reverse(hags), dgl.reverse(plain)),
        (hp.dgl.batch([hags, hags]), dgl.batch([plain, plain])),
    ]
    for graph, other in pairs:
        x = torch.randn(graph.num_nodes(), WIDTH, dtype=torch.float64)
        for _ in range(2):
            assert_equal(results(layer, graph, x), results(layer, other, x))
    assert len(walks) == 2


def test_edge_types(hetero: Any, walks: list[SequentialHAG], always_pays: None) -> None:
    graph = hetero()
    layer = HeteroGraphConv({etype: conv() for etype in graph.etypes})
    x = {
        ntype: torch.randn(graph.num_nodes(ntype), WIDTH, dtype=torch.float64)
        for ntype in graph.ntypes
    }
    stock = layer(graph, x)
    graph = ToHAG()(graph)
    for _ in range(2):
        for ntype, y in layer(graph, x).items():
            torch.testing.assert_close(y, stock[ntype], rtol=1e-10, atol=1e-10)
    assert len(walks) == 3


def test_counts_decide(walks: list[SequentialHAG]) -> None:
    nodes = torch.arange(40)
    clique = dgl.graph((nodes.repeat(40), nodes.repeat_interleave(40)))
    shared = ToHAG()(dgl.batch([clique] * 30))
    layer, x = SAGEConv(16, 3, "lstm"), torch.randn(1200, 16)
    for _ in range(2):
        layer(shared, x)
    assert len(walks) == 1
    assert explain(layer)[0].accelerated
    assert "1,200 steps of the prefix tree, 48,000 of stock" in explain(layer)[0].reason
    generator = torch.Generator().manual_seed(0)
    sources = torch.randint(1200, (24_000,), generator=generator)  # of one in-degree: one call
    apart = ToHAG()(dgl.graph((sources, torch.arange(1200).repeat(20))))
    for _ in range(2):
        layer(apart, x)
    assert len(walks) == 1
    assert not explain(layer)[0].accelerated
    assert explain(layer)[0].reason.startswith("stock is as fast: ")


def test_what_is_left_to_dgl(
    multigraph: Any, walks: list[SequentialHAG], always_pays: None
) -> None:
    plain = multigraph()
    graph, x = ToHAG()(plain), torch.randn(57, WIDTH, dtype=torch.float64)
    weight = torch.rand(graph.num_edges(), 1, dtype=torch.float64)
    hooked, layer = conv(), conv()
    hooked.lstm.register_forward_hook(lambda *_: None)
    empty = ToHAG()(dgl.graph(([], []), num_nodes=57))
    initial = plain.local_var()
    initial.set_n_initializer(lambda shape, dtype, *_: torch.ones(shape, dtype=dtype))
    for _ in range(2):
        assert_equal(results(layer, graph, x, weight), results(layer, plain, x, weight))
        torch.testing.assert_close(hooked(graph, x), hooked(plain, x))
        torch.testing.assert_close(layer(ToHAG()(initial), x), layer(initial, x))
        layer(empty, x)
    assert not walks
    assert explain(hooked)[0].reason.startswith("hooks on its LSTM")


class Reversed(SAGEConv):  # type: ignore[misc]
    """A reducer of its own."""

    def _lstm_reducer(self, nodes: Any) -> Any:
        return {"neigh": self.lstm(nodes.mailbox["m"].flip(1))[0][:, -1]}


def test_a_reducer_of_a_subclass_is_its_own(
    multigraph: Any, walks: list[SequentialHAG], always_pays: None
) -> None:
    plain, x = multigraph(), torch.randn(57, WIDTH, dtype=torch.float64)
    layer, graph = Reversed(WIDTH, 3, "lstm").double(), ToHAG()(plain)
    for _ in range(2):
        torch.testing.assert_close(layer(graph, x), layer(plain, x))
    assert not walks


def test_update_all_with_the_layers_reducer(
    multigraph: Any, walks: list[SequentialHAG], always_pays: None
) -> None:
    layer, plain = conv(), multigraph()
    graph = ToHAG()(plain)
    found = []
    for each in (plain, graph, graph):
        with each.local_scope():
            each.ndata["x"] = torch.arange(57.0 * WIDTH, dtype=torch.float64).view(57, WIDTH) / 99
            each.update_all(fn.copy_u("x", "m"), layer._lstm_reducer)
            found.append(each.ndata["neigh"])
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])
    assert len(walks) == 1


def test_copies_of_a_layer_start_anew(
    multigraph: Any, walks: list[SequentialHAG], always_pays: None
) -> None:
    graph, layer = ToHAG()(multigraph()), conv()
    x = torch.randn(57, WIDTH, dtype=torch.float64)
    layer(graph, x)
    copy.deepcopy(layer)(graph, x)
    assert not walks
    layer(graph, x)
    assert len(walks) == 1
