"""Which graph is this? Whether the edges of a data object are those its HAG was built for."""

from __future__ import annotations

import warnings
import weakref
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hag_plugin.hag.build import build_hag
from hag_plugin.hag.hag import HAG
from hag_plugin.modes import outside_inference
from hag_plugin.recall import Recall

MAX_VERDICTS = 8  # edge indices remembered of each HAG


@dataclass(frozen=True)
class Verdict:
    """What came out when a HAG was compared with an edge index.

    Attributes:
        plain: None where the edges are the HAG's; otherwise the HAG to use instead.
    """

    plain: HAG | None


_VERDICTS: weakref.WeakKeyDictionary[HAG, Recall] = weakref.WeakKeyDictionary()
_WARNED: weakref.WeakSet[HAG] = weakref.WeakSet()


def current_hag(edge_index: Any, held: HAG, size: tuple[int, int]) -> HAG:
    """The HAG held if it is that of the data's edges, otherwise the plain graph of those.

    Args:
        edge_index: what the data has under that name: a tensor, or anything else.
        held: the HAG that the data has.
        size: the numbers of sources and targets that the data has.

    Raises:
        ValueError: there are no edges to make a plain graph of.
    """
    if not isinstance(edge_index, Tensor):
        if size != (held.num_src, held.num_dst):
            raise ValueError(
                f"this data has {_nodes(*size)} nodes and its HAG "
                f"{_nodes(held.num_src, held.num_dst)}: it was cut out of a "
                "larger graph. Apply ToHAG(remove_edge_index=False) to sample or to cut"
            )
        return held
    known = known_verdict(held, edge_index, size)
    if known is not None:
        return known.plain or held
    plain = None
    if (held.num_src, held.num_dst) != size or not held.matches(edge_index):
        plain = _plain(held, edge_index, size)
    note_verdict(held, edge_index, size, plain)
    return plain or held


def _nodes(num_src: int, num_dst: int) -> str:
    return str(num_dst) if num_src == num_dst else f"{num_src} and {num_dst}"


def known_verdict(held: HAG, edge_index: Tensor, size: tuple[int, int]) -> Verdict | None:
    """What is known of a HAG and this tensor as it is now, for numbers of sources and targets."""
    verdicts = _VERDICTS.get(held)
    known: Verdict | None = None if verdicts is None else verdicts.get((edge_index,), size)
    return known


def note_verdict(held: HAG, edge_index: Tensor, size: tuple[int, int], plain: HAG | None) -> None:
    """Keeps a verdict on the tensor as it is now."""
    verdicts = _VERDICTS.get(held)
    if verdicts is None:
        verdicts = _VERDICTS[held] = Recall(MAX_VERDICTS)
    verdicts.put((edge_index,), size, Verdict(plain))


def _plain(held: HAG, edge_index: Tensor, size: tuple[int, int]) -> HAG:
    if held not in _WARNED:
        _WARNED.add(held)
        warnings.warn(
            f"edge_index ({edge_index.shape[1]} edges, {_nodes(*size)} nodes) is not the graph "
            f"that the HAG was built for ({held.num_edges} edges, "
            f"{_nodes(held.num_src, held.num_dst)} nodes): the plain "
            "graph is used. Apply ToHAG after the transform that changes edges; sampled graphs "
            "need no HAG",
            stacklevel=5,
        )
    with outside_inference():
        return build_hag(edge_index, size=size, method="none")
