"""`ToHAG`: the dataset transform."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.transforms import BaseTransform

from hag_plugin.arguments import brief, check_flag, items
from hag_plugin.hag.build import build_hag, build_hags, check_build_options
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import SelfLoops
from hag_plugin.modes import outside_inference
from hag_plugin.ops.weights import edge_slots
from hag_plugin.pyg.data.graph import KEY, adopt
from hag_plugin.recall import Recall
from hag_plugin.saved import set_module

# Given by the data.
TAKEN = ("edge_index", "num_nodes", "size", "targets_first", "ptr", "copies")
# Values of edges, but not of those in edge_index; as in PyG's ToSparseTensor.
OTHER_EDGES = {"edge_index", "edge_label", "edge_label_index"}


@set_module("hag_plugin.pyg")
class ToHAG(BaseTransform):  # type: ignore[misc]
    """Builds the HAG of each graph; models take `data.hag` where they took `data.edge_index`.

    A `HeteroData` gets one for each edge type: `data.hag_dict` stands for `data.edge_index_dict`.

    `ToHAG().dataset(dataset)` builds those of many graphs in one call.

    As `pre_transform` it runs once, and the HAGs are saved with the dataset. As `transform` it
    runs at each access, and finds the HAG of an edge index it has met. Programs are built now,
    those of the reversed graph included, because a loader's worker would lose what it built.

    Args:
        method: as for `build_hag`: "auto", "greedy" or "none".
        self_loops: the programs to build: False for SAGEConv, GINConv, GraphConv; "fill" for
            GCNConv; "add" for A + I.
        transpose: build the reversed graph's too, which gradients of directed graphs need.
        remove_edge_index: leave `edge_index` out of the result. Values of edges are put in the
            order of `data.hag.edge_index`. A transform that needs edges is given these.
        copies: what overlapping subgraphs call their nodes: an attribute of the data (such as
            "n_id") that is the same for all copies of a node. Sums are shared across copies where
            a layer finds their features the same, as a first layer does. With it a `Batch` is
            taken, too, as one graph.
        **options: further arguments of `build_hag`.

    Raises:
        TypeError: an option is unknown, given by the data, or of the wrong type.
        ValueError: an option is out of range.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> data = Data(x=torch.ones(2, 1), edge_index=torch.tensor([[0, 1], [1, 0]]))
        >>> ToHAG()(data).hag.num_edges
        2
    """

    def __init__(
        self,
        method: str = "auto",
        self_loops: SelfLoops | Sequence[SelfLoops] = (False, "fill"),
        transpose: bool = True,
        remove_edge_index: bool = False,
        copies: str | None = None,
        **options: Any,
    ) -> None:
        if copies is not None and not isinstance(copies, str):
            raise TypeError(f"copies is {brief(copies)}; expected the name of an attribute or None")
        check_build_options({"method": method, "self_loops": self_loops, **options}, TAKEN)
        check_flag("transpose", transpose)
        check_flag("remove_edge_index", remove_edge_index)
        self.method = method
        modes = self_loops if isinstance(self_loops, (list, tuple)) else (self_loops,)
        self.self_loops = tuple(modes)
        self.transpose = transpose
        self.remove_edge_index = remove_edge_index
        self.copies = copies
        self.options = options
        self._built = Recall()

    def forward(self, data: Any) -> Any:
        """The data, of a class that knows `hag`, or `hag_dict` where it is heterogeneous.

        Raises:
            ValueError: the data is a batch (and `copies` is not given), is of another kind, or has
                no `edge_index` or not what is to name the copies.
        """
        stores = _stores_with_edges(data, takes_batch=self.copies is not None)
        sizes = [_size(data, store) for store in stores]
        hags = [
            self._hag_of(store._mapping["edge_index"], size, self._copies_of(data, store))
            for store, size in zip(stores, sizes, strict=True)
        ]
        adopt(data)
        self._put(data, stores, sizes, hags)
        return data

    def _put(self, data: Any, stores: Any, sizes: Any, hags: Any) -> None:
        """Puts HAGs into the stores of their edges."""
        for store, hag in zip(stores, hags, strict=True):
            store[KEY] = hag
        if self.remove_edge_index:
            for store, size, hag in zip(stores, sizes, hags, strict=True):
                _keep_number_of_nodes(data, store, size)
                _order_edge_values(data, store, hag)
                del store["edge_index"]

    def dataset(self, dataset: Any) -> list[Any]:
        """The graphs of a data set, each with its HAG: built in one call, in microseconds a graph.

        Args:
            dataset: a list of `Data`, or a PyG data set, whose transform is applied.

        Returns:
            New data objects, which share their tensors with those of the data set.

        Raises:
            ValueError: an item is no `Data` with an `edge_index`.

        Example:
            >>> import torch
            >>> from torch_geometric.data import Data
            >>> ring = Data(num_nodes=3, edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]))
            >>> [data.hag.num_edges for data in ToHAG().dataset([ring, ring])]
            [3, 3]
        """
        copies = [copy.copy(data) for data in items("dataset", dataset)]
        stores = [_stores_with_edges(data) for data in copies]
        if self.copies is not None or any(isinstance(data, HeteroData) for data in copies):
            return [self.forward(data) for data in copies]
        sizes = [_size(data, store) for data, (store,) in zip(copies, stores, strict=True)]
        hags = build_hags(
            [store._mapping["edge_index"] for (store,) in stores],
            [nodes for nodes, _ in sizes],
            method=self.method,
            self_loops=self.self_loops,
            transpose=self.transpose,
            **self.options,
        )
        for data, of_one, size, hag in zip(copies, stores, sizes, hags, strict=True):
            adopt(data)
            self._put(data, of_one, [size], [hag])
        return copies

    def _copies_of(self, data: Any, store: Any) -> Tensor | None:
        if self.copies is None:
            return None
        sources = data[store._key[0]] if isinstance(data, HeteroData) else store
        copies = sources._mapping.get(self.copies)
        if not isinstance(copies, Tensor):
            raise ValueError(
                f"copies is {self.copies!r}; expected a tensor of that name among "
                f"{sorted(sources.keys())}"
            )
        return copies

    def _hag_of(self, edge_index: Tensor, size: tuple[int, int], copies: Tensor | None) -> HAG:
        of = (edge_index,) if copies is None else (edge_index, copies)
        known: HAG | None = self._built.get(of, size)
        if known is not None:
            return known
        modes = self.self_loops if size[0] == size[1] else (False,)
        options: dict[str, Any] = {"method": self.method, "self_loops": modes, **self.options}
        hag = build_hag(edge_index, size=size, copies=copies, **options)
        if self.transpose:
            hag.prepare(modes, transpose=True, progress=self.options.get("progress"))
        self._built.put(of, size, hag)
        return hag

    def __repr__(self) -> str:
        options = "".join(f", {k}={v!r}" for k, v in sorted(self.options.items()))
        copies = "" if self.copies is None else f", copies={self.copies!r}"
        return (
            f"ToHAG(method={self.method!r}, self_loops={self.self_loops}, "
            f"transpose={self.transpose}, remove_edge_index={self.remove_edge_index}"
            f"{copies}{options})"
        )


def _stores_with_edges(data: Any, takes_batch: bool = False) -> list[Any]:
    if isinstance(data, Batch) and not takes_batch:
        raise ValueError(
            "ToHAG takes single graphs; got a Batch. Apply it to its graphs, or, if these are "
            "subgraphs that overlap, say what names their nodes: ToHAG(copies=...)"
        )
    if not isinstance(data, (Data, HeteroData)):
        raise ValueError(f"ToHAG takes Data or HeteroData; got {type(data).__name__}")
    stores = [s for s in data.edge_stores if isinstance(s._mapping.get("edge_index"), Tensor)]
    if not stores:
        raise ValueError(
            f"ToHAG needs edge_index; this data has {sorted(data.keys())}. Apply it before "
            "transforms that remove edge_index, such as ToSparseTensor"
        )
    if any(store._mapping.get("edge_weight") is not None for store in stores):
        warnings.warn(
            "this data has edge_weight, which a HAG does not hold: layers that are given "
            "data.hag aggregate without weights; pass edge_index where weights are needed",
            stacklevel=3,
        )
    return stores


def _size(data: Any, store: Any) -> tuple[int, int]:
    """The numbers of sources and targets of a store's edges."""
    if isinstance(data, HeteroData):
        source, _, target = store._key
        return int(data[source].num_nodes or 0), int(data[target].num_nodes or 0)
    nodes = int(data.num_nodes or 0)
    return nodes, nodes


def _keep_number_of_nodes(data: Any, store: Any, size: tuple[int, int]) -> None:
    """Writes down what PyG would have counted in the edges that are removed."""
    kinds = (store._key[0], store._key[2]) if isinstance(data, HeteroData) else (None, None)
    for kind, nodes in zip(kinds, size, strict=True):
        node_store = store if kind is None else data[kind]
        if not {"num_nodes", "x", "pos"} & set(node_store.keys()):
            node_store.num_nodes = nodes


def _order_edge_values(data: Any, store: Any, hag: HAG) -> None:
    """Puts values of edges in the order of the HAG, as there will be no other to go by."""
    keys = [k for k, v in store.items() if isinstance(v, Tensor) and k not in OTHER_EDGES]
    keys = [key for key in keys if store.is_edge_attr(key)]
    if not keys:
        return
    with outside_inference():
        slots = edge_slots(store["edge_index"], hag)
        edges = torch.empty_like(slots).index_put((slots,), torch.arange(len(slots)).to(slots))
    for key in keys:
        store[key] = store[key].index_select(data.__cat_dim__(key, store[key], store), edges)
