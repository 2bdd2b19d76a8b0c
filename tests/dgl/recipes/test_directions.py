"""DGNConv's directional aggregators, whose weights are the differences of eigenvectors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

dgl = pytest.importorskip("dgl", reason="DGL is not installed")
from dgl.nn.pytorch import DGNConv  # noqa: E402

from hag_plugin.dgl import ToHAG  # noqa: E402
from hag_plugin.testing import Ran  # noqa: E402

WIDTH = 6
ALL = [f"dir{k}-{kind}" for k in (1, 2, 3) for kind in ("av", "dx")]


def sums(ran: Ran) -> int:
    """The number of sums along a direction."""
    return sum(run.operator == "weighted_sum" for run in ran.forward)


def results(layer: Any, graph: Any, x: Tensor, eig: Tensor) -> list[Tensor]:
    """Output and the gradients of features, eigenvectors and parameters."""
    layer = copy.deepcopy(layer)
    x, eig = x.clone().requires_grad_(), eig.clone().requires_grad_()
    y = layer(graph, x, eig_vec=eig)
    factor = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    gradients = torch.autograd.grad((y * factor).sum(), [x, eig, *layer.parameters()])
    return [y.detach(), *gradients]


def assert_equal(ours: list[Tensor], stock: list[Tensor], tolerance: float = 1e-10) -> None:
    for a, b in zip(ours, stock, strict=True):
        assert a.dtype == b.dtype
        scale = float(b.nan_to_num().abs().max().clamp(min=1))
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def test_all_gradients(multigraph: Any, ran: Ran) -> None:
    """Those of the eigenvectors, too."""
    graph, layer = multigraph(), DGNConv(WIDTH, 4, ALL, ["identity"], 2.5).double()
    x, eig = torch.randn(57, WIDTH).double(), torch.randn(57, 3).double()
    assert_equal(results(layer, ToHAG()(graph), x, eig), results(layer, graph, x, eig))
    assert sums(ran) == len(ALL)


@pytest.mark.filterwarnings("ignore:Casting complex values")  # DGL's, of its eigenvalues
def test_eigenvectors_of_the_laplacian(real_graph: Any, ran: Ran) -> None:
    nodes = torch.arange(min(real_graph.num_nodes(), 400))
    graph = dgl.to_bidirected(dgl.node_subgraph(real_graph, nodes))
    graph = dgl.transforms.LapPE(3, "eig")(graph)
    x, eig = torch.randn(graph.num_nodes(), WIDTH).double(), graph.ndata["eig"].double()
    # They are constant on pieces of the graph, up to rounding: their differences have no sign then,
    # nor has what is derived of their absolute values.
    eig += 0.01 * torch.randn_like(eig)
    layer = DGNConv(WIDTH, WIDTH, ["mean", "dir1-dx", "dir2-av"], ["identity"], 2.5).double()
    assert_equal(results(layer, ToHAG()(graph), x, eig), results(layer, graph, x, eig))
    assert sums(ran) == 2


def test_loops_added_to_a_graph_on_its_hag(multigraph: Any, ran: Ran) -> None:
    """The field of a loop is 0, which is not nothing: 0 times NaN is NaN."""
    plain, graph = (dgl.add_self_loop(g) for g in (multigraph(), ToHAG()(multigraph())))
    layer = DGNConv(WIDTH, 4, ["dir1-av", "dir2-dx"], ["amplification"], 2.5).double()
    x, eig = torch.randn(57, WIDTH).double(), torch.randn(57, 3).double()
    assert_equal(results(layer, graph, x, eig), results(layer, plain, x, eig))
    x[55] = float("nan")  # an isolated node: only its loop brings it
    y = layer(graph, x, eig_vec=eig)
    torch.testing.assert_close(y, layer(plain, x, eig_vec=eig), equal_nan=True)
    assert y[55].isnan().all()
    assert sums(ran) == 4


@pytest.mark.parametrize(
    ("features", "eigenvectors"),
    [(torch.float32, torch.float64), (torch.float64, torch.float32)],
    ids=str,
)
def test_two_dtypes(
    features: torch.dtype, eigenvectors: torch.dtype, multigraph: Any, ran: Ran
) -> None:
    # Without its last layers, which take one dtype only.
    graph, layer = multigraph(), DGNConv(WIDTH, 4, ["dir1-av", "dir1-dx"], ["identity"], 2.5)
    tower = layer.to(features).towers[0]
    found = []
    for g in (graph, ToHAG()(graph)):
        with g.local_scope():
            g.ndata["h"] = torch.linspace(-1, 1, 57 * WIDTH, dtype=features).view(57, WIDTH)
            g.ndata["eig"] = torch.linspace(0, 9, 57 * 3, dtype=eigenvectors).sin().view(57, 3)
            g.update_all(tower.message, tower.reduce_func)
            found.append([g.ndata["h_neigh"].detach()])
    assert_equal(found[1], found[0], 1e-5)
    assert sums(ran) == 2


def test_eigenvectors_of_no_number_are_dgls(multigraph: Any, ran: Ran) -> None:
    graph, layer = multigraph(), DGNConv(WIDTH, 4, ["dir2-av"], ["identity"], 2.5)
    x, whole = torch.randn(57, WIDTH), torch.randint(9, (57, 3))
    torch.testing.assert_close(
        layer(ToHAG()(graph), x, eig_vec=whole), layer(graph, x, eig_vec=whole)
    )
    assert not sums(ran)
    for g in (graph, ToHAG()(graph)):
        with pytest.raises(IndexError):
            layer(g, x, eig_vec=torch.randn(57, 1))
