"""The one table: how each DGL layer is described that is served, and when that does not hold.

DGL's layers call `update_all`, which runs on the HAG of its graph; there is something to run here
for layers of attention only. A layer with nothing but its record has a plain `Recipe`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dgl.nn import pytorch as nn

from hag_plugin.dgl.recipes import attention, gated, lstm, pna
from hag_plugin.dgl.recipes.attention import Attention
from hag_plugin.layers.dgl import RECORDS
from hag_plugin.layers.record import Record

EDGE_WEIGHT = "edge_weight: on the HAG where it is a product of node factors and comes back"
EXTREMA = "with gradients, max and min: on the HAG where edges are sorted by source"
RELATIONS = "edge types that come back"
RETURNS = "get_attention: stock"
OTHER_FORWARD = "its forward is not DGL's"
UNKNOWN = Record("")  # a layer that has no record


@dataclass(frozen=True)
class Recipe:
    """How `explain` describes a layer, beside its record.

    Attributes:
        record: what the layer is.
        words: what it aggregates, where its record does not tell it.
        remark: from the layer, what a call may change about it, where its record does not tell it.
        ruled_out: from the layer, why it runs stock code; None: it need not.
        needs: when it runs on a HAG, in words; for the page of layers.
        attention: how it scores its edges, if it does: in an accelerated model, without a HAG.
    """

    record: Record = UNKNOWN
    words: str = ""
    remark: Callable[[Any], str] = lambda layer: ""
    ruled_out: Callable[[Any], str | None] = lambda layer: None
    needs: str = ""
    attention: Attention | None = None

    @property
    def eligible_when(self) -> str:
        """What a layer and its calls must be like; "always" where there is no condition."""
        needs = [self.needs] if self.needs else []
        if self.record.relations is not None:
            needs.append(RELATIONS)
        if "edge_weight" in self.record.edge_values and self.attention is None:
            needs.append("edge_weight: a product of node factors that comes back")
        return "; ".join(needs) or "always"

    def aggregates(self, layer: Any) -> str:
        """What a layer aggregates, in words."""
        return self.words or self.record.aggregates(layer)

    def note(self, layer: Any) -> str:
        """What a call may change about it, in words."""
        remark = self.remark(layer)
        if remark:
            return remark
        if {"max", "min"} & {*self.record.reduce(layer)}:
            return EXTREMA
        if self.record.relations is not None and self.record.relations(layer) is not None:
            return RELATIONS
        return EDGE_WEIGHT if "edge_weight" in self.record.edge_values else ""


def _attending(how: Attention, returns_scores: bool = True) -> Recipe:
    """The recipe of a layer of attention, which may return its scores.

    A subclass may have a forward of its own.
    """

    def ruled_out(layer: Any) -> str | None:
        return attention.why_stock(layer) if attends(stock_class(layer)) else OTHER_FORWARD

    return Recipe(
        remark=lambda layer: RETURNS if returns_scores else "",
        ruled_out=ruled_out,
        needs="get_attention=False" if returns_scores else "",
        attention=how,
    )


def stock_class(layer: Any) -> Any:
    """The class of a layer before `accelerate`."""
    return getattr(type(layer), "_hag_dgl_stock", type(layer))


def _is_lstm(layer: Any) -> bool:
    return bool(layer._aggre_type == "lstm")


def _why_no_tree(layer: Any) -> str | None:
    runs, reason = lstm.explained(layer) if _is_lstm(layer) else (True, "")
    return None if runs else reason


_TOWERS = Recipe(
    ruled_out=lambda layer: pna.why_stock(layer.towers[0]),
    needs="no edge features; mean, sum, max, min, var, std",
)
OWN: dict[type, Recipe] = {
    nn.SAGEConv: Recipe(
        remark=lambda layer: lstm.explained(layer)[1] if _is_lstm(layer) else "",
        ruled_out=_why_no_tree,
        needs="'lstm': where its prefix tree is faster",
    ),
    nn.APPNPConv: Recipe(
        remark=lambda layer: (
            f"edge_drop={layer.edge_drop.p}: stock in training" if layer.edge_drop.p else ""
        ),
        needs="no edge dropout (edge_drop=0, or evaluation)",
    ),
    nn.GatedGraphConv: Recipe(
        ruled_out=lambda layer: None if layer._n_etypes == 1 else gated.why_stock(layer)
    ),
    nn.RelGraphConv: Recipe(
        remark=lambda layer: f"{RELATIONS}; norm: as a product of factors",
        needs="norm: a product of node factors",
    ),
    nn.PNAConv: _TOWERS,
    nn.DGNConv: replace(
        _TOWERS,
        needs=f"{_TOWERS.needs}; directions, which run as weighted sums on the plain graph",
    ),
    nn.GATConv: _attending(Attention(attention.gat, dims=(2, 3, 4))),
    nn.GATv2Conv: _attending(Attention(attention.gatv2, by_vectors=True)),
    nn.DotGatConv: _attending(Attention(attention.dot_gat, pairs="apart")),
    nn.AGNNConv: _attending(
        Attention(attention.agnn, attention.of_features, dims=(2, 3), pairs="apart"),
        returns_scores=False,
    ),
    nn.EdgeGATConv: _attending(
        Attention(
            attention.edge_gat,
            by_vectors=True,
            edge_rows="edge_feat",
            given=lambda heads, width: width + heads * width // 3,  # each head multiplies them
        )
    ),
    nn.EGATConv: _attending(
        Attention(
            attention.egat,
            attention.of_nodes,
            targets_first=False,
            edge_rows="efeats",
            given=lambda heads, width: heads,  # their scores
        )
    ),
    nn.HGTConv: _attending(
        Attention(
            attention.hgt,
            attention.of_types,
            by_vectors=True,
            pairs="never",
            allows_isolated=True,
            edge_types="etype",
        ),
        returns_scores=False,
    ),
    nn.HeteroGraphConv: Recipe(words="edge type by edge type", needs="as the layers inside it"),
}
_CLASSES = ((getattr(nn, record.layer), record) for record in RECORDS)
RECIPES: dict[type, Recipe] = {
    cls: replace(OWN.get(cls, Recipe()), record=record) for cls, record in _CLASSES
}


def recipe_of(cls: type) -> Recipe | None:
    """The recipe of a class, or of the first of its bases that has one.

    A subclass needs none of its own: whatever it does, its calls of `update_all` give what DGL's
    give.
    """
    return next((RECIPES[base] for base in cls.__mro__ if base in RECIPES), None)


def attends(cls: Any) -> bool:
    """Whether this is a class of attention whose `forward` is DGL's."""
    base: Any = next((base for base in cls.__mro__ if base in RECIPES), None)
    if base is None or RECIPES[base].attention is None:
        return False
    return bool(cls.forward is base.forward)


def aggregates(cls: type) -> bool:
    """Whether this is a class that aggregates: DGL's, by the table, or declared by its user."""
    return recipe_of(cls) is not None or getattr(cls, "_hag_declared", False)


def is_convolution(cls: type) -> bool:
    """Whether this is one of DGL's convolutions, or a subclass of one."""
    return not cls.__name__.endswith(("Tower", "EdgeWeightNorm")) and any(
        base.__module__.startswith("dgl.nn.pytorch.conv.") for base in cls.__mro__
    )
