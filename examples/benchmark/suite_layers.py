"""Suite `layers`: one call of every accelerated PyG layer, forward and backward, and its memory.

Layers that no HAG serves are there, too: handed a HAG, they must not be slower than stock. PyG's
sparse path is timed on the graphs of the plan alone, since all others ask only that.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import hag_plugin as hp
from hag_plugin.layers.pyg import RECORDS

from . import peers
from .crashes import entering
from .graphs import Graph
from .memory import peak_bytes
from .plain_layers import plain
from .plan import LAYER_GRAPHS, Cell, Plan
from .sides import AGAIN, AUTO
from .timing import interleave

NAME = "layers"
SECONDS = 6.0
STOCK, CSR = "PyG edge_index", "PyG torch CSR"
TOLERANCE = 1e-3  # of the largest value of the output and of the features' gradient, in float32
# Where they differ by more: how much further than stock from the result in float64 is still equal.
# Variances near 0 lose their digits in float32, in stock as here.
FURTHER = 2.0
# Rounding may cross a kink of an activation, or tip a near tie: the few rows around it then have
# another gradient. Equal is still what is equal in float64 and differs in no more of the rows.
EXACT = 1e-9
KINKS = 1e-4
LEAST = 1e-3  # seconds of a stock call that is to be no slower
RELATIONS = 4

Calls = dict[str, Callable[[], Tensor]]
Make = Callable[[Any, int, Graph], nn.Module]  # from torch_geometric.nn, the width and the graph


def _degrees(graph: Graph) -> Tensor:
    """How many nodes have each in-degree."""
    return torch.bincount(torch.bincount(graph.edge_index[1], minlength=graph.num_nodes))


def _plain(name: str) -> Make:
    """A layer of the table, as it is made where nothing is asked of it."""

    def make(pyg: Any, f: int, graph: Graph) -> nn.Module:
        values = {"K": 2, "alpha": 0.1, "num_layers": 2, "num_relations": RELATIONS}
        return plain(getattr(pyg, name), f, {**values, "nn": nn.Linear(f, f)})

    return make


# With options.
OWN: dict[str, Make] = {
    "ChebConv": lambda pyg, f, graph: pyg.ChebConv(f, f, K=3),
    "EGConv": lambda pyg, f, graph: pyg.EGConv(f, f, ["symnorm", "max", "std"]),
    "FiLMConv": lambda pyg, f, graph: pyg.FiLMConv(f, f, act=None),
    "GATConv": lambda pyg, f, graph: pyg.GATConv(f, f),
    "GATv2Conv": lambda pyg, f, graph: pyg.GATv2Conv(f, f),
    "GENConv": lambda pyg, f, graph: pyg.GENConv(f, f, norm="layer"),
    "PNAConv": lambda pyg, f, graph: pyg.PNAConv(
        f, f, ["mean", "max", "min", "std"], ["identity", "amplification"], _degrees(graph)
    ),
    "PNAConv pre_layers=2": lambda pyg, f, graph: pyg.PNAConv(
        f, f, ["mean", "max"], ["identity"], _degrees(graph), pre_layers=2
    ),
    "SGConv": lambda pyg, f, graph: pyg.SGConv(f, f, K=2),
    "SSGConv": lambda pyg, f, graph: pyg.SSGConv(f, f, alpha=0.1, K=2),
    "SignedConv": lambda pyg, f, graph: pyg.SignedConv(f, f, first_aggr=True),
    "TAGConv": lambda pyg, f, graph: pyg.TAGConv(f, f, K=2),
    "TransformerConv": lambda pyg, f, graph: pyg.TransformerConv(f, f),
}
_CONVS = [
    record.layer
    for record in RECORDS
    if ".conv." in record.name and record.features != "x_dict"  # those take several types
]
LAYERS: dict[str, Make] = {name: _plain(name) for name in _CONVS} | OWN


def cells(plan: Plan) -> Iterator[Cell]:
    """Graphs x widths x layers."""
    for graph in plan.graphs:
        for width in plan.widths:
            for layer in LAYERS:
                yield {"graph": graph, "layer": layer, "width": width}


def measure(graph: Graph, cell: Cell, plan: Plan) -> dict[str, Any]:
    """Times one layer, twice where it is slower than stock; `memory`: bytes at a call's peak."""
    pyg = peers.load("torch_geometric")
    if pyg is None:
        absent = dict.fromkeys((AUTO, STOCK, CSR), "torch_geometric is not installed")
        return {"wrong": {}, "absent": absent, "forms": {}, "memory": {}}
    torch.manual_seed(plan.seed)
    stock = LAYERS[cell["layer"]](pyg.nn, cell["width"], graph)
    x = graph.features(cell["width"]).requires_grad_()
    calls, absent = _calls(graph, cell, stock, x, plan)
    wrong = _unequal(calls, x, (AUTO, CSR))
    if AUTO in wrong and _as_exact(graph, cell, stock, calls, x):
        del wrong[AUTO]
    for side in wrong:
        if side == CSR:  # not a difference: stock computes something else from a matrix
            absent[CSR] = "stock gives another result for it"
        del calls[side]
    wrong.pop(CSR, None)
    if AUTO not in calls or STOCK not in calls:
        return {"wrong": wrong, "absent": absent, "forms": {}, "memory": {}}
    memory = {side: peak_bytes(call) for side, call in calls.items()}
    calls[AGAIN] = calls[AUTO]
    forms = {"fresh": _timed(calls, plan)}
    if is_slower(forms["fresh"]):
        forms = {"first": forms["fresh"], "fresh": _timed(calls, plan)}
    return {"wrong": wrong, "absent": absent, "forms": forms, "memory": memory}


def _timed(calls: Calls, plan: Plan) -> dict[str, Any]:
    rounds = interleave(calls, plan.budget(SECONDS), together=(AUTO, AGAIN))
    return {"sides": rounds.summary(), "control": rounds.control(AUTO, AGAIN)}


def is_slower(timed: dict[str, Any]) -> bool:
    """Whether a call that takes stock over 1 ms took longer, by 5 % and the control's spread."""
    stock, ours = (timed["sides"][side]["median"] for side in (STOCK, AUTO))
    slower: bool = stock > LEAST and stock / ours < 0.95 - timed["control"]["spread"]
    return slower


def _calls(
    graph: Graph, cell: Cell, stock: nn.Module, x: Tensor, plan: Plan
) -> tuple[Calls, dict[str, str]]:
    layer, absent = cell["layer"], {}
    hag = graph.hag("auto", "A", cell["width"])
    hag.transpose()
    calls: Calls = {AUTO: _call(hp.accelerate(copy.deepcopy(stock)), x, layer, hag, graph)}
    size = graph.edge_index.shape[1] * cell["width"] * 4
    if layer in ("FastRGCNConv", "RGATConv"):
        size *= cell["width"]  # a matrix an edge
    absent |= plan.crashed
    if STOCK in absent:
        pass
    elif size <= plan.memory_limit:
        calls[STOCK] = _call(stock, x, layer, graph.edge_index, graph)
    else:
        absent[STOCK] = f"its messages take {size / 1e9:.1f} GB, above the limit"
    if CSR in absent:
        return calls, absent
    if graph.name not in LAYER_GRAPHS and not plan.quick:
        absent[CSR] = f"timed on {' and '.join(LAYER_GRAPHS)}"
        return calls, absent
    csr = _call(copy.deepcopy(stock), x, layer, _matrix(graph), graph)
    entering(CSR)
    try:
        csr()
        calls[CSR] = csr
    except Exception as e:  # in as many ways as there are layers that take no matrix
        absent[CSR] = f"the layer takes no sparse matrix ({type(e).__name__})"
    return calls, absent


def arguments(name: str, x: Tensor, edges: Any, graph: Graph) -> list[Any]:
    """What a layer is called with."""
    if name in ("FAConv", "GCN2Conv"):
        return [x, x.detach(), edges]
    if name == "SignedConv":
        return [x, edges, edges]
    if name in ("RGCNConv", "FastRGCNConv", "RGATConv"):
        return [x, *_relations(edges, graph)]
    return [x, edges]


def _call(layer: nn.Module, x: Tensor, name: str, edges: Any, graph: Graph) -> Callable[[], Tensor]:
    """One forward and backward; gives the output."""
    given = arguments(name, x, edges, graph)

    def call() -> Tensor:
        x.grad = None
        layer.zero_grad()
        y: Tensor = layer(*given)
        y.backward(torch.ones_like(y))
        return y.detach()

    return call


def _relations(edges: Any, graph: Graph) -> list[Any]:
    """The edges in turn belong to one relation and the next."""
    from hag_plugin.pyg import relation_hags

    index = graph.edge_index
    # Kept: types that come back are what HAGs are built for.
    types = graph.kept(("types",), lambda: torch.arange(index.shape[1]) % RELATIONS)
    if not isinstance(edges, hp.HAG):
        return [edges, types]
    size = (graph.num_nodes, graph.num_nodes)
    return [graph.kept(("relations",), lambda: relation_hags(index, types, RELATIONS, size))]


def _matrix(graph: Graph) -> Tensor:
    """The transposed adjacency matrix, which PyG's layers take for `adj_t`."""

    def make() -> Tensor:
        row_ptr, col = graph.csr("A")
        n = graph.num_nodes
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.sparse_csr_tensor(row_ptr, col.long(), torch.ones(len(col)), size=(n, n))

    matrix: Tensor = graph.kept(("layers csr",), make)
    return matrix


def _unequal(calls: Calls, x: Tensor, sides: tuple[str, ...]) -> dict[str, str]:
    """Compares outputs and the features' gradients with those of stock."""
    if STOCK not in calls:
        return {}
    entering(STOCK)
    expected = calls[STOCK](), x.grad
    wrong = {}
    for side in sides:
        if side not in calls:
            continue
        entering(side)
        found = calls[side](), x.grad
        for what, ours, theirs in zip(("output", "gradient"), found, expected, strict=True):
            if ours is None or theirs is None or ours.shape != theirs.shape:
                wrong[side] = f"its {what} has another shape"
                continue
            off = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6))
            if not off <= TOLERANCE:
                wrong[side] = f"its {what} differs by {off:.3g} of the largest"
    return wrong


def _as_exact(graph: Graph, cell: Cell, stock: nn.Module, calls: Calls, x: Tensor) -> bool:
    """Whether ours is no further from stock in float64 than stock in float32 is, times `FURTHER`.

    Output and gradient are both compared by their largest and by their mean error. Or whether the
    two are equal in float64, and differ in few rows in float32 (`KINKS`).
    """
    exact_x = x.detach().double().requires_grad_()
    twin = copy.deepcopy(stock).double()
    exact = _call(twin, exact_x, cell["layer"], graph.edge_index, graph)(), exact_x.grad
    errors: dict[str, list[Tensor]] = {}
    for side in (AUTO, STOCK):
        found = calls[side](), x.grad
        errors[side] = [
            (a.double() - b).abs()
            for a, b in zip(found, exact, strict=True)
            if a is not None and b is not None
        ]
    pairs = list(zip(errors[AUTO], errors[STOCK], strict=True))
    if all(o.max() <= FURTHER * s.max() and o.mean() <= FURTHER * s.mean() for o, s in pairs):
        return True
    hag = graph.hag("auto", "A", cell["width"])
    ours_x = exact_x.detach().requires_grad_()
    ours = _call(hp.accelerate(copy.deepcopy(twin)), ours_x, cell["layer"], hag, graph)()
    for error, a, b in zip(errors[AUTO], (ours, ours_x.grad), exact, strict=True):
        assert a is not None
        assert b is not None
        largest = b.abs().max()
        off = (error > TOLERANCE * largest).any(-1).double().mean()
        if not ((a - b).abs().max() <= EXACT * largest and off <= KINKS):
            return False
    return True
