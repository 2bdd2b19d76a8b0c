"""One part of a graph on disk, as the rank that has it sees it."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hag_plugin import adapters, exchange
from hag_plugin.arguments import check_flag, check_path, whole
from hag_plugin.files import DatasetError
from hag_plugin.hag.program import SelfLoops
from hag_plugin.parallel.graphs.stats import (
    MAX_COVER_EDGES,
    GraphStats,
    HagCounts,
    hag_counts,
    part_hag,
    vertex_covers,
)
from hag_plugin.parallel.graphs.store.block import Block, joined
from hag_plugin.parallel.graphs.store.manifest import Manifest, Part, array_path
from hag_plugin.parallel.graphs.store.part_files import open_array
from hag_plugin.saved import set_module

EDGES = ("indptr", "sources", "halo")
Searched = tuple[HagCounts, tuple[int, ...] | None]
"""Of a part: counts of its HAG, and rows of a vertex cover of each other part's edges to it."""


@set_module("hag_plugin.parallel")
class PartitionedData:
    """This rank's part of a graph that `write_partitions`, or `hag-plugin partition`, has cut.

    Of the store it opens the manifest and the files of its part, and no others. What nodes have are
    attributes, `x`, `y` and `train_mask` say: a tensor with a row for each node of the part, mapped
    from its file; so is what edges have, `edge_weight` say, with a row for each of `sources`.
    Nodes have the store's numbers, increasing by part; `nodes` has those of before.

    Args:
        folder: of the store.
        rank: whose part; by default that of torch.distributed, or 0 where the store has one part.
            Where none is known, the manifest alone is opened, which is what `plan` needs.
        verify: compare all bytes of the part's files with the manifest. Otherwise only their sizes,
            dtypes and shapes.

    Attributes:
        manifest: counts of all parts.
        rank: of this part, or None.
        indptr: int64 `[n + 1]`, where the edges of each of its n nodes begin.
        sources: int32 `[E']`, the sources of the edges that lead to them, by the store's numbers.
        nodes: int64 `[n]`, the numbers that its nodes had before.
        halo: int32 `[H]`, nodes of others that are sources of its edges, increasing.

    Raises:
        DatasetError: a file is missing, damaged or another store's. It names the file.
        ValueError: the number of ranks is not that of the parts, or there is no such rank; or what
            a part has is wanted, and no rank is known.

    Example:
        >>> import tempfile, types
        >>> from hag_plugin.parallel.graphs.store.write import write_partitions
        >>> edges = torch.tensor([[0, 1, 2, 3, 0], [1, 0, 3, 2, 2]])
        >>> data = types.SimpleNamespace(edge_index=edges, num_nodes=4, y=torch.arange(4))
        >>> with tempfile.TemporaryDirectory() as there:
        ...     _ = write_partitions(data, 2, f"{there}/parts", method="contiguous")
        ...     part = PartitionedData(f"{there}/parts", rank=1)
        >>> part.y.tolist(), part.edge_index.tolist(), part.halo.tolist()
        ([2, 3], [[0, 3, 2], [2, 2, 3]], [0])
    """

    indptr: Tensor
    sources: Tensor
    nodes: Tensor
    halo: Tensor
    _tensors: dict[str, Tensor]

    def __init__(
        self, folder: str | os.PathLike[str], rank: int | None = None, *, verify: bool = True
    ) -> None:
        check_path("folder", folder)
        check_flag("verify", verify)
        self.manifest, self._folder, self._verify = Manifest.load(folder), folder, verify
        self._searched: dict[SelfLoops, Sequence[Searched]] = {}
        self.rank, self._tensors = _rank(rank, self.manifest.ranks), {}
        if self.rank is None:
            return
        opened = self._opened(self.rank, self._part.files)
        self._tensors = {name: torch.from_numpy(array) for name, array in opened.items()}

    def __getattr__(self, name: str) -> Tensor:
        if name == "_tensors":  # before it is made, as pickle asks
            raise AttributeError(name)
        found: Tensor | None = self._tensors.get(name)
        if found is None and self.rank is None:
            raise AttributeError(f"the store has no {name!r} without a rank; {self._expected}")
        if found is None:
            raise AttributeError(
                f"nodes and edges of this store have no {name!r}; {self.names + self.edge_names}"
            )
        return found

    def __repr__(self) -> str:
        if self.rank is None:
            whole = self.manifest
            names = ", ".join(self.names + self.edge_names)
            counts = f"{whole.nodes:,} nodes, {whole.edges:,} edges; {names}"
            return f"PartitionedData({self.ranks} parts: {counts})"
        shapes = {name: list(self._tensors[name].shape) for name in self.names + self.edge_names}
        parts = ", ".join(f"{name}={shape}" for name, shape in shapes.items())
        counts = f"{self.num_nodes:,} nodes, {self.num_edges:,} edges, {len(self.halo):,} of halo"
        return f"PartitionedData(part {self.rank} of {self.ranks}: {counts}; {parts})"

    @property
    def ranks(self) -> int:
        """R."""
        return self.manifest.ranks

    @property
    def names(self) -> tuple[str, ...]:
        """What nodes have."""
        return self.manifest.names

    @property
    def edge_names(self) -> tuple[str, ...]:
        """What edges have."""
        return self.manifest.edge_names

    @property
    def _expected(self) -> str:
        return f"expected rank=0 to {self.ranks - 1}, or torch.distributed started"

    @property
    def _own(self) -> int:
        if self.rank is None:
            raise ValueError(f"rank is None; {self._expected}")
        return self.rank

    @property
    def _part(self) -> Part:
        return self.manifest.parts[self._own]

    @property
    def num_nodes(self) -> int:
        """n, the part's nodes; the graph has `manifest.nodes`."""
        return self._part.rows

    @property
    def num_edges(self) -> int:
        """E', edges into the part's nodes; the graph has `manifest.edges`."""
        return self._part.edges

    @property
    def first(self) -> int:
        """The store's number of the part's first node."""
        return int(self.manifest.first[self._own])

    @property
    def stats(self) -> GraphStats:
        """Counts of the whole graph and of its parts, from the manifest: what `trace` takes."""
        return self.manifest.stats

    def counted(self, self_loops: SelfLoops) -> GraphStats:
        """The same for layers that add loops: False, "add" or "fill"."""
        found = replace(self.manifest.counted(self_loops), apart=self.ranks > 1)
        if self_loops in self._searched:
            hags, covers = zip(*self._searched[self_loops], strict=True)
            cover = None if any(row is None for row in covers) else np.array(covers, np.int64)
            cut = replace(found.partition(self.ranks), hags=hags, cover=cover)
            found._partitions[self.ranks, 1] = cut
        return found

    def search(self, self_loops: SelfLoops) -> Searched:
        """What the HAG of this part reads and writes, and how many rows of each other part a vertex
        cover of the edges from there has; None where these edges are too many.
        """
        source, target = self.edge_index.numpy()
        own = slice(self.first, self.first + self.num_nodes)
        hag = hag_counts(part_hag(source, target, own, own, same=True), self_loops, None)
        cut = np.flatnonzero((source < own.start) | (source >= own.stop))
        if len(cut) > MAX_COVER_EDGES:
            return hag, None
        pair = self._own * self.ranks + self.owners(torch.from_numpy(source[cut])).numpy()
        cover = vertex_covers(pair, source[cut], target[cut], self.ranks)
        return hag, None if cover is None else tuple(cover[self._own].tolist())

    def searched(self, found: Mapping[SelfLoops, Sequence[Searched]]) -> PartitionedData:
        """The same with what `search` found in each part, by the loops that layers add."""
        known = copy.copy(self)
        known._searched = dict(found)
        return known

    @property
    def edge_index(self) -> Tensor:
        """int64 `[2, E']`, the edges into the part's nodes, by the store's numbers."""
        return torch.from_numpy(self.block(1).edge_index())

    def block(self, count: int) -> Block:
        """The edges into this part and into its neighbours, `count` in all, as one: the files of
        their edges are opened, and compared with the manifest.

        Raises:
            DatasetError: as when a part is opened.
            ValueError: the parts are not so many times a number, or no rank is known.
        """
        count = whole("count", count, 1, self.ranks)
        if self.ranks % count:
            raise ValueError(f"count is {count}; expected a divisor of {self.ranks}, the parts")
        number, known = self._own // count, self.manifest
        first = number * count
        names = (*EDGES, *self.edge_names)
        opened = [
            {name: self._tensors[name].numpy() for name in names}
            if part == self.rank
            else self._opened(part, names)
            for part in range(first, first + count)
        ]
        ends = np.cumsum([0] + [part.edges for part in known.parts])
        arrays = {name: joined([each[name] for each in opened]) for name in names[1:]}
        sources, halo = arrays.pop("sources"), arrays.pop("halo")
        begins = [each["indptr"][:-1] + at - ends[first]
                  for each, at in zip(opened, ends[first:], strict=False)]  # fmt: skip
        indptr = np.append(np.concatenate(begins), ends[first + count] - ends[first])
        edges = np.diff(ends[::count])
        reads = known.reads(count)
        found = Block(number, known.first[::count], edges, reads, indptr, sources, halo, arrays)
        if count > 1:
            halo = np.unique(halo)
            found = replace(found, halo=halo[found.outside(halo)])
        if len(found.halo) != reads[number].sum():
            raise DatasetError(
                f"parts {first} to {first + count - 1} of {self._folder} read {len(found.halo):,} "
                f"rows of others; expected {reads[number].sum():,}, as the manifest says"
            )
        return found

    def _opened(self, part: int, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Arrays of a part, mapped."""
        known, found = self.manifest.parts[part], {}
        for name in names:
            path = array_path(self._folder, part, name)
            found[name] = open_array(path, known.files[name], self._verify)
        ends = found["indptr"][[0, -1]].tolist()
        if ends != [0, known.edges]:
            path = array_path(self._folder, part, "indptr")
            raise DatasetError(f"{path} runs from {ends[0]} to {ends[1]}; expected 0 to "
                               f"{known.edges}, the part's edges")  # fmt: skip
        return found

    @cached_property
    def local_edge_index(self) -> Tensor:
        """int64 `[2, E']`, the same with local numbers: 0 to n - 1 are the part's nodes, and as
        sources n to n + H - 1 those of `halo`. `build_hag` takes it with `size=(n + H, n)`.
        """
        source, own = self.sources.long(), self.num_nodes
        local = source - self.first
        outside = (local < 0) | (local >= own)
        local[outside] = own + torch.searchsorted(self.halo.long(), source[outside])
        return torch.stack([local, self._targets()])

    def to_pyg(self) -> Any:
        """The part as PyG's `Data`, for loaders that sample neighbours.

        Its nodes are the part's and those of its halo, into which no edges lead: `n_id` `[n + H]`
        has their numbers in the store, `inner_node` says which are the part's. What nodes have
        stays in the part: a loader's batch is given rows by its `n_id`.
        """
        return adapters.graph_of_parts("torch_geometric", self._local_graph())

    def to_dgl(self) -> Any:
        """The part as a `DGLGraph`, as `to_pyg` makes it of PyG: the numbers in the store are
        `ndata[dgl.NID]`, as in DGL's own parts.
        """
        return adapters.graph_of_parts("dgl", self._local_graph())

    def _local_graph(self) -> exchange.GraphParts:
        own = torch.arange(self.first, self.first + self.num_nodes)
        ids = torch.cat([own, self.halo.long()])
        data = {"_ID": ids, "inner_node": torch.arange(len(ids)) < self.num_nodes}
        nodes = exchange.NodePart(len(ids), data, None)
        edges = exchange.EdgePart(self.local_edge_index, {}, None, None)
        return exchange.GraphParts({exchange.NODES: nodes}, {exchange.EDGES: edges})

    def owners(self, nodes: Tensor) -> Tensor:
        """int64, the parts that have some nodes, by the store's numbers."""
        first = torch.from_numpy(self.manifest.first)
        return torch.searchsorted(first, nodes.long().contiguous(), right=True) - 1

    def _targets(self) -> Tensor:
        return torch.repeat_interleave(
            torch.arange(self.num_nodes), self.indptr.diff(), output_size=self.num_edges
        )


def _rank(rank: int | None, parts: int) -> int | None:
    """Whose part is opened; None where nobody says."""
    dist = torch.distributed
    together = dist.is_available() and dist.is_initialized()
    if together and dist.get_world_size() != parts:
        raise ValueError(f"{dist.get_world_size()} ranks run; the store has {parts} parts")
    if rank is None and not together and parts > 1:
        return None
    if rank is None:
        rank = dist.get_rank() if together else 0
    return whole("rank", rank, 0, parts - 1)
