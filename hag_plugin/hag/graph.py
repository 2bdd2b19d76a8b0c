"""`Graph`: a graph in canonical form, on which searches, costs and programs stand."""

from __future__ import annotations

from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hag_plugin.arguments import brief, check_dense, check_floating, check_memory, whole
from hag_plugin.hag.program import SELF_LOOPS, SelfLoops
from hag_plugin.kept import Keeper
from hag_plugin.kernels import _cpu
from hag_plugin.modes import Array, in_memory, numpy_of, outside_inference

MAX_NODES = 2**31 - 1

Order = Literal["target", "source"]  # by which end edges are sorted first


class Arrays(NamedTuple):
    """A graph as torch's operators are given it: with the token by which its HAG is found again.

    The token is a number of its HAG's own, int64 `[]`. A copy of it, or of the arrays, is as good.
    """

    row_ptr: Tensor
    col: Tensor
    token: Tensor | None


class Graph(Keeper):
    """A graph in canonical form: CSR by target, multiplicity kept. Immutable to its users.

    Attributes:
        arrays: the graph's own, which nobody else may write to.
        num_src: number of source nodes.
        targets_first: the targets are the first `num_dst` sources (PyG's bipartite convention).
    """

    def __init__(
        self,
        row_ptr: Tensor,
        col: Tensor,
        num_src: int,
        *,
        token: Tensor | None = None,
        targets_first: bool = False,
        symmetric: bool | None = None,
        owned: bool = False,
    ) -> None:
        """The arrays are copied and checked, unless they are `owned`: then they were checked, and
        nobody else has them."""
        if not owned:
            with outside_inference():
                row_ptr, col = _checked_copies(row_ptr, col, num_src)
        self.arrays = Arrays(row_ptr, col, token)
        self.num_src = num_src
        self.targets_first = targets_first
        self._symmetric = symmetric
        self._edge_index: Tensor | None = None
        self._edge_index_version = 0  # made anew once somebody wrote to it

    @property
    def row_ptr(self) -> Tensor:
        """Where each target's sources start, int64 `[num_dst + 1]`: a copy."""
        return self.arrays.row_ptr.clone()

    @property
    def col(self) -> Tensor:
        """The sources of each target in increasing order, int32 `[E]`: a copy."""
        return self.arrays.col.clone()

    def numpy(self) -> tuple[Array, Array]:
        """The arrays themselves in main memory, which can be read only."""
        with outside_inference():
            arrays = self.arrays.row_ptr.cpu().numpy(), self.arrays.col.cpu().numpy()
        for array in arrays:
            array.setflags(write=False)
        return arrays

    @property
    def addresses(self) -> tuple[int, int]:
        """Where the arrays are."""
        return self.arrays.row_ptr.data_ptr(), self.arrays.col.data_ptr()

    @property
    def num_dst(self) -> int:
        """Number of target nodes."""
        return self.arrays.row_ptr.shape[0] - 1

    @property
    def num_edges(self) -> int:
        """Number of edges, duplicates counted."""
        return self.arrays.col.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the arrays are."""
        return self.arrays.col.device

    @property
    def is_square(self) -> bool:
        """Whether sources and targets are the same nodes."""
        return self.num_src == self.num_dst

    @property
    def edge_index(self) -> Tensor:
        """The edges as int64 `[2, E]`, by target, then by source: a copy, kept until it is
        written to. What writes to it through NumPy or `.data` goes unseen here, and changes nothing
        but this copy."""
        if torch.compiler.is_compiling():  # nothing can be kept
            return self.make_edge_index()
        if self._edge_index is None or self._edge_index._version != self._edge_index_version:
            with outside_inference():
                self._edge_index = self.make_edge_index()
                self._edge_index_version = self._edge_index._version
        return self._edge_index

    @cached_property
    def own_edge_index(self) -> Tensor:
        """The same for layers that look into their edges, which nobody else may write to."""
        with outside_inference():
            return self.make_edge_index()

    def make_edge_index(self) -> Tensor:
        return torch.stack(self.ends())

    def ends(self) -> tuple[Tensor, Tensor]:
        """The source and the target of each edge, int64 `[E]`."""
        nodes = torch.arange(self.num_dst, device=self.device)
        degree = self.arrays.row_ptr.diff()
        target = nodes.repeat_interleave(degree, output_size=self.num_edges)
        return self.arrays.col.long(), target

    @cached_property
    def content_hash(self) -> tuple[int, int]:
        """128 bits of the multiset of edges, whatever their order."""
        low, high = _cpu.csr_hash(*self.numpy(), self.num_src)
        return low, high

    def matches(self, edge_index: Tensor) -> bool:
        """Whether `edge_index` `[2, E]` has this graph's edges (by content hash, any order)."""
        check_edge_index(edge_index)
        if edge_index.shape != (2, self.num_edges):
            return False
        source, target = ends = numpy_of(edge_index)
        if self._order_of(ends) is not None:  # it takes less time
            return True
        return bool(_cpu.edge_hash(source, target) == self.content_hash)

    def order_of(self, edge_index: Tensor) -> Order | None:
        """How these edges are sorted, where they are this graph's and sorted as few orders are."""
        if edge_index.shape != (2, self.num_edges):
            return None
        return self._order_of(numpy_of(edge_index))

    def _order_of(self, ends: Array) -> Order | None:
        source, target = ends
        arrays = self.numpy()
        if _cpu.is_in_order(source, target, *arrays):
            return "target"
        # The reverse of a graph that is not known to be symmetric may be another.
        if self._symmetric and _cpu.is_in_order(target, source, *arrays):
            return "source"
        return None

    def edges_in_order(self, order: Order) -> Tensor:
        """The edges in main memory, int64 `[2, E]`: by this end, then by the other."""
        edges = torch.empty((2, self.num_edges), dtype=torch.int64)
        first, second = (row.data_ptr() for row in edges)
        ends = (first, second) if order == "target" else (second, first)
        _cpu.write_edges(*self.numpy(), *ends)
        return edges

    @cached_property
    def loops(self) -> Tensor | None:
        """Self-loops of each target, int64 `[num_dst]`, or None where there is none."""
        count = _cpu.count_self_loops(*self.numpy())
        with outside_inference():
            return None if count is None else torch.from_numpy(count).to(self.device)

    def degree(self, self_loops: SelfLoops = False) -> Tensor:
        """In-degrees as aggregated, int64 `[num_dst]`: duplicates and self-loops counted."""
        self_loops = self.check_self_loops(self_loops)
        degree = self.arrays.row_ptr.diff()
        if self_loops is False:
            return degree
        if self_loops == "fill" and self.loops is not None:
            degree = degree - self.loops
        return degree + (1 if self.is_square else self.looped(degree.device))

    def looped(self, device: torch.device) -> Tensor:
        """Which targets are sources too, as the modes of self-loops take it, bool `[num_dst]`."""
        return torch.arange(self.num_dst, device=device) < self.num_src

    def degree_scale(
        self, exponent: float, self_loops: SelfLoops = False, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """`degree(self_loops) ** exponent`, `[num_dst]`, 0 where the degree is 0."""
        if isinstance(exponent, bool) or not isinstance(exponent, (int, float)):
            raise TypeError(f"exponent is {brief(exponent)}; expected a number")
        check_floating("dtype", dtype)
        self_loops = self.check_self_loops(self_loops)
        return self.kept_scale(float(exponent), self_loops, dtype).clone()

    def kept_scale(self, exponent: float, self_loops: SelfLoops, dtype: torch.dtype) -> Tensor:
        """The same, not to be written to."""

        def make() -> Tensor:
            degree = self.degree(self_loops).to(dtype)
            if (self_loops is not False and self.is_square) or not self.has_empty_rows:
                return degree.pow_(exponent)  # none is 0
            return degree.pow(exponent).masked_fill(degree == 0, 0.0)

        return self.kept(("degree_scale", exponent, self_loops, dtype), make)

    def check_self_loops(self, self_loops: SelfLoops) -> SelfLoops:
        if not isinstance(self_loops, (str, bool)) or self_loops not in SELF_LOOPS:
            raise ValueError(f"self_loops is {brief(self_loops)}; expected one of {SELF_LOOPS}")
        if self_loops is not False and not (self.is_square or self.targets_first):
            raise ValueError(
                f"self_loops={self_loops!r} needs targets that are sources too; this graph has "
                f"{self.num_src} sources and {self.num_dst} targets (build it with "
                "targets_first=True if the targets are the first sources)"
            )
        return self_loops

    @cached_property
    def has_empty_rows(self) -> bool:
        """Whether a target may have no source."""
        return True  # not worth a look, where it is not known

    @cached_property
    def has_duplicates(self) -> bool:
        """Whether an edge stands there twice."""
        return bool(_cpu.has_duplicates(*self.numpy()))

    @property
    def is_symmetric(self) -> bool:
        """Whether every edge has its reverse, with the same multiplicity."""
        if self._symmetric is None:
            self._symmetric = self.is_square and bool(_cpu.is_symmetric(*self.numpy()))
        return self._symmetric


# From edges -------------------------------------------------------------------------------------


def check_edge_index(edge_index: Tensor) -> None:
    """Raises unless `edge_index` is an integer tensor `[2, E]`."""
    if not isinstance(edge_index, Tensor):
        raise TypeError(f"edge_index is a {type(edge_index).__name__}; expected a torch.Tensor")
    if edge_index.is_nested:
        raise TypeError("edge_index is a nested tensor; expected a dense one")
    if edge_index.layout != torch.strided:
        raise TypeError(f"edge_index has layout {edge_index.layout}; expected a dense tensor")
    if edge_index.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"edge_index has dtype {edge_index.dtype}; expected int32 or int64")
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"edge_index has shape {tuple(edge_index.shape)}; expected [2, E]")
    check_memory("edge_index", edge_index)


def check_edge_type(edge_type: Tensor, edge_index: Tensor) -> None:
    """Raises unless `edge_type` is an integer tensor `[E]`, none negative."""
    check_dense("edge_type", edge_type)
    if edge_type.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"edge_type has dtype {edge_type.dtype}; expected int32 or int64")
    if edge_type.shape != edge_index.shape[1:]:
        raise ValueError(
            f"edge_type has shape {list(edge_type.shape)}; expected [{edge_index.shape[1]}]"
        )
    if edge_type.numel() and int(edge_type.min()) < 0:
        raise ValueError(f"edge_type holds {int(edge_type.min())}; expected 0 or more")


def canonical_graph(
    edge_index: Tensor, num_src: int, num_dst: int, loops: int = 0
) -> tuple[Array, Array]:
    """CSR by target: row_ptr int64 `[num_dst + 1]` and col int32 `[E]`, increasing in a row.

    `loops`: as `with_own_loops` puts them on so many nodes; 0: those there are stay.
    """
    row_ptr, col = _canonical(edge_index, num_src, num_dst, False, loops)
    return row_ptr, col


def both_directions(
    edge_index: Tensor, num_src: int, num_dst: int, loops: int = 0
) -> tuple[Array, Array, Array, Array]:
    """The same, then that of the reverse, which it has anyway where edges are sorted."""
    row_ptr, col, back_ptr, back_col = _canonical(edge_index, num_src, num_dst, True, loops)
    return row_ptr, col, back_ptr, back_col


def slots_of(edge_index: Tensor, row_ptr: Array, col: Array, num_src: int) -> Tensor:
    """Where each edge lies in the canonical CSR of the same edges, int64 `[E]`.

    Raises:
        ValueError: these are not its edges.
    """
    source, target = in_memory(edge_index).long().contiguous().numpy()
    return torch.from_numpy(_cpu.edge_slots(source, target, row_ptr, col, num_src))


def with_own_loops(edge_index: Tensor, num_nodes: int) -> Tensor:
    """Edges `[2, E]` with one loop on each node in place of those there are, the loops last."""
    source, target = edge_index
    loops = torch.arange(num_nodes, dtype=edge_index.dtype, device=edge_index.device)
    stays = source != target
    if not bool(stays.all()):  # to leave some out takes longer than to look
        edge_index = edge_index[:, stays]
    return torch.cat([edge_index, loops.expand(2, -1)], dim=1)


def inverse_of(permutation: Tensor) -> Tensor:
    """The inverse of a permutation, int64 `[E]`."""
    places = torch.arange(len(permutation), device=permutation.device)
    return torch.empty_like(permutation).scatter_(0, permutation, places)


def _canonical(
    edge_index: Tensor, num_src: int, num_dst: int, both: bool, loops: int
) -> list[Array]:
    check_edge_index(edge_index)
    source, target = numpy_of(edge_index)
    threads = torch.get_num_threads()
    arrays: list[Array] = _cpu.build_csr(source, target, num_src, num_dst, both, threads, loops)
    return arrays


def check_arrays(row_ptr: Tensor, col: Tensor, num_src: int) -> None:
    """Raises unless these are a canonical CSR of `num_src` sources.

    Raises:
        TypeError: an array is no dense tensor of the right dtype.
        ValueError: the arrays are not a canonical CSR of `num_src` sources, or on two devices.
    """
    _check_kinds(row_ptr, col)
    if row_ptr.device.type != "meta":
        _cpu.check_csr(row_ptr.cpu().numpy(), col.cpu().numpy(), num_src)


def _check_kinds(row_ptr: Tensor, col: Tensor) -> None:
    for name, array, dtype in (("row_ptr", row_ptr, torch.int64), ("col", col, torch.int32)):
        if not isinstance(array, Tensor):
            raise TypeError(f"{name} is a {type(array).__name__}; expected a torch.Tensor")
        if array.dtype != dtype or array.layout != torch.strided:
            raise TypeError(
                f"{name} is {array.dtype}, {array.layout}; expected dense {dtype}, as CSR arrays "
                "of a HAG are"
            )
        if array.dim() != 1:
            raise ValueError(f"{name} has shape {list(array.shape)}; expected one dimension")
        check_memory(name, array)
    if row_ptr.device != col.device:
        raise ValueError(f"row_ptr is on {row_ptr.device} and col on {col.device}; expected one")


def _checked_copies(row_ptr: Tensor, col: Tensor, num_src: int) -> tuple[Tensor, Tensor]:
    """Own memory for a CSR, which is then checked: see `check_arrays`."""
    _check_kinds(row_ptr, col)
    num_src = whole("num_src", num_src, 0, MAX_NODES)
    kept = [a.detach().clone(memory_format=torch.contiguous_format) for a in (row_ptr, col)]
    check_arrays(kept[0], kept[1], num_src)
    return kept[0], kept[1]
