"""`build_hag`: from an edge list to a HAG."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hag_plugin import devices
from hag_plugin.arguments import (
    brief,
    check_choice,
    check_dense,
    check_flag,
    check_optional_flag,
    items,
    pair,
    whole,
)
from hag_plugin.hag import constants
from hag_plugin.hag.candidates import CHOOSE, how_to_choose
from hag_plugin.hag.copies import Copies, first_of, merged_edges
from hag_plugin.hag.graph import MAX_NODES, canonical_graph, check_edge_index
from hag_plugin.hag.graph_set import GraphSet, Places, takes
from hag_plugin.hag.hag import HAG, hag_of, hags_of
from hag_plugin.hag.program import METHODS, SELF_LOOPS, Options, SelfLoops
from hag_plugin.hag.search import SMALL_GRAPH
from hag_plugin.modes import in_memory, numpy_of, outside_inference

TAKEN = ("num_nodes", "size", "ptr", "copies")  # what differs from graph to graph
# What copies of a node may have in common: whole numbers, or features.
NAMES_OF_NODES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)
SMALL_NODES = 512  # in a larger graph the search may change the order of rows


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
    choose: str | None = None,
    progress: bool | None = None,
    copies: Tensor | None = None,
) -> HAG:
    """Preprocesses a graph into a HAG, so that sums shared by several nodes are computed once.

    The first call on a machine takes about a second more: it measures the constants of the cost
    model and keeps them in the user's cache folder (`hag-plugin calibrate --show`).

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
        choose: which program runs, the HAG's or the plain graph's, for features of each width:
            "measure" times them now where the cost model cannot tell, for a twentieth of the time
            of the search (or, if that is more, for 20 ms or a quarter of it), or both on a GPU that
            the HAG is built for; "model" asks the model alone; "hag" and "plain" are always these.
            By default what the environment variable HAG_PLUGIN_CHOOSE says, or else "measure";
            "hag" for `method="greedy"`. Under `torch.use_deterministic_algorithms` and in processes
            that `torch.distributed` joins, the model decides instead of measuring.
        progress: show a bar; by default if it takes more than two seconds.
        copies: `[num_src]` or `[num_src, *]`: sources with the same entry are copies of one node,
            as in a batch of overlapping subgraphs. Where these have the same features in a call,
            which is looked at, sums are shared across them, if that pays; for the modes of
            `self_loops`, in main memory.

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
    options |= {"self_loops": self_loops, "allow_subtraction": allow_subtraction, "choose": choose}
    check_build_options(options)
    check_flag("targets_first", targets_first)
    if targets_first and size is None:
        raise ValueError("targets_first is for bipartite graphs: it needs size=(num_src, num_dst)")
    num_src, num_dst = _graph_size(edge_index, num_nodes, size)
    home = torch.device(edge_index.device if device is None else device)
    if targets_first and num_dst > num_src:
        raise ValueError(f"targets_first with {num_dst} targets and {num_src} sources; expected "
                         "at most as many targets as sources")  # fmt: skip
    search = _search_options(options, home)
    modes = self_loops if isinstance(self_loops, (list, tuple)) else (self_loops,)
    if copies is not None:
        options |= {"size": (num_src, num_dst), "targets_first": targets_first}
        return _with_copies(edge_index, copies, ptr, options).to(home)
    is_small = num_src <= SMALL_NODES and edge_index.shape[1] < SMALL_GRAPH and not progress
    if is_small and num_src == num_dst and ptr is None and not targets_first and takes(search):
        graphs = _graph_set([edge_index], [num_src], search)
        hag = hag_of(Places([graphs], [0]), search)
        hag.prepare(modes)
        return hag.to(home)
    row_ptr, col = canonical_graph(edge_index, num_src, num_dst)
    if ptr is not None:
        _check_ptr(ptr, row_ptr, col, num_src, num_dst)
    with outside_inference():
        arrays = torch.from_numpy(row_ptr), torch.from_numpy(col)
    hag = HAG(*arrays, num_src, options=search, targets_first=targets_first, owned=True)
    hag.prepare(modes, progress=progress)
    return hag.to(home)


def _with_copies(edge_index: Tensor, copies: Tensor, ptr: Any, options: dict[str, Any]) -> HAG:
    """The HAG in main memory, and those of its edges from the first copy of each source."""
    num_src, _ = options["size"]
    first, modes = _first_copies(copies, num_src), options["self_loops"]
    hag = build_hag(edge_index, ptr=ptr, **{**options, "device": "cpu"})
    options |= {"self_loops": False, "allow_subtraction": False, "targets_first": False}
    modes = modes if isinstance(modes, (list, tuple)) else (modes,)
    graphs = {
        mode: build_hag(merged_edges(hag, first, mode), **options)
        for mode in dict.fromkeys(map(hag.copies_mode, modes))
    }
    hag.copies = Copies(first, graphs)
    return hag


def _first_copies(copies: Tensor, num_src: int) -> Tensor:
    check_dense("copies", copies)
    if copies.dim() == 0 or copies.shape[0] != num_src or copies.is_meta:
        raise ValueError(f"copies is {brief(copies)}; expected an entry for each of {num_src} "
                         "sources, in memory")  # fmt: skip
    if copies.dtype not in NAMES_OF_NODES:
        raise TypeError(f"copies is {brief(copies)}; expected whole or real numbers")
    return first_of(copies)


def build_hags(
    edge_indices: Sequence[Tensor],
    num_nodes: Sequence[int],
    *,
    self_loops: SelfLoops | Sequence[SelfLoops] = False,
    transpose: bool = False,
    **options: Any,
) -> list[HAG]:
    """The HAG of each of many small graphs, as `build_hag` gives it, in one call.

    Batches of these, in `batch`, are put together in one call, too.

    Args:
        edge_indices: int32 or int64 `[2, E]` of each graph, whose nodes count from 0.
        num_nodes: of each graph.
        self_loops: the modes whose programs to build now.
        transpose: build the programs of the reversed graphs as well.
        **options: as for `build_hag`: `method`, `width`, `choose` and so on.

    Raises:
        TypeError: an argument is of the wrong type or an `edge_index` of the wrong dtype.
        ValueError: an argument or an id is out of range.

    Example:
        >>> import torch
        >>> ring = torch.tensor([[0, 1, 2], [1, 2, 0]])
        >>> [hag.num_edges for hag in build_hags([ring, ring[:, :2]], [3, 3])]
        [3, 2]
    """
    check_build_options({"self_loops": self_loops, **options}, TAKEN)
    edge_indices, num_nodes = items("edge_indices", edge_indices), items("num_nodes", num_nodes)
    if len(edge_indices) != len(num_nodes):
        raise ValueError(f"edge_indices has {len(edge_indices)} graphs, num_nodes "
                         f"{len(num_nodes)} numbers; expected as many")  # fmt: skip
    check_flag("transpose", transpose)
    modes = self_loops if isinstance(self_loops, (list, tuple)) else (self_loops,)
    devices_of = {edge_index.device for edge_index in edge_indices}
    home = torch.device(options.get("device") or (devices_of.pop() if devices_of else "cpu"))
    search = _search_options(options, home)
    if not edge_indices:
        return []
    if home.type != "cpu" or not takes(search):
        pairs = zip(edge_indices, num_nodes, strict=True)
        hags = [build_hag(e, num_nodes=n, self_loops=modes, **options) for e, n in pairs]
        for hag in hags if transpose else ():
            hag.prepare(modes, transpose=True)
        return hags
    for edge_index in edge_indices:
        check_edge_index(edge_index)
    graphs = _graph_set(edge_indices, num_nodes, search)
    graphs.prepare(modes, transpose)
    return hags_of(graphs)


def _graph_set(
    edge_indices: Sequence[Tensor], num_nodes: Sequence[int], options: Options
) -> GraphSet:
    with outside_inference():
        joined = torch.cat(list(edge_indices), 1) if len(edge_indices) > 1 else edge_indices[0]
    ends = np.cumsum([0] + [edge_index.shape[1] for edge_index in edge_indices])
    return GraphSet.of(in_memory(joined), ends, np.array(num_nodes, dtype=np.int64), options)


def _search_options(options: Mapping[str, Any], home: torch.device) -> Options:
    """What a search is asked for, by the options of `build_hag`; the others' defaults."""
    given = {**_build_options(), **options}
    kind = devices.kind_of(home)
    method, how = given["method"], how_to_choose(given["choose"], given["method"])
    priced = method != "none" and how != "plain" and kind.launches is None
    return Options(
        method,
        given["allow_subtraction"],
        given["capacity"],
        given["width"],
        kind.name,
        constants.in_force().digest if priced else "",
        how,
    )


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
    check_choice("method", method, METHODS)
    if capacity is not None:
        whole("capacity", capacity, 0, 2**63 - 1)
        if method != "greedy":
            raise ValueError(f'capacity is for method="greedy" only, not for {method!r}')
    whole("width", width, 1, MAX_NODES)
    dtype, subtract, progress = given["dtype"], given["allow_subtraction"], given["progress"]
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype is {brief(dtype)}; expected a floating-point torch.dtype")
    check_flag("allow_subtraction", subtract)
    check_optional_flag("progress", progress)
    check_choice("choose", given["choose"], (*CHOOSE, None))
    modes = given["self_loops"]
    for mode in modes if isinstance(modes, (list, tuple)) else (modes,):
        check_choice("self_loops", mode, SELF_LOOPS)
    if given["device"] is not None:
        devices.checked(given["device"])


@functools.cache
def _build_options() -> dict[str, Any]:
    """What `build_hag` takes beside the edges, with the defaults."""
    parameters = inspect.signature(build_hag).parameters
    return {name: p.default for name, p in parameters.items() if name != "edge_index"}


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
    return pair(name, size, MAX_NODES)


def _check_ptr(
    ptr: Tensor | Sequence[int], row_ptr: np.ndarray, col: np.ndarray, num_src: int, num_dst: int
) -> None:
    if isinstance(ptr, Tensor):
        check_dense("ptr", ptr)
        if ptr.dtype not in (torch.int32, torch.int64) or ptr.is_meta:
            raise TypeError(f"ptr is {brief(ptr)}; expected int32 or int64, in memory")
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
