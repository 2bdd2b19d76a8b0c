"""Every class of dgl.nn on graphs with HAGs: edges in any order, dtypes, autocast."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

dgl = pytest.importorskip("dgl", reason="DGL is not installed")
import dgl.function as fn  # noqa: E402
import dgl.nn.pytorch as layers  # noqa: E402

from hag_plugin.dgl import ToHAG, accelerate  # noqa: E402

from ..every_layer import LAYERS, WIDTH, Data, disordered, graph_conv  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # DGL's own
Call = Callable[..., Any]


def two() -> Any:
    return dgl.batch([disordered(), disordered()])


WITHOUT_GRAPH = {
    *("BiasedMHA", "DegreeEncoder", "DenseChebConv", "DenseGraphConv", "DenseSAGEConv"),
    *("EGTLayer", "EdgePredictor", "GraphormerLayer", "HeteroEmbedding", "HeteroLinear"),
    *("JumpingKnowledge", "KNNGraph", "LapPosEncoder", "NodeEmbedding", "PathEncoder"),
    *("RadiusGraph", "SegmentedKNNGraph", "SpatialEncoder", "SpatialEncoder3d", "TransE"),
    *("TransR", "TypedLinear", "WeightBasis"),
}
NEED_CUGRAPH = {"CuGraphGATConv", "CuGraphRelGraphConv", "CuGraphSAGEConv"}
MADE_OF = {"DeepWalk", "MetaPath2Vec", "GNNExplainer", "HeteroGNNExplainer"}  # tried below
NEED_OLD_NUMPY = {"SubgraphX", "HeteroSubgraphX"}


def test_every_class_is_tried() -> None:
    tried = {name.split(",")[0] for name in LAYERS}
    known = {name for name, _ in inspect.getmembers(layers, inspect.isclass)}
    assert known == tried | WITHOUT_GRAPH | NEED_CUGRAPH | NEED_OLD_NUMPY | MADE_OF


# Updates that are no layer: what a HAG takes, and what it must leave alone.

UPDATES: dict[str, Call] = {
    **{
        f"{op} {how}": lambda op=op, how=how: (getattr(fn, op)(*_fields(op)), getattr(fn, how))
        for op in ("copy_u", "copy_e", "u_mul_e", "u_add_v", "u_sub_e", "e_div_v", "u_dot_v")
        for how in ("sum", "mean", "max", "min")
    },
    "python message": lambda: (lambda edges: {"m": edges.src["x"] * edges.dst["x"]}, fn.max),
    **{
        f"mailbox, {name}": lambda order=order: (fn.copy_u("x", "m"), order)
        for name, order in {
            "first": lambda nodes: {"y": nodes.mailbox["m"][:, 0]},
            "last": lambda nodes: {"y": nodes.mailbox["m"][:, -1]},
            "weighted": lambda nodes: {
                "y": (
                    nodes.mailbox["m"] * torch.arange(nodes.mailbox["m"].shape[1]).view(1, -1, 1)
                ).sum(1)
            },
            "flat": lambda nodes: {"y": nodes.mailbox["m"].cumsum(1)[:, -1]},
        }.items()
    },
}


def _fields(op: str) -> list[str]:
    return [{"u": "x", "v": "x", "e": "e"}[s] for s in op.split("_") if s in "uve"] + ["m"]


class Update(nn.Module):
    """One call of `update_all`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, graph: Any, x: Tensor, e: Tensor) -> Tensor:
        message, reduce = UPDATES[self.name]()
        with graph.local_scope():
            graph.ndata["x"], graph.edata["e"] = x, e
            graph.update_all(message, reduce("m", "y") if hasattr(fn, reduce.__name__) else reduce)
            return graph.ndata["y"]


UPDATE_CASES: dict[str, Any] = {
    f"update_all, {name}": (lambda name=name: Update(name), lambda d: (d.steps, d.e))
    for name in UPDATES
}
CASES = {**LAYERS, **UPDATE_CASES}


# Running ----------------------------------------------------------------------------------------


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for each in value for t in tensors(each)] if isinstance(value, list | tuple) else []


def run(layer: nn.Module, graph: Any, arguments: tuple[Any, ...]) -> Any:
    """Outputs, then the gradients of all that has some; or the error."""
    leaves = [t for t in (*tensors(arguments), *layer.parameters()) if t.is_leaf]
    for leaf in leaves:
        leaf.grad = None
    torch.default_generator.manual_seed(6)
    try:
        outputs = tensors(layer(graph, *arguments))
        kept = [y.detach().clone() for y in outputs]  # GroupRevRes frees its own
        if torch.is_grad_enabled() and any(y.requires_grad for y in outputs):
            sum((y.double() ** 2).mean() for y in outputs if y.requires_grad).backward()
    except Exception as error:
        return error
    return [*kept, *(t.grad for t in leaves if t.grad is not None)]


def assert_alike(ours: Any, stock: Any, tolerance: float) -> None:
    if isinstance(stock, Exception):
        return  # DGL takes no float16 on a CPU: a HAG may get further
    assert isinstance(ours, list), ours
    assert len(ours) == len(stock)
    for one, other in zip(ours, stock, strict=True):
        assert one.dtype == other.dtype
        scale = (
            float(other.double().abs().nan_to_num(0, 0, 0).max().clamp(min=1)) if len(other) else 1
        )
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * scale, equal_nan=True)


@pytest.mark.mostly_slow("two-*")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("make", [disordered, two])
def test_edges_in_any_order(name: str, make: Callable[[], Any]) -> None:
    """Outputs, those of edges too, and gradients: by `ToHAG`, and when a graph comes back."""
    make_layer, arguments = CASES[name]
    graph = make()
    given = Data(graph, torch.float32)
    if name == "ChebConv":
        arguments = lambda d: (d.x, [1.9] * graph.batch_size)  # noqa: E731
    torch.default_generator.manual_seed(0)
    layer = make_layer()
    stock = run(copy.deepcopy(layer), graph, arguments(given))
    assert isinstance(stock, list), stock
    ours, handed = copy.deepcopy(layer), ToHAG()(graph)
    for _ in range(3):
        assert_alike(run(ours, handed, arguments(given)), stock, 1e-5)
    with contextlib.suppress(UserWarning):
        ours = accelerate(layer)
    for _ in range(3):
        assert_alike(run(ours, graph, arguments(given)), stock, 1e-5)


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", UPDATE_CASES)
def test_dtypes_of_updates(name: str, dtype: torch.dtype) -> None:
    """DGL's kernels know nothing of autocast on a CPU."""
    assert_dtypes(name, dtype, None)


@pytest.mark.mostly_slow("*-dtype0-*", "*-dtype4-*")
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        *((dtype, None) for dtype in DTYPES),
        *((dtype, torch.bfloat16) for dtype in DTYPES),
        *((dtype, torch.float16) for dtype in (torch.float32, torch.float16)),
    ],
)
@pytest.mark.parametrize("name", LAYERS)
def test_dtypes(name: str, dtype: torch.dtype, autocast: torch.dtype | None) -> None:
    """Outputs and gradients have stock's dtypes, and are as near to it as rounding allows."""
    assert_dtypes(name, dtype, autocast)


def assert_dtypes(name: str, dtype: torch.dtype, autocast: torch.dtype | None) -> None:
    make_layer, arguments = CASES[name]
    graph = disordered()
    given = Data(graph, dtype)
    torch.default_generator.manual_seed(0)
    layer = make_layer().to(dtype)
    half = autocast is not None or dtype in (torch.bfloat16, torch.float16)
    how = torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None)
    for training in (True, False):
        layer.train(training)
        with how, torch.set_grad_enabled(training):
            stock = run(copy.deepcopy(layer), graph, arguments(given))
            ours, handed = copy.deepcopy(layer), ToHAG()(graph)
            for _ in range(2):
                assert_alike(run(ours, handed, arguments(given)), stock, 0.1 if half else 1e-5)


# Classes that take a graph, or a model, when they are made ---------------------------------------


class Model(nn.Module):
    """What an explainer takes: it may weigh edges."""

    def __init__(self, pools: bool = False) -> None:
        super().__init__()
        self.conv = layers.GraphConv(WIDTH, 3)
        self.pools = pools

    def forward(self, graph: Any, feat: Any, eweight: Any = None) -> Any:
        y = self.conv(graph, feat, edge_weight=eweight)
        if not self.pools:
            return y
        with graph.local_scope():
            graph.ndata["y"] = y
            return dgl.mean_nodes(graph, "y")


class HeteroModel(nn.Module):
    """The same, of several edge types."""

    def __init__(self) -> None:
        super().__init__()
        names = ("follows", "liked-by", "likes")
        self.conv = layers.HeteroGraphConv({n: graph_conv(norm="right") for n in names})

    def forward(self, graph: Any, feat: Any, eweight: Any = None) -> Any:
        how = None
        if eweight is not None:
            how = {etype[1]: {"edge_weight": w} for etype, w in eweight.items()}
        with graph.local_scope():
            for ntype, y in self.conv(graph, feat, mod_kwargs=how).items():
                graph.nodes[ntype].data["y"] = y
            return dgl.mean_nodes(graph, "y", ntype="user")


def hetero() -> Any:
    generator = torch.Generator().manual_seed(2)
    loops = torch.arange(8).expand(2, -1)
    follows = torch.cat([torch.randint(8, (2, 20), generator=generator), loops], 1)
    return dgl.heterograph(
        {
            ("user", "follows", "user"): tuple(follows[:, torch.randperm(28)]),
            ("game", "liked-by", "user"): (torch.arange(8) % 5, torch.arange(8)),
            ("user", "likes", "game"): (torch.arange(8), torch.arange(8) % 5),
        },
        {"user": 8, "game": 5},
    )


def explained(explainer: Callable[[nn.Module], Any], hetero_graph: bool, call: Call) -> Call:
    def run(ready: Callable[[Any], Any]) -> Any:
        torch.default_generator.manual_seed(0)
        model = HeteroModel() if hetero_graph else Model(pools=True)
        graph = ready(hetero() if hetero_graph else disordered())
        x = {n: torch.randn(graph.num_nodes(n), WIDTH) for n in graph.ntypes}
        torch.default_generator.manual_seed(1)
        return tensors(call(explainer(model), graph, x if hetero_graph else x["_N"]))

    return run


ITERATIONS = {"num_epochs": 3, "log": False}
MADE: dict[str, Call] = {
    "GNNExplainer": explained(
        lambda model: layers.GNNExplainer(model, 1, **ITERATIONS),
        False,
        lambda explainer, graph, x: explainer.explain_graph(graph, x),
    ),
    "HeteroGNNExplainer": explained(
        lambda model: layers.HeteroGNNExplainer(model, 1, **ITERATIONS),
        True,
        lambda explainer, graph, x: explainer.explain_graph(graph, x),
    ),
    "DeepWalk": lambda ready: [
        layers.DeepWalk(ready(disordered()), 4, 3, 2, negative_size=2).sample([0, 1, 2])
    ],
    "MetaPath2Vec": lambda ready: tensors(
        layers.MetaPath2Vec(ready(hetero()), ["likes", "liked-by"], 1, 4, 2).sample([0, 1])
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_made_of_graphs_and_models(name: str) -> None:
    assert {*MADE} == MADE_OF
    results = []
    for ready in (lambda graph: graph, ToHAG()):
        torch.default_generator.manual_seed(3)
        dgl.seed(3)
        np.random.seed(3)  # noqa: NPY002
        results.append(MADE[name](ready))
    stock, ours = results
    assert len(stock) == len(ours) > 0
    for one, other in zip(ours, stock, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
