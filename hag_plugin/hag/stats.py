"""`Stats`: what a program reads, writes and sums, beside the plain graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hag_plugin import devices
from hag_plugin.devices import KINDS
from hag_plugin.hag import constants
from hag_plugin.hag.candidates import Choice
from hag_plugin.hag.cost import Work, launches_seconds, plain_launches_seconds
from hag_plugin.hag.gpu import occupancy
from hag_plugin.hag.gpu.memory import DeviceBytes
from hag_plugin.hag.gpu.schedule import depth, schedule_of
from hag_plugin.hag.graph import Graph
from hag_plugin.hag.program import Options, Program, SelfLoops
from hag_plugin.kernels import _cpu
from hag_plugin.notebook import html_table
from hag_plugin.saved import set_module


@set_module("hag_plugin")
@dataclass(frozen=True)
class Stats:
    """What a program costs for one feature row, and what the plain graph costs (`_before`).

    Attributes:
        aggregations: binary sums.
        rows_read: every source of every op, single copies and the diagonal included.
        rows_written: rows of scratch, of partial sums and of y.
        intermediates: rows of scratch.
        tiles: number of tiles.
        levels: longest chain of ops of which each waits for the one before.
        search_seconds: what the search took.
        predicted_seconds: one forward aggregation of float32 features at the width of the search,
            on one thread, by the cost model; on a GPU where the HAG is priced for one.
        choice: which program runs for float32 features of the width of the search, and why.
        bytes: of the program's arrays.
        bytes_before: of the plain graph in CSR form.
        gpu: how the launches fill a GPU, where the HAG is on one or priced for one.
        gpu_bytes: what the HAG holds there, likewise.
    """

    aggregations: int
    aggregations_before: int
    rows_read: int
    rows_read_before: int
    rows_written: int
    rows_written_before: int
    intermediates: int
    tiles: int
    levels: int
    search_seconds: float
    predicted_seconds: float
    predicted_seconds_before: float
    choice: Choice
    bytes: int
    bytes_before: int
    gpu: occupancy.Occupancy | None = None
    gpu_bytes: DeviceBytes | None = None

    def _repr_html_(self) -> str:
        rows = [("", "plain graph", "HAG", "ratio"), *rows_of_counts(self)]
        before, here = (1e3 * s for s in (self.predicted_seconds_before, self.predicted_seconds))
        rows.append(("predicted ms", f"{before:.3g}", f"{here:.3g}", f"{before / here:.2f}x"))
        below = f"Runs: {self.choice}. Searched in {self.search_seconds:.3g} s."
        return html_table(rows, below=[below])


def rows_of_counts(stats: Stats) -> list[tuple[str, str, str, str]]:
    """What is counted, of the plain graph and of the program, and how many times less it is."""
    rows = []
    for key in ("aggregations", "rows_read", "rows_written", "bytes"):
        before, here = getattr(stats, f"{key}_before"), getattr(stats, key)
        ratio = f"{before / here:.2f}x" if here else "-"
        rows.append((key.replace("_", " "), f"{before:,}", f"{here:,}", ratio))
    return rows


def program_stats(
    graph: Graph,
    options: Options,
    self_loops: SelfLoops,
    program: Program,
    choice: Choice,
    gpu_bytes: DeviceBytes | None,
) -> Stats:
    """Counts what a program reads, writes and sums, beside the plain graph."""
    arity = program.op_ptr.diff().cpu().numpy()
    degree = graph.degree(self_loops).cpu().numpy()
    partials = program.hub_ptr.diff().cpu().numpy()
    diagonal = graph.num_dst if program.diagonal else 0
    rows_read = int(arity.sum() + partials.sum()) + diagonal
    rows_written = len(arity) + len(partials)
    aggregations = int(np.maximum(arity - 1, 0).sum() + np.maximum(partials - 1, 0).sum())
    seconds, seconds_before = _predicted_seconds(graph, options, self_loops, program)
    return Stats(
        aggregations=aggregations + diagonal,
        aggregations_before=int(np.maximum(degree - 1, 0).sum()),
        rows_read=rows_read,
        rows_read_before=int(degree.sum()),
        rows_written=rows_written,
        rows_written_before=graph.num_dst,
        intermediates=int((program.target < 0).sum()),
        tiles=program.tile_ptr.shape[0] - 1,
        levels=depth(program),
        search_seconds=program.search_seconds,
        predicted_seconds=seconds,
        predicted_seconds_before=seconds_before,
        choice=choice,
        bytes=program.nbytes,
        bytes_before=8 * (graph.num_dst + 1) + 4 * int(degree.sum()),
        gpu=_occupancy(graph, options, program),
        gpu_bytes=gpu_bytes,
    )


def _predicted_seconds(
    graph: Graph, options: Options, self_loops: SelfLoops, program: Program
) -> tuple[float, float]:
    """Of a program and of the plain graph, on the device that it is priced for."""
    width = options.width
    if KINDS[options.device].launches is not None:
        plain = plain_launches_seconds(graph, options, self_loops)
        return launches_seconds(program, options), plain
    work = Work.of(program)
    before = work if options.method == "none" else _plain_work(graph, self_loops)
    c = constants.in_force()
    taken, plain = (each.seconds(4 * width, constants=c) for each in (work, before))
    return float(taken), float(plain)


def _plain_work(graph: Graph, self_loops: SelfLoops) -> Work:
    matrix = (*graph.numpy(), graph.num_src)
    arrays = _cpu.plain_program(*matrix, self_loops or "", False)
    return Work.of(Program.of(map(torch.from_numpy, arrays), graph.num_src, graph.num_dst))


def _occupancy(graph: Graph, options: Options, program: Program) -> occupancy.Occupancy | None:
    """Of the card that the graph is on, or of the usual one where it is priced for one."""
    module = devices.module_of(devices.kind_of(graph.device))
    if module is not None:
        card = module.get_device_properties(graph.device)
        count = card.multi_processor_count
        return occupancy.occupancy(schedule_of(program), options.width, count)
    if KINDS[options.device].launches is not None:
        return occupancy.occupancy(schedule_of(program), options.width)
    return None
