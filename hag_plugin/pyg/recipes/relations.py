"""One graph for each relation of an edge index with edge types."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from hag_plugin.arguments import pair, whole
from hag_plugin.hag.build import build_hag
from hag_plugin.hag.graph import MAX_NODES, check_edge_index, check_edge_type
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.passing import plain_hag, plain_hags_there, runs_launches
from hag_plugin.modes import outside_inference

MOST_RELATIONS = 2**20


def relation_hags(
    edge_index: Tensor, edge_type: Tensor, num_relations: int, size: tuple[int, int]
) -> list[HAG]:
    """The HAGs that RGCNConv, FastRGCNConv, FiLMConv and RGATConv take in place of `edge_index`.

    With these no `edge_type` is passed.

    Args:
        edge_index: `[2, E]`.
        edge_type: `[E]`, from 0.
        num_relations: how many HAGs to build.
        size: the number of sources and of targets.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: the arguments do not fit each other.

    Example:
        >>> import torch
        >>> edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
        >>> hags = relation_hags(edges, torch.tensor([0, 1, 0]), 2, (3, 3))
        >>> [hag.num_edges for hag in hags]
        [2, 1]
    """
    check_edge_index(edge_index)
    check_edge_type(edge_type, edge_index)
    num_relations = whole("num_relations", num_relations, 0, MOST_RELATIONS)
    size = pair("size", size, MAX_NODES)
    return [build_hag(edge_index[:, edge_type == r], size=size) for r in range(num_relations)]


def plain_relation_hags(
    edge_index: Tensor, edge_type: Tensor, num_relations: int, size: tuple[int, int], *, both: bool
) -> list[HAG]:
    """The same of relations that are met once: see `plain_hag`. Types beyond are no relations'."""
    if runs_launches(edge_index):
        return [*plain_hags_there(edge_index, edge_type, num_relations, size, both=both)]
    order = edge_type.argsort(stable=True)
    edges, types = edge_index[:, order], edge_type[order]
    bounds = torch.arange(num_relations + 1, dtype=types.dtype)
    begin = torch.searchsorted(types.contiguous(), bounds).tolist()
    parts = (edges[:, begin[r] : begin[r + 1]] for r in range(num_relations))
    return [plain_hag(part, size, both=both) for part in parts]


# By the first of some relations: all of them, their edge index and their edge types.
_PLAIN: weakref.WeakKeyDictionary[HAG, tuple[list[weakref.ref[HAG]], Tensor, Tensor]] = (
    weakref.WeakKeyDictionary()
)


def plain_relations(hags: Sequence[HAG]) -> tuple[Tensor, Tensor]:
    """The edge index and the edge types that HAGs of relations stand for. Kept."""
    kept = _PLAIN.get(hags[0])
    if kept is not None and [known() for known in kept[0]] == list(hags):
        return kept[1], kept[2]
    with outside_inference():
        types = [torch.full((hag.num_edges,), r) for r, hag in enumerate(hags)]
        edge_type = torch.cat(types).to(hags[0].device)
        edge_index = torch.cat([hag.own_edge_index for hag in hags], dim=1)
    _PLAIN[hags[0]] = [weakref.ref(hag) for hag in hags], edge_index, edge_type
    return edge_index, edge_type
