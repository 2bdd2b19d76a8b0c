"""Which graph is this? Whether the edges of a data object are those its HAG was built for."""

from __future__ import annotations

import warnings
import weakref
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hag_plugin.build import build_hag
from hag_plugin.hag import HAG, outside_inference

MAX_VERDICTS = 8  # edge indices remembered of each HAG
NODE_KEYS = {"num_nodes", "x", "pos", "batch"}


@dataclass(frozen=True)
class Verdict:
    """What came out when a HAG was compared with an edge index.

    Attributes:
        edge_index: the tensor.
        version: its `_version` then.
        num_nodes: of the data.
        plain: None where the edges are the HAG's; otherwise the HAG to use instead.
    """

    edge_index: weakref.ref[Tensor]
    version: int
    num_nodes: int
    plain: HAG | None

    def holds(self, edge_index: Tensor) -> bool:
        """Whether this is the tensor, unchanged."""
        return self.edge_index() is edge_index and self.version == edge_index._version


_VERDICTS: weakref.WeakKeyDictionary[HAG, dict[int, Verdict]] = weakref.WeakKeyDictionary()
_WARNED: weakref.WeakSet[HAG] = weakref.WeakSet()


def current_hag(data: Any, held: HAG) -> HAG:
    """The HAG held if it is that of the data's edges, otherwise the plain graph of those."""
    edge_index = data._store._mapping.get("edge_index")
    # From the edges alone PyG would guess the number of nodes, with a warning.
    counted = not NODE_KEYS.isdisjoint(data._store.keys())
    num_nodes = data.num_nodes if counted else held.num_dst
    if not isinstance(edge_index, Tensor):
        if num_nodes != held.num_dst:
            raise ValueError(
                f"this data has {num_nodes} nodes and its HAG {held.num_dst}: it was cut out of a "
                "larger graph. Apply ToHAG(remove_edge_index=False) to sample or to cut"
            )
        return held
    known = None if edge_index.is_inference() else known_verdict(held, edge_index)
    if known is not None and known.num_nodes == num_nodes:
        return known.plain or held
    plain = None
    if held.num_dst != num_nodes or not held.matches(edge_index):
        plain = _plain(held, edge_index, num_nodes)
    note_verdict(held, edge_index, num_nodes, plain)
    return plain or held


def known_verdict(held: HAG, edge_index: Tensor) -> Verdict | None:
    """What is known of a HAG and this tensor as it is now."""
    known = _VERDICTS.get(held, {}).get(id(edge_index))
    return known if known is not None and known.holds(edge_index) else None


def note_verdict(held: HAG, edge_index: Tensor, num_nodes: int, plain: HAG | None) -> None:
    """Keeps a verdict, by the tensor's weak identity and version."""
    if edge_index.is_inference():  # which has no version
        return
    verdicts = _VERDICTS.setdefault(held, {})
    for key in [k for k, v in verdicts.items() if v.edge_index() is None]:
        del verdicts[key]
    while len(verdicts) >= MAX_VERDICTS:
        del verdicts[next(iter(verdicts))]
    verdicts[id(edge_index)] = Verdict(
        weakref.ref(edge_index), edge_index._version, num_nodes, plain
    )


def _plain(held: HAG, edge_index: Tensor, num_nodes: int) -> HAG:
    if held not in _WARNED:
        _WARNED.add(held)
        warnings.warn(
            f"edge_index ({edge_index.shape[1]} edges, {num_nodes} nodes) is not the graph that "
            f"the HAG was built for ({held.num_edges} edges, {held.num_dst} nodes): the plain "
            "graph is used. Apply ToHAG after the transform that changes edges; sampled graphs "
            "need no HAG",
            stacklevel=4,
        )
    with outside_inference():
        return build_hag(edge_index, num_nodes=num_nodes, method="none")
