"""What a model is given: the data, with a stand-in for the features in it, and how it is called."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hag_plugin.hag.program import SelfLoops
from hag_plugin.parallel.graphs.stats import GraphStats
from hag_plugin.parallel.graphs.store.partitioned_data import PartitionedData
from hag_plugin.parallel.model.functions import tensors

ModelCall = Callable[[Any, Any], Any]
"""The user's call of a model: of the model and its data to what the model returns."""


@dataclass
class Stored:
    """A graph in a store as a model is given it: of the whole graph's shape, without storage.

    Where the store has one part, its edges are there.

    Attributes:
        x: what the manifest says of the features, or their stand-in; None where there are none.
        edge_index: int64 `[2, E]`.
        num_nodes: N.
        counts: of the graph, for layers that add loops in a way.
        of_edges: what edges have, `[E, ...]` by name; they are attributes, too.
    """

    x: Any
    edge_index: Tensor
    num_nodes: int
    counts: Callable[[SelfLoops], GraphStats]
    of_edges: dict[str, Tensor]

    @classmethod
    def of(cls, data: PartitionedData) -> Stored:
        """The graph of which this is a part."""
        whole = data.manifest
        x = whole.parts[0].files.get("x")
        if data.ranks == 1:
            values = {name: getattr(data, name) for name in data.edge_names}
            return cls(x, data.edge_index, whole.nodes, data.counted, values)
        edges = torch.empty(2, whole.edges, dtype=torch.int64, device="meta")
        values = {}
        for name in data.edge_names:
            record = whole.parts[0].files[name]
            dtype = torch.from_numpy(np.empty(0, record.dtype)).dtype
            shape = (whole.edges, *record.shape[1:])
            values[name] = torch.empty(shape, dtype=dtype, device="meta")
        return cls(x, edges, whole.nodes, data.counted, values)

    def __getattr__(self, name: str) -> Tensor:
        found = vars(self).get("of_edges", {}).get(name)
        if found is None:
            raise AttributeError(name)
        tensor: Tensor = found
        return tensor

    def to_dict(self) -> dict[str, Any]:
        """What a model may take, by name."""
        known = {"x": self.x, "edge_index": self.edge_index, "num_nodes": self.num_nodes}
        return known | self.of_edges

    @property
    def apart(self) -> bool:
        """Whether a rank has the edges into its own part alone."""
        return self.edge_index.is_meta


def node_types(data: Any) -> dict[str, int]:
    """How many nodes there are of each type; {} where there is one type only.

    Raises:
        TypeError: the data does not tell.
    """
    if isinstance(data, tuple) and len(getattr(data[0], "ntypes", ())) > 1 and not _has_types(data):
        raise TypeError(
            f"data is a DGL graph with nodes of types {data[0].ntypes} and a "
            f"{type(data[1]).__name__}; expected a dictionary of features by type"
        )
    if _has_types(data):
        return {of: int(data[0].num_nodes(of)) for of in data[0].ntypes}
    if isinstance(data, tuple) or not hasattr(data, "node_types"):
        return {}
    found = {name: data[name].num_nodes for name in data.node_types}
    unknown = [name for name, count in found.items() if count is None]
    if unknown:
        raise TypeError(f"data has no number of nodes of type {unknown[0]!r}; set its num_nodes")
    return {name: int(count) for name, count in found.items()}


def _has_types(data: Any) -> bool:
    """Whether it is a DGL graph with features by type of node."""
    return isinstance(data, tuple) and isinstance(data[1], Mapping)


def of_types(data: Any) -> dict[str, dict[str, Any]]:
    """What the data has of the nodes of each type, features left out; of all of it, under ""."""
    if _has_types(data):
        return {"": {}} | {of: dict(data[0].nodes[of].data) for of in data[0].ntypes}
    found = {of: {k: v for k, v in data[of].items() if k != "x"} for of in data.node_types}
    return {"": dict(data._global_store)} | found


def features_of(data: Any) -> dict[str, Any]:
    """The features x by type of node; that of the only one is ""."""
    if _has_types(data):
        graph, x = data
        return {of: x[of] for of in graph.ntypes if of in x}
    if isinstance(data, tuple):
        return {"": data[1]}
    if not hasattr(data, "node_types"):
        return {"": getattr(data, "x", None)}
    return {name: data[name].x for name in data.node_types if "x" in data[name]}


def values_of(data: Any) -> dict[str, Any]:
    """Everything in the data, by name; of several types, those before it."""
    if _has_types(data):
        graph, x = data
        found = {of: dict(graph.nodes[of].data) for of in graph.ntypes}
        named = {f"{of}.{name}": each for of in found for name, each in found[of].items()}
        return named | {f"{of}.x": each for of, each in x.items()}
    if isinstance(data, tuple):
        graph, x = data
        return dict(graph.ndata.items()) | {"x": x}
    if hasattr(data, "node_types"):
        stores = {"": data._global_store} | dict(
            zip(data.metadata()[0], data.node_stores, strict=True)
        )
        stores |= {" ".join(kind): data[kind] for kind in data.edge_types}
        return {f"{kind}.{name}".lstrip("."): value
                for kind, store in stores.items() for name, value in store.items()}  # fmt: skip
    return dict(data.to_dict()) if hasattr(data, "to_dict") else dict(vars(data))


def with_features(data: Any, features: Mapping[str, Tensor]) -> Any:
    """The same data with other features, by type of node; of counts of a graph, edges that have no
    storage.
    """
    if _has_types(data):
        return data[0], dict(features)
    if not isinstance(data, tuple) and hasattr(data, "node_types"):
        found = copy.copy(data)
        for name, each in features.items():
            found[name].x = each
        return found
    x = features[""]
    if isinstance(data, tuple):
        return data[0], x
    if isinstance(data, GraphStats):
        edges = torch.empty(2, data.edges, dtype=torch.int64, device="meta")
        kinds = torch.empty(data.edges, dtype=torch.int64, device="meta")
        return SimpleNamespace(x=x, edge_index=edges, edge_type=kinds)
    found = copy.copy(data)
    try:
        found.x = x
    except FrozenInstanceError:
        object.__setattr__(found, "x", x)
    return found


def given(data: Any) -> list[Tensor]:
    """The tensors that the data has."""
    return list(tensors(values_of(data)))


def entries(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The edges of a sparse matrix with a row for each target, int64 `[2, E]`, and its values.

    Example:
        >>> entries(torch.tensor([[0.0, 2.0], [0.0, 0.0]]).to_sparse())
        (tensor([[1],
                [0]]), tensor([2.]))
    """
    coo: Tensor = matrix if matrix.layout == torch.sparse_coo else matrix.to_sparse()
    if matrix.layout == torch.sparse_coo and not matrix.is_coalesced():
        coo = coo.coalesce()
    return coo._indices().flip(0), coo._values()


def _by_name(data: Any, name: str) -> Any:
    """What the data has of a name; of several types, a dictionary, with or without `_dict`."""
    found = getattr(data, name, None)
    if found is None and hasattr(data, "node_types"):
        of_types: dict[Any, Any] = data.collect(name.removesuffix("_dict"))
        return of_types or None
    return found


def plain(model: Any, data: Any) -> Any:
    """The model, called with what its forward requires: of the data, by name.

    Arguments that have a default are left at it. A DGL model is called with graph and features; a
    model of one argument that is not in the data, with the data. Of several types of nodes, `x` and
    `x_dict` are a dictionary by type.

    Raises:
        TypeError: an argument is not in the data; names it.
    """
    if isinstance(data, tuple):
        return model(*data)
    parameters = inspect.signature(model.forward).parameters.values()
    any_number = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    wanted = [p for p in parameters if p.default is p.empty and p.kind not in any_number]
    known = {p.name: _by_name(data, p.name) for p in wanted}
    missing = [name for name, value in known.items() if value is None]
    if missing and len(wanted) == 1:
        return model(data)
    if missing or not wanted:
        what = f"takes {missing[0]!r}, which is not in the data" if missing else (
            "requires no argument by name")  # fmt: skip
        raise TypeError(
            f"{type(model).__name__}.forward {what}; the data has {sorted(values_of(data))}. Say "
            "how it is called: call=lambda model, data: model(data.x, data.edge_index)"
        )
    first = [p.name for p in wanted if p.kind is not p.KEYWORD_ONLY]
    rest = {p.name: known[p.name] for p in wanted if p.kind is p.KEYWORD_ONLY}
    return model(*(known[name] for name in first), **rest)
