"""Layers over features that stay in a file: some targets at a time.

Neither the features nor what is made of them on the way is ever whole in memory: what a layer reads
of a block of targets is put together, and the layer is run on that. The backward pass reads each
block again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hag_plugin.limits import limits
from hag_plugin.parallel.execution.graphs.graph_parts import LocalGraph
from hag_plugin.parallel.execution.site import Site
from hag_plugin.parallel.model import functions
from hag_plugin.parallel.strategies.convolution import TRANSFORM

Run = Callable[..., Tensor]
"""A layer on some edges: of the rows that they read `[S, F]`, those of their targets `[T, F]` (the
first of a block's) and what else a call is given, `[T, ...]`."""


def walks(site: Site) -> bool:
    """Whether an operation reads features in their file a block at a time. Attention, and sums of
    transformed rows, go over them once, where they lie, and make narrower ones.
    """
    op = site.op
    reads = op.kind != "attention" and site.config.order != TRANSFORM
    return site.world.mapped and site.fixed and reads


class Walked:
    """A layer over the rows of a file and some that were fetched.

    Args:
        site: where.
        graph: its edges; sources are the rows of the file, its targets, then those that are
            fetched.
        begin: begins to fetch these.
        place: says what runs on the edges of a block.
    """

    def __init__(
        self, site: Site, graph: LocalGraph, begin: Callable[[Tensor], Callable[[], Tensor]],
        place: Callable[[LocalGraph], Run],
    ) -> None:  # fmt: skip
        self.begin = begin
        row_bytes = site.op.input_width * site.world.dtype.itemsize
        most = max(limits.walked_bytes // max(row_bytes, 1), 1)
        with torch.inference_mode(False):  # they are used in training, too
            self.blocks = [
                (targets, torch.from_numpy(rows), place(part))
                for targets, rows, part in blocks(graph, most)
            ]

    def __call__(self, x: Tensor, *given: Any) -> Tensor:
        """`[n, F]` and what else `Run` is given to `[n, ...]`."""
        fetched = self.begin(x)()

        def block(targets: slice, rows: Tensor, run: Run) -> Tensor:
            own = int((rows < len(x)).sum())  # they come first
            sources = torch.cat([x[rows[:own]], fetched[rows[own:] - len(x)]])
            return run(sources, sources[: targets.stop - targets.start], *given)

        if torch.is_grad_enabled() and any(t.requires_grad for t in functions.tensors([*given])):
            found = [
                checkpoint(block, *each, use_reentrant=False, preserve_rng_state=False)
                for each in self.blocks
            ]
            return torch.cat(found)
        out: Tensor | None = None  # as wide as the features, maybe: it is not made twice
        for each in self.blocks:
            part = block(*each)
            if out is None:
                out = part.new_empty(len(x), *part.shape[1:])
            out[each[0]] = part
        assert out is not None  # there is a block at least
        return out


def blocks(graph: LocalGraph, most: int) -> Iterator[tuple[slice, np.ndarray, LocalGraph]]:
    """Targets that follow each other, the rows that they read, and their edges, as of `into`.

    Args:
        graph: its targets.
        most: edges and targets of a block, unless one target has more edges.
    """
    count = len(graph.targets)
    ends = np.searchsorted(graph.index[1], np.arange(count + 1)) + np.arange(count + 1)
    first, last = 0, -1
    while last < count:
        fits = int(np.searchsorted(ends, ends[first] + most, side="right")) - 1
        last = min(max(fits, first + 1), count)
        rows, part = graph.into(first, last)
        yield slice(first, last), rows, part
        first = last
