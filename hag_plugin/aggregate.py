"""TEMPORARY stand-in until the operator lands (its owner replaces this file whole)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hag_plugin import reference
from hag_plugin.hag import HAG


def aggregate(x: Tensor, hag: HAG, reduce: str = "sum", *, ties: str = "even", **kw: Any) -> Tensor:
    """`y_i = t_i * REDUCE_j(s_j * x_j)`."""
    return reference.aggregate(x, hag.edge_index, hag.num_dst, reduce, **kw)
