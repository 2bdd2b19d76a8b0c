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

from hag_plugin.dgl.aggregation.relation import Relation
from hag_plugin.dgl.aggregation.rows import Outputs, aggregate_rows, is_taken
from hag_plugin.dgl.recipes.directions import NAME as DIRECTION
from hag_plugin.dgl.recipes.directions import directional

AGGREGATORS = ("mean", "sum", "max", "min", "var", "std")
EXTREMA = {"max", "min"}
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
    return None


def run(
    graph: Any, etid: int, relation: Relation, message_func: Any, reduce_func: Any
) -> Outputs | None:
    """Runs `update_all(tower.message, tower.reduce_func)`."""
    tower = message_func.__self__
    if getattr(reduce_func, "__func__", None) not in REDUCE_FUNCTIONS:
        return None
    if reduce_func.__self__ is not tower or why_stock(tower) is not None:
        return None
    frame = graph._node_frames[0]
    stock_reads = {"h", "eig"} if isinstance(tower, DGNConvTower) else {"h"}
    if not graph.is_homogeneous or graph.num_edges() == 0 or not stock_reads <= set(frame):
        return None
    x = frame["h"]
    if not is_taken(x) or x.dim() != 2:
        return None
    directions = {name for name in tower.aggregators if DIRECTION.fullmatch(name)}
    if directions and not (is_taken(frame["eig"]) and frame["eig"].dim() == 2):
        return None
    source_weight, target_weight = tower.M.weight.split(tower.in_size, dim=1)
    sources = linear(x, source_weight)
    targets = linear(x, target_weight, tower.M.bias)
    if sources.dtype == torch.float16 and not EXTREMA.isdisjoint(tower.aggregators):
        return None  # DGL's kernels, to which some are left below, do not take it
    degree = graph.in_degrees().unsqueeze(-1)

    def aggregated(rows: Tensor, reduce: str) -> Tensor:
        y = aggregate_rows(graph, etid, relation, rows, reduce)
        if y is None:  # a max or min that is left to DGL
            y = getattr(dgl.ops, f"copy_u_{reduce}")(graph, rows)
            y = y.masked_fill(degree == 0, 0)
        return y

    def aggregator(name: str) -> Tensor:
        if name not in directions:
            return _aggregator(name, sources, targets, degree, aggregated)
        hag = relation.hag(graph, etid)
        return directional(name, hag, relation.self_loops, frame["eig"], sources, targets, x)

    h = torch.cat([aggregator(name) for name in tower.aggregators], dim=1)
    h = torch.cat([_scaled(h, name, degree, tower.delta) for name in tower.scalers], dim=1)
    return {"h_neigh": h.masked_fill(degree == 0, 0)}


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
