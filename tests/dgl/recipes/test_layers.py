"""Each DGL layer, on graphs with HAGs, equals itself on plain graphs: outputs, all gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

dgl = pytest.importorskip("dgl", reason="DGL is not installed")
from dgl.nn.pytorch import (  # noqa: E402
    APPNPConv,
    ChebConv,
    DGNConv,
    EdgeConv,
    GatedGraphConv,
    GCN2Conv,
    GINConv,
    GraphConv,
    HeteroGraphConv,
    PNAConv,
    RelGraphConv,
    SAGEConv,
    SGConv,
    TAGConv,
)

from hag_plugin.dgl import ToHAG, explain  # noqa: E402
from hag_plugin.dgl.recipes import pna  # noqa: E402
from hag_plugin.testing import Ran  # noqa: E402

WIDTH = 6
TYPES = 3
MANY = ["mean", "max", "min", "sum", "var", "std"]
SCALERS = ["identity", "amplification", "attenuation"]

LAYERS: dict[str, Callable[[], nn.Module]] = {
    **{
        f"GraphConv {norm} {out}": lambda norm=norm, out=out: GraphConv(
            WIDTH, out, norm=norm, allow_zero_in_degree=True
        )
        for norm in ("none", "both", "right", "left")
        for out in (4, 8)
    },
    "GraphConv, no weight": lambda: GraphConv(
        WIDTH, WIDTH, weight=False, bias=False, allow_zero_in_degree=True
    ),
    **{
        f"SAGEConv {kind} {out}": lambda kind=kind, out=out: SAGEConv(WIDTH, out, kind)
        for kind in ("mean", "gcn", "pool", "lstm")
        for out in (4, 8)
    },
    **{
        f"GINConv {kind}": lambda kind=kind: GINConv(nn.Linear(WIDTH, 4), kind, 0.5, True)
        for kind in ("sum", "mean", "max")
    },
    "SGConv": lambda: SGConv(WIDTH, 4, k=2, allow_zero_in_degree=True),
    "TAGConv": lambda: TAGConv(WIDTH, 4, k=3),
    "GCN2Conv": lambda: GCN2Conv(WIDTH, 2, allow_zero_in_degree=True),
    "GCN2Conv, not projected": lambda: GCN2Conv(
        WIDTH, 2, project_initial_features=False, allow_zero_in_degree=True
    ),
    "ChebConv": lambda: ChebConv(WIDTH, 4, 3),
    "GatedGraphConv": lambda: GatedGraphConv(WIDTH, 8, 2, 1),
    "GatedGraphConv, types": lambda: GatedGraphConv(WIDTH, 8, 2, TYPES),
    "APPNPConv": lambda: APPNPConv(3, 0.2),
    "APPNPConv, dropout": lambda: APPNPConv(3, 0.2, edge_drop=0.3),
    "RelGraphConv": lambda: RelGraphConv(WIDTH, 4, TYPES),
    "RelGraphConv, basis": lambda: RelGraphConv(WIDTH, 4, TYPES, "basis", 2, self_loop=False),
    "RelGraphConv, bdd": lambda: RelGraphConv(WIDTH, 4, TYPES, "bdd", 2, layer_norm=True),
    "RelGraphConv, norm": lambda: RelGraphConv(WIDTH, 4, TYPES),
    "PNAConv": lambda: PNAConv(WIDTH, WIDTH, MANY, SCALERS, 2.5),
    "PNAConv, towers": lambda: PNAConv(WIDTH, 4, MANY[:3], SCALERS[:2], 2.5, num_towers=2),
    "PNAConv, moments": lambda: PNAConv(WIDTH, 4, ["mean", "moment3"], SCALERS[:1], 2.5),
    "DGNConv": lambda: DGNConv(WIDTH, 4, MANY, SCALERS, 2.5),
    "DGNConv, towers": lambda: DGNConv(
        WIDTH, WIDTH, ["sum", "min"], SCALERS[:2], 2.5, num_towers=2
    ),
    "DGNConv, directions": lambda: DGNConv(
        WIDTH, 4, ["mean", "dir1-av", "dir1-dx"], SCALERS[:1], 2.5
    ),
    "DGNConv, directions, towers": lambda: DGNConv(
        WIDTH, WIDTH, ["dir3-dx", "dir2-av"], SCALERS, 2.5, num_towers=2
    ),
    "EdgeConv": lambda: EdgeConv(WIDTH, 4, allow_zero_in_degree=True),
}
BIPARTITE = ("GraphConv", "SAGEConv", "GINConv", "RelGraphConv")
STOCK = ("EdgeConv", "PNAConv, moments")


class Case:
    """One layer with its arguments on a graph, called with and without HAGs."""

    def __init__(self, name: str, graph: Any) -> None:
        torch.manual_seed(4)
        self.name = name
        # APPNPConv multiplies with float32 weights, whatever its features are.
        dtype = torch.float32 if name.startswith("APPNPConv") else torch.float64
        self.layer = LAYERS[name]().to(dtype)
        self.graph = graph
        self.x = torch.randn(graph.num_src_nodes(), WIDTH, dtype=dtype)
        num_edges = graph.num_edges()
        self.arguments: tuple[Any, ...] = ()
        if name.startswith("GCN2Conv"):
            self.arguments = (torch.randn(graph.num_nodes(), WIDTH, dtype=torch.float64),)
        if name.startswith("ChebConv"):
            self.arguments = ([1.9] * graph.batch_size,)
        if name.startswith("RelGraphConv") or name == "GatedGraphConv, types":
            self.arguments = (torch.randint(TYPES, (num_edges,)),)
        if name == "RelGraphConv, norm":
            pair = torch.stack([graph.edges()[1].long(), self.arguments[0]])
            _, inverse, count = pair.unique(dim=1, return_inverse=True, return_counts=True)
            self.arguments = (*self.arguments, 1 / count[inverse].double().unsqueeze(1))
        if name.startswith("DGNConv"):  # without directions it reads "eig" all the same
            graph.ndata["eig"] = torch.randn(graph.num_nodes(), 3, dtype=torch.float64)
        if name.startswith("DGNConv, directions"):
            self.arguments = (None, torch.randn(graph.num_nodes(), 3, dtype=torch.float64))

    def features(self, x: Tensor) -> Any:
        """What the layer takes: on blocks of some layers a pair."""
        targets = x[: self.graph.num_dst_nodes()]
        return (x, targets) if self.graph.is_block and "GIN" in self.name else x

    def run(self, graph: Any) -> tuple[Tensor, list[Tensor]]:
        """Output and gradients, to features and parameters, of the layer."""
        layer, x = self.layer, self.x.clone().requires_grad_()
        layer.zero_grad()
        torch.manual_seed(5)
        y = layer(graph, self.features(x), *self.arguments)
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
        gradients = {"x": x.grad, **{n: p.grad for n, p in layer.named_parameters()}}
        return y.detach(), [g for g in gradients.values() if g is not None]

    def assert_equal(self) -> None:
        """On the HAG as without, and again, when edge types and weights come back."""
        stock, gradients = self.run(self.graph)
        graph = ToHAG()(self.graph)
        # A standard deviation of nearly equal numbers is a difference of squares: stock's is no
        # better than that.
        rounding = 1e-11 if self.x.dtype == torch.float64 else 1e-5
        tolerance = 1e-6 if self.name.startswith(("PNAConv", "DGNConv")) else rounding
        for _ in range(3):
            y, found = self.run(graph)
            torch.testing.assert_close(y, stock, rtol=tolerance, atol=tolerance)
            assert len(found) == len(gradients)
            for ours, theirs in zip(found, gradients, strict=True):
                scale = float(theirs.abs().max().clamp(min=1))
                torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("idtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("name", LAYERS)
def test_multigraph(name: str, idtype: torch.dtype, multigraph: Any, ran: Ran) -> None:
    Case(name, multigraph(idtype)).assert_equal()
    trains_on_hag = not name.startswith(STOCK) and "max" not in name and "pool" not in name
    assert bool(ran.forward) == trains_on_hag


@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith(BIPARTITE)])
def test_block(name: str, block: Any) -> None:
    Case(name, block()).assert_equal()


@pytest.mark.slow
# Of these stock takes long.
@pytest.mark.parametrize("name", [n for n in LAYERS if "lstm" not in n and "moments" not in n])
def test_real_graphs(name: str, real_graph: Any) -> None:
    Case(name, real_graph).assert_equal()


@pytest.mark.parametrize("name", ["SAGEConv pool 4", "GINConv max"])
def test_extrema_run_on_the_hag_in_inference(name: str, multigraph: Any, ran: Ran) -> None:
    case = Case(name, multigraph())
    with torch.no_grad():
        stock = case.layer(case.graph, case.x)
        assert torch.equal(case.layer(ToHAG()(case.graph), case.x), stock)
    assert ran.programs


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("GraphConv both 8", False),
        ("SAGEConv mean 4", True),
        ("GINConv sum", True),
        ("TAGConv", False),
    ],
)
def test_edge_weight(name: str, column: bool, multigraph: Any) -> None:
    case = Case(name, multigraph())
    s, t = torch.rand(57, dtype=torch.float64) + 0.5, torch.rand(57, dtype=torch.float64) + 0.5
    source, target = case.graph.edges()
    for weight in (s[source] * t[target], torch.rand(len(source), dtype=torch.float64)):
        given = weight.unsqueeze(1) if column else weight
        case.arguments = (None, given) if name.startswith("GraphConv") else (given,)
        case.assert_equal()


def test_weights_that_are_learned(multigraph: Any) -> None:
    gradients = []
    for graph in (ToHAG()(multigraph()), multigraph()):
        torch.manual_seed(4)
        weight = torch.rand(graph.num_edges(), requires_grad=True)
        conv = GraphConv(WIDTH, 4, norm="none", allow_zero_in_degree=True)
        conv(graph, torch.ones(57, WIDTH), edge_weight=weight).square().sum().backward()
        gradients.append(weight.grad)
    torch.testing.assert_close(*gradients)


def test_zero_in_degree(multigraph: Any) -> None:
    for graph in (multigraph(), ToHAG()(multigraph())):
        with pytest.raises(dgl.DGLError, match="0-in-degree"):
            GraphConv(WIDTH, 4)(graph, torch.ones(57, WIDTH))


@pytest.mark.parametrize("cross", ["sum", "max", "mean", "stack"])
def test_hetero_graph_conv(cross: str, hetero: Any, ran: Ran) -> None:
    results = []
    for graph in (ToHAG()(hetero()), hetero()):
        torch.manual_seed(4)
        conv = HeteroGraphConv(
            {
                "follows": GraphConv(WIDTH, 4),
                "plays": SAGEConv(WIDTH, 4, "mean"),
                "liked-by": SAGEConv(WIDTH, 4, "gcn"),
            },
            cross,
        ).double()
        x = {n: torch.randn(graph.num_nodes(n), WIDTH, dtype=torch.float64) for n in graph.ntypes}
        x = {n: rows.requires_grad_() for n, rows in x.items()}
        y = conv(graph, x)
        sum((rows * rows).sum() for rows in y.values()).backward()
        results.append([*y.values(), *(r.grad for r in x.values()),
                        *(p.grad for p in conv.parameters())])  # fmt: skip
        assert len(ran.forward) == 3
    for ours, stock in zip(*results, strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", LAYERS)
def test_explain_agrees(name: str, multigraph: Any, ran: Ran) -> None:
    """What `explain` says of a layer is what happens in inference."""
    case = Case(name, multigraph())
    graph = ToHAG()(case.graph)
    with torch.no_grad():
        for _ in range(3):
            case.layer.eval()(graph, case.features(case.x), *case.arguments)
        (row, *_) = explain(case.layer)  # of an LSTM it tells the counts, once they are known
    assert row.accelerated == bool(ran.forward)
    assert bool(row.aggregates) == row.accelerated


def test_dgn_needs_eigenvectors_as_before(multigraph: Any) -> None:
    layer = LAYERS["DGNConv"]()
    for graph in (multigraph(), ToHAG()(multigraph())):
        with pytest.raises(KeyError, match="eig"):
            layer(graph, torch.ones(57, WIDTH))


def test_explain_says_why() -> None:
    told = {row.layer: row.reason for row in explain(nn.ModuleList([
        LAYERS["PNAConv, moments"](), LAYERS["GatedGraphConv, types"](),
    ]))}  # fmt: skip
    assert told["PNAConv"].startswith("moment3: needs every message")
    assert told["GatedGraphConv"].startswith("edge types that come back")


def test_tower_with_a_changed_message_layer(multigraph: Any) -> None:
    case = Case("PNAConv", multigraph())
    for tower in case.layer.towers:
        tower.M = nn.Sequential(tower.M, nn.ReLU())
    assert pna.why_stock(case.layer.towers[0]) is not None
    case.assert_equal()
