"""From an edge list to a `HAG`: canonical form, search, programs, and joining them in batches."""

from __future__ import annotations

import functools
import inspect
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hag_plugin import constants, cost
from hag_plugin.hag import HAG, numpy_of, outside_inference
from hag_plugin.kernels import _cpu
from hag_plugin.program import METHODS, SELF_LOOPS, Options, Program, SelfLoops

MAX_NODES = 2**31 - 1
SMALL_GRAPH = 20_000  # edges


def build_hag(
    edge_index: Tensor,
    *,
    num_nodes: int | None = None,
    size: tuple[int, int] | None = None,
    method: str = "auto",
    ptr: Tensor | Sequence[int] | None = None,
    self_loops: SelfLoops | Sequence[SelfLoops] = False,
    targets_first: bool = False,
    allow_subtraction: bool = False,
    capacity: int | None = None,
    width: int = 64,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool | None = None,
) -> HAG:
    """Preprocesses a graph into a HAG, so that sums shared by several nodes are computed once.

    Args:
        edge_index: int32 or int64 `[2, E]`; row 0 sources, row 1 targets. Duplicates count.
        num_nodes: number of nodes; by default the largest id + 1.
        size: `(num_src, num_dst)` of a bipartite graph, instead of `num_nodes`.
        method: "auto" searches in tiles, prices what it finds and keeps what pays; "greedy" is
            Algorithm 3 of the HAG paper (arXiv 1906.03707); "none" is the plain graph.
        ptr: `[G + 1]`, first nodes of the graphs of a batch. No edge may cross.
        self_loops: the mode, or modes, whose programs to build now: False, "add" (A + I) or
            "fill" (exactly one loop a node). Others are built when they are first needed.
        targets_first: the targets of a bipartite graph are its first sources (PyG's convention).
        allow_subtraction: aggregate A as (A + I) x - x. Cheaper, but a NaN, an Inf or a huge value
            in a node's own row then spoils its result.
        capacity: for "greedy", the most intermediates; a quarter of the targets by default.
        width: number of features that the price is for.
        device: where the HAG is to be used, and what it is priced for, as one graph; by default
            where `edge_index` is. Build graphs that are to be batched where the loader is.
        dtype: of the features that the price is for.
        progress: show a bar; by default if it takes more than two seconds.

    Returns:
        The HAG, with the programs of `self_loops`.

    Raises:
        TypeError: an argument is of the wrong type or `edge_index` of the wrong dtype.
        ValueError: an argument or an id is out of range.

    Example:
        >>> import torch
        >>> hag = build_hag(torch.tensor([[0, 1, 2, 0, 1], [1, 0, 0, 2, 2]]), num_nodes=3)
        >>> hag.num_edges
        5
    """
    options: dict[str, Any] = {"method": method, "capacity": capacity, "width": width}
    options |= {"dtype": dtype, "device": device, "progress": progress}
    options |= {"self_loops": self_loops, "allow_subtraction": allow_subtraction}
    check_build_options(options)
    if targets_first and size is None:
        raise ValueError("targets_first is for bipartite graphs: it needs size=(num_src, num_dst)")
    num_src, num_dst = _graph_size(edge_index, num_nodes, size)
    home = torch.device(edge_index.device if device is None else device)
    if targets_first and num_dst > num_src:
        raise ValueError(f"targets_first with {num_dst} targets and {num_src} sources; expected "
                         "at most as many targets as sources")  # fmt: skip
    row_ptr, col = canonical_graph(edge_index, num_src, num_dst)
    if ptr is not None:
        _check_ptr(ptr, row_ptr, col, num_src, num_dst)
    kind = "cuda" if home.type == "cuda" else "cpu"
    digest = constants.in_force().digest
    search = Options(method, allow_subtraction, capacity, width, kind, digest)
    with outside_inference():
        arrays = torch.from_numpy(row_ptr), torch.from_numpy(col)
    hag = HAG(*arrays, num_src, options=search, targets_first=targets_first, owned=True)
    modes = self_loops if isinstance(self_loops, list | tuple) else (self_loops,)
    for mode in modes:
        hag.program(mode, progress=progress)
    return hag.to(home)


def check_build_options(options: Mapping[str, Any], taken: Sequence[str] = ()) -> None:
    """Raises unless `options`, or some of them, are what `build_hag` takes.

    Args:
        options: by name.
        taken: names that the caller gives `build_hag` itself.

    Raises:
        TypeError: an option is unknown, `taken`, or of the wrong type.
        ValueError: an option is out of range.
    """
    defaults = _build_options()
    known = [name for name in defaults if name not in taken]
    for name in options:
        if name in taken:
            raise TypeError(f"{name} is taken from the graph; expected options among {known}")
        if name not in known:
            raise TypeError(f"build_hag has no option {name!r}; expected some of {known}")
    given = {**defaults, **options}
    method, capacity, width = given["method"], given["capacity"], given["width"]
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {METHODS}")
    if capacity is not None:
        if isinstance(capacity, bool) or not isinstance(capacity, int):
            raise TypeError(f"capacity is {capacity!r}; expected an int or None")
        if capacity < 0:
            raise ValueError(f"capacity is {capacity}; expected 0 or more")
        if method != "greedy":
            raise ValueError(f'capacity is for method="greedy" only, not for {method!r}')
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"width is {width!r}; expected a positive int")
    dtype, subtract, progress = given["dtype"], given["allow_subtraction"], given["progress"]
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype!r}; expected a floating-point torch.dtype")
    if not isinstance(subtract, bool):
        raise TypeError(f"allow_subtraction is {subtract!r}; expected a bool")
    if progress is not None and not isinstance(progress, bool):
        raise TypeError(f"progress is {progress!r}; expected a bool or None")
    modes = given["self_loops"]
    for mode in modes if isinstance(modes, list | tuple) else (modes,):
        if not isinstance(mode, str | bool) or mode not in SELF_LOOPS:
            raise ValueError(f"self_loops is {mode!r}; expected one of {SELF_LOOPS}")
    _check_device(given["device"])


@functools.cache
def _build_options() -> dict[str, Any]:
    """What `build_hag` takes beside the edges, with the defaults."""
    parameters = inspect.signature(build_hag).parameters
    return {name: p.default for name, p in parameters.items() if name != "edge_index"}


def _check_device(device: Any) -> None:
    if device is None:
        return
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError) as e:
        raise ValueError(f"device is {device!r}; expected a torch.device or its name") from e
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {str(device)!r}, but torch finds no GPU; expected 'cpu'")


def _graph_size(
    edge_index: Tensor, num_nodes: int | None, size: tuple[int, int] | None
) -> tuple[int, int]:
    check_edge_index(edge_index)
    if num_nodes is not None and size is not None:
        raise ValueError("num_nodes and size were both given; expected one of them")
    if size is None:
        if num_nodes is None:
            num_nodes = int(edge_index.max()) + 1 if edge_index.numel() else 0
        size = (num_nodes, num_nodes)
    name = "size" if num_nodes is None else "num_nodes"
    if len(size) != 2:
        raise ValueError(f"size is {size!r}; expected (num_src, num_dst)")
    for number in size:
        if isinstance(number, bool) or not isinstance(number, int | np.integer):
            raise TypeError(f"{name} holds {number!r}; expected an int")
        if not 0 <= number <= MAX_NODES:
            raise ValueError(f"{name} holds {number}; expected 0 to 2^31 - 1")
    return int(size[0]), int(size[1])


def check_edge_index(edge_index: Tensor) -> None:
    """Raises unless `edge_index` is an integer tensor `[2, E]`."""
    if not isinstance(edge_index, Tensor):
        raise TypeError(f"edge_index is a {type(edge_index).__name__}; expected a torch.Tensor")
    if edge_index.layout != torch.strided:
        raise TypeError(f"edge_index has layout {edge_index.layout}; expected a dense tensor")
    if edge_index.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"edge_index has dtype {edge_index.dtype}; expected int32 or int64")
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"edge_index has shape {tuple(edge_index.shape)}; expected [2, E]")


def canonical_graph(
    edge_index: Tensor, num_src: int, num_dst: int
) -> tuple[np.ndarray, np.ndarray]:
    """CSR by target: row_ptr int64 `[num_dst + 1]` and col int32 `[E]`, increasing in a row."""
    check_edge_index(edge_index)
    source, target = numpy_of(edge_index)
    row_ptr, col = _cpu.build_csr(source, target, num_src, num_dst)
    return row_ptr, col


def _check_ptr(
    ptr: Tensor | Sequence[int], row_ptr: np.ndarray, col: np.ndarray, num_src: int, num_dst: int
) -> None:
    starts = np.asarray(numpy_of(ptr) if isinstance(ptr, Tensor) else ptr)
    if starts.ndim != 1 or not np.issubdtype(starts.dtype, np.integer):
        raise TypeError(f"ptr has shape {starts.shape} and dtype {starts.dtype}; expected ints [G]")
    if num_src != num_dst:
        raise ValueError("ptr is for graphs with one kind of node; this one is bipartite")
    if len(starts) < 1 or starts[0] != 0 or starts[-1] != num_dst or (np.diff(starts) < 0).any():
        raise ValueError(f"ptr must increase from 0 to the number of nodes, {num_dst}")
    for first, last in itertools.pairwise(starts):
        inside = col[row_ptr[first] : row_ptr[last]]
        if inside.size and (inside.min() < first or inside.max() >= last):
            raise ValueError(
                f"an edge crosses ptr: a target in {first}..{last - 1} has source "
                f"{inside.min() if inside.min() < first else inside.max()}"
            )


# Search ---------------------------------------------------------------------------------------


def search_program(
    hag: HAG, self_loops: SelfLoops, idempotent: bool, progress: bool | None = None
) -> Program:
    """Searches the program of one matrix of a HAG's graph, by the HAG's options."""
    options = hag.options
    start = time.perf_counter()
    subtract = options.allow_subtraction and self_loops is False and not idempotent
    subtract = subtract and options.method == "auto" and (hag.is_square or hag.targets_first)
    subtract = subtract and hag.num_dst <= hag.num_src  # every target has an x to be taken off
    mode = "add" if subtract else (self_loops or "")
    row_ptr, col = hag.numpy()
    graph = (row_ptr, col, hag.num_src, mode, idempotent)
    arrays: Sequence[np.ndarray]
    # A small graph is searched sooner than a second thread or a bar is there.
    small = hag.num_edges < SMALL_GRAPH
    threads = 1 if small else torch.get_num_threads()
    if options.method == "none":
        arrays = _cpu.plain_program(*graph)
    else:
        with _bar(hag, False if small and not progress else progress) as report:
            if options.method == "greedy":
                capacity = hag.num_dst // 4 if options.capacity is None else options.capacity
                arrays = _cpu.greedy_program(*graph, capacity, threads, report)
            else:
                prices = cost.prices(options.width, options.device, constants.in_force())
                arrays = _cpu.search_program(
                    *graph,
                    hag.is_square or hag.targets_first,
                    **asdict(prices),
                    threads=threads,
                    progress=report,
                )
    program = Program.of(
        map(torch.from_numpy, arrays),
        hag.num_src,
        hag.num_dst,
        -1 if subtract else 0,
        time.perf_counter() - start,
    )
    for_gpu = options.method == "auto" and options.device == "cuda"
    if for_gpu and not cost.pays_on_gpu(hag, self_loops, program):
        plain = plain_program(hag, self_loops, idempotent)
        return replace(plain, search_seconds=time.perf_counter() - start)
    return program.to(hag.device)


def plain_program(hag: HAG, self_loops: SelfLoops, idempotent: bool = False) -> Program:
    """The program that a HAG of method "none" has."""
    row_ptr, col = hag.numpy()
    arrays = _cpu.plain_program(row_ptr, col, hag.num_src, self_loops or "", idempotent)
    return Program.of(map(torch.from_numpy, arrays), hag.num_src, hag.num_dst).to(hag.device)


@contextmanager
def _bar(hag: HAG, progress: bool | None) -> Iterator[Callable[[float], None] | None]:
    """What a search calls with the share that is done. None: shown after two seconds."""
    if progress is False:
        yield None
        return
    with tqdm(
        total=1.0,
        desc=f"searching {hag.num_edges:,} edges",
        delay=0.0 if progress else 2.0,
        leave=False,
        bar_format="{desc}: {percentage:3.0f}% |{bar}| {elapsed} < {remaining}",
    ) as bar:
        yield lambda share: bar.update(share - bar.n)


# Joining --------------------------------------------------------------------------------------


def concatenate_graphs(hags: Sequence[HAG]) -> tuple[Tensor, Tensor]:
    """The CSR of graphs side by side: (row_ptr, col)."""
    num_src = np.cumsum([0] + [h.num_src for h in hags])
    num_edges = np.cumsum([0] + [h.num_edges for h in hags])
    if num_src[-1] > MAX_NODES or sum(h.num_dst for h in hags) > MAX_NODES:
        raise ValueError(f"the batch has {num_src[-1]} sources; expected fewer than 2^31")
    row_ptr = [h.arrays.row_ptr[:-1] + int(e) for h, e in zip(hags, num_edges, strict=False)]
    row_ptr.append(torch.tensor(num_edges[-1:], device=hags[0].device))
    col = [h.arrays.col + int(n) for h, n in zip(hags, num_src, strict=False)]
    return torch.cat(row_ptr), torch.cat(col)


def concatenate_programs(programs: Sequence[Program]) -> Program:
    """The program of several graphs side by side, in O(ops).

    Tiles of small graphs are joined up to 64 ops; partial sums follow all rows of y.
    """
    diagonal = min(p.diagonal for p in programs)
    # Only allow_subtraction gives a diagonal; parts that went without get x added, then taken.
    parts = [p if p.diagonal == diagonal else _add_own_row(p) for p in programs]
    return Program.of(
        map(torch.from_numpy, _cpu.concatenate([p.native for p in parts])),
        sum(p.num_src for p in parts),
        sum(p.num_dst for p in parts),
        diagonal,
        sum(p.search_seconds for p in programs),
    )


def _add_own_row(program: Program) -> Program:
    """`P + I` with diagonal - 1 for a program `P`: the same result where values are finite."""
    _, op_ptr, source, target, hub_row, hub_ptr = program.numpy()
    own = np.where((target >= 0) & (target < program.num_dst), target, -1)
    for row, last in zip(hub_row.tolist(), hub_ptr[1:] - 1, strict=True):
        own[target == program.num_dst + last] = row
    takes = own >= 0
    source = np.insert(source, op_ptr[1:][takes], own[takes]).astype(np.int32)
    op_ptr = op_ptr + np.concatenate([np.zeros(1, np.int64), np.cumsum(takes)])
    tile_ptr, _, _, *others = program.arrays
    changed = torch.from_numpy(op_ptr), torch.from_numpy(source)
    return replace(program, arrays=(tile_ptr, *changed, *others), diagonal=program.diagonal - 1)
