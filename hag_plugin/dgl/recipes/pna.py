"""The towers of PNAConv (arXiv 2004.05718) and DGNConv: linear messages, several aggregators.

The message is `M (x_u | x_v) = M_s x_u + M_t x_v + b`. Its target's part is the same on all edges
of a node, so that only `a_u = M_s x_u` is aggregated, on the HAG: mean, max and min are those of
`a` plus the target's part, a sum adds it degree times, and a variance does not see it. Directional
aggregators are in `directions`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dgl
import torch
from dgl.nn.pytorch.conv.dgnconv import DGNConvTower
from dgl.nn.pytorch.conv.pnaconv import PNAConvTower
from torch import Tensor
from torch.nn import Linear
from torch.nn.functional import linear

from hag_plugin.dgl.aggregation.choice import (
    NO_EDGES,
    UNFIT,
    UNKNOWN_REDUCER,
    Choice,
    LeftToDGL,
    Ran,
    strongest,
)
from hag_plugin.dgl.aggregation.relation import Relation
from hag_plugin.dgl.aggregation.rows import is_taken, settle_rows, why_not_taken
from hag_plugin.dgl.recipes.directions import NAME as DIRECTION
from hag_plugin.dgl.recipes.directions import directional
from hag_plugin.modes import has_hooks

AGGREGATORS = ("mean", "sum", "max", "min", "var", "std")
EXTREMA = {"max", "min"}
# Why, in words.
TWO_SIDES = "its graph has nodes of two sides"
NO_MATRIX = "features are not one row a node"
HALF = "DGL's kernels take no float16"
DIRECTIONAL = "sums along eigenvectors share nothing"

REDUCE_FUNCTIONS = (PNAConvTower.reduce_func, DGNConvTower.reduce_func)


def why_stock(tower: Any) -> str | None:
    """Why a tower must run its stock code; None: it need not."""
    others = [
        name
        for name in tower.aggregators
        if name not in AGGREGATORS and not DIRECTION.fullmatch(name)
    ]
    if others:
        return f"{', '.join(others)}: needs every message of a node"
    if tower.edge_feat_size > 0:
        return "messages with edge features"
    if type(tower.M) is not Linear:
        return "its message layer M is no plain Linear"
    if has_hooks(tower.M):
        return "hooks on its message layer M see the stock computation"
    return None


def settle(
    graph: Any, etid: int, relation: Relation, message_func: Any, reduce_func: Any
) -> Choice:
    """For `update_all(tower.message, tower.reduce_func)`."""
    tower = message_func.__self__
    if getattr(reduce_func, "__func__", None) not in REDUCE_FUNCTIONS:
        return Choice(None, UNKNOWN_REDUCER)
    if reduce_func.__self__ is not tower:
        return Choice(None, UNKNOWN_REDUCER)
    reason = why_stock(tower)
    if reason is not None:
        return Choice(None, reason)
    frame = graph._node_frames[0]
    stock_reads = {"h", "eig"} if isinstance(tower, DGNConvTower) else {"h"}
    if not graph.is_homogeneous:
        return Choice(None, TWO_SIDES)
    if graph.num_edges() == 0:
        return Choice(None, NO_EDGES)
    if not stock_reads <= set(frame):
        return Choice(None, UNFIT)
    for field in ("h", "eig") if _directions(tower) else ("h",):
        rows = frame[field]
        if not is_taken(rows):
            return Choice(None, why_not_taken(rows))
        if rows.dim() != 2:
            return Choice(None, NO_MATRIX)
    return Choice(lambda: _run(graph, etid, relation, tower), relation.origin)


def _directions(tower: Any) -> set[str]:
    return {name for name in tower.aggregators if DIRECTION.fullmatch(name)}


def _run(graph: Any, etid: int, relation: Relation, tower: Any) -> Ran:
    frame = graph._node_frames[0]
    x = frame["h"]
    directions = _directions(tower)
    source_weight, target_weight = tower.M.weight.split(tower.in_size, dim=1)
    sources = linear(x, source_weight)
    targets = linear(x, target_weight, tower.M.bias)
    if sources.dtype == torch.float16 and not EXTREMA.isdisjoint(tower.aggregators):
        raise LeftToDGL(HALF)  # DGL's kernels, to which some are left below, do not take it
    degree = graph.in_degrees().unsqueeze(-1)

    ran: list[Ran] = []

    def aggregated(rows: Tensor, reduce: str) -> Tensor:
        step = _rows(graph, etid, relation, rows, reduce)
        ran.append(step)
        y: Tensor = step.value
        return y.masked_fill(degree == 0, 0) if step.kind == "stock" else y

    def aggregator(name: str) -> Tensor:
        if name not in directions:
            return _aggregator(name, sources, targets, degree, aggregated)
        hag = relation.hag(graph, etid)
        y = directional(name, hag, relation.self_loops, frame["eig"], sources, targets, x)
        ran.append(Ran(y, "plain", DIRECTIONAL))
        return y

    h = torch.cat([aggregator(name) for name in tower.aggregators], dim=1)
    h = torch.cat([_scaled(h, name, degree, tower.delta) for name in tower.scalers], dim=1)
    _, kind, reason = strongest(ran)
    return Ran({"h_neigh": h.masked_fill(degree == 0, 0)}, kind, reason)


def _rows(graph: Any, etid: int, relation: Relation, rows: Tensor, reduce: str) -> Ran:
    """Aggregates rows on the HAG; a max or min that is left to DGL, by its kernels."""
    choice = settle_rows(graph, etid, relation, rows, reduce)
    reason = choice.reason
    if choice.run is not None:
        try:
            return choice.run()
        except LeftToDGL as left:
            reason = str(left)
    return Ran(getattr(dgl.ops, f"copy_u_{reduce}")(graph, rows), "stock", reason)


def _aggregator(
    name: str,
    sources: Tensor,
    targets: Tensor,
    degree: Tensor,
    aggregated: Callable[[Tensor, str], Tensor],
) -> Tensor:
    if name in ("mean", "max", "min"):
        return aggregated(sources, name) + targets
    if name == "sum":
        return aggregated(sources, "sum") + degree.to(targets.dtype) * targets
    mean = aggregated(sources, "mean")
    variance = torch.relu(aggregated(sources * sources, "mean") - mean * mean)
    return variance if name == "var" else torch.sqrt(variance + 1e-30)


def _scaled(h: Tensor, name: str, degree: Tensor, delta: float) -> Tensor:
    if name == "identity":
        return h
    log = torch.log(degree.clamp(min=1).double() + 1)
    scale = log / delta if name == "amplification" else delta / log
    return h * scale.to(h.dtype)
