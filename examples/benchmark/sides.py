"""The sides of an aggregation cell: what each one calls, with a fresh output and a reused one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import hag_plugin as hp

from . import peers
from .crashes import entering
from .graphs import LOOPS, Graph

Call = Callable[[], Tensor]

AUTO, NONE, AGAIN, COPY = "hag auto", "hag none", "hag auto again", "copy"


def is_ours(side: str) -> bool:
    """Whether a side is ours: peers are not called so."""
    return side.startswith("hag ")


class Absent(RuntimeError):
    """A side takes no part in a cell; the message says why."""


@dataclass(frozen=True)
class Problem:
    """One cell: a graph, features and what to compute.

    Attributes:
        graph: the graph.
        loops: "A" or "A+I".
        reduce: "sum" or "max".
        x: features, float32 `[N, F]`.
        out: the buffer that all sides write into where outputs are reused, `[N, F]`.
        memory_limit: bytes that a side's messages, one a directed edge, may take.
    """

    graph: Graph
    loops: str
    reduce: str
    x: Tensor
    out: Tensor
    memory_limit: float

    @property
    def width(self) -> int:
        """Number of features."""
        return self.x.shape[1]

    def check_messages(self) -> None:
        """Raises where one message an edge would not fit.

        Raises:
            Absent: with the size.
        """
        size = self.graph.edges(self.loops).shape[1] * self.width * 4
        if size > self.memory_limit:
            raise Absent(
                f"its messages take {size / 1e9:.1f} GB, above the limit of "
                f"{self.memory_limit / 1e9:.1f} GB"
            )


@dataclass(frozen=True)
class Calls:
    """What is timed.

    Attributes:
        fresh: allocates its output.
        reused: writes into `problem.out`; None where the peer has no such call.
    """

    fresh: Call
    reused: Call | None


def prepare(
    problem: Problem, crashed: Mapping[str, str]
) -> tuple[dict[str, Calls], dict[str, str]]:
    """The sides that take part, and for those that do not, why.

    Args:
        problem: the cell.
        crashed: the sides that took the process with them in it, and how.
    """
    sides: dict[str, Calls] = {}
    absent: dict[str, str] = {}
    for name, make in SIDES.items():
        if name in crashed:
            absent[name] = crashed[name]
            continue
        entering(name)
        try:
            sides[name] = make(problem)
        except Absent as e:
            absent[name] = str(e)
    return sides, absent


# Ours and the floor -----------------------------------------------------------------------------


def _hag(method: str) -> Callable[[Problem], Calls]:
    def make(problem: Problem) -> Calls:
        hag = problem.graph.hag(method, problem.loops, problem.width)
        x, out, mode = problem.x, problem.out, LOOPS[problem.loops]
        reduce: Any = problem.reduce
        hag.program(mode, idempotent=reduce == "max")
        return Calls(
            lambda: hp.aggregate(x, hag, reduce, self_loops=mode),
            lambda: hp.aggregate(x, hag, reduce, self_loops=mode, out=out),
        )

    return make


def _copy(problem: Problem) -> Calls:
    x, out = problem.x, problem.out
    return Calls(lambda: x.clone(), lambda: out.copy_(x))


# Peers ------------------------------------------------------------------------------------------


def _peer(name: str) -> Any:
    module = peers.load(name)
    if module is None:
        raise Absent(peers.why_missing(name))
    return module


def dgl_graph(graph: Graph, loops: str, formats: tuple[str, ...] = ("csc",)) -> Any:
    """A DGLGraph with 32-bit ids, its formats created beforehand, sources in order."""

    def make() -> Any:
        dgl = _peer("dgl")
        row_ptr, col = graph.csr(loops)
        no_values = torch.empty(0, dtype=torch.int32)
        arrays = (row_ptr.int(), col, no_values)
        made = dgl.graph(("csc", arrays), num_nodes=graph.num_nodes, idtype=torch.int32)
        made = made.formats(list(formats))
        made.create_formats_()
        return made

    return graph.kept(("dgl", loops, formats), make)


def _dgl(problem: Problem) -> Calls:
    dgl = _peer("dgl")
    from dgl import _sparse_ops as kernels

    graph = dgl_graph(problem.graph, problem.loops)
    x, out, reduce = problem.x, problem.out, problem.reduce
    public = dgl.ops.copy_u_sum if reduce == "sum" else dgl.ops.copy_u_max
    index = graph._graph
    nothing = kernels.to_dgl_nd(None)
    source, target = kernels.to_dgl_nd(x), kernels.to_dgl_nd_for_write(out)
    winner = torch.empty(x.shape, dtype=torch.int32) if reduce == "max" else None
    winners = kernels.to_dgl_nd_for_write(winner)

    def reused() -> Tensor:
        if reduce == "sum":
            out.zero_()  # its kernel adds to what is there
        kernels._CAPI_DGLKernelSpMM(
            index, "copy_lhs", reduce, source, nothing, target, winners, nothing
        )
        return out

    return Calls(lambda: public(graph, x), reused)


def torch_csr(graph: Graph, loops: str, dtype: torch.dtype = torch.int32) -> Tensor:
    """The matrix of ones as a torch CSR tensor, targets as rows.

    With 32-bit indices MKL's product is up to twice as fast: torch converts others at each call.
    """

    def make() -> Tensor:
        row_ptr, col = graph.csr(loops)
        n = graph.num_nodes
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.sparse_csr_tensor(
                row_ptr.to(dtype), col.to(dtype), torch.ones(len(col)), size=(n, n)
            )

    matrix: Tensor = graph.kept(("torch csr", loops, dtype), make)
    return matrix


def _torch_csr(problem: Problem) -> Calls:
    if problem.reduce != "sum":
        raise Absent("a matrix product is a sum")
    matrix, x, out = torch_csr(problem.graph, problem.loops), problem.x, problem.out
    # addmm with beta=0 is 2-3 times faster here than `matrix @ x`, which fills with zeros first.
    return Calls(
        lambda: torch.addmm(out, matrix, x, beta=0, out=torch.empty_like(x)),
        lambda: torch.addmm(out, matrix, x, beta=0, out=out),
    )


def _torch_csr_reduce(problem: Problem) -> Calls:
    matrix, x = torch_csr(problem.graph, problem.loops), problem.x
    reduce = "sum" if problem.reduce == "sum" else "amax"
    return Calls(lambda: torch.sparse.mm(matrix, x, reduce), None)


def _pyg(problem: Problem) -> Calls:
    _peer("torch_geometric")
    from torch_geometric.nn import SimpleConv

    problem.check_messages()
    conv = SimpleConv(problem.reduce)
    x, edges = problem.x, problem.graph.edges(problem.loops)
    return Calls(lambda: conv(x, edges), None)


def _edge_index(problem: Problem) -> Calls:
    """PyG's own sparse product: targets as rows, indices of 32 bits, sorted, its caches filled."""
    _peer("torch_geometric")
    from torch_geometric import EdgeIndex

    def make() -> Any:
        row_ptr, col = problem.graph.csr(problem.loops)
        n = problem.graph.num_nodes
        row = torch.arange(n, dtype=torch.int32).repeat_interleave(row_ptr.diff())
        edges = torch.stack([row, col])
        made = EdgeIndex(edges, sparse_size=(n, n), sort_order="row", is_undirected=False)
        return made.validate().fill_cache_()

    edges, x = problem.graph.kept(("EdgeIndex", problem.loops), make), problem.x
    reduce = "sum" if problem.reduce == "sum" else "amax"
    return Calls(lambda: edges.matmul(x, reduce=reduce), None)


def _segments(package: str) -> Callable[[Problem], Calls]:
    """`segment_csr` of a package: messages, then their sums by row pointers."""

    def make(problem: Problem) -> Calls:
        segment_csr = _operator(package, "segment_csr")
        problem.check_messages()
        row_ptr, col = problem.graph.csr(problem.loops)
        x, out, reduce = problem.x, problem.out, problem.reduce
        messages = torch.empty(len(col), problem.width)

        def reused() -> Tensor:
            torch.index_select(x, 0, col, out=messages)
            segment_csr(messages, row_ptr, out, reduce)
            return out

        return Calls(lambda: segment_csr(x.index_select(0, col), row_ptr, None, reduce), reused)

    return make


def _scattered(package: str) -> Callable[[Problem], Calls]:
    """`scatter` of a package: messages, then their sums by targets."""

    def make(problem: Problem) -> Calls:
        scatter = _operator(package, "scatter")
        problem.check_messages()
        source, target = problem.graph.edges(problem.loops)
        x, n, reduce = problem.x, problem.graph.num_nodes, problem.reduce
        return Calls(lambda: scatter(x.index_select(0, source), target, 0, None, n, reduce), None)

    return make


def _operator(package: str, name: str) -> Callable[..., Any]:
    """An operator of a peer.

    Raises:
        Absent: the package or the operator is not there.
    """
    module = _peer(package)
    found = getattr(module, name, None) or getattr(getattr(module, "ops", None), name, None)
    if found is None:
        raise Absent(f"{package} {getattr(module, '__version__', '')} has no {name}")
    operator: Callable[..., Any] = found
    return operator


SIDES: Mapping[str, Callable[[Problem], Calls]] = {
    COPY: _copy,
    AUTO: _hag("auto"),
    NONE: _hag("none"),
    "DGL": _dgl,
    "torch CSR (MKL)": _torch_csr,
    "torch CSR reduce": _torch_csr_reduce,
    "torch_scatter": _segments("torch_scatter"),
    "torch_scatter scatter": _scattered("torch_scatter"),
    "pyg-lib segment_csr": _segments("pyg_lib"),
    "pyg-lib scatter": _scattered("pyg_lib"),
    "PyG gather + scatter": _pyg,
    "PyG EdgeIndex.matmul": _edge_index,
}
PEER_SIDES = tuple(name for name in SIDES if not is_ours(name) and name != COPY)


# Equal ------------------------------------------------------------------------------------------


def unequal(problem: Problem, sides: Mapping[str, Calls]) -> dict[str, str]:
    """Compares every side, in both forms, with the plain program; says which differ.

    The buffer is full of NaN before each call, so that a row that is not written is noticed.
    Rows without edges count for ours alone: their maximum is 0 here and in PyG, -inf in DGL.
    """
    filled = problem.graph.csr(problem.loops)[0].diff() > 0
    plain = sides[NONE].fresh()
    if problem.reduce == "sum":
        hag = problem.graph.hag("none", problem.loops, problem.width)
        size = hp.aggregate(problem.x.abs(), hag, self_loops=LOOPS[problem.loops])
        allowed = 2e-5 * size + 1e-30
    else:
        allowed = torch.zeros(())
    wrong = {}
    for name, calls in sides.items():
        for form in ("fresh", "reused"):
            call = getattr(calls, form)
            if call is None or name == COPY:
                continue
            entering(name)
            problem.out.fill_(float("nan"))
            difference = (call() - plain).abs_()
            fits = difference <= allowed
            if problem.reduce == "max" and name in PEER_SIDES:
                fits |= ~filled.unsqueeze(-1)
            if not bool(fits.all()):
                worst = float(difference.nan_to_num(nan=float("inf")).max())
                wrong[f"{name}, {form}"] = f"differs from the plain program by up to {worst:.3g}"
    return wrong
