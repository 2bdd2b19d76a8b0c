"""Graphs whose edges are scored by a layer of attention, in place of DGL's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from hag_plugin.dgl.aggregation.relation import edge_index
from hag_plugin.hag.hag import HAG
from hag_plugin.ops.attention import attend
from hag_plugin.ops.edge_list import EdgeList


@dataclass(frozen=True, eq=False)
class ScoredGraph:
    """A graph of one edge type whose edges are scored.

    Attributes:
        edges: its edges.
        graph: as DGL has it.
    """

    edges: EdgeList
    graph: Any

    @property
    def hag(self) -> HAG:
        """The graph of the edges."""
        return self.edges.hag

    def targets(self, rows: Tensor) -> Tensor:
        """Of rows of all nodes those of the targets, which come first in a block."""
        return rows[: self.hag.num_dst] if self.graph.is_block else rows

    def attend(
        self,
        value: Tensor,
        *,
        drop: nn.Dropout | None = None,
        edge_weight: Tensor | None = None,
        **how: Any,
    ) -> Tensor:
        """`ops.attention.attend` over the edges.

        Args:
            value: `[N_src, H, C]`.
            drop: the dropout of attention. Its mask is the one that stock draws from the same state
                of the generator.
            edge_weight: what attention is multiplied with, `[E]`, in the order of DGL's edges.
            **how: as for `attend`; what is given of edges is in the order of DGL's.
        """
        of_edges, mask = (self.hag.num_edges, value.shape[1]), None
        if drop is not None and drop.training and drop.p > 0:
            mask = drop(value.new_ones(of_edges))
        if edge_weight is not None:
            weights = edge_weight.view(-1, 1).expand(of_edges)
            mask = weights if mask is None else mask * weights
        order = None
        if mask is not None or how.get("bias") is not None:
            order = self.edges.order(lambda: edge_index(self.graph, 0))
        return attend(self.hag, value, mask=mask, order=order, **how)


def has_isolated(hag: HAG) -> bool:
    """Whether a target has no edges."""
    return hag.kept("isolated", lambda: bool((np.diff(hag.numpy()[0]) == 0).any()))
