"""Edges, and what nodes have, as they come: block by block, each read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from hag_plugin.arguments import brief
from hag_plugin.hag.graph import check_edge_index

DGL_TYPE = "_TYPE"  # dgl.NTYPE, and dgl.ETYPE: of dgl.to_homogeneous
DGL_OWN = ("_ID", DGL_TYPE)  # what DGL keeps of its own


@dataclass(frozen=True, eq=False)
class RowStream:
    """A row for each node, in the order of their numbers; or for each edge, in that of edges.

    Attributes:
        rows: how many; None, of edges: as many as there are.
        dtype: of the values.
        shape: of one row.
        blocks: given the most rows at a time, arrays `[k, *shape]`.
    """

    rows: int | None
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    blocks: Callable[[int], Iterator[np.ndarray]]

    @classmethod
    def of(cls, array: np.ndarray) -> RowStream:
        """The rows of an array."""

        def blocks(most: int) -> Iterator[np.ndarray]:
            for first in range(0, len(array), most):
                yield array[first : first + most]

        return cls(len(array), array.dtype, array.shape[1:], blocks)


@dataclass(frozen=True, eq=False)
class EdgeStream:
    """A graph whose edges come block by block.

    Attributes:
        blocks: given the most edges at a time, whole numbers `[2, k]`, sources and targets.
        words: what the graph was read as.
        num_nodes: N, or None: the largest id and one more.
        where: says where edge `i` is.
        rows: what nodes have, by name.
        values: what edges have, by name; as many at a time in the order of as many edges.
    """

    blocks: Callable[[int], Iterator[np.ndarray]]
    words: str
    num_nodes: int | None = None
    where: Callable[[int], str] = "edge {:,}".format
    rows: Mapping[str, RowStream] = field(default_factory=dict)
    values: Mapping[str, RowStream] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        edge_index: np.ndarray,
        num_nodes: int | None,
        rows: Mapping[str, np.ndarray] | None = None,
        words: str = "arrays",
        values: Mapping[str, np.ndarray] | None = None,
    ) -> EdgeStream:
        """The edges of an array `[2, E]`."""

        def blocks(most: int) -> Iterator[np.ndarray]:
            for first in range(0, edge_index.shape[1], most):
                yield edge_index[:, first : first + most]

        def where(edge: int) -> str:
            return f"edge {edge:,} is {edge_index[:, edge].tolist()}"

        of_nodes, of_edges = (
            {name: RowStream.of(array) for name, array in (each or {}).items()}
            for each in (rows, values)
        )
        return cls(blocks, words, num_nodes, where, of_nodes, of_edges)


def stream_of(data: Any) -> EdgeStream:
    """The graph that a user gave: a stream, PyG's `Data`, or a graph of DGL's.

    Raises:
        TypeError: it is none of these.
        ValueError: it has types of nodes, or values of edges that are not a row for each.
    """
    if isinstance(data, EdgeStream):
        return data
    if hasattr(data, "ndata") and hasattr(data, "edges"):
        if len(data.ntypes) > 1 or len(data.etypes) > 1:
            raise _several(data.ntypes, data.canonical_etypes, _dgl_homogeneous(data))
        ends = [ids.cpu().numpy() for ids in data.edges()]
        rows, values = (
            _of_dgl(frame, types)
            for frame, types in ((data.ndata, "node_type"), (data.edata, "edge_type"))
        )
        return EdgeStream.of(np.stack(ends), data.num_nodes(), rows, "a DGL graph", values)
    if hasattr(data, "node_types") and hasattr(data, "edge_types"):
        raise _several(data.node_types, data.edge_types, "data.to_homogeneous()")
    edge_index = getattr(data, "edge_index", None)
    if isinstance(edge_index, Tensor) and hasattr(data, "num_nodes"):
        check_edge_index(edge_index)
        items = data.to_dict() if hasattr(data, "to_dict") else vars(data)
        tensors = {name: each for name, each in items.items() if isinstance(each, Tensor)}
        tensors.pop("edge_index")
        nodes, is_edge_attr = data.num_nodes, getattr(data, "is_edge_attr", lambda name: False)
        of_edges = {name: tensors.pop(name) for name in [*tensors] if is_edge_attr(name)}
        for name, each in of_edges.items():
            if not each.dim() or each.shape[0] != edge_index.shape[1]:
                raise ValueError(
                    f"{name} has shape {list(each.shape)}; expected a row for each of the "
                    f"{edge_index.shape[1]:,} edges, or that the data is without it"
                )
        rows = {
            name: _array(name, each)
            for name, each in tensors.items()
            if each.dim() and each.shape[0] == nodes
        }
        values = {name: _array(name, each) for name, each in of_edges.items()}
        edges = edge_index.detach().cpu().numpy()
        return EdgeStream.of(edges, nodes, rows, type(data).__name__, values)
    raise TypeError(
        f"data is {brief(data)}; expected PyG's Data, a DGL graph, or what "
        "hag_plugin.data.edge_folders.open_graph makes of a path"
    )


def _several(nodes: Any, edges: Any, instead: str) -> ValueError:
    return ValueError(
        f"data has node types {[*nodes]} and edge types {[*edges]}; expected one of each: "
        f"{instead} is one graph, whose relations run from a store as edge_type"
    )


def _dgl_homogeneous(graph: Any) -> str:
    """The call that makes one type of a DGL graph's, with what all of its nodes and edges have."""
    frames = {
        "ndata": [graph.nodes[of].data for of in graph.ntypes],
        "edata": [graph.edges[of].data for of in graph.canonical_etypes],
    }
    shared = {name: sorted(set.intersection(*map(set, each))) for name, each in frames.items()}
    given = "".join(f", {name}={names}" for name, names in shared.items() if names)
    return f"dgl.to_homogeneous(graph{given})"


def _of_dgl(frame: Mapping[str, Tensor], types: str) -> dict[str, np.ndarray]:
    """What nodes or edges have; their types in a graph that was made one, as PyG calls them."""
    names = {name: name for name in frame if name not in DGL_OWN}
    if DGL_TYPE in frame:
        names.setdefault(types, DGL_TYPE)
    return {name: _array(name, frame[key]) for name, key in names.items()}


def _array(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value.detach().cpu().numpy())
    except (TypeError, RuntimeError) as e:
        raise ValueError(f"{name} is {brief(value)}; expected numbers that NumPy knows") from e
