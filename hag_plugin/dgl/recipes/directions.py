"""The directional aggregators of DGNConv: sums whose weights are a vector field on the edges.

The field is the gradient of eigenvectors, `F_uv = eig_u - eig_v`, one for each edge, normalised by
`sum over u of |F_uv|` (arXiv 2010.02863; dgl/nn/pytorch/conv/dgnconv.py). Such weights share
nothing, so that the sums run on the plain graph; rows are still those of nodes, and no array of
edges times features is made.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import SelfLoops
from hag_plugin.ops.weights import weighted_aggregate

NAME = re.compile(r"dir([123])-(av|dx)")
EPSILON = 1e-30


def directional(
    name: str,
    hag: HAG,
    self_loops: SelfLoops,
    eig: Tensor,
    sources: Tensor,
    targets: Tensor,
    own: Tensor,
) -> Tensor:
    """Aggregates the messages `sources_u + targets_v`.

    Args:
        name: "dir1-av", the average along the first eigenvector, or "dir1-dx", the derivative;
            likewise for the second and third.
        hag: the graph, of nodes of one kind.
        self_loops: False, or "add": the field of a loop is 0.
        eig: eigenvectors, `[N, K]`.
        sources: the part of a message that its source makes, `[N, F]`.
        targets: the part that its target makes, `[N, F]`.
        own: what a derivative is taken against, `[N, F]`.

    Returns:
        `[N, F]`.
    """
    which, kind = name[3], name[5:]
    weight, total = _normalised(hag, eig[:, int(which) - 1], absolute=kind == "av")
    dtype = torch.promote_types(sources.dtype, weight.dtype)
    sums = weighted_aggregate(
        sources.to(dtype),
        hag,
        weight.to(dtype),
        self_loops=self_loops,
        loop_weight=None if self_loops is False else weight.new_zeros(hag.num_dst),
    )
    if kind == "av":
        return sums + total * targets
    return torch.abs(sums + total * (targets - own))


def _normalised(hag: HAG, eig: Tensor, absolute: bool) -> tuple[Tensor, Tensor]:
    """The weights of the edges, `[E]` in the HAG's order, and their sums, `[N, 1]`."""
    source, target = hag.own_edge_index
    field = eig[source] - eig[target]
    zeros = eig.new_zeros(hag.num_dst)
    size = zeros.index_add(0, target, field.abs())
    weight = (field.abs() if absolute else field) / (size[target] + EPSILON)
    return weight, zeros.index_add(0, target, weight).unsqueeze(1)
