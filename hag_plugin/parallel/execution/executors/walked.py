"""The first layer over features that stay in a file: some targets at a time.

Aggregated and transformed block by block, neither the features nor their sums are ever whole in
memory. The backward pass reads each block again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hag_plugin.limits import limits
from hag_plugin.parallel.execution.executors.forms import Form
from hag_plugin.parallel.execution.executors.local_aggregate import LocalAggregate
from hag_plugin.parallel.execution.executors.node_layers import Convolution
from hag_plugin.parallel.execution.graphs.graph_parts import LocalGraph


class Walked:
    """A convolution that aggregates first, over the rows of a file and some that were fetched.

    Args:
        layer: the convolution.
        form: of it, with scales and weights.
        graph: its edges; sources are the rows of the file, then those that were fetched.
        row_bytes: of a row.
    """

    def __init__(self, layer: Convolution, form: Form, graph: LocalGraph, row_bytes: int) -> None:
        self.layer = layer
        most = max(limits.walked_bytes // max(row_bytes, 1), 1)
        with torch.inference_mode(False):  # they are used in training, too
            self.blocks = [
                (targets, torch.from_numpy(rows), LocalAggregate(layer.site, form, part))
                for targets, rows, part in blocks(graph, most)
            ]

    def __call__(self, x: Tensor, fetched: Tensor) -> Tensor:
        """`[n, F]` and `[h, F]` to `[n, G]`."""
        form = self.layer.form
        values = self.layer.parameters(form.weight, form.root, form.bias)

        def block(targets: slice, rows: Tensor, aggregate: LocalAggregate) -> Tensor:
            own = int(torch.searchsorted(rows, len(x)))  # rows increase
            sources = torch.cat([x[rows[:own]], fetched[rows[own:] - len(x)]])
            out = form.product(aggregate(sources), values[form.weight])
            return out + form.product(x[targets], values[form.root]) if form.root else out

        found = [
            checkpoint(block, *each, use_reentrant=False, preserve_rng_state=False)
            for each in self.blocks
        ]
        out = torch.cat(found)
        return out + values[form.bias] if form.bias else out


def blocks(graph: LocalGraph, most: int) -> Iterator[tuple[slice, np.ndarray, LocalGraph]]:
    """Targets that follow each other, the rows that they read, increasing, and their edges.

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
