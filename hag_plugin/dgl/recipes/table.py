"""One table: what each DGL layer aggregates, told in words, and when that does not hold.

There is nothing to run here: DGL's layers call `update_all`, which runs on the HAG of its graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dgl.nn.pytorch import (
    APPNPConv,
    ChebConv,
    DGNConv,
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

from hag_plugin.dgl.recipes import gated, lstm, pna

SYMMETRIC = "sum over D^-1/2 A D^-1/2"
EDGE_WEIGHT = "edge_weight: on the HAG where it is a product of node factors and comes back"
EXTREMA = "with gradients, max and min: on the HAG where edges are sorted by source"


@dataclass(frozen=True)
class Recipe:
    """How `explain` describes a layer.

    Attributes:
        aggregates: from the layer, reducer and matrix.
        note: from the layer, what a call may change about it.
        ruled_out: from the layer, why it runs stock code; None: it need not.
    """

    aggregates: Callable[[Any], str]
    note: Callable[[Any], str] = lambda layer: EDGE_WEIGHT
    ruled_out: Callable[[Any], str | None] = lambda layer: None


GRAPH_CONV = {
    "none": "sum over A",
    "both": SYMMETRIC,
    "right": "sum over D^-1 A",
    "left": "sum over A D^-1",
}
SAGE = {"mean": "mean over A", "gcn": "sum over A + I", "pool": "max over A", "lstm": "lstm over A"}


SAGE_NOTES: dict[str, Callable[[Any], str]] = {
    "pool": lambda layer: EXTREMA,
    "lstm": lambda layer: lstm.explained(layer)[1],
}


def _lstm(layer: Any) -> str | None:
    runs, reason = lstm.explained(layer) if layer._aggre_type == "lstm" else (True, "")
    return None if runs else reason


RECIPES: dict[type, Recipe] = {
    GraphConv: Recipe(lambda layer: GRAPH_CONV[layer._norm]),
    SAGEConv: Recipe(
        lambda layer: SAGE[layer._aggre_type],
        lambda layer: SAGE_NOTES.get(layer._aggre_type, lambda _: EDGE_WEIGHT)(layer),
        _lstm,
    ),
    GINConv: Recipe(
        lambda layer: f"{layer._aggregator_type} over A",
        lambda layer: EXTREMA if layer._aggregator_type == "max" else EDGE_WEIGHT,
    ),
    SGConv: Recipe(lambda layer: SYMMETRIC),
    TAGConv: Recipe(lambda layer: SYMMETRIC),
    GCN2Conv: Recipe(lambda layer: SYMMETRIC),
    ChebConv: Recipe(lambda layer: SYMMETRIC, lambda layer: ""),
    APPNPConv: Recipe(
        lambda layer: SYMMETRIC,
        lambda layer: (
            f"edge_drop={layer.edge_drop.p}: stock in training" if layer.edge_drop.p else ""
        ),
    ),
    GatedGraphConv: Recipe(
        lambda layer: "sum over A" if layer._n_etypes == 1 else "sum over A, type by type",
        lambda layer: "" if layer._n_etypes == 1 else "edge types that come back",
        lambda layer: None if layer._n_etypes == 1 else gated.why_stock(layer),
    ),
    RelGraphConv: Recipe(
        lambda layer: "sum over A, type by type",
        lambda layer: "edge types that come back; norm: as a product of factors",
    ),
    PNAConv: Recipe(
        lambda layer: f"{', '.join(layer.towers[0].aggregators)} over A",
        lambda layer: EXTREMA if {"max", "min"} & {*layer.towers[0].aggregators} else "",
        lambda layer: pna.why_stock(layer.towers[0]),
    ),
    HeteroGraphConv: Recipe(lambda layer: "edge type by edge type", lambda layer: ""),
}
RECIPES[DGNConv] = RECIPES[PNAConv]


def recipe_of(cls: type) -> Recipe | None:
    """The recipe of a class, or of the first of its bases that has one.

    A subclass needs none of its own: whatever it does, its calls of `update_all` give what DGL's
    give.
    """
    return next((RECIPES[base] for base in cls.__mro__ if base in RECIPES), None)
