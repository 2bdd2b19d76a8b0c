"""What keeps a graph's HAG, what drops it, and that each result is that of the edges at hand."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

dgl = pytest.importorskip("dgl", reason="DGL is not installed")
import dgl.function as fn  # noqa: E402

import hag_plugin.dgl as hag_dgl  # noqa: E402
from hag_plugin.dgl.aggregation.relation import relations_of  # noqa: E402
from hag_plugin.dgl.model.swap import SESSION  # noqa: E402
from hag_plugin.testing import Ran  # noqa: E402

COPIES: dict[str, Callable[[Any], Any]] = {
    "local_var": lambda g: g.local_var(),
    "clone": lambda g: g.clone(),
    "to": lambda g: g.to("cpu"),
    "int": lambda g: g.int(),
    "long": lambda g: g.int().long(),
    "formats": lambda g: g.formats(["csc"]),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda g: pickle.loads(pickle.dumps(g)),
}
MORE: dict[str, Callable[[Any], Any]] = {
    "method reverse": lambda g: g.reverse(),
    "reverse": hag_dgl.reverse,
    "reverse twice": lambda g: g.reverse().reverse(),
    "add_self_loop": dgl.add_self_loop,
    "batch": lambda g: hag_dgl.batch([g, g]),
    "batch with loops": lambda g: hag_dgl.batch([g.add_self_loop(), g.add_self_loop()]),
    "batch, some with loops": lambda g: hag_dgl.batch([g, g.add_self_loop()]),
    "batch of batches": lambda g: hag_dgl.batch([hag_dgl.batch([g, g]), g]),
    "pickled batch": lambda g: pickle.loads(pickle.dumps(hag_dgl.batch([g, g]))),
    "unbatch": lambda g: hag_dgl.unbatch(hag_dgl.batch([g, g]))[1],
}
DROPS: dict[str, Callable[[Any], Any]] = {
    "add_edges": lambda g: dgl.add_edges(g, torch.tensor([0, 5]), torch.tensor([9, 9])),
    "remove_edges": lambda g: dgl.remove_edges(g, torch.tensor([0, 5])),
    "add_nodes": lambda g: dgl.add_nodes(g, 2),
    "remove_nodes": lambda g: dgl.remove_nodes(g, torch.tensor([3])),
    "remove_self_loop": dgl.remove_self_loop,
    "two loops": lambda g: g.add_self_loop().add_self_loop(),
    "node_subgraph": lambda g: dgl.node_subgraph(g, list(range(20))),
    "edge_subgraph": lambda g: dgl.edge_subgraph(g, list(range(50))),
    "in_subgraph": lambda g: dgl.in_subgraph(g, [1, 2, 3]),
    "sample": lambda g: dgl.sampling.sample_neighbors(g, list(range(20)), 2),
    "to_block": lambda g: dgl.to_block(g),
    "to_simple": lambda g: dgl.to_simple(g),
    "to_bidirected": lambda g: dgl.to_bidirected(g),
    "dgl.batch": lambda g: dgl.batch([g, g]),
    "dgl.reverse": lambda g: dgl.reverse(g),
}


def sums(graph: Any, etype: Any = None) -> Tensor:
    """The sum of fixed features over the edges of one type."""
    source, _, target = graph.to_canonical_etype(etype)
    rows = graph.num_src_nodes(source)
    x = torch.arange(3.0 * rows).view(rows, 3)
    with graph.local_scope():
        graph.srcnodes[source].data["x"] = x
        graph.update_all(fn.copy_u("x", "m"), fn.sum("m", "y"), etype=etype)
        return graph.dstnodes[target].data["y"]


def expected(graph: Any, etype: Any = None) -> Tensor:
    """The same, by hand."""
    source_type, _, target_type = graph.to_canonical_etype(etype)
    source, target, _ = graph.edges(form="all", order="srcdst", etype=etype)
    rows = graph.num_src_nodes(source_type)
    x = torch.arange(3.0 * rows).view(rows, 3)
    zeros = torch.zeros(graph.num_dst_nodes(target_type), 3)
    return zeros.index_add_(0, target.long(), x[source.long()])


@pytest.mark.parametrize("name", [*COPIES, *MORE])
def test_kept(name: str, multigraph: Any) -> None:
    graph = hag_dgl.ToHAG()(multigraph())
    result = {**COPIES, **MORE}[name](graph)
    assert isinstance(result, hag_dgl.HagGraph)
    assert relations_of(result) is not None
    result.hag.check(result.hag.edge_index)
    assert torch.equal(sums(result), expected(result))
    assert torch.equal(sums(graph), expected(graph))


@pytest.mark.parametrize("name", COPIES)
def test_copies_need_no_search(name: str, multigraph: Any, ran: Ran) -> None:
    graph = hag_dgl.ToHAG()(multigraph())
    sums(graph), sums(graph.reverse())  # both programs are there
    searches = ran.searches
    assert searches
    assert torch.equal(sums(COPIES[name](graph)), expected(graph))
    merged = hag_dgl.batch([graph, graph])
    assert torch.equal(sums(merged), expected(merged))
    assert torch.equal(sums(graph.reverse()), expected(graph.reverse()))
    assert ran.searches == searches


@pytest.mark.parametrize("name", DROPS)
def test_dropped(name: str, multigraph: Any) -> None:
    graph = hag_dgl.ToHAG()(multigraph())
    result = DROPS[name](graph)
    assert relations_of(result) is None
    if isinstance(result, hag_dgl.HagGraph):
        assert result.hag is None
    assert torch.equal(sums(result), expected(result))
    assert torch.equal(sums(graph), expected(graph))


def test_changed_in_place(multigraph: Any) -> None:
    graph = hag_dgl.ToHAG()(multigraph())
    graph.add_edges([1, 2], [3, 3])
    assert graph.hag is None
    assert torch.equal(sums(graph), expected(graph))
    again = hag_dgl.ToHAG()(graph)
    assert again.hag is not None
    again.add_edges(again.nodes(), again.nodes())
    assert again.hag is not None
    assert torch.equal(sums(again), expected(again))


@pytest.mark.parametrize("idtype", [torch.int32, torch.int64])
def test_blocks(idtype: torch.dtype, block: Any) -> None:
    plain = block(idtype)
    graph = hag_dgl.ToHAG()(plain)
    assert isinstance(graph, hag_dgl.HagBlock)
    assert graph.is_block
    for result in (graph, pickle.loads(pickle.dumps(graph)), graph.local_var()):
        assert relations_of(result) is not None
        assert torch.equal(sums(result), expected(plain))


# Heterographs -----------------------------------------------------------------------------------


def test_edge_types(hetero: Any) -> None:
    graph = hag_dgl.ToHAG()(hetero())
    for etype in graph.canonical_etypes:
        assert torch.equal(sums(graph, etype), expected(graph, etype))
        assert graph[etype].hag is graph[etype].hag
        assert torch.equal(sums(graph[etype]), expected(graph, etype))
    with pytest.raises(ValueError, match="3 edge types"):
        _ = graph.hag
    flat = graph["user", :, "user"]
    assert flat.hag is not None
    merged = graph[:, :, "user"]  # two edge types flattened into one
    assert relations_of(merged) is None
    assert torch.equal(sums(merged), expected(merged))


@pytest.mark.parametrize("cross", ["sum", "max", "min", "mean", "stack"])
@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
def test_multi_update_all(reduce: str, cross: str, hetero: Any) -> None:
    plain = hetero()
    graph = hag_dgl.ToHAG()(plain)
    gradients, results = [], []
    for g in (graph, plain):
        x = {n: torch.randn(plain.num_nodes(n), 3, dtype=torch.float64,
             generator=torch.Generator().manual_seed(3)) for n in plain.ntypes}  # fmt: skip
        x = {n: rows.requires_grad_() for n, rows in x.items()}
        with g.local_scope():
            for ntype, rows in x.items():
                g.nodes[ntype].data["x"] = rows
            step = (fn.copy_u("x", "m"), getattr(fn, reduce)("m", "y"))
            udf = (lambda edges: {"m": 2 * edges.src["x"]}, step[1])
            g.multi_update_all({"follows": step, "plays": step, "liked-by": udf}, cross)
            y = {n: g.nodes[n].data["y"] for n in plain.ntypes}
        sum((rows * rows).sum() for rows in y.values()).backward()
        results.append(y)
        gradients.append({n: rows.grad for n, rows in x.items()})
    for ours, stock in (results, gradients):
        for ntype in plain.ntypes:
            torch.testing.assert_close(ours[ntype], stock[ntype], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduce", ["max", "min"])
def test_multi_update_all_in_inference(reduce: str, hetero: Any) -> None:
    """Where the HAG computes max and min, a node that one edge type does not reach counts right."""
    results = []
    for g in (hag_dgl.ToHAG()(hetero()), hetero()):
        for n in g.ntypes:
            sign = 1 if reduce == "min" else -1
            g.nodes[n].data["x"] = sign * (1 + torch.arange(2.0 * g.num_nodes(n)).view(-1, 2))
        step = (fn.copy_u("x", "m"), getattr(fn, reduce)("m", "y"))
        g.multi_update_all(dict.fromkeys(("follows", "liked-by"), step), reduce)
        results.append(g.nodes["user"].data["y"])
    assert torch.equal(*results)


def test_hetero_copies(hetero: Any) -> None:
    graph = hag_dgl.ToHAG()(hetero())
    for make in (lambda g: g.clone(), lambda g: g.int(), lambda g: g.reverse(),
                 lambda g: hag_dgl.batch([g, g]), lambda g: pickle.loads(pickle.dumps(g)),
                 lambda g: hag_dgl.unbatch(hag_dgl.batch([g, g]))[0],
                 lambda g: dgl.add_self_loop(g, etype="follows")):  # fmt: skip
        result = make(graph)
        assert relations_of(result) is not None
        for etype in result.canonical_etypes:
            assert torch.equal(sums(result, etype), expected(result, etype))


# Transforms and loaders -------------------------------------------------------------------------


class Rings(dgl.data.DGLDataset):
    """Rings of growing size, with a label, as a dataset class of DGL's makes them."""

    def __init__(self, transform: Any = None) -> None:
        super().__init__("rings", transform=transform)

    def process(self) -> None:
        sizes = range(3, 11)
        self.graphs = [dgl.graph((torch.arange(n), torch.arange(n).roll(1))) for n in sizes]

    def __getitem__(self, index: int) -> Any:
        graph = self.graphs[index]
        return (graph if self._transform is None else self._transform(graph)), index % 2

    def __len__(self) -> int:
        return len(self.graphs)


def test_dataset_and_pipeline(monkeypatch: pytest.MonkeyPatch, multigraph: Any) -> None:
    pipeline = dgl.transforms.Compose([dgl.transforms.AddReverse(), hag_dgl.ToHAG(width=16)])
    assert "ToHAG(method='auto', transpose=True, width=16)" in repr(pipeline)
    graph, _ = Rings(pipeline)[2]
    assert graph.hag.options.width == 16
    assert torch.equal(sums(graph), expected(graph))
    dataset = Rings(hag_dgl.ToHAG())
    first, _ = dataset[0]
    again, _ = dataset[0]
    assert again.hag is first.hag
    assert type(dataset.graphs[0]) is dgl.DGLGraph
    before = hag_dgl.ToHAG()(multigraph())
    assert hag_dgl.ToHAG()(before).hag is before.hag


def test_stock_functions_make_plain_graphs(multigraph: Any) -> None:
    """Plain, right, and in an accelerated model with their HAGs once they come back."""
    graph = hag_dgl.ToHAG()(multigraph())
    batch = dgl.batch([graph, graph])
    for made in (batch, *dgl.unbatch(batch), dgl.reverse(graph)):
        assert type(made) is dgl.DGLGraph
        assert torch.equal(sums(made), expected(made))
        conv = dgl.nn.SAGEConv(3, 2, "mean")
        x = torch.randn(made.num_nodes(), 3)
        stock = conv(made, x)
        hag_dgl.accelerate(conv)
        session = vars(conv)[SESSION]
        for forward in range(3):
            torch.testing.assert_close(conv(made, x), stock)
            assert session.num_graphs == (forward > 0)
        (row,) = hag_dgl.explain(conv)
        assert row.accelerated
        assert "once they come back" in row.reason


@pytest.mark.parametrize("workers", [0, 1])
def test_loader(workers: int) -> None:
    loader = dgl.dataloading.GraphDataLoader(
        Rings(hag_dgl.ToHAG()), batch_size=4, num_workers=workers, collate_fn=hag_dgl.collate
    )
    for graph, label in loader:
        assert graph.batch_size == 4
        assert len(label) == 4
        assert graph.hag is not None
        assert torch.equal(sums(graph), expected(graph))


def test_features_are_shared_and_scoped(multigraph: Any) -> None:
    plain = multigraph()
    plain.ndata["x"] = torch.ones(57, 2)
    graph = hag_dgl.ToHAG()(plain)
    graph.update_all(fn.copy_u("x", "m"), fn.sum("m", "y"))
    assert "y" in graph.ndata
    assert "y" not in plain.ndata
    with graph.local_scope():
        graph.ndata["z"] = graph.ndata["x"]
    assert "z" not in graph.ndata
    assert graph.ndata["x"] is plain.ndata["x"]


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="takes a DGLGraph"):
        hag_dgl.ToHAG()(torch.ones(2, 3))
    with pytest.raises(ValueError, match="method is 'best'"):
        hag_dgl.ToHAG("best")
    with pytest.raises(TypeError, match="num_nodes"):
        hag_dgl.ToHAG(num_nodes=3)
