"""Graphs that are met once, as sampled batches are: nothing is searched, their rows are summed as
they are, from a CSR made on the spot. Whether that pays is told by the cost model."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hag_plugin.devices import KINDS, Launches, kind_of
from hag_plugin.hag import constants
from hag_plugin.hag.gpu.met_once import DeviceHAG, hag_of_ends, hag_on_device, hags_on_device
from hag_plugin.hag.graph import both_directions, canonical_graph
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import Options
from hag_plugin.hag.rates import DEFAULT, Constants
from hag_plugin.limits import limits
from hag_plugin.modes import has_ranks, outside_inference

# Measured beside layers of PyG's, with 50 to 50,000 edges and 4 to 64 features: what is made for a
# graph in each direction, in the time of the smallest aggregation; an edge that is sorted and
# written to a program, a row of either, however few its edges are, and a message that is gathered
# and scattered, in that of an op.
MADE_CALLS = 90
SORTED_OPS = 12
ROW_OPS = 15
MESSAGE_OPS = 10
# The numbers that messages are multiplied by, likewise. On one processor GCNConv took 115 us longer
# over them, on another 25, where graphs of 60 to 1,500 edges ran at 0.6 to 0.95 of its speed.
WEIGHED_CALLS, WEIGHED_OPS = 30, 40
# A score of an edge and head that stock makes in steps of its own; beside GATConv, GATv2Conv and
# TransformerConv with 50 to 30,000 edges, 1 and 4 heads.
SCORED_OPS = 12
# Beside PyG's products with sparse matrices of 1,000 to 2,000,000 entries, 8 to 256 features: an
# entry that we take over and sort for the reverse, and one that stock brings into the other order,
# which it does for each gradient, and for each product with a matrix in CSC.
ADOPTED_CALLS, ADOPTED_OPS = 120, 5
VALUED_OPS = 10  # an entry whose value is not 1, which the reverse wants in another order
CONVERTED_OPS = 20
# What attention takes around a graph that it meets first (`ROW_OPS` it takes on any).
# Beside 390 calls of PyG's and DGL's layers with 500 to 60,000 edges, 1 to 4 heads of 8 to 64
# numbers, half an edge to 10 edges a node, with kernels for AVX-512 and for AVX2, on one thread: of
# the 213 that are taken, two ran at less than 0.96 of stock's speed.
ATTENDED_CALLS = 60
ATTENDED_GAIN = 0.7  # of `limits.passing_gain`: how much was enough where stock makes messages
# The same of that where the products around attention over vectors are one function with it. Beside
# GATv2Conv and TransformerConv of PyG's with 2,000 to 20,000 edges on 1,000 to 34,500 nodes, with
# kernels for AVX-512 and for AVX2: of those taken, one ran at 0.97 of stock's speed, none at less.
WHOLE_GAIN = 0.7
# Beside RGATConv with 100 to 20,000 edges of 4 to 400 relations: a number of the matrix that stock
# gathers for each message; the products with a relation's matrix, and what is around all of these;
# the pairs of relation and node that are found, and an edge of theirs.
# With gradients all of it is done more than twice: the derivatives are by matrices, too.
MATRIX_OPS = 0.4
PRODUCT_CALLS, PRODUCTS_CALLS = 6, 40
DERIVED_PRODUCTS = 4
PAIRED_CALLS, PAIRED_OPS = 90, 130
# What stock takes where it has kernels of its own for the steps of attention, as DGL does: for
# their calls and for a row; for an edge and head; for a byte of an edge's value, and of the row
# that it makes of an edge to score it; for an edge of a graph that it has not met. Beside layers of
# DGL's, with 500 to 50,000 edges, 1 to 8 heads and 2 or 10 edges a node.
KERNEL_CALLS, KERNEL_ROW_OPS, KERNEL_SCORE_OPS = 30, 40, 4
KERNEL_BYTE_OPS, KERNEL_VECTOR_OPS, KERNEL_SORTED_OPS = 0.2, 0.2, 6
# How much more is asked for there. With 27,650 to 54,493 edges, on two threads, calls that were
# predicted at 1.6 ran at 0.93 to 1.08 times DGL's speed, at 1.7 to 2.0 at 0.98 to 1.34.
KERNEL_GAIN = 1.06
# A number that is given of an edge and read in an order of its own; and the finding of that order.
GIVEN_OPS, ORDER_CALLS, ORDER_OPS = 3.5, 35, 20
# On a device that runs launches, not measured: those that stock takes for messages, for the numbers
# that they are multiplied by, and for scores, of which it moves so many bytes an edge and head;
# and both where it has kernels for attention; those that make a graph in one direction,
# the bytes of an edge that their sorts and gathers move, and that each relation moves of it.
MESSAGE_LAUNCHES, WEIGHED_LAUNCHES, SCORED_LAUNCHES, SCORED_BYTES = 3, 6, 18, 80
KERNEL_LAUNCHES, KERNEL_BYTES = 8, 24
MADE_LAUNCHES, MADE_BYTES, SPLIT_BYTES = 60, 400, 120
# Where messages are multiplied with matrices: the launches that find pairs of relation and node,
# the bytes of an edge that these move; a number of the matrix that stock gathers for each message,
# written once and read twice; how many rows of ours are multiplied with one matrix at once.
PAIRED_LAUNCHES, PAIRED_BYTES, MATRIX_BYTES = 60, 600, 12
BLOCK = 32
CLEAR = 4.0  # a gain, or a loss, that no processor turns round

_OPTIONS = Options(method="none", choose="plain")


def plain_hag(
    edge_index: Tensor, size: tuple[int, int], *, both: bool = True, loops: int = 0
) -> HAG:
    """The HAG of a graph that shares nothing, as `build_hag(method="none")` gives it, sooner.

    It is where the edge index is. On a device that runs launches it is made there, without loops.

    Args:
        edge_index: int32 or int64 `[2, E]`. Where it is sorted, this costs one check.
        size: the numbers of sources and targets.
        both: whether the reverse is to be made with it, which gradients need.
        loops: as `with_own_loops` puts them on so many nodes; 0: those there are stay.

    Raises:
        TypeError: `edge_index` is no dense tensor of integers.
        ValueError: it has another shape, an id is out of range, or there are too many nodes.
    """
    if not loops and runs_launches(edge_index):
        return hag_on_device(edge_index, size, _OPTIONS, both=both)
    arrays = (both_directions if both else canonical_graph)(edge_index, *size, loops)
    with outside_inference():
        row_ptr, col, *back = map(torch.from_numpy, arrays)
        symmetric = both and torch.equal(row_ptr, back[0]) and torch.equal(col, back[1])
    reverse = (back[0], back[1]) if both and not symmetric else None
    how: dict[str, Any] = {"options": _OPTIONS, "symmetric": symmetric or None, "owned": True}
    return HAG(row_ptr, col, size[0], reverse=reverse, **how).to(edge_index.device)


def plain_hag_there(
    edge_index: Tensor, size: tuple[int, int], *, both: bool = True, loops: int = 0
) -> DeviceHAG:
    """The same on a device that runs launches, also with loops, for which the host does not wait.

    How many edges there are it does not know, then: see `DeviceHAG`.
    """
    return hag_on_device(edge_index, size, _OPTIONS, both=both, loops=loops)


def plain_hag_of_ends(
    source: Tensor, target: Tensor, size: tuple[int, int], *, both: bool
) -> DeviceHAG:
    """The same of edges whose ends were checked: see `hag_of_ends`."""
    return hag_of_ends(source, target, size, _OPTIONS, both=both)


def plain_hags_there(
    edge_index: Tensor, edge_type: Tensor, count: int, size: tuple[int, int], *, both: bool
) -> list[DeviceHAG]:
    """The same of the edges of each of so many relations: see `hags_on_device`."""
    return hags_on_device(edge_index, edge_type, count, size, _OPTIONS, both=both)


def runs_launches(x: Tensor) -> bool:
    """Whether what is on the device of a tensor runs in launches there."""
    return kind_of(x.device).launches is not None or limits.kernels_anywhere


def is_passing(hag: HAG) -> bool:
    """Whether `plain_hag` made it of a graph that may never come back: nothing is kept for it."""
    return hag.options is _OPTIONS


class Messages(NamedTuple):
    """What a call of a layer sends over a graph.

    Attributes:
        num_edges: how many messages.
        size: the numbers of sources and targets.
        row_bytes: of a message.
        derived: whether gradients flow back over the reverse.
        graphs: in how many graphs the edges come; 0: it is one that was made before.
        weighted: whether each message is multiplied by a number, made of the graph.
        heads: of attention, each of which scores each message; 0: there are no scores.
        relations: how many matrices there are, of which each message is multiplied with one, where
            that is done once a node and relation; 0: with none.
        matrix: the numbers of such a matrix.
        layout: of the edges: where they are a sparse matrix, stock multiplies by it.
        valued: whether it has values that are not 1.
        in_kernels: whether stock has kernels for attention, in which it makes no messages.
        by_vectors: whether it makes a row of each edge there, to score it.
        given: numbers that are given of each edge, in an order that is not the graph's.
        whole: whether attention over vectors is one function with the products that it is over.
        device: the kind on which the features are.
    """

    num_edges: int
    size: tuple[int, int]
    row_bytes: int
    derived: bool
    graphs: int = 1
    weighted: bool = False
    heads: int = 0
    relations: int = 0
    matrix: int = 0
    layout: torch.layout = torch.strided
    valued: bool = False
    in_kernels: bool = False
    by_vectors: bool = False
    given: int = 0
    whole: bool = False
    device: str = "cpu"

    def pays(self) -> bool:
        """Whether a graph that is used once is predicted to be summed sooner than by gathering
        and scattering, the making of its programs included.

        Ranks of a distributed job, which may have measured different constants, go by the same; so
        does everybody where any constants would say it, and need not be measured. Graphs of like
        size go by one prediction: it is asked for at every first call.
        """
        few, (num_src, num_dst) = self[0], self[1]
        like = _rough(few), _rough(num_src), _rough(num_dst)
        least = limits.passing_gain
        is_measured = KINDS[self.device].launches is None
        if is_measured and self.heads and not self.relations and not self.in_kernels:
            least *= ATTENDED_GAIN
        if is_measured and self.whole:
            least *= WHOLE_GAIN
        if self.in_kernels:
            least *= KERNEL_GAIN
        return _pays(like, self[2:], least, has_ranks())

    def gain(self, c: Constants) -> float:
        """How many times faster the fused kernels are predicted to be than stock."""
        launches = KINDS[self.device].launches
        if launches is not None:
            return self._gain_in_launches(launches)
        return self.stock_seconds(c) / max(self.plain_seconds(c), 1e-12)

    def _gain_in_launches(self, price: Launches) -> float:
        """The same where both run in launches: by their number, and by the bytes that they move."""
        num_edges, row, calls = self.num_edges, self.row_bytes, max(self.graphs, 1)
        own = (num_edges + calls * self.size[1]) * row
        launches, moved = calls * MESSAGE_LAUNCHES, 2 * num_edges * row + own
        if self.weighted or self.heads:
            moved += 2 * num_edges * row
        if self.weighted:
            launches += WEIGHED_LAUNCHES
        if self.in_kernels:
            of_edge = self.heads * KERNEL_BYTES + (2 * row if self.by_vectors else 0)
            launches, moved = KERNEL_LAUNCHES, own + num_edges * of_edge
        elif self.heads:
            launches += SCORED_LAUNCHES
            moved += num_edges * self.heads * SCORED_BYTES
        made, ours = 0, self.graphs * MADE_LAUNCHES + 2 * calls
        if self.graphs:
            made = MADE_BYTES + (self.graphs - 1) * SPLIT_BYTES
        if self.relations:
            moved += num_edges * self.matrix * MATRIX_BYTES
            made += self.matrix * MATRIX_BYTES // BLOCK + 2 * row
            ours += PAIRED_LAUNCHES
            made += PAIRED_BYTES
        plain = price.seconds_of(ours, num_edges * made + own)
        return price.seconds_of(launches, moved) / plain

    def plain_seconds(self, c: Constants) -> float:
        """Predicted seconds in the fused kernels, on one thread."""
        passes = 2 if self.derived else 1
        calls, ops = MADE_CALLS, SORTED_OPS
        if self.layout != torch.strided:
            calls, ops = ADOPTED_CALLS, ADOPTED_OPS + (VALUED_OPS if self.valued else 0)
        if self.heads:
            calls += ATTENDED_CALLS
        made = self.graphs * calls * c.call
        if self.graphs:
            made += self.num_edges * ops * c.op
        if self.graphs or self.heads:
            made += max(self.size) * ROW_OPS * c.op
        made += self.num_edges * self.given * GIVEN_OPS * c.op
        seconds = passes * (made + _seconds(c, self.num_edges, *self.size, self.row_bytes))
        if self.given and self.graphs:
            seconds += ORDER_CALLS * c.call + self.num_edges * ORDER_OPS * c.op
        if self.relations:
            products = min(self.relations, self.num_edges) * PRODUCT_CALLS + PRODUCTS_CALLS
            seconds += self._products * products * c.call
        if self.relations and self.graphs:
            seconds += PAIRED_CALLS * c.call + self.num_edges * PAIRED_OPS * c.op
        return seconds

    @property
    def _products(self) -> int:
        """How often there are products with matrices."""
        return DERIVED_PRODUCTS if self.derived else 1

    def stock_seconds(self, c: Constants) -> float:
        """The same with a row of a tensor for every edge: written, and read again."""
        if self.in_kernels:
            return self._kernel_seconds(c)
        num_edges, (num_src, num_dst) = self.num_edges, self.size
        if self.layout != torch.strided:
            return self._sparse_seconds(c)
        seconds = num_edges * (MESSAGE_OPS + SCORED_OPS * self.heads) * c.op
        seconds += _seconds(c, num_edges, num_src, num_edges, self.row_bytes)
        seconds += _seconds(c, 2 * num_edges, num_edges, num_edges + num_dst, self.row_bytes)
        if self.weighted:
            seconds += WEIGHED_CALLS * c.call + num_edges * WEIGHED_OPS * c.op
            seconds += _seconds(c, num_edges, num_edges, num_edges, self.row_bytes)
        seconds *= 2 if self.derived else 1
        return seconds + self._products * num_edges * self.matrix * MATRIX_OPS * c.op

    def _sparse_seconds(self, c: Constants) -> float:
        """The same where the edges are a sparse matrix: no row is written for an edge."""
        seconds = (2 if self.derived else 1) * _seconds(
            c, self.num_edges, *self.size, self.row_bytes
        )
        if self.weighted:
            seconds += WEIGHED_CALLS * c.call + self.num_edges * WEIGHED_OPS * c.op
        if self.derived or self.layout == torch.sparse_csc:
            seconds += self.num_edges * CONVERTED_OPS * c.op
        return seconds

    def _kernel_seconds(self, c: Constants) -> float:
        """The same where stock has kernels for attention."""
        of_byte = KERNEL_BYTE_OPS + (KERNEL_VECTOR_OPS if self.by_vectors else 0)
        of_edge = KERNEL_SCORE_OPS * self.heads + of_byte * self.row_bytes
        if self.graphs:
            of_edge += KERNEL_SORTED_OPS
        ops = self.num_edges * of_edge + max(self.size) * KERNEL_ROW_OPS
        seconds = KERNEL_CALLS * c.call + ops * c.op
        seconds += _seconds(c, self.num_edges, *self.size, self.row_bytes)
        return (2 if self.derived else 1) * seconds


@functools.lru_cache(maxsize=4096)
def _pays(like: tuple[int, int, int], how: tuple[Any, ...], least: float, ranked: bool) -> bool:
    messages = Messages(like[0], like[1:], *how)
    gain = messages.gain(DEFAULT)
    depends = KINDS[messages.device].launches is None  # on constants that are measured
    if depends and not ranked and 1 / CLEAR < gain < CLEAR:
        gain = messages.gain(constants.in_force())
    return gain >= least


def _rough(count: int) -> int:
    """A count, up to 3 %."""
    shift = count.bit_length() - 5
    return count if shift <= 0 else count >> shift << shift | 1 << shift >> 1


def _seconds(c: Constants, reads: int, num_src: int, num_dst: int, row_bytes: int) -> float:
    """`Work.seconds` where nothing is shared, written out: this is asked at every first call."""
    out = num_dst * row_bytes
    held = min(1.0, c.cache_bytes / max(num_src * row_bytes + out, 1))
    near, far = held * reads, (1.0 - held) * reads
    seconds = c.call + num_dst * c.op + (1.0 - held) * out * c.written
    seconds += near * c.near.of(row_bytes) + held * out * c.near.per_byte
    return float(seconds + far * c.far.of(row_bytes))
