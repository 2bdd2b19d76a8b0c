"""Data sets of DGL graphs in one call: as the graphs one by one."""

from __future__ import annotations

from typing import Any

import dgl
import dgl.function as fn
import pytest
import torch

from hag_plugin.dgl import ToHAG, batch

SIZES = [(5, 12), (1, 0), (0, 0), (30, 400), (1, 2), (9, 9)]


def _graphs(idtype: torch.dtype = torch.int64) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for nodes, edges in SIZES:
        ends = torch.randint(max(nodes, 1), (2, edges), generator=generator).to(idtype)
        graph = dgl.graph((ends[0], ends[1]), num_nodes=nodes, idtype=idtype)
        graph.ndata["x"] = torch.randn(nodes, 3, generator=generator)
        graph.edata["w"] = torch.randn(edges, generator=generator)
        found.append(graph)
    return found


def _sums(graph: Any) -> Any:
    x = graph.ndata["x"].clone().requires_grad_()
    with graph.local_scope():
        graph.ndata["h"] = x
        graph.update_all(fn.copy_u("h", "m"), fn.sum("m", "y"))
        y = graph.ndata["y"]
    (y * torch.arange(3.0)).sum().backward()
    return y.detach(), x.grad


@pytest.mark.parametrize("idtype", [torch.int64, torch.int32])
def test_each_is_as_alone(idtype: torch.dtype) -> None:
    stock = _graphs(idtype)
    made = ToHAG().dataset(stock)
    for graph, plain in zip(made, stock, strict=True):
        assert type(graph).__name__ == "HagGraph"
        assert type(plain).__name__ == "DGLGraph"
        graph.hag.check(torch.stack(plain.edges()))
        assert graph.edata["w"] is plain.edata["w"]
    whole, expected = batch(made), dgl.batch(stock)
    whole.hag.check(torch.stack(expected.edges()))
    for found, wanted in zip(_sums(whole), _sums(expected), strict=True):
        torch.testing.assert_close(found, wanted)


def test_items_with_labels_and_other_graphs() -> None:
    graphs = _graphs()
    made = ToHAG().dataset([(graph, i) for i, graph in enumerate(graphs)])
    assert [label for _, label in made] == list(range(len(graphs)))
    typed = dgl.heterograph({("a", "to", "b"): ([0, 1], [1, 0])})
    (found,) = ToHAG().dataset([typed])
    found.hag.check(torch.tensor([[0, 1], [1, 0]]))
    assert ToHAG().dataset([]) == []
    with pytest.raises(TypeError, match="takes a DGLGraph"):
        ToHAG().dataset([1])
