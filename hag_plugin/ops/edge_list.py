"""`EdgeList`: the edges of a graph in the order in which their owner has them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hag_plugin.hag.gpu.met_once import DeviceHAG
from hag_plugin.hag.graph import inverse_of
from hag_plugin.hag.hag import HAG
from hag_plugin.modes import outside_inference
from hag_plugin.ops.weights import edge_slots


def isolated(hag: HAG) -> Tensor | None:
    """Which targets have no edge, bool `[N_dst]`. None: each has one."""

    def make() -> Tensor | None:
        row_ptr = hag.arrays.row_ptr
        found = row_ptr[1:] == row_ptr[:-1]
        return found if hag.is_unread or bool(found.any()) else None

    return hag.kept("isolated", make)


def asked_for(rows: Tensor, isolated: Tensor | None) -> Tensor:
    """Rows of targets `[N_dst, ...]`, and 0 in place of those that no edge asks for: what
    multiplies all of them gets no gradient from there, be they NaN."""
    if isolated is None:
        return rows
    return rows.masked_fill(isolated.view(-1, *[1] * (rows.dim() - 1)), 0.0)


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
        """`is_ordered`: the edges stand in the graph's own order, and not in that of the edges, and
        loops, that it was made of."""
        self.hag = hag
        self.weight = weight
        self.loops = loops
        self._order = hag.order if isinstance(hag, DeviceHAG) and not is_ordered else None
        self._is_ordered = is_ordered or self._order is not None

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
