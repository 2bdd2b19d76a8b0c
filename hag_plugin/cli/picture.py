"""Pictures of a graph and its HAG: `hag-plugin plot`. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hag_plugin import files
from hag_plugin.data.graph_data import GraphData
from hag_plugin.extras import needed_by
from hag_plugin.hag.build import build_hag
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import Program, SelfLoops

PICTURES = (".svg", ".png")
MOST_DRAWN = 36  # nodes that a drawing can show
DENSEST = 0.6  # share of all pairs; above it, a drawing shows a blot
CAPACITIES = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)  # of the number of nodes
MOST_SEARCHED = 5_000_000  # edges up to which several capacities are tried
GREY, SHARED, INK = "#d5d8dc", "#e67e22", "#2c3e50"

Node = tuple[str, int]  # ("x", row), ("y", row) or ("shared", number of the op)
Point = tuple[float, float]


@dataclass(frozen=True)
class Drawing:
    """Nodes and arrows of a small HAG.

    Attributes:
        position: `(across, level)` of each node: sources at level 0, targets at the top.
        arrows: `(from, to)`, one a source of an op.
    """

    position: dict[Node, Point]
    arrows: list[tuple[Node, Node]]

    @property
    def shared(self) -> list[Node]:
        """The intermediate sums."""
        return [node for node in self.position if node[0] == "shared"]


def check_output(path: str) -> None:
    """Raises `DatasetError` or OSError unless `path` can be drawn to; before the search."""
    files.check_output(path, PICTURES, "--output")
    with needed_by("a picture"):
        import matplotlib.figure  # noqa: F401


def draw(
    data: GraphData,
    hag: HAG,
    path: str,
    self_loops: SelfLoops = False,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Draws a small graph beside its HAG, how often sums are shared, and cost against capacity.

    Args:
        data: the graph. Of a large one, a small part is drawn; the lower row is of all of it.
        hag: its HAG.
        path: the file, SVG or PNG.
        self_loops: whose program to draw.
        progress: called with the share that is done.

    Returns:
        What is in the picture, for JSON.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    part = small_part(data)
    part_hag = build_hag(
        part.edge_index,
        num_nodes=part.num_nodes,
        method=hag.method,
        allow_subtraction=hag.options.allow_subtraction,
        width=hag.options.width,
    )
    drawing = arrange(part_hag.program(self_loops))
    uses = uses_of_sums(hag.program(self_loops))
    costs = list(_costs(data, hag, self_loops, progress))
    # The same picture is the same bytes.
    with rc_context({"svg.hashsalt": "hag_plugin"}):
        figure = Figure(figsize=(12, 9), layout="constrained")
        (graph, tiles), (sharing, capacity) = figure.subplots(2, 2)
        _draw_graph(graph, part, data)
        _draw_hag(tiles, drawing, part_hag, self_loops)
        _draw_uses(sharing, uses, data)
        _draw_costs(capacity, costs, hag, self_loops)
        metadata = {"Date": None} if Path(path).suffix.lower() == ".svg" else None
        with files.whole_file(path) as file:
            form = Path(path).suffix[1:].lower()
            figure.savefig(file, format=form, dpi=90, metadata=metadata)
    return {
        "output": path,
        "drawn_nodes": part.num_nodes,
        "drawn_shared_sums": len(drawing.shared),
        "shared_sums": len(uses),
        "mean_uses": float(uses.mean()) if len(uses) else 0.0,
        "cost_by_capacity": costs,
    }


# What is drawn ----------------------------------------------------------------------------------


def small_part(data: GraphData) -> GraphData:
    """The graph itself if it is small, else a part of it that shows sharing.

    Of many graphs, the one with most edges among those small and sparse enough; otherwise a node of
    the largest degree and its neighbours, as many as can be drawn.
    """
    if data.num_nodes <= MOST_DRAWN:
        return data
    if data.graph_ptr is not None:
        sizes = data.graph_ptr.diff()
        graph = torch.searchsorted(data.graph_ptr, data.edge_index[1], right=True) - 1
        edges = torch.bincount(graph, minlength=data.num_graphs)
        edges[(sizes > MOST_DRAWN) | (edges > DENSEST * sizes * (sizes - 1))] = 0
        best = int(edges.argmax())
        if edges[best] > 0:
            nodes = torch.arange(int(data.graph_ptr[best]), int(data.graph_ptr[best + 1]))
            return _induced(data, nodes, f"graph {best} of {data.name}")
    degree = torch.bincount(data.edge_index[1], minlength=data.num_nodes)
    centre = int(degree.argmax())
    near = torch.unique(data.edge_index[0, data.edge_index[1] == centre])
    near = near[near != centre][: MOST_DRAWN - 1]
    nodes = torch.cat([torch.tensor([centre]), near]).sort().values
    return _induced(data, nodes, f"node {centre} of {data.name} and {len(near)} of its neighbours")


def _induced(data: GraphData, nodes: Tensor, name: str) -> GraphData:
    new_id = torch.full((data.num_nodes,), -1)
    new_id[nodes] = torch.arange(len(nodes))
    edges = new_id[data.edge_index]
    edges = edges[:, (edges >= 0).all(0)]
    return GraphData(name, data.source, edges, len(nodes))


def arrange(program: Program) -> Drawing:
    """Places sources below, shared sums in levels above what they sum, targets on top.

    Example:
        >>> from hag_plugin.hag.build import build_hag
        >>> edges = torch.tensor([[0, 1, 0, 1], [2, 2, 3, 3]])
        >>> len(arrange(build_hag(edges, method="greedy", capacity=1).program()).shared)
        1
    """
    op_ptr, source = program.op_ptr.tolist(), program.source.tolist()
    target, tile_ptr = program.target.tolist(), program.tile_ptr.tolist()
    level: dict[Node, int] = {("x", row): 0 for row in range(program.num_src)}
    arrows: list[tuple[Node, Node]] = []
    for tile in range(len(tile_ptr) - 1):
        scratch: dict[int, Node] = {}
        for op in range(tile_ptr[tile], tile_ptr[tile + 1]):
            rows = source[op_ptr[op] : op_ptr[op + 1]]
            sources = [("x", row) if row >= 0 else scratch[~row] for row in rows]
            node: Node = ("y", target[op]) if target[op] >= 0 else ("shared", op)
            if target[op] < 0:
                scratch[~target[op]] = node
                level[node] = 1 + max(level[s] for s in sources)
            arrows += [(s, node) for s in sources]
    top = 1 + max(level.values(), default=0)
    level |= {("y", row): top for row in range(program.num_dst)}
    return Drawing(_across(level, arrows), arrows)


def _across(level: dict[Node, int], arrows: list[tuple[Node, Node]]) -> dict[Node, Point]:
    """Spreads the nodes of a level, each near the middle of what it is summed from."""
    sources: dict[Node, list[Node]] = {}
    for start, end in arrows:
        sources.setdefault(end, []).append(start)
    position: dict[Node, Point] = {}
    for height in sorted(set(level.values())):
        here = [node for node in level if level[node] == height]
        if here[0][0] == "shared":
            here.sort(key=lambda n: float(np.mean([position[s][0] for s in sources[n]])))
        for place, node in enumerate(here):
            position[node] = ((place + 0.5) / len(here), float(height))
    return position


def uses_of_sums(program: Program) -> np.ndarray:
    """How many ops read each shared sum: int64 `[intermediates]`."""
    op_ptr = program.op_ptr.cpu().numpy()
    tile_of_op = np.repeat(
        np.arange(len(program.tile_ptr) - 1), np.diff(program.tile_ptr.cpu().numpy())
    )
    tile_of_source = np.repeat(tile_of_op, np.diff(op_ptr))
    source, target = program.source.cpu().numpy(), program.target.cpu().numpy()
    made = np.stack([tile_of_op[target < 0], ~target[target < 0]])
    read = np.stack([tile_of_source[source < 0], ~source[source < 0]])
    width = int(max(made[1].max(initial=0), read[1].max(initial=0))) + 1
    counts = np.bincount(read[0] * width + read[1], minlength=len(program.tile_ptr) * width)
    uses: np.ndarray = counts[made[0] * width + made[1]]
    return uses


def _costs(
    data: GraphData, hag: HAG, self_loops: SelfLoops, progress: Callable[[float], None] | None
) -> Iterator[dict[str, float]]:
    """What the paper's greedy search comes to with more and more intermediates."""
    if data.num_edges > MOST_SEARCHED:
        return
    found = -1
    for number, share in enumerate(CAPACITIES):
        capacity = int(share * data.num_nodes)
        options = replace(hag.options, method="greedy", capacity=capacity)
        stats = HAG(hag.row_ptr, hag.col, hag.num_src, options=options).stats(self_loops)
        if progress is not None:
            progress((number + 1) / len(CAPACITIES))
        if stats.intermediates == found:
            return  # there is nothing more to share
        found = stats.intermediates
        seconds = stats.predicted_seconds
        yield {"intermediates": found, "seconds": seconds}


# Panels -----------------------------------------------------------------------------------------


def _draw_graph(axes: Any, part: GraphData, data: GraphData) -> None:
    angle = 2 * np.pi * np.arange(part.num_nodes) / max(part.num_nodes, 1) + np.pi / 2
    points = np.stack([np.cos(angle), np.sin(angle)], 1)
    for source, target in part.edge_index.t().tolist():
        axes.plot(*points[[source, target]].T, color=GREY, linewidth=0.8, zorder=1)
    axes.scatter(*points.T, s=220, color="white", edgecolor=INK, zorder=2)
    for node, (x, y) in enumerate(points):
        axes.text(x, y, str(node), ha="center", va="center", fontsize=8, zorder=3)
    axes.set_title(part.name if part is not data else f"{data.name}, the graph")
    axes.set_aspect("equal")
    axes.margins(0.1)
    axes.axis("off")


def _draw_hag(axes: Any, drawing: Drawing, hag: HAG, self_loops: SelfLoops) -> None:
    for start, end in drawing.arrows:
        (x0, y0), (x1, y1) = drawing.position[start], drawing.position[end]
        shared = start[0] == "shared"
        axes.plot([x0, x1], [y0, y1], color=SHARED if shared else GREY,
                  linewidth=1.2 if shared else 0.7, zorder=1)  # fmt: skip
    for node, (x, y) in drawing.position.items():
        shared = node[0] == "shared"
        axes.scatter(x, y, s=150, zorder=2, color=SHARED if shared else "white", edgecolor=INK)
        if not shared:
            axes.text(x, y, str(node[1]), ha="center", va="center", fontsize=6, zorder=3)
    stats = hag.stats(self_loops)
    levels = sorted({y for _, y in drawing.position.values()})
    names = ["sources", *(f"shared {n}" for n in range(1, len(levels) - 1)), "targets"]
    axes.set_yticks(levels, names[: len(levels)], fontsize=8)
    axes.set_xticks([])
    axes.set_frame_on(False)
    count = len(drawing.shared)
    words = f"{count} shared sum{'s' * (count != 1)}" if count else "nothing worth sharing"
    if hag.program(self_loops).diagonal:
        words += ", then minus the target's own row"
    axes.set_title(f"its HAG: {words}\nrows read {stats.rows_read_before} to {stats.rows_read}")


def _draw_uses(axes: Any, uses: np.ndarray, data: GraphData) -> None:
    if len(uses):
        ends = np.unique(np.rint(np.geomspace(1, uses.max() + 1, 30)))
        counts, *_ = axes.hist(uses, bins=ends - 0.5, color=SHARED, edgecolor="white")
        x, y = ("log" if most > 1000 else "linear" for most in (uses.max(), max(counts)))
        axes.set(xscale=x, yscale=y)
        for axis, scale in ((axes.xaxis, x), (axes.yaxis, y)):
            if scale == "linear":
                axis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="sums that read it", ylabel="shared sums")
    axes.set_title(f"how often a sum is shared: {len(uses):,} sums in {data.name}")


def _draw_costs(axes: Any, costs: list[dict[str, float]], hag: HAG, self_loops: SelfLoops) -> None:
    stats = hag.stats(self_loops)
    axes.plot([c["intermediates"] for c in costs], [1e3 * c["seconds"] for c in costs], "o-",
              color=INK, label="the paper's greedy search")  # fmt: skip
    axes.plot([stats.intermediates], [1e3 * stats.predicted_seconds], "*", markersize=14,
              color=SHARED, label=f"this HAG ({hag.method})")  # fmt: skip
    top = 1e3 * max([stats.predicted_seconds, *(c["seconds"] for c in costs)])
    axes.set(xlabel="shared sums (capacity)", ylabel="predicted ms, one aggregation")
    axes.set_ylim(0, 1.08 * top or 1.0)
    axes.set_title(f"cost against capacity, {hag.options.width} features, one thread")
    axes.legend()
