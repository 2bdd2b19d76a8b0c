"""`EdgeList`: the edges of a graph in the order in which their owner has them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hag_plugin.hag.graph import inverse_of
from hag_plugin.hag.hag import HAG
from hag_plugin.modes import outside_inference
from hag_plugin.ops.weights import edge_slots


class EdgeList:
    """The edges that a layer attends over, loops of its own included, as it has them.

    Attributes:
        hag: their graph, of which no HAG is searched.
        weight: what the layer multiplies attention with, `[E]`, where it normalises its edges.
        loops: how many loops the layer added behind the edges that are none.
    """

    def __init__(
        self, hag: HAG, *, weight: Tensor | None = None, loops: int = 0, is_ordered: bool = False
    ) -> None:
        """`is_ordered`: the edges stand in the graph's own order."""
        self.hag = hag
        self.weight = weight
        self.loops = loops
        self._order: Tensor | None = None
        self._is_ordered = is_ordered

    def order(self, edges: Callable[[], Tensor]) -> Tensor | None:
        """The place of the edge in each of the graph's slots, `[E]`; None: in this order.

        Args:
            edges: gives them, `[2, E]`. Asked the first time only.
        """
        if not self._is_ordered:
            with outside_inference():
                self._order = inverse_of(edge_slots(edges(), self.hag))
            self._is_ordered = True
        return self._order
