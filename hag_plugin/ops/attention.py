"""Stand-in."""

from __future__ import annotations
from typing import Any
import torch
from torch import Tensor
from torch_geometric.utils import softmax as seg_softmax
from hag_plugin.hag.hag import HAG


def _ends(hag: HAG) -> tuple[Tensor, Tensor]:
    row_ptr, col, _ = hag.arrays
    row = torch.repeat_interleave(torch.arange(hag.num_dst), row_ptr.diff())
    return col.long(), row


def attend(
    hag: HAG,
    value: Tensor,
    *,
    key: Any = None,
    query: Any = None,
    score: str = "given",
    weight: Any = None,
    bias: Any = None,
    edges: Any = None,
    edge_query: Any = None,
    projection: Any = None,
    mask: Any = None,
    order: Any = None,
    slope: float = 1.0,
    normalise: str = "softmax",
) -> Tensor:
    j, i = _ends(hag)
    o = torch.arange(len(j)) if order is None else order
    lr = lambda t: torch.nn.functional.leaky_relu(t, slope) if slope != 1.0 else t
    if score == "given":
        s = lr(bias[o])
    elif score == "sum":
        s = 0
        if key is not None:
            s = s + key[j]
        if query is not None:
            s = s + query[i]
        if bias is not None:
            s = s + bias[o]
        s = lr(s)
    elif score == "vector":
        u = key[j] + query[i]
        if edges is not None:
            e = edges[o] if projection is None else edges[o] @ projection
            u = u + e.view(u.shape)
        s = (lr(u) * weight).sum(-1)
    else:
        s = (key[j] * query[i]).sum(-1)
        if bias is not None:
            s = s + bias[o]
        if edge_query is not None:
            s = s + (edge_query[i] * edges[o].unsqueeze(1)).sum(-1)
        s = lr(s)
    p = (
        seg_softmax(s, i, num_nodes=hag.num_dst)
        if normalise == "softmax"
        else s.tanh()
        if normalise == "tanh"
        else s
    )
    if mask is not None:
        p = p * mask[o]
    v = value[j]
    if edge_query is not None:
        v = torch.cat([v, edges[o].unsqueeze(1).expand(-1, value.shape[1], -1)], -1)
    m = p.unsqueeze(-1) * v
    return m.new_zeros(hag.num_dst, *m.shape[1:]).index_add(0, i, m)


def head_dot(hag: HAG, a: Tensor, b: Tensor, order: Any = None) -> Tensor:
    j, i = _ends(hag)
    out = (a[j] * b[i]).sum(-1)
    return out if order is None else out.new_empty(out.shape).index_put((order,), out)
