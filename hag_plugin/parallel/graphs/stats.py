"""What the planner has to know of a graph: counts, whole and for each way of cutting it.

Counts are exact where they come from the edges (`measure`), and stated where they do not
(`GraphStats.assumed`, for a graph that is known by its size only).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from hag_plugin.arguments import check_flag, check_function, check_optional_flag, number, whole
from hag_plugin.hag.build import build_hag
from hag_plugin.hag.graph import MAX_NODES, check_edge_index, check_edge_type
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import SelfLoops
from hag_plugin.parallel.layouts import chunk_sizes
from hag_plugin.saved import set_module

MAX_COVER_EDGES = 50_000_000


@set_module("hag_plugin.parallel")
@dataclass(frozen=True)
class HagCounts:
    """Feature rows that one aggregation reads and writes, intermediates included."""

    rows_read: int
    rows_written: int


@set_module("hag_plugin.parallel")
@dataclass(frozen=True, eq=False)
class PartitionStats:
    """A graph cut into P parts of nodes.

    Attributes:
        rows: int64 `[P]`, nodes of each part.
        edges: int64 `[P]`, edges into the nodes of each part, self-loops of the layer included.
        halo: int64 `[P, P]`, `halo[p, q]`: rows that part p reads and part q owns.
        cover: the same where p gets the cheaper of rows and partial sums for each pair, a minimum
            vertex cover of the edges that are cut; None where it was not computed.
        hags: of each part's own HAG, its counts; None where none was searched.
        method: how the nodes were assigned.
        inner: int64 `[P]`, those of `edges` whose source is in the same part; None where they were
            not counted.
        sources: int64 `[P]`, nodes of each part that edges come from, where these are of another
            type than those that they go to; None: they are `rows`.
    """

    rows: np.ndarray
    edges: np.ndarray
    halo: np.ndarray
    cover: np.ndarray | None = None
    hags: tuple[HagCounts, ...] | None = None
    method: str = "contiguous"
    inner: np.ndarray | None = None
    sources: np.ndarray | None = None

    @property
    def parts(self) -> int:
        """P."""
        return len(self.rows)

    @property
    def own(self) -> np.ndarray:
        """Rows of each part that edges may read without a halo, int64 `[P]`."""
        return self.rows if self.sources is None else self.sources

    @property
    def halo_ratio(self) -> float:
        """Rows received by the part that receives most, over its share of the nodes: r = H / n."""
        return float(self.halo.sum(axis=1).max() / max(self.rows.mean(), 1e-30))


@set_module("hag_plugin.parallel")
@dataclass(frozen=True, eq=False)
class GraphStats:
    """Counts of one graph, as one layer aggregates it.

    Attributes:
        nodes: N.
        edges: E, self-loops of the layer included.
        fingerprint: of the edges; of the counts where the edges are not known.
        hag: counts of the HAG of the whole graph, None where none was searched.
        relation_edges: edges of each relation, for relational layers.
        source: how the counts came about, for the reader of a plan.
        shares: whether a HAG could share anything: not where edges have weights.
        sources: nodes that edges come from, where there are several types of nodes; N is how many
            they go to. None: they go from N nodes to the same.
        apart: whether the edges are nowhere together, as those of a store.
    """

    nodes: int
    edges: int
    fingerprint: str
    hag: HagCounts | None = None
    relation_edges: tuple[int, ...] = ()
    source: str = "measured"
    _cut: Callable[[int, int], PartitionStats] | None = field(default=None, repr=False)
    _partitions: dict[tuple[int, int], PartitionStats] = field(default_factory=dict, repr=False)
    shares: bool = True
    sources: int | None = None
    apart: bool = False

    def partition(self, parts: int, merged: int = 1) -> PartitionStats:
        """The graph cut into `parts`, of which each `merged` neighbours are one; computed once.

        Raises:
            ValueError: there are fewer nodes than parts, and one type of them.
        """
        if parts > self.nodes and self.sources is None:
            raise ValueError(f"{self.nodes} nodes cannot be cut into {parts} parts")
        key = (parts, merged)
        if key not in self._partitions:
            if self._cut is None:
                raise ValueError(f"nothing is known of the graph cut into {parts} parts")
            self._partitions[key] = self._cut(parts, merged)
        return self._partitions[key]

    def without_hags(self) -> GraphStats:
        """The same graph where edges have weights: a HAG shares nothing."""
        cut = _CutWithoutHags(self)
        return replace(self, hag=None, shares=False, _cut=cut, _partitions={})

    def uncounted(self) -> GraphStats:
        """Stands for the graph where it is asked what is possible, not what it costs: HAGs and
        covers may be wanted, whether they were searched or not, and nothing has to be counted.
        """
        some = HagCounts(self.edges, self.nodes) if self.shares else None
        cut = _UncountedCut(self.nodes, some)
        return replace(self, hag=some, _cut=cut, _partitions={})

    @classmethod
    def assumed(
        cls,
        nodes: int,
        edges: int,
        *,
        halo_ratio: float = 1.0,
        imbalance: float = 1.0,
        hag: float | None = None,
        hag_parts: float | None = None,
        relations: int = 1,
    ) -> GraphStats:
        """A graph of which only sizes are known.

        Args:
            nodes: N.
            edges: E.
            halo_ratio: rows that each part reads from others, over its own; never more than there
                are elsewhere.
            imbalance: edges of the largest part over the mean.
            hag: rows that the HAG of the whole graph reads, over E; None: no HAG.
            hag_parts: the same for the HAGs of parts, over their edges; None: no HAGs.
            relations: kinds of edges, of equal size.

        Example:
            >>> GraphStats.assumed(1000, 20_000, halo_ratio=0.5).partition(4).halo_ratio
            0.504
        """
        nodes, edges = whole("nodes", nodes, 0, MAX_NODES), whole("edges", edges, 0, 2**63 - 1)
        halo_ratio, imbalance = number("halo_ratio", halo_ratio), number("imbalance", imbalance)
        hag = None if hag is None else number("hag", hag)
        hag_parts = None if hag_parts is None else number("hag_parts", hag_parts)
        relations = whole("relations", relations, 1, MAX_NODES)
        counts = (nodes, edges, halo_ratio, imbalance, hag, hag_parts, relations)
        return cls(
            nodes,
            edges,
            _digest(repr(counts).encode()),
            None if hag is None else HagCounts(int(edges * hag), nodes),
            tuple(chunk_sizes(edges, relations).tolist()),
            f"assumed, halo ratio {halo_ratio}",
            _AssumedCut(nodes, edges, halo_ratio, imbalance, hag_parts),
        )


@set_module("hag_plugin.parallel")
def measure(
    edge_index: Tensor,
    num_nodes: int,
    *,
    self_loops: SelfLoops = False,
    part: Callable[[int], np.ndarray] | None = None,
    hag: bool = True,
    edge_type: Tensor | None = None,
    progress: bool | None = None,
    sources: int | None = None,
) -> GraphStats:
    """Counts a graph's edges, halos and what HAGs save on it.

    Args:
        edge_index: int64 `[2, E]`; row 0 sources, row 1 targets.
        num_nodes: N.
        self_loops: those the layer adds: False, "add" or "fill".
        part: for a number of parts, int64 `[N]`, the part of each node, increasing: nodes are
            numbered by part. By default contiguous blocks as `torch.chunk` makes them.
        hag: search HAGs, whole and per part.
        edge_type: int64 `[E]`, the relation of each edge.
        progress: show the bar of a search; by default if it takes more than two seconds.
        sources: nodes that edges come from, where these are of another type than the `num_nodes`
            that they go to; both are then cut into contiguous blocks.

    Raises:
        ValueError: `part` gives something else.
    """
    check_edge_index(edge_index)
    check_function("part", part)
    check_flag("hag", hag)
    check_optional_flag("progress", progress)
    num_nodes = whole("num_nodes", num_nodes, 0, MAX_NODES)
    num_sources = num_nodes if sources is None else whole("sources", sources, 0, MAX_NODES)
    size, method = (num_sources, num_nodes), "auto" if hag else "none"
    full = build_hag(edge_index.cpu(), size=size, method=method)
    edges = int(full.degree(self_loops).sum())
    relation_edges: tuple[int, ...] = ()
    if edge_type is not None:
        check_edge_type(edge_type, edge_index)
        relation_edges = tuple(torch.bincount(edge_type.cpu()).tolist())

    digest = "".join(f"{half:016x}" for half in full.content_hash)
    return GraphStats(
        num_nodes,
        edges,
        digest,
        hag_counts(full, self_loops, progress) if hag else None,
        relation_edges,
        "measured",
        _MeasuredCut(
            full.edge_index.numpy(),
            full.degree(self_loops).numpy(),
            part,
            self_loops,
            hag,
            progress,
            sources,
        ),
        sources=sources,
    )


def _digest(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def owners(part: Callable[[int], np.ndarray] | None, parts: int, nodes: int) -> np.ndarray:
    """The part of each node, int64 `[nodes]`; arguments as for `measure`.

    Raises:
        ValueError: `part` gives something else.
    """
    if part is None:
        return np.repeat(np.arange(parts), chunk_sizes(nodes, parts))
    owner = np.asarray(part(parts))
    if owner.shape != (nodes,) or (np.diff(owner) < 0).any() or owner[-1] >= parts or owner[0] < 0:
        raise ValueError(
            f"part gave an array of shape {owner.shape}; expected [{nodes}], increasing, of "
            f"0..{parts - 1}: number the nodes by part first"
        )
    return owner


# How graphs are cut -----------------------------------------------------------------------------


@set_module("hag_plugin.parallel")
@dataclass(frozen=True, eq=False)
class _CutWithoutHags:
    """As another one, without the HAGs of parts."""

    stats: GraphStats

    def __call__(self, parts: int, merged: int) -> PartitionStats:
        return replace(self.stats.partition(parts, merged), hags=None)


@set_module("hag_plugin.parallel")
@dataclass(frozen=True, eq=False)
class _UncountedCut:
    """Parts of equal size of which nothing was counted; see `GraphStats.uncounted`."""

    nodes: int
    hag: HagCounts | None

    def __call__(self, parts: int, merged: int) -> PartitionStats:
        rows = chunk_sizes(self.nodes, parts).reshape(-1, merged).sum(axis=1)
        none = np.zeros((len(rows), len(rows)), np.int64)
        hags = None if self.hag is None else (self.hag,) * len(rows)
        return PartitionStats(rows, none[0], none, none, hags, "uncounted")


@set_module("hag_plugin.parallel")
@dataclass(frozen=True, eq=False)
class _AssumedCut:
    """Parts of a graph of which only sizes are known; attributes as in `GraphStats.assumed`."""

    nodes: int
    edges: int
    halo_ratio: float
    imbalance: float
    hag_parts: float | None

    def __call__(self, parts: int, merged: int) -> PartitionStats:
        edges = self.edges
        rows = chunk_sizes(self.nodes, parts).reshape(-1, merged).sum(axis=1)
        parts = len(rows)
        each = rows[:, None] * self.halo_ratio / max(parts - 1, 1)
        halo = np.rint(np.minimum(each, rows[None, :])).astype(np.int64)
        np.fill_diagonal(halo, 0)
        share = np.full(parts, edges / parts)
        if parts > 1:
            share[0] = min(share[0] * self.imbalance, edges)
            share[1:] = (edges - share[0]) / (parts - 1)
        held = np.rint(share).astype(np.int64)
        hags = None
        if self.hag_parts is not None:
            hags = tuple(
                HagCounts(int(e * self.hag_parts), int(n)) for e, n in zip(held, rows, strict=True)
            )
        return PartitionStats(rows, held, halo, None, hags, "assumed")


@set_module("hag_plugin.parallel")
@dataclass(frozen=True, eq=False)
class _MeasuredCut:
    """Parts whose edges are counted.

    Attributes:
        edge_index: int64 `[2, E]`, sorted by target.
        degree: int64 `[N]`, edges into each node, self-loops of the layer included.
        part: as for `measure`, like the others.
        self_loops: those the layer adds.
        hag: search HAGs of parts.
        progress: show the bar of a search.
        sources: as for `measure`.
    """

    edge_index: np.ndarray
    degree: np.ndarray
    part: Callable[[int], np.ndarray] | None
    self_loops: SelfLoops
    hag: bool
    progress: bool | None
    sources: int | None = None

    def __call__(self, parts: int, merged: int) -> PartitionStats:
        owner = owners(self.part, parts, len(self.degree)) // merged
        if self.sources is None:
            return self.counted(owner, owner, parts // merged)
        origin = owners(None, parts, self.sources) // merged
        return self.counted(owner, origin, parts // merged)

    def counted(self, owner: np.ndarray, origin: np.ndarray, parts: int) -> PartitionStats:
        """The counts where `owner`, int64 `[N]`, is the part of each node, and `origin` of each
        that edges come from.
        """
        source, target = self.edge_index
        rows, own = (np.bincount(part, minlength=parts) for part in (owner, origin))
        edges = np.bincount(owner, weights=self.degree, minlength=parts).astype(np.int64)
        p, q, number = owner[target], origin[source], max(len(origin), 1)
        cut = np.flatnonzero(p != q)
        pair = p[cut] * parts + q[cut]
        needed = np.unique(pair * number + source[cut])
        halo = np.bincount(needed // number, minlength=parts * parts).reshape(parts, parts)
        cover = None
        if len(cut) <= MAX_COVER_EDGES:
            cover = vertex_covers(pair, source[cut], target[cut], parts)
        hags = None
        if self.hag:
            targets, sources = (np.concatenate([[0], np.cumsum(n)]) for n in (rows, own))
            hags = tuple(
                hag_counts(
                    part_hag(source, target, slice(*targets[k : k + 2]),
                             slice(*sources[k : k + 2]), same=self.sources is None),
                    self.self_loops, self.progress,
                )
                for k in range(parts)
            )  # fmt: skip
        return PartitionStats(
            rows.astype(np.int64), edges, halo.astype(np.int64), cover, hags,
            "contiguous", edges - np.bincount(p[cut], minlength=parts),
            None if self.sources is None else own.astype(np.int64),
        )  # fmt: skip


def hag_counts(hag: HAG, self_loops: SelfLoops, progress: bool | None) -> HagCounts:
    """What a HAG reads and writes for a layer that adds such loops.

    `progress`: show the bar of a search.
    """
    hag.program(self_loops, progress=progress)
    stats = hag.stats(self_loops)
    return HagCounts(stats.rows_read, stats.rows_written)


def part_hag(
    source: np.ndarray, target: np.ndarray, targets: slice, sources: slice, same: bool
) -> HAG:
    """The HAG of one part: its own nodes are the first sources, its halo follows.

    Args:
        source: int64 `[E]`, of the edges by target; of the whole graph, or those into the part.
        target: int64 `[E]`.
        targets: the part's nodes.
        sources: its nodes that edges come from.
        same: the nodes that edges come from are of the type of those that they go to.
    """
    first, last = targets.start, targets.stop
    inside = slice(*np.searchsorted(target, [first, last]))  # edges are sorted by target
    mine = sources.stop - sources.start
    halo, index = np.unique(source[inside], return_inverse=True)
    own = (halo >= sources.start) & (halo < sources.stop)
    local = np.where(own, halo - sources.start, mine + np.cumsum(~own) - 1)
    edges = torch.from_numpy(np.stack([local[index], target[inside] - first]))
    size = (int(mine + (~own).sum()), int(last - first))
    return build_hag(edges, size=size, targets_first=same)


def vertex_covers(
    pair: np.ndarray, source: np.ndarray, target: np.ndarray, parts: int
) -> np.ndarray | None:
    """Sizes of minimum vertex covers of the cut edges of each pair of parts (König's theorem).

    Args:
        pair: int64 `[E]`, of each cut edge p R + q, where it goes from part q to part p.
        source: int64 `[E]`.
        target: int64 `[E]`.
        parts: R.

    Returns:
        int64 `[R, R]`; None where scipy is not installed.
    """
    try:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import maximum_bipartite_matching
    except ImportError:
        return None
    cover = np.zeros(parts * parts, np.int64)
    order = np.argsort(pair, kind="stable")
    bounds = np.searchsorted(pair[order], np.arange(parts * parts + 1))
    for k in range(parts * parts):
        edges = order[bounds[k] : bounds[k + 1]]
        if not len(edges):
            continue
        _, row = np.unique(target[edges], return_inverse=True)
        _, column = np.unique(source[edges], return_inverse=True)
        graph = coo_array((np.ones(len(edges), np.int8), (row, column))).tocsr()
        cover[k] = int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())
    return cover.reshape(parts, parts)
