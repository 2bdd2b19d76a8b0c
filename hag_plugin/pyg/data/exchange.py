"""`to_dgl`: PyG's data as DGL's graphs; and PyG's data of the parts of another framework's."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.data.storage import N_KEYS

from hag_plugin import adapters
from hag_plugin.arguments import check_kind
from hag_plugin.exchange import EDGES, NODES, EdgePart, EdgeType, GraphParts, NodePart
from hag_plugin.hag.graph import check_edge_index
from hag_plugin.hag.hag import HAG
from hag_plugin.pyg.data.graph import KEY, HagStores, adopt, with_edges
from hag_plugin.saved import set_module

# What DGL's data sets, its `to_homogeneous` and its subgraphs call a value: what PyG's call it.
NODE_NAMES = {"feat": "x", "label": "y", "_TYPE": "node_type", "_ID": "n_id"}
EDGE_NAMES = {"feat": "edge_attr", "w": "edge_weight", "_TYPE": "edge_type", "_ID": "e_id"}
PREFIX = "edge_"  # of values of edges in a `Data`, where those of nodes stand beside them

NO_VALUES = {"edge_index", KEY, "num_nodes", "ptr"}  # told by other means

# Apart ------------------------------------------------------------------------------------------


@set_module("hag_plugin.pyg")
def to_dgl(data: Data | HeteroData) -> Any:
    """PyG's data as a DGL graph, with its features, labels, masks and edge features, and its HAGs.

    Names become those of DGL's data sets where `hag_plugin.dgl.to_pyg`, the way back, says so:
    `x` becomes "feat", `y` "label". What belongs to no node and no edge, such as the label of a
    whole graph, has no place in a DGL graph, and stays behind.

    Args:
        data: `Data`, `HeteroData` or a `Batch`, on any device. Edges may be told by the HAG alone.
            Values are shared.

    Returns:
        A `DGLGraph`; where the data has HAGs, one that runs on these.

    Raises:
        TypeError: `data` is neither.
        ValueError: it has no `edge_index`, one whose ids are out of range, or a batch whose nodes
            are not side by side or whose edges cross from one graph to another.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> ring = Data(x=torch.ones(3, 4), edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]))
        >>> to_dgl(ring).ndata["feat"].shape
        torch.Size([3, 4])
    """
    check_kind("data", data, Data, HeteroData)
    return adapters.graph_of_parts("dgl", _parts_of(data))


def _parts_of(data: Any) -> GraphParts:
    if not isinstance(data, HagStores):  # but may hold a HAG that somebody put there
        data = copy.copy(data)
        adopt(data)
    hags = {_edge_type(s): data._current_hag(s) for s in data.edge_stores if KEY in s}
    data = with_edges(data)
    ends = {_edge_type(store): _ends(store) for store in data.edge_stores}
    if not ends:
        raise ValueError(f"data has {sorted(data.keys())}; expected edges of one type or more")
    for source, _, target in ends if isinstance(data, HeteroData) else ():
        _ = data[source], data[target]  # nodes of which edges alone tell
    stores = {store._key or NODES: store for store in data.node_stores}
    counts = {kind: _count(kind, store, ends) for kind, store in stores.items()}
    _check_ids(ends, counts)
    per_graph = _nodes_per_graph(data, stores, counts)
    # In a `Data` with as many nodes as edges, a name alone says what a value is one of.
    is_even = EDGES in ends and ends[EDGES].shape[1] == counts[NODES]

    nodes = {}
    for kind, store in stores.items():
        values = _values(data, store, counts[kind], False if is_even else None)
        if per_graph:
            values.pop("batch", None)
        names = {new: old for old, new in NODE_NAMES.items()}
        nodes[kind] = NodePart(counts[kind], _renamed(values, names), per_graph.get(kind))
    edges = {}
    for (edge_type, edge_index), store in zip(ends.items(), data.edge_stores, strict=True):
        values = _values(data, store, edge_index.shape[1], True if is_even else None)
        names = {new: old for old, new in EDGE_NAMES.items()}
        if edge_type == EDGES:
            names = {key: names.get(key, key.removeprefix(PREFIX)) for key in values}
        sizes = per_graph.get(edge_type[0]), per_graph.get(edge_type[2])
        hag = hags.get(edge_type)
        edges[edge_type] = _edge_part(edge_index, _renamed(values, names), sizes, hag)
    return GraphParts(nodes, edges)


def _ends(store: Any) -> Tensor:
    edge_index = store.get("edge_index")
    if not isinstance(edge_index, Tensor):
        where = "" if store._key is None else f" of {store._key}"
        raise ValueError(f"data{where} has {sorted(store.keys())}; expected an edge_index")
    edges: Any = edge_index.as_tensor() if isinstance(edge_index, EdgeIndex) else edge_index
    check_edge_index(edges)
    ends: Tensor = edges.long()
    return ends


def _check_ids(ends: Mapping[EdgeType, Tensor], counts: Mapping[str, int]) -> None:
    for (source, _, target), edge_index in ends.items():
        for kind, ids in zip((source, target), edge_index, strict=True):
            least, most = (int(each) for each in ids.aminmax()) if len(ids) else (0, -1)
            if least < 0 or most >= counts[kind]:
                raise ValueError(f"edge_index has ids from {least} to {most}; expected 0 to "
                                 f"{counts[kind] - 1}")  # fmt: skip


def _nodes_per_graph(
    data: Any, stores: Mapping[str, Any], counts: Mapping[str, int]
) -> dict[str, Tensor]:
    """How many nodes each graph of a batch has, by type; empty where it is no batch.

    A transform that leaves nodes out changes `batch`, and leaves `ptr`: so `batch` tells.
    """
    if not all(
        isinstance(store.get("ptr"), Tensor)
        or (isinstance(data, Batch) and isinstance(store.get("batch"), Tensor))
        for store in stores.values()
    ):
        return {}
    found, num_graphs = {}, 0
    for kind, store in stores.items():
        batch, ptr = store.get("batch"), store.get("ptr")
        if isinstance(batch, Tensor):
            if len(batch) != counts[kind] or bool((batch.diff() < 0).any()):
                raise ValueError("batch is not in order, or is not one a node; expected the nodes "
                                 "of each graph side by side")  # fmt: skip
            least = len(ptr) - 1 if isinstance(ptr, Tensor) else 0
            found[kind] = batch.bincount(minlength=least)
        else:
            found[kind] = ptr.diff()
        if int(found[kind].sum()) != counts[kind]:
            raise ValueError(f"ptr ends at {int(ptr[-1])}; expected {counts[kind]} nodes")
        num_graphs = max(num_graphs, len(found[kind]))
    pad = torch.nn.functional.pad
    return {kind: pad(each, (0, num_graphs - len(each))) for kind, each in found.items()}


def _edge_type(store: Any) -> EdgeType:
    kind: EdgeType = store._key or EDGES
    return kind


def _count(kind: str, store: Any, ends: Mapping[EdgeType, Tensor]) -> int:
    """The number of nodes of a type: as PyG tells it or, where it does not, by their largest id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is told by the edges
        told = store.num_nodes
    if told is not None:
        return int(told)
    ids = [edge_index[i] for (source, _, target), edge_index in ends.items()
           for i, end in enumerate((source, target)) if end == kind]  # fmt: skip
    return max((int(each.max()) + 1 for each in ids if len(each)), default=0)


def _values(data: Any, store: Any, count: int, of_edges: bool | None) -> dict[str, Tensor]:
    """The values of a store that are one a node, or one an edge, of which there are `count`.

    `of_edges`: those whose names are, or are not, of values of edges; None: all.
    """
    others = {"edge_label"} if "edge_label_index" in store else set()  # of other edges
    return {
        key: value
        for key, value in store.items()
        if key not in NO_VALUES | others
        and isinstance(value, Tensor)
        and value.dim() > 0
        and len(value) == count
        and _goes_by_rows(data, store, key, value)
        and of_edges in (None, key.startswith(PREFIX) or key in EDGE_NAMES.values())
    }


def _goes_by_rows(data: Any, store: Any, key: str, value: Tensor) -> bool:
    """Whether PyG, by the name of a value, takes each of its rows for one node's or edge's."""
    return value.dim() == 1 or data.__cat_dim__(key, value, store) == 0


def _edge_part(
    edge_index: Tensor,
    values: dict[str, Tensor],
    per_graph: tuple[Tensor | None, Tensor | None],
    held: Any,
) -> EdgePart:
    """The edges of one type, those of each graph of a batch side by side, as DGL has them.

    Args:
        per_graph: how many sources and targets each graph has; None where it is no batch.
    """
    hag = held if isinstance(held, HAG) else None
    sources, targets = per_graph
    if sources is None or targets is None:
        return EdgePart(edge_index, values, None, hag)
    graph, other = (
        torch.bucketize(ids, sizes.cumsum(0), right=True)
        for ids, sizes in zip(edge_index, (sources, targets), strict=True)
    )
    if not torch.equal(graph, other):
        at = int((graph != other).nonzero()[0])
        raise ValueError(f"edge_index has an edge {edge_index[:, at].tolist()} from one graph of "
                         "the batch to another; expected none")  # fmt: skip
    if bool((graph.diff() < 0).any()):
        order = graph.argsort(stable=True)
        edge_index = edge_index[:, order]
        values = {key: value[order] for key, value in values.items()}
    return EdgePart(edge_index, values, graph.bincount(minlength=len(sources)), hag)


# Together ---------------------------------------------------------------------------------------


def graph_of_parts(parts: GraphParts) -> Any:
    """The data of parts, of a class that knows its HAGs where there are any."""
    is_typed = parts.is_typed
    data: Any = HeteroData() if is_typed else Data()
    numbers = [part.per_graph for part in parts.nodes.values() if part.per_graph is not None]
    if numbers:
        data = Batch(_base_cls=type(data))
        data._num_graphs = len(numbers[0])
    for kind, part in parts.nodes.items():
        store = data[kind] if is_typed else data._store
        if part.per_graph is not None:
            graphs = torch.arange(len(part.per_graph), device=part.per_graph.device)
            store["batch"] = graphs.repeat_interleave(part.per_graph)
            store["ptr"] = torch.nn.functional.pad(part.per_graph.cumsum(0), (1, 0))
        _put(data, store, _renamed(part.data, NODE_NAMES))
        if not _tells_number(store):
            store["num_nodes"] = part.count
    for edge_type, edges in parts.edges.items():
        store = data[edge_type] if is_typed else data._store
        store["edge_index"] = edges.edge_index
        names = EDGE_NAMES
        if not is_typed:
            names = {key: names.get(key, _prefixed(key)) for key in edges.data}
        _put(data, store, _renamed(edges.data, names))
        if edges.hag is not None:
            store[KEY] = edges.hag
    if any(edges.hag is not None for edges in parts.edges.values()):
        adopt(data)
    return data


def _put(data: Any, store: Any, values: Mapping[str, Tensor]) -> None:
    for key, value in values.items():
        if key in store or key in NO_VALUES or not _goes_by_rows(data, store, key, value):
            raise ValueError(
                f"graph has values {key!r} of nodes or edges; expected another name: PyG's data "
                "has others of this name, or takes it for something else"
            )
        store[key] = value


def _tells_number(store: Any) -> bool:
    """Whether PyG knows the number of nodes by their values."""
    keys = [*store.keys()]
    return not N_KEYS.isdisjoint(keys) or any("node" in key for key in keys)


def _prefixed(key: str) -> str:
    return key if key.startswith(PREFIX) else PREFIX + key


def _renamed(values: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Values with new names, but those whose new name another value has."""
    out: dict[str, Tensor] = {}
    for key, value in values.items():
        new = names.get(key, key)
        out[key if new in out or new in values else new] = value
    return out
